//! Pages of the slices that tests make, for state groups of every kind.

use unicorn_core::{BatchLimits, PageId, Slice};

/// The page tables of a slice whose sequence has `pages` to itself: in groups of recurrent state the first of them is updated in place.
pub fn tables(limits: &BatchLimits, pages: &[PageId]) -> Vec<Vec<PageId>> {
    let groups = limits.state.iter().flat_map(|layout| &layout.groups);
    let table = |recurrent: bool| if recurrent { vec![pages[0]; 2] } else { pages.to_vec() };
    groups.map(|group| table(group.spec.is_recurrent())).collect()
}

/// Gives a slice of a sequence with one group of recurrent state its states: those before and after it, and one within it.
pub(crate) fn name(slice: &mut Slice, before: PageId, within: Option<(u32, PageId)>, after: PageId) {
    slice.snapshots = within.iter().map(|(position, _)| *position).collect();
    slice.tables = vec![[before].into_iter().chain(within.map(|(_, page)| page)).chain([after]).collect()];
}
