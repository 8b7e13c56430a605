//! Gated feed-forward network: gate, up, activation and multiply in one dispatch, down and the residual add in the next.

use std::sync::Arc;

use super::linear::{Input, Output, Product, Quantize};
use super::tiled::Form;
use super::{Builder, NextInput, Norm, NormRows, NormTo, flat_groups};
use crate::memory::Buffer;
use crate::pipeline::Kernel;
use crate::profile::GpuProfile;
use crate::push::Push;
use crate::select::{self, Fold, Path, Problem, Tier, TiledOutput, VECTOR_TOKENS};
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
    /// Whether gate and up run as one kernel on a path: where they are of one type, nobody asked for the parts, and that path's kernel can
    /// be trusted.
    pub(crate) fn fuses(&self, gpu: &GpuProfile, allowed: bool, path: Path) -> bool {
        let (ty, cols, activation) = (self.gate.ty, self.gate.cols, Some(self.activation));
        let kernel = || match path {
            Path::Vector => select::linear_vector(
                ty,
                [self.gate.rows, cols],
                1,
                Fold { activation, ..Fold::default() },
                gpu,
            ),
            Path::Matrix => {
                let (rows, tokens, output) = (self.gate.rows, VECTOR_TOKENS + 1, TiledOutput::Half);
                select::matrix_product(&Problem { ty, rows, cols, tokens, activation, output }, gpu).kernel
            }
        };
        allowed && ty == self.up.ty && !gpu.avoids(&kernel().shader)
    }

    /// `next` is the input of the block after this one, where it may be prepared here.
    pub(crate) fn record(&self, b: &mut Builder<'_>, next: Option<NextInput<'_>>) {
        let (s, rows) = (b.scratch, b.rows);
        let input = b.normed_input(&self.norm, &[&self.gate, &self.up]);
        let hidden = self.gate.rows;
        if self.fuses(b.gpu, b.fused_ffn, b.path) {
            let matrices = matches!(select::tier(self.gate.ty, b.gpu), Tier::Cooperative(_));
            let (y, quantize) = match b.form(&self.down) {
                Form::Float => (Some(&s.wide), Quantize::No),
                Form::Half => (None, Quantize::Half),
                // Products on matrix units write f16 at best.
                Form::Quantized if matrices && b.path == Path::Matrix => (None, Quantize::Half),
                Form::Quantized => (None, Quantize::Inner),
            };
            let apart = b.form(&self.down) == Form::Quantized && matches!(quantize, Quantize::Half);
            let product =
                Product { op: "ffn_gate_up", matrix: &self.gate, gated: Some((&self.up, self.activation)) };
            b.product(
                product,
                input.of(b.form(&self.gate)),
                Output { y, column: 0, stride: hidden, accumulate: false, quantize },
                rows,
            );
            if apart {
                b.quantize_half(hidden);
            }
        } else {
            self.unfused(b, &input);
        }
        let input = match b.form(&self.down) {
            Form::Float => Input::Float(&s.wide),
            Form::Half => Input::Half(&s.half_wide),
            Form::Quantized => Input::Inner,
        };
        b.add_to_residual("ffn_down", &self.down, None, input, self.post_norm.as_ref(), next);
    }
}

impl FfnBlock {
    /// Gate and up each alone, then the activation.
    fn unfused(&self, b: &mut Builder<'_>, input: &NormedInput<'_>) {
        let (s, rows, hidden) = (b.scratch, b.rows, self.gate.rows);
        for (op, matrix, y) in [("ffn_gate", &self.gate, &s.wide), ("ffn_up", &self.up, &s.up)] {
            let out =
                Output { y: Some(y), column: 0, stride: hidden, accumulate: false, quantize: Quantize::No };
            b.product(Product { op, matrix, gated: None }, input.of(b.form(matrix)), out, rows);
        }
        let count = rows * hidden;
        let form = b.form(&self.down);
        let half = form == Form::Half;
        let y = if half { &s.half_wide } else { &s.wide };
        let kernel =
            Kernel { shader: "glu".into(), constants: vec![256, self.activation, half as u32], subgroup: 0 };
        let push =
            Push::new().addresses([s.wide.address(), s.up.address(), s.half_wide.address()]).u32(count);
        b.dispatch("ffn_glu", kernel, push, flat_groups(count, 256), &[&s.wide, &s.up], &[y]);
        if form == Form::Quantized {
            b.norm("quantize", &s.wide, None, hidden, NormTo::Inner, NormRows::All);
        }
    }
}

/// A block's normed input in every form; only those that its matrices take have been computed.
pub(crate) struct NormedInput<'a> {
    float: Input<'a>,
    half: Input<'a>,
    quantized: Input<'a>,
}

impl<'a> NormedInput<'a> {
    /// The input in a form that a matrix of the block takes.
    pub(crate) fn of(&self, form: Form) -> Input<'a> {
        match form {
            Form::Float => self.float,
            Form::Half => self.half,
            Form::Quantized => self.quantized,
        }
    }
}

impl<'a> Builder<'a> {
    /// The input of a block's first products: what the block before prepared, or the norm in a dispatch of its own for each form that
    /// the matrices take.
    pub(crate) fn normed_input(&mut self, norm: &Norm, matrices: &[&Matrix]) -> NormedInput<'a> {
        let (s, width) = (self.scratch, self.scratch.sizes.width);
        let (float, half) = (Input::Float(&s.float), Input::Half(&s.half));
        if std::mem::take(&mut self.prepared) {
            let prepared = |float| Input::Prepared { eps: norm.eps, float };
            return NormedInput { float: prepared(true), half, quantized: prepared(false) };
        }
        for (form, to) in [
            (Form::Half, NormTo::Half(&s.half)),
            (Form::Quantized, NormTo::Quantized),
            (Form::Float, NormTo::Float(&s.float)),
        ] {
            if matrices.iter().any(|m| self.form(m) == form) {
                self.norm("norm", &s.residual, Some(norm), width, to, NormRows::All);
            }
        }
        NormedInput { float, half, quantized: Input::Normed }
    }

    /// The block's last product, with its bias: added to the residual stream, through the post norm where there is one, and prepared for
    /// the next block where that is possible.
    pub(crate) fn add_to_residual(
        &mut self,
        op: &'static str,
        matrix: &Matrix,
        bias: Option<&Buffer>,
        input: Input<'_>,
        post_norm: Option<&Norm>,
        next: Option<NextInput<'_>>,
    ) {
        let (s, rows, width) = (self.scratch, self.rows, matrix.rows);
        let Some(post) = post_norm else {
            // The product accumulates, so the bias may come first; what is prepared for the next block then holds it.
            if let Some(bias) = bias {
                self.add_bias(&s.residual, bias, width);
            }
            // Tiles do not prepare it, and f16 input takes them on any path.
            let next = next.filter(|_| self.path == Path::Vector && !matches!(input, Input::Half(_)));
            let quantize = next.map_or(Quantize::No, Quantize::Next);
            let out = Output { y: Some(&s.residual), column: 0, stride: width, accumulate: true, quantize };
            self.product(Product { op, matrix, gated: None }, input, out, rows);
            self.prepared = next.is_some();
            return;
        };
        let out =
            Output { y: Some(&s.float), column: 0, stride: width, accumulate: false, quantize: Quantize::No };
        self.product(Product { op, matrix, gated: None }, input, out, rows);
        if let Some(bias) = bias {
            self.add_bias(&s.float, bias, width);
        }
        self.norm("post_norm", &s.float, Some(post), width, NormTo::Add(&s.residual), NormRows::All);
        self.prepared = false;
    }
}
