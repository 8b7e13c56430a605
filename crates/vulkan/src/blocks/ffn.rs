//! Gated feed-forward network: gate, up, activation and multiply in one dispatch, down and the residual add in the next.

use std::sync::Arc;

use super::linear::{Input, Output, Product, Quantize};
use super::{Builder, Norm, NormRows, NormTo};
use crate::pipeline::Kernel;
use crate::profile::GpuProfile;
use crate::push::Push;
use crate::select::{self, Fold};
use crate::weights::Matrix;

pub(crate) struct FfnBlock {
    pub(crate) norm: Norm,
    pub(crate) gate: Arc<Matrix>,
    pub(crate) up: Arc<Matrix>,
    pub(crate) down: Arc<Matrix>,
    pub(crate) activation: u32,
    pub(crate) post_norm: Option<Norm>,
}

impl FfnBlock {
    /// Whether the first products take quantized input.
    pub(crate) fn takes_quantized(&self) -> bool {
        !self.gate.is_float() && !self.up.is_float()
    }

    /// Whether gate and up run as one kernel: where they are of one type, nobody asked for the parts, and the kernel can be trusted.
    pub(crate) fn fuses(&self, gpu: &GpuProfile, allowed: bool) -> bool {
        let fold = Fold { activation: Some(self.activation), ..Fold::default() };
        let kernel = || select::linear_vector(self.gate.ty, self.gate.cols, 1, fold, gpu);
        allowed && self.gate.ty == self.up.ty && !gpu.avoids(&kernel().shader)
    }

    /// `next` is the pre-norm of the block after this one, where its input may be prepared here.
    pub(crate) fn record(&self, b: &mut Builder<'_>, next: Option<&Norm>) {
        let (s, rows) = (b.scratch, b.rows);
        let input = b.normed_input(&self.norm, &[&self.gate, &self.up]);
        let hidden = self.gate.rows;
        if self.fuses(b.gpu, b.fused_ffn) {
            let (y, quantize) =
                if self.down.is_float() { (Some(&s.wide), Quantize::No) } else { (None, Quantize::Inner) };
            let product =
                Product { op: "ffn_gate_up", matrix: &self.gate, gated: Some((&self.up, self.activation)) };
            b.product(
                product,
                input.of(&self.gate),
                Output { y, column: 0, stride: hidden, accumulate: false, quantize },
                rows,
            );
        } else {
            self.unfused(b, &input);
        }
        let input = if self.down.is_float() { Input::Float(&s.wide) } else { Input::Inner };
        b.add_to_residual("ffn_down", &self.down, input, self.post_norm.as_ref(), next);
    }
}

impl FfnBlock {
    /// Gate and up each alone, then the activation.
    fn unfused(&self, b: &mut Builder<'_>, input: &NormedInput<'_>) {
        let (s, rows, hidden) = (b.scratch, b.rows, self.gate.rows);
        for (op, matrix, y) in [("ffn_gate", &self.gate, &s.wide), ("ffn_up", &self.up, &s.up)] {
            let out =
                Output { y: Some(y), column: 0, stride: hidden, accumulate: false, quantize: Quantize::No };
            b.product(Product { op, matrix, gated: None }, input.of(matrix), out, rows);
        }
        let count = rows * hidden;
        let kernel = Kernel { shader: "glu".into(), constants: vec![256, self.activation], subgroup: 0 };
        let push = Push::new().addresses([s.wide.address(), s.up.address()]).u32(count);
        b.dispatch("ffn_glu", kernel, push, [count.div_ceil(256), 1, 1], &[&s.wide, &s.up], &[&s.wide]);
        if !self.down.is_float() {
            b.norm("quantize", &s.wide, None, hidden, NormTo::Inner, NormRows::All);
        }
    }
}

/// A block's normed input in both forms; only those that its matrices take have been computed.
pub(crate) struct NormedInput<'a> {
    quantized: Input<'a>,
    float: Input<'a>,
}

impl<'a> NormedInput<'a> {
    /// The form that a matrix takes.
    pub(crate) fn of(&self, matrix: &Matrix) -> Input<'a> {
        if matrix.is_float() { self.float } else { self.quantized }
    }
}

impl<'a> Builder<'a> {
    /// The input of a block's first products: what the block before prepared, or the norm in a dispatch of its own for each form that
    /// the matrices take.
    pub(crate) fn normed_input(&mut self, norm: &Norm, matrices: &[&Matrix]) -> NormedInput<'a> {
        let (s, width) = (self.scratch, self.scratch.sizes.width);
        if std::mem::take(&mut self.prepared) {
            return NormedInput {
                quantized: Input::Prepared { eps: norm.eps },
                float: Input::Float(&s.float),
            };
        }
        if matrices.iter().any(|m| !m.is_float()) {
            self.norm("norm", &s.residual, Some(norm), width, NormTo::Quantized, NormRows::All);
        }
        if matrices.iter().any(|m| m.is_float()) {
            self.norm("norm", &s.residual, Some(norm), width, NormTo::Float(&s.float), NormRows::All);
        }
        NormedInput { quantized: Input::Normed, float: Input::Float(&s.float) }
    }

    /// The block's last product: added to the residual stream, through the post norm where there is one, and prepared for the next block
    /// where that is possible.
    pub(crate) fn add_to_residual(
        &mut self,
        op: &'static str,
        matrix: &Matrix,
        input: Input<'_>,
        post_norm: Option<&Norm>,
        next: Option<&Norm>,
    ) {
        let (s, rows, width) = (self.scratch, self.rows, matrix.rows);
        let Some(post) = post_norm else {
            let quantize = next.map_or(Quantize::No, |n| Quantize::Next(&n.weight));
            let out = Output { y: Some(&s.residual), column: 0, stride: width, accumulate: true, quantize };
            self.product(Product { op, matrix, gated: None }, input, out, rows);
            self.prepared = next.is_some();
            return;
        };
        let out =
            Output { y: Some(&s.float), column: 0, stride: width, accumulate: false, quantize: Quantize::No };
        self.product(Product { op, matrix, gated: None }, input, out, rows);
        self.norm("post_norm", &s.float, Some(post), width, NormTo::Add(&s.residual), NormRows::All);
        self.prepared = false;
    }
}
