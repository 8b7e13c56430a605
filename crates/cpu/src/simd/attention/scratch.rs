//! A thread's buffers for attention.

use super::multiply::GROUP;
use super::partition::{PartitionKey, tile_tokens};
use super::shapes::BLOCK;

/// Accumulators of a set of query rows.
#[derive(Default)]
pub(super) struct SoftmaxState {
    /// `[rows, padded]`.
    pub(super) sums: Vec<f32>,
    /// Running maximum per row.
    pub(super) max: Vec<f32>,
    /// Running sum of exponentials per row.
    pub(super) total: Vec<f32>,
}

impl SoftmaxState {
    pub(super) fn reset(&mut self, rows: usize, padded: usize) {
        self.sums.clear();
        self.sums.resize(rows * padded, 0.0);
        self.max.clear();
        self.max.resize(rows, f32::NEG_INFINITY);
        self.total.clear();
        self.total.resize(rows, 0.0);
    }
}

/// A thread's buffers.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Queries, interleaved in groups of rows: `[group][dim][GROUP]`.
    pub(super) queries: Vec<f32>,
    /// `[GROUP][BLOCK]`.
    pub(super) scores: Vec<f32>,
    /// One block of keys `[tile][dim][TILE]`.
    pub(super) keys: Vec<f32>,
    /// One block of values `[position][padded]`.
    pub(super) values: Vec<f32>,
    /// One head.
    pub(super) head: Vec<f32>,
    pub(super) part: SoftmaxState,
    pub(super) whole: SoftmaxState,
}

/// Floats that a thread holds at most for mixers of this shape; `staged` where keys and values may be expanded first.
pub(crate) fn scratch_floats(key: PartitionKey, dim: usize, staged: bool) -> usize {
    let rows = (tile_tokens(key.group) * key.group).next_multiple_of(GROUP);
    let staged = if staged { BLOCK * (dim + key.padded) } else { 0 };
    // Queries, two sets of accumulators, scores, and a head.
    rows * (dim + 2 * (key.padded + 2)) + GROUP * BLOCK + staged + key.padded
}

impl Scratch {
    /// Floats held.
    pub(crate) fn capacity(&self) -> usize {
        let states =
            [&self.part, &self.whole].map(|s| s.sums.capacity() + s.max.capacity() + s.total.capacity());
        let buffers = [&self.queries, &self.scores, &self.keys, &self.values, &self.head].map(Vec::capacity);
        buffers.iter().sum::<usize>() + states.iter().sum::<usize>()
    }
}
