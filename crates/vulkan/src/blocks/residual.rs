//! What every block has at its two ends: the normed residual stream as the input of its first products, and its last product, added to the
//! residual stream.

use super::builder::{Builder, NextInput, Norm, NormRows, NormTo};
use super::linear::{Input, Output, Product, Quantize};
use crate::memory::Buffer;
use crate::select::{Form, Path};
use crate::weights::Matrix;

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

    /// The residual stream as it is as the input of a block's first products.
    pub(crate) fn plain_input(&mut self, matrices: &[&Matrix]) -> NormedInput<'a> {
        let (s, width) = (self.scratch, self.scratch.sizes.width);
        for (form, to) in [(Form::Half, NormTo::Half(&s.half)), (Form::Quantized, NormTo::Quantized)] {
            if matrices.iter().any(|m| self.form(m) == form) {
                self.norm("input", &s.residual, None, width, to, NormRows::All);
            }
        }
        NormedInput { float: Input::Float(&s.residual), half: Input::Half(&s.half), quantized: Input::Normed }
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
