//! Pages of state: a bounded pool for every state group, and lists of pages whose lifetime frees them.
//!
//! A page is writable only through the one list that holds it; lists share pages only when these are full of computed
//! positions, and full pages are never written again. A sliding window gives up the pages that it no longer sees. Recurrent state has its
//! own lists: see `states.rs`.

use std::sync::Arc;

use unicorn_core::{PageId, StateLayout, StateSpec};

use crate::KvFull;
use crate::pages::{Page, PagePool, Whereabouts};
use crate::placement::Phase;
use crate::states::{StateList, boundaries};

/// The pages of one sequence in one state group, in order of position.
#[derive(Debug)]
pub struct PageList {
    pool: PagePool,
    /// Pages at the front that were given up.
    dropped: usize,
    pages: Vec<Arc<Page>>,
}

impl PageList {
    /// A list without pages.
    pub fn new(pool: &PagePool) -> PageList {
        PageList { pool: pool.clone(), dropped: 0, pages: Vec::new() }
    }

    /// Number of pages held.
    #[cfg(test)]
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
        let stand_in = self.pages.first().map_or(0, |p| p.id());
        let dropped = std::iter::repeat_n(stand_in, self.dropped);
        dropped.chain(self.pages.iter().map(|p| p.id())).take(pages).collect()
    }

    /// Indices of the pages held.
    pub fn ids(&self) -> impl Iterator<Item = PageId> + '_ {
        self.pages.iter().map(|p| p.id())
    }

    /// Pages that are missing until `tokens` positions fit.
    pub fn missing(&self, tokens: usize) -> usize {
        self.pool.pages_for(tokens).saturating_sub(self.dropped + self.pages.len())
    }

    /// Takes pages from the pool until `tokens` positions fit: all that are missing, or none and an error.
    pub fn grow(&mut self, tokens: usize) -> Result<(), KvFull> {
        self.pages.extend(self.pool.take(self.missing(tokens))?);
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
            StateSpec::Recurrent { .. } if pool.pages() > 0 => usize::MAX,
            StateSpec::Recurrent { .. } => 0,
        };
        self.groups.iter().map(tokens).min().unwrap_or(usize::MAX)
    }

    /// Pages that a sequence of any length holds at most.
    fn held_max(&self, spec: StateSpec) -> usize {
        window_pages(spec, self.page_tokens, self.ahead).unwrap_or(usize::MAX)
    }

    /// True when a new sequence of `next` tokens, which holds the pages `shared` of each group from the start, fits beside the pages `held` of
    /// each group, and beside all that `running` sequences hold and will need to compute the tokens they have.
    pub fn fits<'a>(
        &self,
        next: usize,
        shared: &[Vec<PageId>],
        held: &[Vec<PageId>],
        running: impl Iterator<Item = (&'a StatePages, usize)> + Clone,
    ) -> bool {
        (0..self.groups.len()).all(|g| {
            let (spec, pool) = &self.groups[g];
            // A recurrent state that others know of is never written over: a sequence begins with one and ends in another.
            let needed = |tokens: usize| match spec.is_recurrent() {
                true => 2,
                false => pool.pages_for(tokens).min(self.held_max(*spec)),
            };
            let shared = shared.get(g).map_or(&[][..], |shared| shared);
            let others = held.get(g).map_or(&[][..], |held| held);
            let known = shared.iter().chain(others).copied();
            let held: std::collections::HashSet<PageId> =
                running.clone().flat_map(|(s, _)| s.groups[g].ids()).chain(known).collect();
            let promised =
                running.clone().map(|(s, tokens)| needed(tokens).saturating_sub(s.groups[g].ids().len()));
            let more = needed(next).saturating_sub(shared.len());
            more + promised.sum::<usize>() + held.len() <= pool.pages()
        })
    }

    /// Leaves only so many of the pages for recurrent state.
    #[cfg(test)]
    pub fn shrink_states(&mut self, pages: usize) {
        let states = self.groups.iter_mut().filter(|(spec, _)| spec.is_recurrent());
        states.for_each(|(_, pool)| *pool = PagePool::new(pages.min(pool.pages()), self.page_tokens));
    }

    /// Takes so many pages of a group, or none and an error.
    pub fn take(&self, group: usize, count: usize) -> Result<Vec<Arc<Page>>, KvFull> {
        self.groups[group].1.take(count)
    }

    /// Free pages of a group.
    pub fn free(&self, group: usize) -> usize {
        self.groups[group].1.free()
    }

    /// What each group keeps.
    pub fn specs(&self) -> impl Iterator<Item = StateSpec> + '_ {
        self.groups.iter().map(|g| g.0)
    }

    /// State with which a sequence can go on at `position`: in each group the pages that [`needed`] tells, which `piece` gives by group and
    /// number. `held` as in [`StatePages`]; `on` are the phases whose devices have recurrent states. `None` where a page is missing.
    pub fn assemble(
        &self,
        position: usize,
        held: [usize; 2],
        on: [bool; 2],
        piece: impl Fn(usize, usize) -> Option<Arc<Page>>,
    ) -> Option<StatePages> {
        let group = |(g, (spec, pool)): (usize, &(StateSpec, PagePool))| {
            let range = needed(*spec, position, self.page_tokens);
            let dropped = range.start;
            let mut pages = range.map(|i| piece(g, i)).collect::<Option<Vec<_>>>()?;
            Some(match spec.is_recurrent() {
                true => GroupPages::States(StateList::of(pool.clone(), position, pages.pop(), on)),
                false => {
                    let list = PageList { pool: pool.clone(), dropped, pages };
                    GroupPages::Positions { spec: *spec, list }
                }
            })
        };
        let groups = self.groups.iter().enumerate().map(group).collect::<Option<Vec<_>>>()?;
        Some(StatePages { groups, page_tokens: self.page_tokens, held, landed: held })
    }

    /// State without pages.
    pub fn empty(&self) -> StatePages {
        let empty = |(spec, pool): &(StateSpec, PagePool)| match spec.is_recurrent() {
            true => GroupPages::States(StateList::new(pool.clone())),
            false => GroupPages::Positions { spec: *spec, list: PageList::new(pool) },
        };
        StatePages {
            groups: self.groups.iter().map(empty).collect(),
            page_tokens: self.page_tokens,
            held: [0; 2],
            landed: [0; 2],
        }
    }
}

/// The pages of a group, by number, without which a sequence cannot go on at `position`: the one answer to where it can.
pub(crate) fn needed(spec: StateSpec, position: usize, page_tokens: usize) -> std::ops::Range<usize> {
    let end = position.div_ceil(page_tokens);
    match spec {
        StateSpec::Paged => 0..end,
        StateSpec::Window(_) => (spec.first_seen(position) / page_tokens).min(end)..end,
        // The state after all of them, which counts as the last page's.
        StateSpec::Recurrent { .. } => end.saturating_sub(1)..end,
    }
}

/// Pages that a sequence of any length holds at most in a group, with `ahead` positions in flight; `None` where there is no bound.
pub fn window_pages(spec: StateSpec, page_tokens: usize, ahead: usize) -> Option<usize> {
    match spec {
        StateSpec::Paged | StateSpec::Recurrent { .. } => None,
        // What is seen and what is written, either cut by a page at both ends, and the page kept for stepping back.
        StateSpec::Window(window) => Some(window.saturating_add(ahead).div_ceil(page_tokens) + 2),
    }
}

/// The pages of one sequence in one group.
#[derive(Debug)]
enum GroupPages {
    /// Of positions, with what the group keeps of them.
    Positions { spec: StateSpec, list: PageList },
    /// Of recurrent states.
    States(StateList),
}

impl GroupPages {
    fn ids(&self) -> Vec<PageId> {
        match self {
            GroupPages::Positions { list, .. } => list.ids().collect(),
            GroupPages::States(states) => states.ids().collect(),
        }
    }

    /// The latest position up to `position` from which a sequence can go on.
    fn restart(&self, position: usize) -> usize {
        match self {
            GroupPages::Positions { spec, list } => {
                let sees = list.first() <= spec.first_seen(position) && list.capacity() >= position;
                if sees { position } else { 0 }
            }
            GroupPages::States(states) => states.restart(position),
        }
    }
}

/// The state of one sequence: its pages in every group. A page number names a page on every device that holds mixers of the group; on
/// which of them the content lies is kept for each phase.
#[derive(Debug)]
pub(crate) struct StatePages {
    groups: Vec<GroupPages>,
    page_tokens: usize,
    /// Positions from the first on whose pages lie on the devices where prefill runs, and on those where decode runs, once what is in flight
    /// has ended.
    held: [usize; 2],
    /// The same of what has ended: what others may be told of.
    landed: [usize; 2],
}

impl StatePages {
    /// True when no page is held.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|g| g.ids().is_empty())
    }

    /// Pages held in each group.
    #[cfg(test)]
    pub fn held(&self) -> Vec<usize> {
        self.groups.iter().map(|g| g.ids().len()).collect()
    }

    fn states(&self) -> impl Iterator<Item = &StateList> {
        self.groups.iter().filter_map(|g| match g {
            GroupPages::States(states) => Some(states),
            GroupPages::Positions { .. } => None,
        })
    }

    /// The page tables of a slice of the positions `start .. end`, one for each group.
    pub fn tables(&self, start: usize, end: usize) -> Vec<Vec<PageId>> {
        let table = |g: &GroupPages| match g {
            GroupPages::Positions { list, .. } => list.table(end),
            GroupPages::States(states) => states.table(start, end),
        };
        self.groups.iter().map(table).collect()
    }

    /// The positions within a slice after which recurrent state is kept.
    pub fn snapshots(&self, start: usize, end: usize) -> Vec<u32> {
        let first = self.states().next();
        first.map_or(Vec::new(), |states| states.between(start, end).map(|p| p as u32).collect())
    }

    /// Takes the pages for a slice of the positions `start .. end` and so many drafts behind it, in every group: all that are missing, or
    /// none and an error. A slice that was planned before from `start` on and not launched is forgotten.
    pub fn grow(&mut self, start: usize, end: usize, drafts: usize) -> Result<(), KvFull> {
        self.forget_from(start);
        for group in &self.groups {
            let (asked, pool) = match group {
                GroupPages::Positions { list, .. } => (list.missing(end + drafts), &list.pool),
                // Which drafts are right is known afterwards, and the state after those is then needed.
                GroupPages::States(states) => (states.missing(start, 1 + drafts), states.pool()),
            };
            let free = pool.free();
            if asked > free {
                return Err(KvFull { asked, free, pages: pool.pages() });
            }
        }
        let mut positions = boundaries(start, end, self.page_tokens);
        if !self.states().all(|states| states.has_spare(positions.len() + 1 + drafts)) {
            positions.clear();
        }
        positions.extend(end..=end + drafts);
        self.groups.iter_mut().try_for_each(|group| match group {
            GroupPages::Positions { list, .. } => list.grow(end + drafts),
            GroupPages::States(states) => states.push(&positions),
        })
    }

    /// Forgets a slice that was planned from `start` on and not launched, as far as it would be in the way of another.
    pub fn forget_from(&mut self, start: usize) {
        for group in &mut self.groups {
            if let GroupPages::States(states) = group {
                states.truncate(start);
            }
        }
    }

    /// The first group that has too few free pages for a slice, as [`StatePages::grow`] takes it, with nothing planned from `start` on.
    pub fn lacking(&self, start: usize, end: usize, drafts: usize) -> Option<usize> {
        self.groups.iter().position(|group| match group {
            GroupPages::Positions { list, .. } => list.missing(end + drafts) > list.pool.free(),
            // What is planned from there on begins with the latest state.
            GroupPages::States(states) => states.missing(start, 1 + drafts) > states.pool().free(),
        })
    }

    /// Gives up what a group keeps of recurrent states for going back where something fails. False where there is nothing of that.
    pub fn drop_snapshots(&mut self, group: usize) -> bool {
        match self.groups.get_mut(group) {
            Some(GroupPages::States(states)) => states.drop_snapshots(),
            Some(GroupPages::Positions { .. }) | None => false,
        }
    }

    /// The first group of recurrent state with too few free pages for snapshots in a slice.
    pub fn lacking_snapshots(&self, start: usize, end: usize, drafts: usize) -> Option<usize> {
        let wanted = boundaries(start, end, self.page_tokens).len();
        let lacks = |group: &GroupPages| match group {
            GroupPages::Positions { .. } => false,
            GroupPages::States(states) => wanted > 0 && !states.has_spare(wanted + 1 + drafts),
        };
        self.groups.iter().position(lacks)
    }

    /// The page of a group with this number, whose content reaches to position `end`, if it is held.
    pub fn piece(&self, group: usize, number: usize, end: usize) -> Option<Arc<Page>> {
        match self.groups.get(group)? {
            GroupPages::Positions { list, .. } => list.pages.get(number.checked_sub(list.dropped)?).cloned(),
            GroupPages::States(states) => states.page(end),
        }
    }

    /// Positions from the first on whose pages lie on the devices of a phase.
    pub fn reach(&self, phase: Phase) -> usize {
        self.landed[phase as usize]
    }

    /// Whether the recurrent states after `end` positions lie on the devices of each phase.
    pub fn states_on(&self, end: usize) -> [bool; 2] {
        let on = |phase| self.reach(phase) >= end && self.states().all(|states| states.is_on(phase, end));
        [Phase::Prefill, Phase::Decode].map(on)
    }

    /// Gives up what no token from `position` on sees, but for one page more and some recurrent states, so that a sequence can step back.
    pub fn slide(&mut self, position: usize) {
        for group in &mut self.groups {
            match group {
                GroupPages::Positions { spec, list } => {
                    let first = spec.first_seen(position).saturating_sub(list.pool.page_tokens());
                    list.give_up_before(first);
                }
                GroupPages::States(states) => states.slide(position),
            }
        }
    }

    /// The latest position up to `position` from which the sequence can go on: everything that a token there sees before it is held. 0 where
    /// a window no longer reaches back that far.
    pub fn restart(&self, position: usize) -> usize {
        let mut position = position;
        loop {
            let all = self.groups.iter().map(|g| g.restart(position)).min().unwrap_or(position);
            if all == position {
                return position;
            }
            position = all;
        }
    }

    /// Gives up what lies beyond the first `tokens` positions; more where the sequence can go on only from an earlier one. Returns the
    /// positions that are left. Nothing of it is in flight.
    pub fn truncate(&mut self, tokens: usize) -> usize {
        let tokens = self.restart(tokens);
        for group in &mut self.groups {
            match group {
                GroupPages::Positions { list, .. } => list.truncate(tokens),
                GroupPages::States(states) => {
                    states.truncate(tokens);
                    states.recall();
                }
            }
        }
        self.forget(tokens);
        self.held = self.landed;
        tokens
    }

    /// What is held of the positions before `start` and the devices of this phase do not have: its pages in each group. They lie on those of
    /// the other phase. Windows bring the page that is kept for stepping back too.
    pub fn elsewhere(&self, phase: Phase, start: usize) -> Vec<Vec<Arc<Page>>> {
        let held = self.held[phase as usize];
        let pages = |group: &GroupPages| {
            let list = match group {
                GroupPages::Positions { list, .. } => list,
                GroupPages::States(states) => return states.elsewhere(phase, start),
            };
            let tokens = list.pool.page_tokens();
            let first = held.max(list.first()) / tokens;
            let end = if held < start { start.div_ceil(tokens) } else { 0 };
            let pages = (first..end).filter_map(|page| list.pages.get(page.checked_sub(list.dropped)?));
            pages.cloned().collect()
        };
        self.groups.iter().map(pages).collect()
    }

    /// The devices of this phase have, or will have once what is in flight has ended well, the state of all positions before `end`: a slice
    /// that begins at `start` was the last.
    pub fn written(&mut self, phase: Phase, start: usize, end: usize) {
        self.held[phase as usize] = end;
        for group in &mut self.groups {
            match group {
                GroupPages::Positions { list, .. } => {
                    let first = (start / self.page_tokens).saturating_sub(list.dropped);
                    list.pages.iter().skip(first).for_each(|page| page.displace());
                }
                GroupPages::States(states) => states.written(phase, start),
            }
        }
    }

    /// The slice of the positions `start .. end` has landed well on the devices of this phase, and so has all that was brought for it. True
    /// where they have whole pages more than before.
    pub fn arrived(&mut self, phase: Phase, start: usize, end: usize) -> bool {
        for group in &mut self.groups {
            match group {
                GroupPages::Positions { list, .. } => {
                    let full = (end / self.page_tokens).saturating_sub(list.dropped);
                    let first = (start / self.page_tokens).saturating_sub(list.dropped);
                    let whole = list.pages.iter().take(full).skip(first);
                    whole.for_each(|page| page.place(phase, Whereabouts::Here));
                }
                GroupPages::States(states) => states.arrived(phase, start, end),
            }
        }
        let before = std::mem::replace(&mut self.landed[phase as usize], end);
        before / self.page_tokens < end / self.page_tokens
    }

    /// Nothing lies anywhere from `end` on.
    fn forget(&mut self, end: usize) {
        self.held = self.held.map(|held| held.min(end));
        self.landed = self.landed.map(|landed| landed.min(end));
    }

    /// What was written at and behind `end` counts as never written; its pages stay.
    pub fn rewind(&mut self, end: usize) {
        self.forget(end);
        for group in &mut self.groups {
            if let GroupPages::States(states) = group {
                states.truncate(end);
            }
        }
    }

    /// Positions up to which every group has pages.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        let capacity = |g: &GroupPages| match g {
            GroupPages::Positions { list, .. } => Some(list.capacity()),
            GroupPages::States(_) => None,
        };
        self.groups.iter().filter_map(capacity).min().unwrap_or(usize::MAX)
    }

    /// True when writing positions from `start` on touches only pages that no other sequence holds.
    pub fn writable_from(&self, start: usize) -> bool {
        self.groups.iter().all(|g| match g {
            GroupPages::Positions { list, .. } => list.writable_from(start),
            GroupPages::States(states) => states.writable_from(start),
        })
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
        let mut a = PageList::new(&pool);
        a.grow(33).unwrap();
        let mut b = PageList::new(&pool);
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
            let mut lists: Vec<PageList> = (0..6).map(|_| PageList::new(&pool)).collect();
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
                    Op::Drop(l) => lists[l] = PageList::new(&pool),
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
    fn a_sequence_goes_on_where_all_groups_can() {
        let groups = [(StateSpec::Paged, 20), (StateSpec::Recurrent { floats: 8 }, 6)];
        let groups = groups.map(|(spec, pages)| unicorn_core::StateGroup { spec, pages }).to_vec();
        let ty = unicorn_core::KvType::F16;
        let pools = StatePools::new(&StateLayout { page_tokens: 32, positions: 999, ty, groups }, 64);
        let mut state = pools.empty();
        state.grow(0, 100, 0).unwrap();
        // Snapshots at the ends of pages, and the state at the end.
        assert_eq!((state.snapshots(0, 100), state.held()), (vec![32, 64, 96], vec![4, 4]));
        assert_eq!(state.tables(0, 100)[1].len(), 5);
        state.slide(100);
        assert_eq!([100, 99, 96, 40, 31].map(|p| state.restart(p)), [100, 96, 96, 32, 0]);
        // Too many drafts for the pages take none in either group; fewer are answered by a state after each.
        assert!(matches!(state.grow(100, 101, 2), Err(KvFull { asked: 3, free: 2, pages: 6 })));
        state.grow(100, 101, 1).unwrap();
        assert_eq!(state.snapshots(100, 102), [101]);
        state.rewind(101);
        state.slide(101);
        assert_eq!((state.restart(101), state.restart(100)), (101, 96));
        // Another begins alike.
        let piece = |g, i| state.piece(g, i, 32 * (i + 1));
        let second = pools.assemble(64, [64; 2], [true; 2], piece).unwrap();
        assert_eq!((second.held(), second.restart(64)), (vec![2, 1], 64));
        assert_eq!(state.truncate(80), 64);
        drop((state, second));
        assert_eq!(pools.pages(), (26, 26));
    }

    #[test]
    fn a_window_gives_up_what_it_no_longer_sees() {
        let groups = [StateSpec::Paged, StateSpec::Window(40)];
        let groups = groups.map(|spec| unicorn_core::StateGroup { spec, pages: 9 }).to_vec();
        let ty = unicorn_core::KvType::F16;
        let pools = StatePools::new(&StateLayout { page_tokens: 32, positions: 999, ty, groups }, 64);
        let mut state = pools.empty();
        for end in (1..=280usize).step_by(31) {
            state.grow(end.saturating_sub(31), end, 0).unwrap();
            state.slide(end);
            assert!(state.restart(end) == end && state.held()[1] <= 4, "{end}: {:?}", state.held());
        }
        // Position 280 sees 241 on; the page before is kept as well.
        assert_eq!(state.held(), [9, 3]);
        let tables = state.tables(279, 280);
        assert_eq!((tables[0].len(), tables[1].len()), (9, 9));
        assert!(tables[1][..6].iter().all(|p| *p == tables[1][6]));
        // Stepping back works as far as the window's pages reach, else everything is given up.
        assert_eq!((state.restart(250), state.restart(200)), (250, 0));
        assert_eq!(state.truncate(250), 250);
        assert_eq!(state.held(), [8, 2]);
        assert_eq!(state.truncate(200), 0);
        assert!(state.is_empty());
        assert_eq!(pools.pages(), (18, 18));
    }
}
