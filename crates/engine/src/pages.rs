//! Pages of state and the pools that they come from.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unicorn_core::{Fence, PageId};

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
pub(crate) struct Page {
    id: PageId,
    pool: Arc<Shared>,
    /// On the devices of which phases the content lies, where the phases have devices of their own.
    on: Mutex<[Whereabouts; 2]>,
}

/// Whether the devices of a phase have what is in a page.
#[derive(Clone, Default)]
pub(crate) enum Whereabouts {
    /// As far as the page knows they have not.
    #[default]
    Elsewhere,
    /// It is there once these copies have ended well, each into the device with this number.
    Coming(Arc<Vec<(Fence, usize)>>),
    Here,
}

impl Page {
    /// Its number in the pool.
    pub fn id(&self) -> PageId {
        self.id
    }

    fn on(&self) -> MutexGuard<'_, [Whereabouts; 2]> {
        // Each entry is right by itself.
        self.on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the devices of a phase have the content by now. Copies that failed brought nothing.
    pub fn on_devices_of(&self, phase: Phase) -> Whereabouts {
        let on = &mut self.on()[phase as usize];
        if let Whereabouts::Coming(copies) = &*on {
            // None of them may be under way when the page is brought again.
            let ended: Option<Vec<_>> = copies.iter().map(|(copy, _)| copy.outcome()).collect();
            match ended {
                None => {}
                Some(outcomes) if outcomes.iter().any(Result::is_err) => *on = Whereabouts::Elsewhere,
                Some(_) => *on = Whereabouts::Here,
            }
        }
        on.clone()
    }

    /// The content is there or on its way.
    pub fn place(&self, phase: Phase, on: Whereabouts) {
        self.on()[phase as usize] = on;
    }

    /// The content is about to change.
    pub fn displace(&self) {
        *self.on() = Default::default();
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page {}", self.id)
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
        let page = |id| Arc::new(Page { id, pool: self.shared.clone(), on: Mutex::default() });
        Ok(taken.into_iter().rev().map(page).collect())
    }
}
