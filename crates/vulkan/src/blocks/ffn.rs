//! Gated feed-forward network: gate, up, activation and multiply in one dispatch, down and the residual add in the next.

use std::sync::Arc;

use super::builder::{Builder, NextInput, Norm, NormRows, NormTo, flat_groups};
use super::linear::{Input, Output, Product, Quantize};
use super::residual::NormedInput;
use crate::arguments::Arguments;
use crate::kernel::Kernel;
use crate::select::{self, FfnShape, Form, Path, Tier};
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
    pub(crate) fn shape(&self) -> FfnShape {
        FfnShape {
            gate: self.gate.shape(),
            up: self.up.shape(),
            down: self.down.shape(),
            activation: self.activation,
            post_norm: self.post_norm.is_some(),
        }
    }

    /// `next` is the input of the block after this one, where it may be prepared here.
    pub(crate) fn record(&self, b: &mut Builder<'_>, next: Option<NextInput<'_>>) {
        let (s, rows) = (b.scratch, b.rows);
        let input = b.normed_input(&self.norm, &[&self.gate, &self.up]);
        let hidden = self.gate.rows;
        if b.router.fuses(&self.shape(), b.path) {
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
        let arguments =
            Arguments::new().addresses([s.wide.address(), s.up.address(), s.half_wide.address()]).u32(count);
        b.dispatch("ffn_glu", kernel, arguments, flat_groups(count, 256), &[&s.wide, &s.up], &[y]);
        if form == Form::Quantized {
            b.norm("quantize", &s.wide, None, hidden, NormTo::Inner, NormRows::All);
        }
    }
}
