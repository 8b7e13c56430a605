//! Which pages are there, as far as this process knows, and which were used since that was last written down.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use unicorn_core::PageKey;

#[derive(Default)]
struct Known {
    there: HashSet<PageKey>,
    /// Pages that were used, with the furthest place in a chain that they were seen at.
    used: HashMap<PageKey, u32>,
}

#[derive(Default)]
pub(crate) struct Index(Mutex<Known>);

impl Index {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn len(&self) -> usize {
        self.lock().there.len()
    }

    pub fn add(&self, key: PageKey) {
        self.lock().there.insert(key);
    }

    pub fn remove(&self, key: &PageKey) {
        let mut known = self.lock();
        known.there.remove(key);
        known.used.remove(key);
    }

    /// True for a page that is known, which then counts as used.
    pub fn use_known(&self, key: &PageKey, place: u32) -> bool {
        let mut known = self.lock();
        let there = known.there.contains(key);
        if there {
            let furthest = known.used.entry(*key).or_default();
            *furthest = place.max(*furthest);
        }
        there
    }

    /// Pages that were used since this was asked last, with their places.
    pub fn take_used(&self) -> HashMap<PageKey, u32> {
        std::mem::take(&mut self.lock().used)
    }

    pub fn has_used(&self) -> bool {
        !self.lock().used.is_empty()
    }
}
