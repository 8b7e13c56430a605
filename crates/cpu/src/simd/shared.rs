//! Buffers that the threads of one parallel region fill together.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice handed to all threads of a region, which write disjoint parts of it between two barriers.
#[derive(Clone, Copy)]
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through unsafe methods whose contract rules out data races.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    /// Takes the slice for the time of the region.
    pub(crate) fn new(slice: &'a mut [T]) -> SharedSlice<'a, T> {
        SharedSlice { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// Memory that others see too.
    ///
    /// # Safety
    /// `start` is aligned and has `len` elements that live for `'a`; nobody else touches them meanwhile.
    pub(crate) unsafe fn from_raw(start: *mut T, len: usize) -> SharedSlice<'a, T> {
        SharedSlice { start, len, life: PhantomData }
    }

    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A pointer to element `at`.
    ///
    /// # Panics
    /// When `at` lies behind the end.
    pub(crate) fn pointer(&self, at: usize) -> *mut T {
        assert!(at <= self.len, "element {at} of a buffer of {}", self.len);
        // SAFETY: inside the slice, or one past its end.
        unsafe { self.start.add(at) }
    }

    /// Reads a part.
    ///
    /// # Safety
    /// No thread may write the part until the next barrier.
    ///
    /// # Panics
    /// When the range leaves the buffer.
    pub(crate) unsafe fn read(&self, range: Range<usize>) -> &'a [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of a buffer of {}", self.len);
        // SAFETY: in bounds; the caller excludes writers.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// Writes a part.
    ///
    /// # Safety
    /// No other thread may touch the part until the next barrier, nor this one through another call.
    ///
    /// # Panics
    /// When the range leaves the buffer.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn write(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of a buffer of {}", self.len);
        // SAFETY: in bounds; the caller excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// One value per thread of the pool, each touched by its own thread alone.
pub(crate) struct PerThread<T>(Vec<Padded<T>>);

#[repr(align(128))]
struct Padded<T>(UnsafeCell<T>);

// SAFETY: access goes through an unsafe method whose contract gives each value to one thread.
unsafe impl<T: Send> Sync for PerThread<T> {}

impl<T> PerThread<T> {
    /// One value for each of `threads`.
    pub(crate) fn new(threads: usize, mut make: impl FnMut() -> T) -> PerThread<T> {
        PerThread((0..threads).map(|_| Padded(UnsafeCell::new(make()))).collect())
    }

    /// The value of thread `index`.
    ///
    /// # Safety
    /// Only the thread with this index may call, and it must not hold an earlier reference.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn get(&self, index: usize) -> &mut T {
        // SAFETY: the caller is the only one with this index.
        unsafe { &mut *self.0[index].0.get() }
    }

    /// All values, outside of a region.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|p| p.0.get_mut())
    }
}
