//! Memory for many small buffers: a driver counts allocations (4096 is a usual limit) and rounds each up, so small ones share chunks.

use std::collections::BTreeMap;

use ash::vk;
use unicorn_core::DeviceError;

use crate::context::Context;
use crate::error::VulkanError;
use crate::memory::{self, Mapped, Place};

/// Buffers up to this size share chunks.
pub(crate) const SMALL_BYTES_MAX: u64 = 1 << 20;
const CHUNK_BYTES: u64 = 16 << 20;

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
struct Chunk {
    place: Place,
    memory: vk::DeviceMemory,
    type_index: u32,
    mapped: Option<Mapped>,
    ranges: Ranges,
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
    /// Room for a small buffer: in a chunk that has some, else in a new chunk.
    pub(crate) fn take(
        &mut self,
        context: &Context,
        place: Place,
        needs: &vk::MemoryRequirements,
        what: &str,
    ) -> Result<Piece, VulkanError> {
        for chunk in &mut self.chunks {
            if chunk.place == place
                && needs.memory_type_bits & (1 << chunk.type_index) != 0
                && let Some(offset) = chunk.ranges.take(needs.size, needs.alignment)
            {
                return Ok(Piece { memory: chunk.memory, offset, mapped: chunk.mapped });
            }
        }
        let whole = vk::MemoryRequirements { size: CHUNK_BYTES, ..*needs };
        // Where a whole chunk no longer fits, one of the buffer's size may.
        let made = memory::allocate(context, place, &whole, what).map(|a| (a, CHUNK_BYTES));
        let (allocation, bytes) = match made {
            Ok(made) => made,
            Err(VulkanError::Device(DeviceError::OutOfMemory { .. })) => {
                (memory::allocate(context, place, needs, what)?, needs.size)
            }
            Err(other) => return Err(other),
        };
        let mut chunk = Chunk {
            place,
            memory: allocation.memory,
            type_index: allocation.type_index,
            mapped: allocation.mapped,
            ranges: Ranges::new(bytes),
        };
        let offset = chunk.ranges.take(needs.size, needs.alignment).unwrap_or(0);
        let piece = Piece { memory: chunk.memory, offset, mapped: chunk.mapped };
        self.chunks.push(chunk);
        Ok(piece)
    }

    /// Gives a piece back; a chunk that nothing uses any more is freed.
    pub(crate) fn give(&mut self, context: &Context, memory: vk::DeviceMemory, offset: u64, bytes: u64) {
        let Some(index) = self.chunks.iter().position(|c| c.memory == memory) else { return };
        let chunk = &mut self.chunks[index];
        chunk.ranges.give(offset, bytes);
        if chunk.ranges.is_unused() {
            let bytes = chunk.ranges.bytes;
            memory::free(context, memory, bytes);
            self.chunks.swap_remove(index);
        }
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
