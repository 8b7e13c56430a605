//! KV pages: a bounded pool, and lists of pages whose lifetime frees them.
//!
//! A page is writable only through the one list that holds it; lists share pages only when these are full of computed
//! positions, and full pages are never written again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unicorn_core::PageId;

use crate::KvFull;

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
struct Page {
    id: PageId,
    pool: Arc<Shared>,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.pool.free().push(self.id);
    }
}

/// The pool that all sequences draw from.
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
        PageList { pool: self.clone(), pages: Vec::new() }
    }
}

/// The pages of one sequence, in order of position.
#[derive(Debug)]
pub struct PageList {
    pool: PagePool,
    pages: Vec<Arc<Page>>,
}

impl PageList {
    /// Number of pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Positions that the pages can hold.
    pub fn capacity(&self) -> usize {
        self.pages.len() * self.pool.page_tokens()
    }

    /// Indices of the pages that hold the first `tokens` positions.
    pub fn ids(&self, tokens: usize) -> Vec<PageId> {
        self.pages.iter().take(self.pool.pages_for(tokens)).map(|p| p.id).collect()
    }

    /// Indices of all pages.
    pub fn all_ids(&self) -> impl Iterator<Item = PageId> + '_ {
        self.pages.iter().map(|p| p.id)
    }

    /// Takes pages from the pool until `tokens` positions fit: all that are missing, or none and an error.
    pub fn grow(&mut self, tokens: usize) -> Result<(), KvFull> {
        let missing = self.pool.pages_for(tokens).saturating_sub(self.pages.len());
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
        self.pages.truncate(self.pool.pages_for(tokens));
    }

    /// A second list of the pages that the first `tokens` positions fill completely. The caller guarantees that these positions are
    /// computed and will not be written again.
    pub fn share_full(&self, tokens: usize) -> PageList {
        let full = (tokens / self.pool.page_tokens()).min(self.pages.len());
        PageList { pool: self.pool.clone(), pages: self.pages[..full].to_vec() }
    }

    /// Moves the pages beyond the first `tokens` positions' full pages to the end of `other`, whose own pages must be those full
    /// ones.
    pub(crate) fn move_rest(&mut self, tokens: usize, other: &mut PageList) {
        let full = (tokens / self.pool.page_tokens()).min(self.pages.len());
        debug_assert_eq!(other.len(), full);
        other.pages.extend(self.pages.drain(full..));
    }

    /// True when writing positions from `start` on touches only pages that no other list holds.
    pub fn writable_from(&self, start: usize) -> bool {
        self.pages.iter().skip(start / self.pool.page_tokens()).all(|p| Arc::strong_count(p) == 1)
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
                        let shared = lists[l].share_full(n);
                        prop_assert!(shared.capacity() <= n);
                        lists[(l + 1) % 6] = shared;
                    }
                    Op::Drop(l) => lists[l] = pool.list(),
                }
                let held: HashSet<PageId> = lists.iter().flat_map(|l| l.all_ids().collect::<Vec<_>>()).collect();
                prop_assert_eq!(held.len() + pool.free(), 20);
                for (i, list) in lists.iter().enumerate() {
                    let own: HashSet<PageId> = list.all_ids().collect();
                    prop_assert_eq!(own.len(), list.len());
                    let others = lists.iter().enumerate().filter(|(j, _)| *j != i);
                    let shared = others.flat_map(|(_, l)| l.all_ids()).any(|p| own.contains(&p));
                    prop_assert_eq!(list.writable_from(0), !shared);
                }
            }
            drop(lists);
            prop_assert_eq!(pool.free(), 20);
        }
    }
}
