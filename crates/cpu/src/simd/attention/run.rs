//! Attention of a whole batch on the threads of a region.

use unicorn_core::Batch;

use super::attend::{attend_split, attend_whole, merge_splits};
use super::partition::{Coverage, Partition, SliceCut};
use super::scratch::Scratch;
use super::shapes::{Heads, Projections, Tokens, partial_len};
use super::store::store_row;
use crate::simd::kv::KvCache;
use crate::simd::level::SimdLevel;
use crate::simd::pool::Worker;
use crate::simd::shared::SharedSlice;

/// Batch rows per grab when keys and values are stored: one tile of the cache where a chunk is aligned.
const STORE_ROWS: usize = 16;

/// Where the rows of a batch come from.
#[derive(Default, Debug)]
pub(crate) struct BatchRows {
    /// Slice of each row.
    pub(crate) slice: Vec<u32>,
    /// First row of each slice.
    pub(crate) first: Vec<usize>,
}

impl BatchRows {
    /// Rows in the order of the slices.
    pub(crate) fn new(batch: &Batch) -> BatchRows {
        let mut rows = BatchRows::default();
        for (index, slice) in batch.slices.iter().enumerate() {
            rows.first.push(rows.slice.len());
            rows.slice.resize(rows.slice.len() + slice.tokens.len(), index as u32);
        }
        rows
    }

    /// Position of a row in its sequence.
    pub(crate) fn position(&self, batch: &Batch, row: usize) -> usize {
        let slice = self.slice[row] as usize;
        batch.slices[slice].start as usize + row - self.first[slice]
    }
}

/// One mixer's attention over one batch.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) level: SimdLevel,
    pub(crate) heads: Heads<'a>,
    pub(crate) cache: &'a KvCache,
    pub(crate) batch: &'a Batch,
    pub(crate) rows: &'a BatchRows,
    pub(crate) partition: &'a Partition,
    /// At least `partition.partial_floats`.
    pub(crate) partials: SharedSlice<'a, f32>,
    /// `[rows, heads * dim]`; rows of slices in splits stay unused.
    pub(crate) out: SharedSlice<'a, f32>,
}

impl Attention<'_> {
    /// Stores keys and values of slices in tiles. `from` reads the projections, which earlier steps wrote.
    ///
    /// # Safety
    /// All threads of a region call it at the same step; the sequences of the batch share no page that they write.
    pub(crate) unsafe fn store<'p>(
        &self,
        worker: &Worker,
        from: impl Fn() -> Projections<'p>,
        scratch: &mut Scratch,
    ) {
        for range in &self.partition.store_rows {
            worker.step(range.len(), STORE_ROWS, |part| {
                let from = &from();
                for row in range.start + part.start..range.start + part.end {
                    let pages = &self.batch.slices[self.rows.slice[row] as usize].pages;
                    let position = self.rows.position(self.batch, row);
                    for kv_head in 0..self.partition.key.kv_heads {
                        let head = self.cache.head(pages, kv_head);
                        // SAFETY: every row is given to one thread.
                        unsafe {
                            store_row(self.level, &self.heads, from, head, kv_head, row, position, scratch)
                        };
                    }
                }
            });
        }
    }

    /// Runs all units, behind [`Attention::store`].
    ///
    /// # Safety
    /// As for [`Attention::store`].
    pub(crate) unsafe fn attend<'p>(
        &self,
        worker: &Worker,
        from: impl Fn() -> Projections<'p>,
        scratch: &mut Scratch,
    ) {
        let units = &self.partition.units;
        worker.step(units.len(), 1, |part| {
            let from = &from();
            for unit in &units[part] {
                let slice = &self.batch.slices[unit.slice];
                let tokens = Tokens {
                    row: self.rows.first[unit.slice] + unit.token,
                    position: slice.start as usize + unit.token,
                    count: unit.tokens,
                };
                let (level, heads, kv_head) = (self.level, &self.heads, unit.kv_head);
                let head = self.cache.head(&slice.pages, kv_head);
                match unit.part {
                    // SAFETY: units write disjoint heads and rows, and read what earlier steps stored.
                    Coverage::Whole => unsafe {
                        attend_whole(level, heads, from, head, kv_head, tokens, self.out, scratch);
                    },
                    Coverage::Split { split, at } => {
                        let len =
                            partial_len(unit.tokens * self.partition.key.group, self.partition.key.padded);
                        // SAFETY: partial results are disjoint, and so are the splits of a head.
                        unsafe {
                            let out = self.partials.write(at..at + len);
                            attend_split(level, heads, from, head, kv_head, tokens, split, out, scratch);
                        }
                    }
                }
            }
        });
    }

    /// The finished output of a row, `[heads * dim]`, merged into `buffer` where it came in splits.
    ///
    /// # Safety
    /// Call in a step after [`Attention::attend`].
    pub(crate) unsafe fn output_row<'b>(
        &'b self,
        row: usize,
        scratch: &mut Scratch,
        buffer: &'b mut Vec<f32>,
    ) -> &'b [f32] {
        let Heads { heads, group, dim, .. } = self.heads;
        let slice = self.rows.slice[row] as usize;
        let SliceCut::Splits { splits, at, floats, .. } = self.partition.slices[slice] else {
            // SAFETY: nobody writes the outputs in this step.
            return unsafe { self.out.read(row * heads * dim..(row + 1) * heads * dim) };
        };
        buffer.clear();
        buffer.resize(heads * dim, 0.0);
        let token = row - self.rows.first[slice];
        let count = self.batch.slices[slice].tokens.len();
        for (head, out) in buffer.chunks_exact_mut(dim).enumerate() {
            let start = at + head / group * splits * floats;
            // SAFETY: nobody writes the partial results in this step.
            let partials = unsafe { self.partials.read(start..start + splits * floats) };
            merge_splits(
                self.level,
                partials,
                floats,
                count * group,
                token * group + head % group,
                scratch,
                out,
            );
        }
        buffer
    }
}
