//! Allocation for weights: anonymous pages, aligned for huge pages, zeroed, freed when the last matrix in them goes.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Size of a huge page on x86-64; elsewhere it is only an alignment.
const HUGE: usize = 2 << 20;
/// Matrices share mappings of this size, so that small ones lie in huge pages too. Untouched pages cost nothing.
const SLAB: usize = 64 << 20;
/// Alignment of every allocation.
const ALIGN: usize = 64;

/// One mapping.
struct Mapping {
    raw: NonNull<u8>,
    raw_bytes: usize,
    start: usize,
    bytes: usize,
    used: Mutex<usize>,
}

// SAFETY: the mapping is plain memory; who may access which part is the affair of `Allocation`'s users.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> Option<Mapping> {
        let raw_bytes = bytes.checked_add(HUGE)?;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let raw = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                raw_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if raw == libc::MAP_FAILED {
            return None;
        }
        let start = (raw as usize).next_multiple_of(HUGE) - raw as usize;
        #[cfg(target_os = "linux")]
        // SAFETY: the range lies in the mapping. Failure only means smaller pages.
        unsafe {
            libc::madvise(raw.byte_add(start), bytes, libc::MADV_HUGEPAGE);
        }
        Some(Mapping { raw: NonNull::new(raw.cast())?, raw_bytes, start, bytes, used: Mutex::new(0) })
    }

    /// Reserves a part; returns its offset.
    fn take(&self, bytes: usize) -> Option<usize> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let end = used.checked_add(bytes).filter(|end| *end <= self.bytes)?;
        Some(std::mem::replace(&mut *used, end.next_multiple_of(ALIGN)))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; no `Allocation` is left.
        unsafe { libc::munmap(self.raw.as_ptr().cast(), self.raw_bytes) };
    }
}

/// A zeroed, 64-byte aligned piece of memory.
pub(crate) struct Allocation {
    mapping: Arc<Mapping>,
    at: usize,
    bytes: usize,
}

impl Allocation {
    /// `None` when the system has no more.
    pub(crate) fn zeroed(bytes: usize) -> Option<Allocation> {
        static OPEN: Mutex<Weak<Mapping>> = Mutex::new(Weak::new());
        if bytes > SLAB / 4 {
            let mapping = Arc::new(Mapping::new(bytes)?);
            return Some(Allocation { mapping, at: 0, bytes });
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mapping) = open.upgrade()
            && let Some(at) = mapping.take(bytes)
        {
            return Some(Allocation { mapping, at, bytes });
        }
        let mapping = Arc::new(Mapping::new(SLAB)?);
        *open = Arc::downgrade(&mapping);
        let at = mapping.take(bytes)?;
        Some(Allocation { mapping, at, bytes })
    }

    /// First byte.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        // SAFETY: `start + at` lies inside the mapping.
        unsafe { self.mapping.raw.as_ptr().add(self.mapping.start + self.at) }
    }

    /// Size.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_zeroed_and_disjoint() {
        let sizes = [1, 64, 100, 5184, 1 << 20, (SLAB / 4) + 1, 0, 7];
        let pieces: Vec<Allocation> = sizes.iter().map(|s| Allocation::zeroed(*s).unwrap()).collect();
        for (i, piece) in pieces.iter().enumerate() {
            assert_eq!(piece.as_ptr() as usize % ALIGN, 0);
            // SAFETY: the piece is not shared.
            let bytes = unsafe { std::slice::from_raw_parts_mut(piece.as_ptr(), piece.bytes()) };
            assert!(bytes.iter().all(|b| *b == 0), "piece {i} is not zero, so another overlaps it");
            bytes.fill(0xff);
        }
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert!(Allocation::zeroed(usize::MAX).is_none());
        assert!(Allocation::zeroed(1 << 60).is_none());
    }
}
