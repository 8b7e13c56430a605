//! Buffers of one thread, and the activations that all threads of a region share.

use std::cell::UnsafeCell;
use std::time::Instant;

use unicorn_core::TopEntry;

use super::label::Mark;
use crate::simd::attention::Scratch as AttentionScratch;
use crate::simd::linear::PackedActivations;

/// What a thread keeps for itself.
#[derive(Default)]
pub(crate) struct ThreadScratch {
    pub(super) activations: PackedActivations,
    pub(super) attention: AttentionScratch,
    /// A row on its way to quantization.
    pub(super) row: Vec<f32>,
    /// Best logits of parts of output rows.
    pub(crate) tops: Vec<(usize, Vec<TopEntry>)>,
    /// Filled on thread 0 while profiling.
    pub(crate) marks: Vec<Mark>,
    pub(super) last_mark: Option<Instant>,
}

impl ThreadScratch {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.activations.capacity_bytes() + (self.attention.capacity() + self.row.capacity()) * 4
    }
}

/// PackedActivations of many rows, filled by all threads.
#[derive(Default)]
pub(crate) struct SharedActivations(pub(super) UnsafeCell<PackedActivations>);

// SAFETY: shaped by one thread in a step of its own, see `Region::share_activations`.
unsafe impl Sync for SharedActivations {}

impl SharedActivations {
    /// Bytes held, outside of a region.
    pub(crate) fn bytes(&mut self) -> usize {
        self.0.get_mut().capacity_bytes()
    }
}
