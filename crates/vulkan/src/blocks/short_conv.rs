//! The short convolution: the product of its gates, a kernel for channels and states, and the product that is added to the residual stream.

use std::sync::Arc;

use unicorn_core::ShortConvSpec;

use super::builder::{Builder, NextInput, Norm, NormRows, NormTo};
use super::linear::{Input, Output, Product, Quantize};
use crate::arguments::Arguments;
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::select::{Form, ShortConvShape};
use crate::weights::Matrix;

/// Channels of a workgroup.
const THREADS: usize = 64;

pub(crate) struct ShortConvBlock {
    pub(crate) spec: ShortConvSpec,
    pub(crate) norm: Norm,
    pub(crate) input: Arc<Matrix>,
    pub(crate) output: Arc<Matrix>,
    /// f32 `[kernel, width]`.
    pub(crate) taps: Buffer,
    /// f32 `[pages, kernel - 1, width]`.
    pub(crate) states: Option<Buffer>,
}

impl ShortConvBlock {
    pub(crate) fn shape(&self) -> ShortConvShape {
        ShortConvShape { input: self.input.shape(), output: self.output.shape() }
    }

    /// `next` is the input of the block after this one, where it may be prepared here.
    pub(crate) fn record(&self, b: &mut Builder<'_>, states: &Buffer, next: Option<NextInput<'_>>) {
        let (s, rows, width) = (b.scratch, b.rows, self.spec.width);
        let input = b.normed_input(&self.norm, &[&self.input]);
        let product = Product { op: "short_conv_input", matrix: &self.input, gated: None };
        let out = Output {
            y: Some(&s.qkv),
            column: 0,
            stride: 3 * width,
            accumulate: false,
            quantize: Quantize::No,
        };
        b.product(product, input.of(b.form(&self.input)), out, rows);
        let form = b.form(&self.output);
        let y = if form == Form::Half { &s.half_wide } else { &s.wide };
        // Where every slice has one row, the thread of that row's channel writes its state too.
        let alone = b.spans.iter().all(|(_, rows)| *rows == 1);
        self.dispatch(b, states, y, form, [true, alone]);
        if !alone {
            self.dispatch(b, states, y, form, [false, true]);
        }
        let input = match form {
            Form::Float => Input::Float(&s.wide),
            Form::Half => Input::Half(&s.half_wide),
            Form::Quantized => {
                b.norm("quantize", &s.wide, None, width, NormTo::Inner, NormRows::All);
                Input::Inner
            }
        };
        b.add_to_residual("short_conv_output", &self.output, None, input, None, next);
    }

    /// Rows, states, or both.
    fn dispatch(
        &self,
        b: &mut Builder<'_>,
        states: &Buffer,
        y: &Buffer,
        form: Form,
        [rows, writes]: [bool; 2],
    ) {
        let (s, spec) = (b.scratch, &self.spec);
        let constants =
            [THREADS as u32, spec.kernel as u32, rows as u32, writes as u32, (form == Form::Half) as u32];
        let kernel = Kernel { shader: "short_conv".into(), constants: constants.to_vec(), subgroup: 0 };
        let arguments = Arguments::new()
            .addresses([s.qkv.address(), self.taps.address(), states.address(), s.batch.address()])
            .addresses([b.pages_address(spec.state()), y.address()])
            .u32(spec.width);
        let op = if rows { "short_conv" } else { "short_conv_states" };
        let count = if rows { b.rows } else { b.spans.len() };
        let mut written = Vec::new();
        written.extend(rows.then_some(y));
        written.extend(writes.then_some(states));
        let read = b.spans.iter().filter(|(start, _)| *start > 0).count() * 4 * spec.state_floats();
        let flops = b.rows * spec.width * (2 * spec.kernel + 2);
        let groups = [spec.width.div_ceil(THREADS), count, 1];
        let d = b.dispatch(op, kernel, arguments, groups, &[&s.qkv, &s.batch, states], &written);
        if rows {
            d.bytes = self.taps.bytes() + read as u64;
            d.flops = flops as u64;
        }
    }
}
