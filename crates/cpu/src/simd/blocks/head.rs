//! The output head: final norm, logits, soft cap, and the selection of the largest.

use std::sync::Arc;

use unicorn_core::{Batch, HeadOutput, HeadSpec, OutputRow, RateKind, Select, TopEntry};

use super::label::Label;
use super::norm::Norm;
use super::region::{Product, Region};
use super::scratch::ThreadScratch;
use crate::simd::elementary::{Elementwise, apply};
use crate::simd::level::SimdLevel;
use crate::simd::linear::{Epilogue, PackedMatrix};
use crate::simd::pool::Worker;
use crate::simd::rms_norm::rms_norm;
use crate::simd::shared::SharedSlice;
use crate::simd::top_k::{merge, top_k};

/// Logits held at a time when only the largest are asked for.
pub(crate) const LOGITS_MAX: usize = 2 << 20;
/// Logits per grab of the selection; whole words of a mask.
const SELECT_PART: usize = 8192;
/// Hidden states per grab.
const STATE_ROWS: usize = 4;

/// A loaded head.
pub(crate) struct HeadBlock {
    pub(crate) spec: HeadSpec,
    pub(crate) norm: Norm,
    pub(crate) matrix: Arc<PackedMatrix>,
    label: Label,
    select_label: Label,
}

/// Turns what the threads left into the device's output. The rows that asked for all logits, and for hidden states, are there already.
pub(crate) fn head_output<'a>(
    batch: &Batch,
    [logits, hidden]: [Vec<f32>; 2],
    threads: impl Iterator<Item = &'a mut ThreadScratch>,
) -> HeadOutput {
    let mut rows = vec![Vec::new(); batch.outputs().len()];
    for (row, part) in threads.flat_map(|t| t.tops.drain(..)) {
        rows[row].push(part);
    }
    let list = |(parts, asked): (Vec<Vec<TopEntry>>, &OutputRow)| match asked.select {
        Select::Top(k) => Some(merge(parts.into_iter(), k)),
        Select::Logits | Select::Hidden => None,
    };
    HeadOutput { logits, hidden, top: rows.into_iter().zip(batch.outputs()).filter_map(list).collect() }
}

/// Output rows whose logits are computed.
fn scored_rows(batch: &Batch) -> usize {
    batch.outputs().len() - batch.hidden_rows()
}

/// True when every output row with logits asks for all of them: they are computed where they are returned.
pub(crate) fn all_logits(batch: &Batch) -> bool {
    batch.logit_rows() == scored_rows(batch)
}

/// True when the logits of some row are changed before they are returned or selected.
fn edited(batch: &Batch) -> bool {
    batch.outputs().iter().any(|o| !o.edits.is_empty())
}

/// Output rows whose logits are held at a time.
pub(crate) fn head_group(batch: &Batch, vocab: usize) -> usize {
    let outputs = scored_rows(batch);
    if all_logits(batch) { outputs } else { outputs.min((LOGITS_MAX / vocab.max(1)).max(1)) }
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
        let asks = |hidden: bool| {
            let outputs = region.batch.outputs().iter().enumerate();
            outputs.filter(move |(_, o)| (o.select == Select::Hidden) == hidden)
        };
        let outputs: Vec<(usize, &OutputRow)> = asks(false).collect();
        let hidden: Vec<usize> = asks(true).map(|(_, o)| o.row as usize).collect();
        let vocab = self.spec.vocab;
        let group = head_group(region.batch, vocab).max(1);
        // SAFETY: the outputs of a step are disjoint.
        unsafe {
            region.start_marks(worker);
            self.states(worker, region, &hidden);
            for first in (0..outputs.len()).step_by(group) {
                let rows = group.min(outputs.len() - first);
                let forms = self.matrix.activation_forms();
                let x = region.normed(&self.norm, rows, forms, |i| outputs[first + i].1.row as usize);
                let out = region.buffers.logits;
                region.multiply(
                    worker,
                    &x,
                    &[Product { matrix: &self.matrix, out, epilogue: Epilogue::Store }],
                );
                let flops = 2 * (rows * vocab * self.spec.width) as u64;
                region.mark(worker, &self.label, self.matrix.bytes() as u64, flops);
                if self.spec.soft_cap.is_some() || !all_logits(region.batch) || edited(region.batch) {
                    self.select(worker, region, out, &outputs[first..first + rows]);
                    region.mark(worker, &self.select_label, 0, 0);
                }
            }
        }
    }

    /// Hidden states of these rows of the residual stream.
    ///
    /// # Safety
    /// As [`HeadBlock::run`].
    unsafe fn states(&self, worker: &Worker, region: &Region, rows: &[usize]) {
        if rows.is_empty() {
            return;
        }
        let width = self.spec.width;
        worker.step(rows.len(), STATE_ROWS, |part| {
            for at in part {
                // SAFETY: every row is given to one thread, and no step of a head writes the residual stream.
                unsafe {
                    let out = region.buffers.states.write(at * width..(at + 1) * width);
                    let x = region.residual(rows[at], width);
                    rms_norm(region.level, x, &self.norm.weight, self.norm.eps, out);
                }
            }
        });
    }

    /// Soft cap, edits and selection over one group of rows, each with its number among the output rows.
    ///
    /// # Safety
    /// As [`HeadBlock::run`].
    unsafe fn select(
        &self,
        worker: &Worker,
        region: &Region,
        logits: SharedSlice<f32>,
        rows: &[(usize, &OutputRow)],
    ) {
        let vocab = self.spec.vocab;
        let parts = vocab.div_ceil(SELECT_PART);
        worker.step(rows.len() * parts, 1, |range| {
            for part in range {
                let (row, start) = (part / parts, part % parts * SELECT_PART);
                let len = SELECT_PART.min(vocab - start);
                // SAFETY: parts are disjoint, each given to one thread; the scratch is this thread's.
                unsafe {
                    let values = logits.write(row * vocab + start..row * vocab + start + len);
                    if let Some(cap) = self.spec.soft_cap {
                        apply(region.level, Elementwise::SoftCap(cap), values);
                    }
                    let (number, asked) = rows[row];
                    asked.edits.apply(start, values);
                    match asked.select {
                        Select::Top(k) => {
                            let best = top_k(region.level, values, start as u32, k);
                            region.scratch(worker).tops.push((number, best));
                        }
                        Select::Hidden => {}
                        Select::Logits if all_logits(region.batch) => {}
                        Select::Logits => {
                            let before = &region.batch.outputs()[..number];
                            let at = before.iter().filter(|o| o.select == Select::Logits).count();
                            let at = at * vocab + start;
                            region.buffers.wanted.write(at..at + len).copy_from_slice(values);
                        }
                    }
                }
            }
        });
    }
}
