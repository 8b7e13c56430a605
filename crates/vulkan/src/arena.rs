//! Memory for many small buffers: a driver counts allocations (4096 is a usual limit) and rounds each up, so small ones share chunks.

use std::collections::BTreeMap;

use ash::vk;

use crate::place::{Mapped, Place};

/// Buffers up to this size share chunks.
pub(crate) const SMALL_BYTES_MAX: u64 = 1 << 20;
/// What is allocated for them at once.
pub(crate) const CHUNK_BYTES: u64 = 16 << 20;

/// Free ranges of one chunk, by offset.
#[derive(Debug)]
pub(crate) struct Ranges {
    bytes: u64,
    free: BTreeMap<u64, u64>,
}

impl Ranges {
    /// All of `bytes` bytes free.
    pub(crate) fn new(bytes: u64) -> Ranges {
        Ranges { bytes, free: BTreeMap::from([(0, bytes)]) }
    }

    /// The first place where `bytes` bytes fit at a multiple of `align`.
    pub(crate) fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let fits = |start: u64, len: u64| {
            let at = start.next_multiple_of(align.max(1));
            (at + bytes <= start + len).then_some((start, len, at))
        };
        let (start, len, at) = self.free.iter().find_map(|(start, len)| fits(*start, *len))?;
        self.free.remove(&start);
        if at > start {
            self.free.insert(start, at - start);
        }
        if at + bytes < start + len {
            self.free.insert(at + bytes, start + len - at - bytes);
        }
        Some(at)
    }

    /// Gives back what [`Ranges::take`] gave; neighbours merge.
    pub(crate) fn give(&mut self, offset: u64, bytes: u64) {
        let (mut start, mut end) = (offset, offset + bytes);
        if let Some((before, len)) = self.free.range(..offset).next_back().map(|(b, l)| (*b, *l))
            && before + len == start
        {
            self.free.remove(&before);
            start = before;
        }
        if let Some(len) = self.free.remove(&end) {
            end += len;
        }
        self.free.insert(start, end - start);
    }

    /// True when nothing is taken.
    pub(crate) fn is_unused(&self) -> bool {
        self.free.get(&0) == Some(&self.bytes)
    }
}

/// One allocation that small buffers share.
pub(crate) struct Chunk {
    place: Place,
    allocation: Allocation,
    ranges: Ranges,
}

/// Memory as the driver gave it.
#[derive(Clone, Copy)]
pub(crate) struct Allocation {
    pub(crate) memory: vk::DeviceMemory,
    pub(crate) type_index: u32,
    pub(crate) bytes: u64,
    /// Where the host sees it, for types that it can see.
    pub(crate) mapped: Option<Mapped>,
}

/// The chunks of a device.
#[derive(Default)]
pub(crate) struct Arena {
    chunks: Vec<Chunk>,
}

/// A piece of a chunk.
pub(crate) struct Piece {
    pub(crate) memory: vk::DeviceMemory,
    pub(crate) offset: u64,
    pub(crate) mapped: Option<Mapped>,
}

impl Arena {
    /// Room for a small buffer in a chunk that has some; `None` where a new one is needed.
    pub(crate) fn take(&mut self, place: Place, needs: &vk::MemoryRequirements) -> Option<Piece> {
        let fits =
            |c: &&mut Chunk| c.place == place && needs.memory_type_bits & (1 << c.allocation.type_index) != 0;
        self.chunks.iter_mut().filter(fits).find_map(|chunk| chunk.take(needs))
    }

    /// Adds a chunk and takes room for a small buffer in it, which it has.
    pub(crate) fn grow(
        &mut self,
        place: Place,
        allocation: Allocation,
        needs: &vk::MemoryRequirements,
    ) -> Option<Piece> {
        let mut chunk = Chunk { place, allocation, ranges: Ranges::new(allocation.bytes) };
        let piece = chunk.take(needs);
        self.chunks.push(chunk);
        piece
    }

    /// Gives a piece back; returns the chunk's allocation, to be freed, where nothing uses it any more.
    pub(crate) fn give(&mut self, memory: vk::DeviceMemory, offset: u64, bytes: u64) -> Option<Allocation> {
        let index = self.chunks.iter().position(|c| c.allocation.memory == memory)?;
        self.chunks[index].ranges.give(offset, bytes);
        let unused = self.chunks[index].ranges.is_unused();
        unused.then(|| self.chunks.swap_remove(index).allocation)
    }
}

impl Chunk {
    fn take(&mut self, needs: &vk::MemoryRequirements) -> Option<Piece> {
        let offset = self.ranges.take(needs.size, needs.alignment)?;
        Some(Piece { memory: self.allocation.memory, offset, mapped: self.allocation.mapped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_apart_and_merge_again() {
        let mut ranges = Ranges::new(1000);
        let sizes = [10, 200, 1, 64, 300];
        let taken: Vec<(u64, u64)> = sizes.iter().map(|b| (ranges.take(*b, 64).unwrap(), *b)).collect();
        for (i, (at, bytes)) in taken.iter().enumerate() {
            assert_eq!(at % 64, 0);
            assert!(at + bytes <= 1000);
            assert!(taken[..i].iter().all(|(a, b)| a + b <= *at || at + bytes <= *a), "{taken:?}");
        }
        assert_eq!(ranges.take(1000, 64), None);
        assert!(!ranges.is_unused());
        for i in [1, 3, 0, 4, 2] {
            ranges.give(taken[i].0, taken[i].1);
        }
        assert!(ranges.is_unused(), "{ranges:?}");
        assert_eq!(ranges.take(1000, 64), Some(0));
        assert_eq!(ranges.take(1, 1), None);
    }
}
