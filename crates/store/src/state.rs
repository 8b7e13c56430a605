//! What a store has done, and what troubles it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Trouble;

/// Figures of a store since it was opened, for metrics and for people.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreState {
    /// Pages of this identity that are known to be there.
    pub pages: u64,
    /// Bytes that the pages of all identities took when room was last taken.
    pub root_bytes: u64,
    /// Bytes that wait to be written.
    pub queued_bytes: u64,
    /// Pages that were given back.
    pub read_pages: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Pages that were asked for and not given back: gone, damaged, or of another size.
    pub read_failed: u64,
    /// Pages that were kept.
    pub written_pages: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Pages that were not kept because too much waited to be written.
    pub dropped_full: u64,
    /// Pages that were not kept for any other reason: the disk, no room, or work that failed.
    pub dropped_failed: u64,
    /// Pages that had to go to make room, of any identity.
    pub evicted: u64,
    /// Pages that were damaged or foreign, and were removed.
    pub damaged: u64,
    /// Why pages cannot be kept at the moment; `None` where they can.
    pub trouble: Option<String>,
}

/// Listens to trouble. Called on threads of the store.
pub type Tell = Arc<dyn Fn(&Trouble) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Counts {
    pub root_bytes: AtomicU64,
    pub read_pages: AtomicU64,
    pub read_bytes: AtomicU64,
    pub read_failed: AtomicU64,
    pub written_pages: AtomicU64,
    pub written_bytes: AtomicU64,
    pub dropped_full: AtomicU64,
    pub dropped_failed: AtomicU64,
    pub evicted: AtomicU64,
    pub damaged: AtomicU64,
    trouble: Mutex<Option<String>>,
    /// Which kinds were told: damaged, not written, no room.
    told: [AtomicBool; 3],
    tell: Option<Tell>,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counts {
    pub fn new(tell: Option<Tell>) -> Counts {
        Counts { tell, ..Counts::default() }
    }

    /// Tells of trouble, the first of its kind to who listens. Trouble with writing lasts until [`Counts::well`].
    pub fn troubled(&self, trouble: &Trouble) {
        let kind = match trouble {
            Trouble::Damaged { .. } => 0,
            Trouble::NotWritten { .. } => 1,
            Trouble::NoRoom { .. } => 2,
        };
        if kind > 0 {
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble.to_string());
        }
        if let (Some(tell), false) = (&self.tell, self.told[kind].swap(true, Ordering::Relaxed)) {
            tell(trouble);
        }
    }

    /// A page was written.
    pub fn well(&self) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn state(&self, pages: usize, queued_bytes: u64) -> StoreState {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreState {
            pages: pages as u64,
            root_bytes: of(&self.root_bytes),
            queued_bytes,
            read_pages: of(&self.read_pages),
            read_bytes: of(&self.read_bytes),
            read_failed: of(&self.read_failed),
            written_pages: of(&self.written_pages),
            written_bytes: of(&self.written_bytes),
            dropped_full: of(&self.dropped_full),
            dropped_failed: of(&self.dropped_failed),
            evicted: of(&self.evicted),
            damaged: of(&self.damaged),
            trouble: self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
