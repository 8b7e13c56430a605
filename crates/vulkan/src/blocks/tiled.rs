//! Tiled products on GPUs without matrix units, and the small kernels beside products.

use super::builder::{Builder, flat_groups};
use super::linear::{Input, Output, Product, Quantize};
use crate::arguments::Arguments;
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::select::{self, TiledOutput};

impl<'a> Builder<'a> {
    /// Quantizes the block's inner activations, `[rows, cols]`, from f16.
    pub(crate) fn quantize_half(&mut self, cols: usize) {
        const THREADS: usize = 256;
        let s = self.scratch;
        let groups = self.rows * cols / 32;
        let kernel = Kernel {
            shader: "quantize".into(),
            constants: vec![THREADS as u32],
            subgroup: select::subgroup(self.gpu),
        };
        let arguments = Arguments::new()
            .addresses([s.half_wide.address(), s.inner.q.address(), s.inner.meta.address()])
            .u32(groups);
        let count = flat_groups(groups * 32, THREADS);
        self.dispatch("quantize", kernel, arguments, count, &[&s.half_wide], &[&s.inner.q, &s.inner.meta]);
    }

    /// Adds a row to each row of f32 `[rows, width]`.
    pub(crate) fn add_bias(&mut self, y: &Buffer, bias: &Buffer, width: usize) {
        let kernel = Kernel { shader: "add_bias".into(), constants: vec![64], subgroup: 0 };
        let arguments = Arguments::new().addresses([y.address(), bias.address()]).u32(width);
        let groups = [width.div_ceil(64), self.rows, 1];
        self.dispatch("add_bias", kernel, arguments, groups, &[y, bias], &[y]);
    }

    /// Where a tiled product writes and in which form; `None` for an output that asks for nothing.
    pub(crate) fn tiled_target<'b>(&self, out: &Output<'b>) -> Option<(&'b Buffer, TiledOutput)>
    where
        'a: 'b,
    {
        let s = self.scratch;
        Some(match (&out.quantize, out.y) {
            (Quantize::Half, _) => (&s.half_wide, TiledOutput::Half),
            (Quantize::Inner, _) => (&s.inner.q, TiledOutput::Quantized),
            (_, Some(y)) if out.accumulate => (y, TiledOutput::Add),
            (_, Some(y)) => (y, TiledOutput::Float),
            (_, None) => return None,
        })
    }

    /// Records a tiled product without matrix units, of f16 or quantized input.
    pub(crate) fn tiled_fallback(&mut self, p: Product<'_>, input: Input<'_>, out: Output<'_>, rows: usize) {
        let s = self.scratch;
        let m = p.matrix;
        let Some((y, kind)) = self.tiled_target(&out) else { return };
        let ymeta = (kind == TiledOutput::Quantized).then_some(&s.inner.meta);
        let (a, meta) = match input {
            Input::Half(a) | Input::Float(a) => (a, None),
            Input::Inner => (&s.inner.q, Some(&s.inner.meta)),
            Input::Normed | Input::Prepared { .. } => (&s.normed.q, Some(&s.normed.meta)),
        };
        let tiled = select::matrix_product(&p.problem(rows, kind), self.gpu);
        let element = if kind == TiledOutput::Half { 2 } else { 4 };
        let address = |b: Option<&Buffer>| b.map_or(0, Buffer::address);
        let arguments = Arguments::new()
            .addresses(m.planes())
            .addresses(p.up_planes())
            .addresses([a.address(), address(meta)])
            .addresses([y.address() + (out.column * element) as u64, address(ymeta)])
            .u32(m.rows)
            .u32(m.cols)
            .u32(rows)
            .u32(out.stride);
        let mut reads: Vec<&Buffer> = std::iter::once(a).chain(meta).collect();
        if kind == TiledOutput::Add {
            reads.push(y);
        }
        let writes: Vec<&Buffer> = std::iter::once(y).chain(ymeta).collect();
        let groups = [m.rows.div_ceil(tiled.rows), rows.div_ceil(tiled.tokens), 1];
        let d = self.dispatch(p.op, tiled.kernel, arguments, groups, &reads, &writes);
        p.count(d, rows);
    }
}
