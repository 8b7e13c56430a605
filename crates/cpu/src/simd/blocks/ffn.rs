//! Dense gated feed-forward network: gate, up, activation and multiply in one pass over the weights, then down.

use std::sync::Arc;

use unicorn_core::FfnSpec;

use super::label::Label;
use super::norm::Norm;
use super::region::{Inputs, Needs, Region, grain};
use crate::simd::linear::{OutputView, PackedMatrix, linear_glu};
use crate::simd::pool::Worker;

/// A loaded feed-forward block.
pub(crate) struct FfnBlock {
    pub(crate) spec: FfnSpec,
    pub(crate) norm: Norm,
    pub(crate) gate: Arc<PackedMatrix>,
    pub(crate) up: Arc<PackedMatrix>,
    pub(crate) down: Arc<PackedMatrix>,
    pub(crate) post_norm: Option<Norm>,
    gate_up_label: Label,
    down_label: Label,
}

impl FfnBlock {
    /// Wraps the weights.
    pub(crate) fn new(
        spec: &FfnSpec,
        norm: Norm,
        [gate, up, down]: [Arc<PackedMatrix>; 3],
        post_norm: Option<Norm>,
    ) -> FfnBlock {
        let gate_up_label = Label::product("ffn_gate_up", &[&gate, &up]);
        let down_label = Label::product("ffn_down", &[&down]);
        FfnBlock { spec: spec.clone(), norm, gate, up, down, post_norm, gate_up_label, down_label }
    }

    pub(super) fn labels(&self) -> [&Label; 2] {
        [&self.gate_up_label, &self.down_label]
    }

    /// Shared memory for `rows` rows.
    pub(crate) fn needs(&self, rows: usize) -> Needs {
        let y = if self.post_norm.is_some() { rows * self.spec.width } else { 0 };
        Needs { hidden: rows * self.spec.hidden, y, ..Needs::default() }
    }

    /// Adds the block's output to the residual stream.
    ///
    /// # Safety
    /// As [`super::Loaded::run`].
    pub(super) unsafe fn run(&self, worker: &Worker, region: &Region) {
        let (rows, hidden) = (region.row_count(), self.spec.hidden);
        let (gate, up) = (&*self.gate, &*self.up);
        // SAFETY: panels are given to one thread each.
        unsafe {
            region.start_marks(worker);
            let forms = gate.activation_forms() | up.activation_forms();
            let x = region.normed(&self.norm, rows, forms, |row| row);
            let out = region.buffers.hidden;
            region.step_over(worker, &x, gate.panels(), grain(gate, worker.threads()), |x, panels| {
                let view = OutputView::from_raw(out.pointer(0), out.len(), hidden, hidden);
                linear_glu(gate, up, x, panels, 0..rows, self.spec.activation, view);
            });
            let per_row = 2 * (gate.rows() * gate.cols()) as u64;
            let bytes = (gate.bytes() + up.bytes()) as u64;
            region.mark(worker, &self.gate_up_label, bytes, 2 * rows as u64 * per_row);

            let forms = self.down.activation_forms();
            let x = Inputs {
                rows,
                cols: hidden,
                forms,
                fill: |row, _: &mut _, _: &mut _, quantize: &dyn Fn(&[f32])| {
                    quantize(out.read(row * hidden..(row + 1) * hidden));
                },
            };
            region.add_to_residual(worker, &x, &self.down, None, self.post_norm.as_ref());
            region.mark(worker, &self.down_label, self.down.bytes() as u64, rows as u64 * per_row);
        }
    }
}
