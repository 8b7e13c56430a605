//! Pages of state and the pools that they come from.

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

    /// Takes so many pages, or none and an error.
    pub(crate) fn take(&self, count: usize) -> Result<Vec<Arc<Page>>, KvFull> {
        let mut free = self.shared.free();
        if count > free.len() {
            return Err(KvFull { asked: count, free: free.len(), pages: self.pages() });
        }
        let kept = free.len() - count;
        let taken = free.split_off(kept);
        drop(free);
        let page = |id| Arc::new(Page { id, pool: self.shared.clone() });
        Ok(taken.into_iter().rev().map(page).collect())
    }
}
