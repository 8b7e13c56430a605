//! The shapes and inputs of attention that all its steps share.

use unicorn_core::RopeStyle;

/// Positions per step of the running softmax.
pub(crate) const BLOCK: usize = 64;
/// Positions per partial result.
pub(crate) const SPLIT: usize = 256;
/// Consecutive positions that never cross a page.
pub(super) const RUN: usize = 32;

/// What all heads of a mixer share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads<'a> {
    /// Query heads.
    pub(crate) heads: usize,
    /// Query heads per KV head.
    pub(crate) group: usize,
    /// Elements per head.
    pub(crate) dim: usize,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Sliding window.
    pub(crate) window: Option<usize>,
    /// Soft cap on the scaled scores.
    pub(crate) soft_cap: Option<f32>,
    /// Pairing of rotated elements.
    pub(crate) rope_style: RopeStyle,
    /// Norm weights of queries and keys, `[dim]`, and epsilon.
    pub(crate) qk_norm: Option<(&'a [f32], &'a [f32], f32)>,
}

/// Projections of the whole batch, before norm and rotation.
#[derive(Clone, Copy)]
pub(crate) struct Projections<'a> {
    /// `[rows, heads * dim]`.
    pub(crate) q: &'a [f32],
    /// `[rows, kv_heads * dim]`.
    pub(crate) k: &'a [f32],
    /// `[rows, kv_heads * dim]`.
    pub(crate) v: &'a [f32],
    /// A row of the rotation table per batch row.
    pub(crate) rope: &'a [f32],
    /// Length of a table row.
    pub(crate) rope_row: usize,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy)]
pub(crate) struct Tokens {
    /// Batch row of the first.
    pub(crate) row: usize,
    /// Position of the first.
    pub(crate) position: usize,
    /// How many.
    pub(crate) count: usize,
}

/// First position that a query at `position` sees.
pub(crate) fn first_visible(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |w| (position + 1).saturating_sub(w))
}

/// Floats of one partial result: accumulators, maxima and sums of `rows`.
pub(crate) fn partial_len(rows: usize, padded: usize) -> usize {
    rows * (padded + 2)
}
