//! Pages on their way between devices and a store: what is under way, and who has to come behind it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use unicorn_core::{Fence, Outcome, PageId};

/// A copy of one mixer's pages.
pub(crate) struct StoreCopy {
    pub block: usize,
    pub device: usize,
    pub done: Fence,
}

/// Copies that belong together.
struct UnderWay {
    tag: u64,
    launched: Instant,
    copies: Vec<StoreCopy>,
    /// The number of pages.
    count: usize,
    /// Pages that are copied out of devices, by group.
    read: HashSet<(usize, PageId)>,
    /// Given once all of `read` are on the host, or will never be.
    left: Option<Fence>,
}

/// Copies that have ended.
pub(crate) struct Copied {
    pub tag: u64,
    /// Out of devices.
    pub saved: bool,
    pub pages: usize,
    pub launched: Instant,
    pub copies: Vec<StoreCopy>,
    pub outcome: Outcome,
}

impl Copied {
    /// How long devices were busy with it.
    pub fn busy(&self) -> Duration {
        self.copies
            .iter()
            .filter_map(|c| c.done.ran())
            .map(|ran| ran.end.saturating_duration_since(ran.start))
            .sum()
    }
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct StoreCopies {
    under_way: Vec<UnderWay>,
    started: u64,
}

impl StoreCopies {
    /// True when nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// A tag for what begins next. No batch ever has it.
    pub fn tag(&self) -> u64 {
        1 << 63 | self.started
    }

    /// Copies to a store begin, which read these pages until `left` is given.
    pub fn save(
        &mut self,
        pages: impl Iterator<Item = (usize, PageId)>,
        left: Fence,
        copies: Vec<StoreCopy>,
    ) {
        let read: HashSet<_> = pages.collect();
        self.begin(read.len(), read, Some(left), copies);
    }

    /// Copies of so many pages from a store begin.
    pub fn restore(&mut self, pages: usize, copies: Vec<StoreCopy>) {
        self.begin(pages, HashSet::new(), None, copies);
    }

    fn begin(
        &mut self,
        count: usize,
        read: HashSet<(usize, PageId)>,
        left: Option<Fence>,
        copies: Vec<StoreCopy>,
    ) {
        let (tag, launched) = (self.tag(), Instant::now());
        self.started += 1;
        self.under_way.push(UnderWay { tag, launched, copies, count, read, left });
    }

    /// What has to be waited for before these pages, by group, are written. Nobody fails because a page could not be saved: these fences
    /// always end well.
    pub fn reading(&self, pages: impl Iterator<Item = (usize, PageId)>) -> Vec<Fence> {
        let open = |u: &&UnderWay| u.left.as_ref().is_some_and(|left| left.outcome().is_none());
        let mut open: Vec<&UnderWay> = self.under_way.iter().filter(open).collect();
        let mut fences = Vec::new();
        for page in pages {
            let reads = |u: &mut &UnderWay| u.read.contains(&page);
            fences.extend(open.extract_if(.., reads).filter_map(|u| u.left.clone()));
            if open.is_empty() {
                break;
            }
        }
        fences
    }

    /// Takes out what has ended; `None` where the tag is a batch's.
    pub fn end(&mut self, tag: u64, outcome: Outcome) -> Option<Copied> {
        let at = self.under_way.iter().position(|u| u.tag == tag)?;
        let UnderWay { tag, launched, copies, count, left, .. } = self.under_way.remove(at);
        Some(Copied { tag, saved: left.is_some(), pages: count, launched, copies, outcome })
    }
}

#[cfg(test)]
mod tests {
    use unicorn_core::Signal;

    use super::*;

    #[test]
    fn who_writes_a_page_comes_behind_who_reads_it() {
        let mut copies = StoreCopies::default();
        let (left, other) = (Signal::new(), Signal::new());
        let first = copies.tag();
        copies.save([(0, 3), (1, 4)].into_iter(), left.fence(), Vec::new());
        copies.save([(0, 5)].into_iter(), other.fence(), Vec::new());
        copies.restore(2, Vec::new());
        let waits = |copies: &StoreCopies, pages: &[(usize, PageId)]| {
            copies.reading(pages.iter().copied()).iter().map(Fence::id).collect::<Vec<_>>()
        };
        let (a, b) = (left.fence().id(), other.fence().id());
        assert_eq!(waits(&copies, &[(0, 4), (1, 3), (0, 9)]), [0; 0]);
        assert_eq!(waits(&copies, &[(1, 4), (0, 3)]), [a]);
        let mut both = waits(&copies, &[(0, 5), (0, 3)]);
        both.sort_unstable();
        assert_eq!(both, [a.min(b), a.max(b)]);
        left.give(Ok(None));
        assert_eq!(waits(&copies, &[(0, 5), (0, 3)]), [b]);
        assert!(copies.end(7, Ok(())).is_none());
        let ended = copies.end(first, Ok(())).unwrap();
        assert!(ended.saved && ended.pages == 2 && ended.busy().is_zero());
        assert!(!copies.is_empty() && copies.end(first, Ok(())).is_none());
    }
}
