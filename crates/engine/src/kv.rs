//! Pages of state: a bounded pool for every state group, and lists of pages whose lifetime frees them.
//!
//! A page is writable only through the one list that holds it; lists share pages only when these are full of computed
//! positions, and full pages are never written again. A sliding window gives up the pages that it no longer sees.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unicorn_core::{PageId, StateLayout, StateSpec};

use crate::KvFull;
use crate::placement::Phase;

#[derive(Debug)]
struct Shared {
    pages: usize,
    page_tokens: usize,
    free: Mutex<Vec<PageId>>,
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Vec<PageId>> {
        // The list is valid after every single push or pop, so a panic elsewhere cannot have broken it.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page in use. Dropping the last owner returns it to the pool, whatever path ended the request.
#[derive(Debug)]
pub(crate) struct Page {
    id: PageId,
    pool: Arc<Shared>,
}

impl Page {
    /// Its number in the pool.
    pub fn id(&self) -> PageId {
        self.id
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.pool.free().push(self.id);
    }
}

/// The pool of one state group, which all sequences draw from.
#[derive(Clone, Debug)]
pub struct PagePool {
    shared: Arc<Shared>,
}

impl PagePool {
    /// A pool of `pages` pages, each holding `page_tokens` positions of every mixer.
    pub fn new(pages: usize, page_tokens: usize) -> PagePool {
        let free = Mutex::new((0..pages as PageId).rev().collect());
        PagePool { shared: Arc::new(Shared { pages, page_tokens, free }) }
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.shared.pages
    }

    /// Positions per page.
    pub fn page_tokens(&self) -> usize {
        self.shared.page_tokens
    }

    /// Pages that no list holds.
    pub fn free(&self) -> usize {
        self.shared.free().len()
    }

    /// Pages needed for this many positions.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.shared.page_tokens)
    }

    /// A list without pages.
    pub fn list(&self) -> PageList {
        PageList { pool: self.clone(), dropped: 0, pages: Vec::new() }
    }
}

/// The pages of one sequence in one state group, in order of position.
#[derive(Debug)]
pub struct PageList {
    pool: PagePool,
    /// Pages at the front that were given up.
    dropped: usize,
    pages: Vec<Arc<Page>>,
}

impl PageList {
    /// Number of pages held.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Positions up to which there are pages.
    pub fn capacity(&self) -> usize {
        (self.dropped + self.pages.len()) * self.pool.page_tokens()
    }

    /// First position whose page is still held.
    pub fn first(&self) -> usize {
        self.dropped * self.pool.page_tokens()
    }

    /// The page of each of the first `tokens` positions, page by page. Where one was given up, another of the list stands in its place.
    pub fn table(&self, tokens: usize) -> Vec<PageId> {
        let pages = self.pool.pages_for(tokens);
        let stand_in = self.pages.first().map_or(0, |p| p.id);
        let dropped = std::iter::repeat_n(stand_in, self.dropped);
        dropped.chain(self.pages.iter().map(|p| p.id)).take(pages).collect()
    }

    /// Indices of the pages held.
    pub fn ids(&self) -> impl Iterator<Item = PageId> + '_ {
        self.pages.iter().map(|p| p.id)
    }

    /// Pages that are missing until `tokens` positions fit.
    pub fn missing(&self, tokens: usize) -> usize {
        self.pool.pages_for(tokens).saturating_sub(self.dropped + self.pages.len())
    }

    /// Takes pages from the pool until `tokens` positions fit: all that are missing, or none and an error.
    pub fn grow(&mut self, tokens: usize) -> Result<(), KvFull> {
        let missing = self.missing(tokens);
        let mut free = self.pool.shared.free();
        if missing > free.len() {
            return Err(KvFull { asked: missing, free: free.len(), pages: self.pool.pages() });
        }
        let kept = free.len() - missing;
        let taken = free.split_off(kept);
        drop(free);
        let page = |id| Arc::new(Page { id, pool: self.pool.shared.clone() });
        self.pages.extend(taken.into_iter().rev().map(page));
        Ok(())
    }

    /// Gives up the pages beyond the first `tokens` positions.
    pub fn truncate(&mut self, tokens: usize) {
        let pages = self.pool.pages_for(tokens);
        self.pages.truncate(pages.saturating_sub(self.dropped));
        self.dropped = self.dropped.min(pages);
    }

    /// Gives up the pages that hold only positions before `position`; the last page stays.
    pub fn give_up_before(&mut self, position: usize) {
        let first =
            (position / self.pool.page_tokens()).min((self.dropped + self.pages.len()).saturating_sub(1));
        let gone = first.saturating_sub(self.dropped);
        self.pages.drain(..gone);
        self.dropped += gone;
    }

    /// True when writing positions from `start` on touches only pages that no other list holds.
    pub fn writable_from(&self, start: usize) -> bool {
        let first = (start / self.pool.page_tokens()).saturating_sub(self.dropped);
        self.pages.iter().skip(first).all(|p| Arc::strong_count(p) == 1)
    }
}

/// The pools of all state groups of a model.
#[derive(Clone, Debug)]
pub(crate) struct StatePools {
    groups: Vec<(StateSpec, PagePool)>,
    page_tokens: usize,
    /// Positions of a sequence that may be in flight at once: pages of a window are given up behind them.
    ahead: usize,
}

impl StatePools {
    /// Pools as the devices reserve them. At most `ahead` positions of a sequence are ever in flight.
    pub fn new(layout: &StateLayout, ahead: usize) -> StatePools {
        let pool = |g: &unicorn_core::StateGroup| (g.spec, PagePool::new(g.pages, layout.page_tokens));
        StatePools {
            groups: layout.groups.iter().map(pool).collect(),
            page_tokens: layout.page_tokens,
            ahead,
        }
    }

    /// Positions per page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Free pages and all pages, summed over the groups.
    pub fn pages(&self) -> (usize, usize) {
        let add = |sum: (usize, usize), g: &(StateSpec, PagePool)| (sum.0 + g.1.free(), sum.1 + g.1.pages());
        self.groups.iter().fold((0, 0), add)
    }

    /// Tokens of the longest sequence that the pools can hold alone.
    pub fn tokens_max(&self) -> usize {
        let tokens = |(spec, pool): &(StateSpec, PagePool)| match spec {
            StateSpec::Paged => pool.pages() * self.page_tokens,
            StateSpec::Window(_) if pool.pages() >= self.held_max(*spec) => usize::MAX,
            StateSpec::Window(_) => pool.pages() * self.page_tokens,
        };
        self.groups.iter().map(tokens).min().unwrap_or(usize::MAX)
    }

    /// Pages that a sequence of any length holds at most.
    fn held_max(&self, spec: StateSpec) -> usize {
        window_pages(spec, self.page_tokens, self.ahead).unwrap_or(usize::MAX)
    }

    /// True when a new sequence of `next` tokens, which holds the pages `shared` of each group from the start, fits beside all that `running`
    /// sequences hold and will need to compute the tokens they have.
    pub fn fits<'a>(
        &self,
        next: usize,
        shared: &[Vec<PageId>],
        running: impl Iterator<Item = (&'a StatePages, usize)> + Clone,
    ) -> bool {
        (0..self.groups.len()).all(|g| {
            let (spec, pool) = &self.groups[g];
            let needed = |tokens: usize| pool.pages_for(tokens).min(self.held_max(*spec));
            let shared = shared.get(g).map_or(&[][..], |shared| shared);
            let held: std::collections::HashSet<PageId> =
                running.clone().flat_map(|(s, _)| s.lists[g].ids()).chain(shared.iter().copied()).collect();
            let promised = running.clone().map(|(s, tokens)| needed(tokens).saturating_sub(s.lists[g].len()));
            let more = needed(next).saturating_sub(shared.len());
            more + promised.sum::<usize>() + held.len() <= pool.pages()
        })
    }

    /// What each group keeps.
    pub fn specs(&self) -> impl Iterator<Item = StateSpec> + '_ {
        self.groups.iter().map(|g| g.0)
    }

    /// State with which a sequence can go on at `position`: in each group the pages that [`needed`] tells, which `piece` gives by group and
    /// number. `held` as in [`StatePages`]. `None` where a page is missing.
    pub fn assemble(
        &self,
        position: usize,
        held: [usize; 2],
        piece: impl Fn(usize, usize) -> Option<Arc<Page>>,
    ) -> Option<StatePages> {
        let list = |(g, (spec, pool)): (usize, &(StateSpec, PagePool))| {
            let range = needed(*spec, position, self.page_tokens);
            let dropped = range.start;
            let pages = range.map(|i| piece(g, i)).collect::<Option<Vec<_>>>()?;
            Some(GroupPages { spec: *spec, list: PageList { pool: pool.clone(), dropped, pages } })
        };
        let lists = self.groups.iter().enumerate().map(list).collect::<Option<Vec<_>>>()?;
        Some(StatePages { lists, held })
    }

    /// State without pages.
    pub fn empty(&self) -> StatePages {
        let lists = self.groups.iter().map(|(spec, pool)| (*spec, pool.list()));
        StatePages { lists: lists.map(GroupPages::from).collect(), held: [0; 2] }
    }
}

/// The pages of a group, by number, without which a sequence cannot go on at `position`: the one answer to where it can.
pub(crate) fn needed(spec: StateSpec, position: usize, page_tokens: usize) -> std::ops::Range<usize> {
    let end = position.div_ceil(page_tokens);
    match spec {
        StateSpec::Paged => 0..end,
        StateSpec::Window(_) => (spec.first_seen(position) / page_tokens).min(end)..end,
    }
}

/// Pages that a sequence of any length holds at most in a group, with `ahead` positions in flight; `None` where there is no bound.
pub fn window_pages(spec: StateSpec, page_tokens: usize, ahead: usize) -> Option<usize> {
    match spec {
        StateSpec::Paged => None,
        // What is seen and what is written, either cut by a page at both ends, and the page kept for stepping back.
        StateSpec::Window(window) => Some(window.saturating_add(ahead).div_ceil(page_tokens) + 2),
    }
}

/// The pages of one sequence in one group, with what the group keeps.
#[derive(Debug)]
struct GroupPages {
    spec: StateSpec,
    list: PageList,
}

impl From<(StateSpec, PageList)> for GroupPages {
    fn from((spec, list): (StateSpec, PageList)) -> GroupPages {
        GroupPages { spec, list }
    }
}

impl std::ops::Deref for GroupPages {
    type Target = PageList;

    fn deref(&self) -> &PageList {
        &self.list
    }
}

/// The state of one sequence: its pages in every group. A page number names a page on every device that holds mixers of the group; on
/// which of them the content lies is kept for each phase.
#[derive(Debug)]
pub(crate) struct StatePages {
    lists: Vec<GroupPages>,
    /// Positions from the first on whose state lies on the devices where prefill runs, and on those where decode runs.
    held: [usize; 2],
}

impl StatePages {
    /// True when no page is held.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.lists.iter().all(|l| l.len() == 0)
    }

    /// Pages held in each group.
    #[cfg(test)]
    pub fn held(&self) -> Vec<usize> {
        self.lists.iter().map(|l| l.len()).collect()
    }

    /// Page tables for the first `tokens` positions, one for each group.
    pub fn tables(&self, tokens: usize) -> Vec<Vec<PageId>> {
        self.lists.iter().map(|l| l.table(tokens)).collect()
    }

    /// Takes pages until `tokens` positions fit in every group: all that are missing, or none and an error.
    pub fn grow(&mut self, tokens: usize) -> Result<(), KvFull> {
        for l in &self.lists {
            let (asked, free) = (l.missing(tokens), l.list.pool.free());
            if asked > free {
                return Err(KvFull { asked, free, pages: l.list.pool.pages() });
            }
        }
        self.lists.iter_mut().try_for_each(|l| l.list.grow(tokens))
    }

    /// The first group that has too few free pages for `tokens` positions.
    pub fn lacking(&self, tokens: usize) -> Option<usize> {
        self.lists.iter().position(|l| l.missing(tokens) > l.list.pool.free())
    }

    /// The page of a group with this number, if it is held.
    pub fn piece(&self, group: usize, number: usize) -> Option<Arc<Page>> {
        let list = &self.lists.get(group)?.list;
        list.pages.get(number.checked_sub(list.dropped)?).cloned()
    }

    /// Positions from the first on whose state lies on the devices of a phase.
    pub fn reach(&self, phase: Phase) -> usize {
        self.held[phase as usize]
    }

    /// Gives up what no token from `position` on sees, but for one page more, so that a sequence can step back a little.
    pub fn slide(&mut self, position: usize) {
        for l in &mut self.lists {
            let first = l.spec.first_seen(position).saturating_sub(l.list.pool.page_tokens());
            l.list.give_up_before(first);
        }
    }

    /// True when everything that a token at `position` sees before it is held.
    pub fn sees(&self, position: usize) -> bool {
        self.lists.iter().all(|l| l.first() <= l.spec.first_seen(position) && l.capacity() >= position)
    }

    /// Gives up the pages beyond the first `tokens` positions; everything where a window no longer reaches back that far. Returns the
    /// positions that are left.
    pub fn truncate(&mut self, tokens: usize) -> usize {
        let tokens = if self.sees(tokens) { tokens } else { 0 };
        self.lists.iter_mut().for_each(|l| l.list.truncate(tokens));
        self.held = self.held.map(|held| held.min(tokens));
        tokens
    }

    /// What is held of the positions before `start` and the devices of this phase do not have: its pages in each group. They lie on those of
    /// the other phase. Windows bring the page that is kept for stepping back too.
    pub fn elsewhere(&self, phase: Phase, start: usize) -> Vec<Vec<PageId>> {
        let held = self.held[phase as usize];
        let pages = |l: &GroupPages| {
            let tokens = l.list.pool.page_tokens();
            let first = held.max(l.list.first()) / tokens;
            let end = if held < start { start.div_ceil(tokens) } else { 0 };
            let pages = (first..end).filter_map(|page| l.list.pages.get(page.checked_sub(l.list.dropped)?));
            pages.map(|page| page.id).collect()
        };
        self.lists.iter().map(pages).collect()
    }

    /// The devices of this phase have, or will have once what is in flight has ended, the state of all positions before `end`.
    pub fn written(&mut self, phase: Phase, end: usize) {
        self.held[phase as usize] = end;
    }

    /// What was written at and behind `end` counts as never written; its pages stay.
    pub fn rewind(&mut self, end: usize) {
        self.held = self.held.map(|held| held.min(end));
    }

    /// Positions up to which every group has pages.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.lists.iter().map(|l| l.capacity()).min().unwrap_or(0)
    }

    /// True when writing positions from `start` on touches only pages that no other sequence holds.
    pub fn writable_from(&self, start: usize) -> bool {
        self.lists.iter().all(|l| l.writable_from(start))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_pool_is_a_typed_error_and_takes_nothing() {
        let pool = PagePool::new(3, 32);
        let mut a = pool.list();
        a.grow(33).unwrap();
        let mut b = pool.list();
        assert_eq!(b.grow(64), Err(KvFull { asked: 2, free: 1, pages: 3 }));
        assert_eq!((b.len(), pool.free()), (0, 1));
        a.truncate(32);
        b.grow(64).unwrap();
        drop(a);
        drop(b);
        assert_eq!(pool.free(), 3);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Grow(usize, usize),
        Truncate(usize, usize),
        Share(usize, usize),
        Drop(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0usize..6, 0usize..300).prop_map(|(l, n)| Op::Grow(l, n)),
            1 => (0usize..6, 0usize..300).prop_map(|(l, n)| Op::Truncate(l, n)),
            1 => (0usize..6, 0usize..300).prop_map(|(l, n)| Op::Share(l, n)),
            1 => (0usize..6).prop_map(Op::Drop),
        ]
    }

    proptest! {
        #[test]
        fn pages_are_neither_leaked_nor_used_twice(ops in prop::collection::vec(op(), 0..80)) {
            let pool = PagePool::new(20, 32);
            let mut lists: Vec<PageList> = (0..6).map(|_| pool.list()).collect();
            for op in ops {
                match op {
                    Op::Grow(l, n) => {
                        let before = lists[l].len();
                        let ok = lists[l].grow(n).is_ok();
                        prop_assert_eq!(lists[l].len(), if ok { before.max(n.div_ceil(32)) } else { before });
                    }
                    Op::Truncate(l, n) => lists[l].truncate(n),
                    Op::Share(l, n) => {
                        let full = (n / 32).min(lists[l].len());
                        let pages = lists[l].pages[..full].to_vec();
                        lists[(l + 1) % 6] = PageList { pool: pool.clone(), dropped: 0, pages };
                    }
                    Op::Drop(l) => lists[l] = pool.list(),
                }
                let held: HashSet<PageId> = lists.iter().flat_map(|l| l.ids().collect::<Vec<_>>()).collect();
                prop_assert_eq!(held.len() + pool.free(), 20);
                for (i, list) in lists.iter().enumerate() {
                    let own: HashSet<PageId> = list.ids().collect();
                    prop_assert_eq!(own.len(), list.len());
                    let others = lists.iter().enumerate().filter(|(j, _)| *j != i);
                    let shared = others.flat_map(|(_, l)| l.ids()).any(|p| own.contains(&p));
                    prop_assert_eq!(list.writable_from(0), !shared);
                }
            }
            drop(lists);
            prop_assert_eq!(pool.free(), 20);
        }
    }
    #[test]
    fn a_window_gives_up_what_it_no_longer_sees() {
        let groups = [StateSpec::Paged, StateSpec::Window(40)];
        let groups = groups.map(|spec| unicorn_core::StateGroup { spec, pages: 9 }).to_vec();
        let ty = unicorn_core::KvType::F16;
        let pools = StatePools::new(&StateLayout { page_tokens: 32, positions: 999, ty, groups }, 64);
        let mut state = pools.empty();
        for end in (1..=280).step_by(31) {
            state.grow(end).unwrap();
            state.slide(end);
            assert!(state.sees(end) && state.held()[1] <= 4, "{end}: {:?}", state.held());
        }
        // Position 280 sees 241 on; the page before is kept as well.
        assert_eq!(state.held(), [9, 3]);
        let tables = state.tables(280);
        assert_eq!((tables[0].len(), tables[1].len()), (9, 9));
        assert!(tables[1][..6].iter().all(|p| *p == tables[1][6]));
        // Stepping back works as far as the window's pages reach, else everything is given up.
        assert!(state.sees(250) && !state.sees(200));
        assert_eq!(state.truncate(250), 250);
        assert_eq!(state.held(), [8, 2]);
        assert_eq!(state.truncate(200), 0);
        assert!(state.is_empty());
        assert_eq!(pools.pages(), (18, 18));
    }
}
