//! The output head: final norm, logits, soft cap, and the selection of the largest.

use std::sync::Arc;

use unicorn_core::{HeadOutput, HeadSpec, RateKind, Select};

use super::label::Label;
use super::norm::Norm;
use super::region::{Product, Region};
use super::scratch::ThreadScratch;
use crate::simd::elementary::{Elementwise, apply};
use crate::simd::level::SimdLevel;
use crate::simd::linear::{Epilogue, PackedMatrix};
use crate::simd::pool::Worker;
use crate::simd::shared::SharedSlice;
use crate::simd::top_k::{merge, top_k};

/// Logits held at a time when only the largest are asked for.
const LOGITS_MAX: usize = 2 << 20;
/// Logits per grab of the selection.
const SELECT_PART: usize = 8192;

/// A loaded head.
pub(crate) struct HeadBlock {
    pub(crate) spec: HeadSpec,
    pub(crate) norm: Norm,
    pub(crate) matrix: Arc<PackedMatrix>,
    label: Label,
    select_label: Label,
}

/// What comes out of a region with a head.
pub(crate) enum HeadResult {
    /// `[outputs, vocab]`, written in place.
    Logits(Vec<f32>),
    /// Collected from the threads.
    Top(usize),
}

impl HeadResult {
    /// Turns what the threads left into the device's output.
    pub(crate) fn finish<'a>(
        self,
        outputs: usize,
        threads: impl Iterator<Item = &'a mut ThreadScratch>,
    ) -> HeadOutput {
        match self {
            HeadResult::Logits(logits) => HeadOutput::Logits(logits),
            HeadResult::Top(k) => {
                let mut rows = vec![Vec::new(); outputs];
                for (row, part) in threads.flat_map(|t| t.tops.drain(..)) {
                    rows[row].push(part);
                }
                HeadOutput::Top(rows.into_iter().map(|parts| merge(parts.into_iter(), k)).collect())
            }
        }
    }
}

/// Output rows whose logits are held at a time.
pub(crate) fn head_group(select: Select, outputs: usize, vocab: usize) -> usize {
    match select {
        Select::Logits => outputs,
        Select::Top(_) => outputs.min((LOGITS_MAX / vocab.max(1)).max(1)),
    }
}

impl HeadBlock {
    /// Wraps the weights.
    pub(crate) fn new(spec: &HeadSpec, norm: Norm, matrix: Arc<PackedMatrix>, level: SimdLevel) -> HeadBlock {
        let label = Label::product("head", &[&matrix]);
        let select_label = Label { name: format!("head_select {level}"), rate: RateKind::Float };
        HeadBlock { spec: spec.clone(), norm, matrix, label, select_label }
    }

    pub(super) fn labels(&self) -> [&Label; 2] {
        [&self.label, &self.select_label]
    }

    /// Computes logits of the output rows.
    ///
    /// # Safety
    /// As [`super::Loaded::run`]. Output rows have been checked, and `buffers.logits` holds a group of them.
    pub(super) unsafe fn run(&self, worker: &Worker, region: &Region) {
        let outputs = &region.batch.outputs;
        let vocab = self.spec.vocab;
        let group = head_group(region.batch.select, outputs.len(), vocab).max(1);
        // SAFETY: the outputs of a step are disjoint.
        unsafe {
            region.start_marks(worker);
            for first in (0..outputs.len()).step_by(group) {
                let rows = group.min(outputs.len() - first);
                let forms = self.matrix.activation_forms();
                let x = region.normed(&self.norm, rows, forms, |i| outputs[first + i] as usize);
                let out = region.buffers.logits;
                region.multiply(
                    worker,
                    &x,
                    &[Product { matrix: &self.matrix, out, epilogue: Epilogue::Store }],
                );
                let flops = 2 * (rows * vocab * self.spec.width) as u64;
                region.mark(worker, &self.label, self.matrix.bytes() as u64, flops);
                if self.spec.soft_cap.is_some() || region.batch.select != Select::Logits {
                    self.select(worker, region, out, first, rows);
                    region.mark(worker, &self.select_label, 0, 0);
                }
            }
        }
    }

    /// Soft cap and selection over one group of rows.
    ///
    /// # Safety
    /// As [`HeadBlock::run`].
    unsafe fn select(
        &self,
        worker: &Worker,
        region: &Region,
        logits: SharedSlice<f32>,
        first: usize,
        rows: usize,
    ) {
        let vocab = self.spec.vocab;
        let parts = vocab.div_ceil(SELECT_PART);
        worker.step(rows * parts, 1, |range| {
            for part in range {
                let (row, start) = (part / parts, part % parts * SELECT_PART);
                let len = SELECT_PART.min(vocab - start);
                // SAFETY: parts are disjoint, each given to one thread; the scratch is this thread's.
                unsafe {
                    let values = logits.write(row * vocab + start..row * vocab + start + len);
                    if let Some(cap) = self.spec.soft_cap {
                        apply(region.level, Elementwise::SoftCap(cap), values);
                    }
                    if let Select::Top(k) = region.batch.select {
                        let best = top_k(region.level, values, start as u32, k);
                        region.scratch(worker).tops.push((first + row, best));
                    }
                }
            }
        });
    }
}
