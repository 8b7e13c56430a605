//! Output head: final norm of the rows asked for, the product, and selection on the device where it was asked for.

use std::sync::Arc;

use super::builder::{Builder, Norm, NormRows, NormTo, flat_groups};
use super::linear::{Input, Output, Product, Quantize};
use crate::arguments::Arguments;
use crate::edits::{EditShape, TAKE_THREADS};
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::recording::Copy;
use crate::select::{self, Form, HeadShape};
use crate::stream::Wanted;
use crate::weights::Matrix;

pub(crate) struct HeadBlock {
    pub(crate) norm: Norm,
    pub(crate) weight: Arc<Matrix>,
    pub(crate) soft_cap: Option<f32>,
}

impl HeadBlock {
    pub(crate) fn shape(&self) -> HeadShape {
        HeadShape { weight: self.weight.shape(), soft_cap: self.soft_cap.is_some() }
    }

    pub(crate) fn record(&self, b: &mut Builder<'_>, wanted: &Wanted, edits: EditShape) {
        b.hidden_states(Some(&self.norm), self.weight.cols);
        if b.outputs == 0 {
            return;
        }
        let s = b.scratch;
        let vocab = self.weight.rows;
        let logits = if *wanted == Wanted::Logits { &s.logits_host } else { &s.logits };
        let input = self.input(b);
        let out =
            Output { y: Some(logits), column: 0, stride: vocab, accumulate: false, quantize: Quantize::No };
        let outputs = b.outputs;
        b.product(Product { op: "head", matrix: &self.weight, gated: None }, input, out, outputs);
        match wanted {
            Wanted::Top(k) if edits.is_empty() => self.select(b, *k, self.soft_cap),
            Wanted::Top(k) => {
                self.cap(b, logits);
                self.edit(b, edits);
                self.select(b, *k, None);
            }
            Wanted::Logits => self.cap(b, logits),
            Wanted::Mixed(k, rows) => {
                self.cap(b, logits);
                self.edit(b, edits);
                self.select(b, *k, None);
                let bytes = vocab as u64 * 4;
                for (to, from) in (0..).zip(rows) {
                    let (from, to) =
                        ((s.logits.handle, *from as u64 * bytes), (s.logits_host.handle, to * bytes));
                    b.recording.after.push(Copy { from, to, bytes });
                }
            }
        }
    }

    /// The soft cap on all logits of all output rows.
    fn cap(&self, b: &mut Builder<'_>, logits: &Buffer) {
        let Some(cap) = self.soft_cap else { return };
        let count = b.outputs * self.weight.rows;
        let kernel = Kernel { shader: "soft_cap".into(), constants: vec![256], subgroup: 0 };
        let arguments = Arguments::new().address(logits.address()).u32(count).f32(cap);
        b.dispatch("soft_cap", kernel, arguments, flat_groups(count, 256), &[logits], &[logits]);
    }

    /// Bars what masks do not allow, and takes out the logits that the host adjusts.
    fn edit(&self, b: &mut Builder<'_>, edits: EditShape) {
        let (s, vocab, groups) = (b.scratch, self.weight.rows, edits.takes);
        let kernel = |shader: &str, threads: usize| Kernel {
            shader: shader.into(),
            constants: vec![threads as u32],
            subgroup: 0,
        };
        if edits.masked {
            let arguments = Arguments::new().addresses([s.logits.address(), s.masks.address()]).u32(vocab);
            let grid = [vocab.div_ceil(256), b.outputs, 1];
            b.dispatch("mask_logits", kernel("mask_logits", 256), arguments, grid, &[&s.masks], &[&s.logits]);
        }
        if groups > 0 {
            let addresses = [s.logits.address(), s.take_list.address(), s.taken.address()];
            let arguments = Arguments::new().addresses(addresses).u32(vocab);
            let (kernel, grid) =
                (kernel("take_logits", TAKE_THREADS), flat_groups(groups * TAKE_THREADS, TAKE_THREADS));
            b.dispatch(
                "take_logits",
                kernel,
                arguments,
                grid,
                &[&s.logits, &s.take_list],
                &[&s.logits, &s.taken],
            );
        }
    }

    /// The `k` largest logits of each output row, capped on the way where that is still to be done.
    fn select(&self, b: &mut Builder<'_>, k: usize, cap: Option<f32>) {
        let (s, outputs, vocab) = (b.scratch, b.outputs, self.weight.rows);
        let plan = select::top(vocab, k, b.gpu);
        let arguments = |from: &Buffer, to: &Buffer, count: usize| {
            let arguments = Arguments::new().addresses([from.address(), to.address()]);
            arguments.u32(count).u32(k).f32(cap.unwrap_or(0.0))
        };
        let to = if plan.second.is_some() { &s.pairs } else { &s.top };
        let (first, groups) = (arguments(&s.logits, to, vocab), [plan.slices, outputs, 1]);
        b.dispatch("top_k", plan.first.clone(), first, groups, &[&s.logits], &[to]);
        if let Some(kernel) = &plan.second {
            let second = arguments(&s.pairs, &s.top, plan.pairs(k));
            b.dispatch("top_k", kernel.clone(), second, [1, outputs, 1], &[&s.pairs], &[&s.top]);
        }
    }

    /// The normed rows asked for: those that the block before prepared, or in a dispatch of their own.
    fn input<'a>(&self, b: &mut Builder<'a>) -> Input<'a> {
        let s = b.scratch;
        if std::mem::take(&mut b.prepared) {
            return Input::Prepared { eps: self.norm.eps, float: self.weight.is_float() };
        }
        let listed = NormRows::Listed(s.outputs_address());
        let (to, input) = match b.form(&self.weight) {
            Form::Half => (NormTo::Half(&s.half), Input::Half(&s.half)),
            Form::Float => (NormTo::Float(&s.float), Input::Float(&s.float)),
            Form::Quantized => (NormTo::Quantized, Input::Normed),
        };
        b.norm("norm", &s.residual, Some(&self.norm), self.weight.cols, to, listed);
        input
    }
}
