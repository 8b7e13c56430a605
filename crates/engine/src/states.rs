//! Recurrent states of one sequence: what they are after some of its positions, a page each.
//!
//! Such a state cannot be taken back by a position. So a slice leaves a new page for what it ends in where there is one, and states are kept
//! where a sequence may have to begin anew: after each draft until it is known which are right, and at ends of pages, where prompts that
//! begin alike part. Where pages are short, a state is updated in place; who has to go back then begins at an earlier one.

use std::sync::Arc;

use unicorn_core::PageId;

use crate::KvFull;
use crate::pages::{Page, PagePool, Whereabouts};
use crate::placement::Phase;

/// States at ends of pages that a sequence keeps for going back and for others that begin alike.
pub(crate) const SNAPSHOTS_MAX: usize = 8;

/// The state after the first `position` positions.
#[derive(Clone, Debug)]
struct State {
    position: usize,
    page: Arc<Page>,
    /// Whether it lies on the devices where prefill runs, and on those where decode runs, or will once what is in flight has ended well.
    on: [bool; 2],
    /// Whether it does by now.
    there: [bool; 2],
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct StateList {
    pool: PagePool,
    /// Ascending. Two neighbours with one page: the second is written over the first.
    states: Vec<State>,
    /// Positions that are computed: what is in flight begins there or behind.
    landed: usize,
}

/// Ends of pages within `start .. end`, so many at most, evenly spread and the last among them.
pub(crate) fn boundaries(start: usize, end: usize, page_tokens: usize) -> Vec<usize> {
    let (first, last) = (start / page_tokens + 1, end.div_ceil(page_tokens));
    let count = last.saturating_sub(first);
    let taken = count.min(SNAPSHOTS_MAX);
    (1..=taken).map(|i| (first + i * count / taken - 1) * page_tokens).collect()
}

impl StateList {
    pub fn new(pool: PagePool) -> StateList {
        StateList { pool, states: Vec::new(), landed: 0 }
    }

    /// With the state after `position` positions, if there are any; it is on the devices of these phases.
    pub fn of(pool: PagePool, position: usize, page: Option<Arc<Page>>, on: [bool; 2]) -> StateList {
        let states = page.map(|page| State { position, page, on, there: on }).into_iter().collect();
        StateList { pool, states, landed: position }
    }

    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// The pages, each once.
    pub fn ids(&self) -> impl Iterator<Item = PageId> + '_ {
        let alone = |i: usize| !self.is_void(i);
        (0..self.states.len()).filter(move |i| alone(*i)).map(|i| self.states[i].page.id())
    }

    /// True for a state that the next one is written over.
    fn is_void(&self, at: usize) -> bool {
        let next = self.states.get(at + 1);
        next.is_some_and(|next| Arc::ptr_eq(&next.page, &self.states[at].page))
    }

    /// The latest position up to `position` after which there is a state; 0 where there is none.
    pub fn restart(&self, position: usize) -> usize {
        let found =
            (0..self.states.len()).rev().find(|i| self.states[*i].position <= position && !self.is_void(*i));
        found.map_or(0, |i| self.states[i].position)
    }

    /// Forgets the states behind `position`.
    pub fn truncate(&mut self, position: usize) {
        self.states.retain(|s| s.position <= position);
        self.landed = self.landed.min(position);
    }

    /// True when no other list holds this page.
    fn is_own(&self, page: &Arc<Page>) -> bool {
        Arc::strong_count(page) == self.states.iter().filter(|s| Arc::ptr_eq(&s.page, page)).count()
    }

    /// Pages that must be had for `states` behind `start`, where nothing is planned yet: none where one alone can take the place of the state
    /// at `start`.
    pub fn missing(&self, start: usize, states: usize) -> usize {
        let own = |s: &State| s.position == start && self.is_own(&s.page);
        let in_place = states == 1 && self.states.last().is_some_and(own);
        if in_place { 0 } else { states }
    }

    /// True when `more` pages can be had and a part of the pool is left for what needs them.
    pub fn has_spare(&self, more: usize) -> bool {
        self.pool.free() >= more + self.pool.pages() / 4
    }

    /// Adds states after these positions, ascending behind all there are. Where no page is free, one alone takes the place of the last.
    ///
    /// Errors where that cannot be, with nothing changed.
    pub fn push(&mut self, positions: &[usize]) -> Result<(), KvFull> {
        let pages = match (self.pool.take(positions.len()), self.states.last()) {
            (Ok(pages), _) => pages,
            (Err(_), Some(last)) if positions.len() == 1 && self.is_own(&last.page) => {
                vec![last.page.clone()]
            }
            (Err(full), _) => return Err(full),
        };
        let none = [false; 2];
        let state = |(page, position): (Arc<Page>, &usize)| State {
            position: *position,
            page,
            on: none,
            there: none,
        };
        self.states.extend(pages.into_iter().zip(positions).map(state));
        Ok(())
    }

    /// The pages of a slice: of the state at `start`, and of those behind it up to `end`. At position 0 the last stands in for the first.
    /// Too few where the state at `start` is gone.
    pub fn table(&self, start: usize, end: usize) -> Vec<PageId> {
        let at = |position| self.states.iter().find(|s| s.position == position).map(|s| s.page.id());
        let before = if start == 0 { at(end) } else { at(start) };
        let after = self.states.iter().filter(|s| s.position > start && s.position <= end);
        before.into_iter().chain(after.map(|s| s.page.id())).collect()
    }

    /// Positions of the states between `start` and `end`.
    pub fn between(&self, start: usize, end: usize) -> impl Iterator<Item = usize> + '_ {
        self.states.iter().map(|s| s.position).filter(move |p| *p > start && *p < end)
    }

    /// Gives up what a sequence with `position` positions computed has no use for.
    pub fn slide(&mut self, position: usize) {
        self.landed = position;
        let (latest, page_tokens) = (self.restart(position), self.pool.page_tokens());
        let mut at = 0..;
        let void: Vec<bool> = (0..self.states.len()).map(|i| self.is_void(i)).collect();
        self.states.retain(|s| {
            let void = at.next().is_some_and(|i: usize| void[i]);
            s.position >= position
                || (!void && (s.position == latest || s.position.is_multiple_of(page_tokens)))
        });
        self.thin(position);
    }

    /// Gives up snapshots where there are too many: those whose neighbours are nearest to each other.
    fn thin(&mut self, position: usize) {
        loop {
            let count = self.states.iter().filter(|s| s.position < position).count();
            if count <= SNAPSHOTS_MAX {
                return;
            }
            let before = |i: usize| i.checked_sub(1).map_or(0, |i| self.states[i].position);
            // The latest stays.
            let gap = |i: &usize| self.states[i + 1].position - before(*i);
            let Some(closest) = (0..count - 1).min_by_key(gap) else { return };
            self.states.remove(closest);
        }
    }

    /// The page of the state after `position` positions, for others that begin alike.
    pub fn page(&self, position: usize) -> Option<Arc<Page>> {
        let found =
            (0..self.states.len()).find(|i| self.states[*i].position == position && !self.is_void(*i));
        found.map(|i| self.states[i].page.clone())
    }

    /// Whether the devices of a phase have the state after `position` positions.
    pub fn is_on(&self, phase: Phase, position: usize) -> bool {
        self.states.iter().any(|s| s.position == position && s.there[phase as usize])
    }

    /// Gives up the snapshots before the latest state. False where there are none.
    pub fn drop_snapshots(&mut self) -> bool {
        let (latest, before) = (self.restart(self.landed), self.states.len());
        self.states.retain(|s| s.position >= latest);
        self.states.len() < before
    }

    /// The page of the state at `start`, if the devices of this phase do not have it.
    pub fn elsewhere(&self, phase: Phase, start: usize) -> Vec<Arc<Page>> {
        let absent = |s: &&State| s.position == start && !s.on[phase as usize];
        self.states.iter().find(absent).map(|s| s.page.clone()).into_iter().collect()
    }

    /// The devices of this phase have, or will have, the state at `start`, and they alone those behind it.
    pub fn written(&mut self, phase: Phase, start: usize) {
        for state in &mut self.states {
            match state.position.cmp(&start) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => state.on[phase as usize] = true,
                std::cmp::Ordering::Greater => {
                    state.on = [Phase::Prefill, Phase::Decode].map(|p| p == phase);
                    state.there = [false; 2];
                    state.page.displace();
                }
            }
        }
    }

    /// The slice of the positions `start .. end` has landed well on the devices of this phase.
    pub fn arrived(&mut self, phase: Phase, start: usize, end: usize) {
        for state in self.states.iter_mut().filter(|s| (start..=end).contains(&s.position)) {
            state.there[phase as usize] = state.on[phase as usize];
            if state.position > start {
                state.page.place(phase, Whereabouts::Here);
            }
        }
    }

    /// What was on its way counts as not there.
    pub fn recall(&mut self) {
        self.states.iter_mut().for_each(|s| s.on = s.there);
    }

    /// True when no other list holds a state behind `start`.
    pub fn writable_from(&self, start: usize) -> bool {
        self.states.iter().filter(|s| s.position > start).all(|s| self.is_own(&s.page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(list: &StateList) -> Vec<usize> {
        list.states.iter().map(|s| s.position).collect()
    }

    #[test]
    fn snapshots_lie_at_ends_of_pages_and_are_bounded() {
        assert_eq!(boundaries(0, 32, 32), [0; 0]);
        assert_eq!(boundaries(0, 33, 32), [32]);
        assert_eq!(boundaries(32, 100, 32), [64, 96]);
        assert_eq!(boundaries(40, 50, 32), [0; 0]);
        let many = boundaries(10, 1000, 32);
        assert_eq!((many.len(), many.last()), (SNAPSHOTS_MAX, Some(&992)));
        assert!(many.is_sorted() && many.iter().all(|p| p.is_multiple_of(32)));
        let mut list = StateList::new(PagePool::new(100, 32));
        for page in 1..=40 {
            list.push(&[32 * page]).unwrap();
            list.slide(32 * page);
            assert!(list.states.len() <= SNAPSHOTS_MAX + 1);
        }
        // Spread over the whole, with the latest.
        let kept = positions(&list);
        assert!(kept[0] <= 320 && kept.ends_with(&[1280]), "{kept:?}");
        assert!(kept.windows(2).all(|w| w[1] - w[0] <= 320), "{kept:?}");
    }

    #[test]
    fn a_state_in_the_place_of_another_leaves_nothing_to_go_back_to() {
        let pool = PagePool::new(3, 32);
        let mut list = StateList::new(pool.clone());
        list.push(&[32, 40]).unwrap();
        assert_eq!(list.table(0, 40), [1, 0, 1]);
        assert_eq!(list.missing(40, 1), 0);
        list.push(&[41]).unwrap();
        // The page before is free once what came of it is there.
        list.slide(41);
        assert_eq!((positions(&list), pool.free()), (vec![32, 41], 1));
        let other = PagePool::take(&pool, 1).unwrap();
        list.push(&[42]).unwrap();
        assert_eq!(list.table(41, 42), [2, 2]);
        assert_eq!((list.restart(41), list.restart(42)), (32, 42));
        assert!(list.writable_from(32));
        // What was planned and did not come about takes nothing away.
        list.truncate(41);
        assert_eq!(list.restart(41), 41);
        // One that another list holds too is not written over.
        let second = list.page(41);
        assert_eq!(list.missing(41, 1), 1);
        assert!(list.push(&[42]).is_err());
        drop((second, other));
        list.push(&[42]).unwrap();
        assert_eq!((list.restart(41), pool.free()), (41, 0));
    }

    #[test]
    fn drafts_need_a_page_each() {
        let pool = PagePool::new(4, 32);
        let mut list = StateList::new(pool.clone());
        list.push(&[10]).unwrap();
        assert_eq!(list.missing(10, 4), 4);
        assert_eq!(list.push(&[11, 12, 13, 14]), Err(KvFull { asked: 4, free: 3, pages: 4 }));
        list.push(&[11, 12, 13]).unwrap();
        assert_eq!(list.table(10, 13).len(), 4);
        list.truncate(12);
        list.slide(12);
        assert_eq!((positions(&list), pool.free()), (vec![12], 3));
    }

    #[test]
    fn states_are_where_they_were_written_or_brought() {
        let mut list = StateList::new(PagePool::new(9, 32));
        list.push(&[32, 40]).unwrap();
        list.written(Phase::Prefill, 0);
        assert!(list.elsewhere(Phase::Prefill, 40).is_empty());
        assert_eq!(list.elsewhere(Phase::Decode, 40).len(), 1);
        list.push(&[41]).unwrap();
        list.written(Phase::Decode, 40);
        assert!(list.elsewhere(Phase::Decode, 40).is_empty() && list.elsewhere(Phase::Decode, 41).is_empty());
        assert!(list.elsewhere(Phase::Prefill, 40).is_empty());
        assert_eq!(list.elsewhere(Phase::Prefill, 41).len(), 1);
        assert!(list.elsewhere(Phase::Prefill, 0).is_empty());
    }
}
