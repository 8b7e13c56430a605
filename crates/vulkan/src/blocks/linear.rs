//! Matrix products of the batch's rows: by matrix-vector kernels, 8 rows a dispatch, or by tiles.

use super::builder::{Builder, NextInput};
use crate::arguments::Arguments;
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::recording::{Dispatch, Range};
use crate::scratch::{Activations, Scratch};
use crate::select::{self, Fold, Path, Problem, Tier, TiledOutput, VECTOR_ROWS, VECTOR_TOKENS};
use crate::weights::Matrix;

/// The input of a product.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// The residual stream, normed and quantized by a kernel of its own.
    Normed,
    /// The residual stream times the norm's weight, written by the product before; scaled here by the inverse RMS.
    Prepared {
        /// Epsilon of the norm.
        eps: f32,
        /// f32 rather than quantized.
        float: bool,
    },
    /// The block's inner activations, quantized.
    Inner,
    /// f32 `[rows, cols]`.
    Float(&'a Buffer),
    /// f16 `[rows, cols]`: takes the tiled product.
    Half(&'a Buffer),
}

/// The output of a product.
pub(crate) struct Output<'a> {
    /// f32 `[rows, stride]` to write or add to.
    pub(crate) y: Option<&'a Buffer>,
    /// First column in `y`.
    pub(crate) column: usize,
    /// Columns of `y`.
    pub(crate) stride: usize,
    /// Add.
    pub(crate) accumulate: bool,
    /// Quantize the result as the next product's input; with the next norm's weight where the result is the residual stream.
    pub(crate) quantize: Quantize<'a>,
}

/// Whether a product quantizes what it wrote.
pub(crate) enum Quantize<'a> {
    /// No.
    No,
    /// No, but f16: the block's inner activations for a tiled product.
    Half,
    /// As it is: the block's inner activations.
    Inner,
    /// The residual stream times the next norm's weight in the form that the next block takes, with sums of squares.
    Next(NextInput<'a>),
}

/// One or, for a gated unit, two matrices.
pub(crate) struct Product<'a> {
    pub(crate) op: &'static str,
    pub(crate) matrix: &'a Matrix,
    /// The up projection and the activation code.
    pub(crate) gated: Option<(&'a Matrix, u32)>,
}

impl Product<'_> {
    /// Planes of the up projection, zero where there is none.
    pub(crate) fn up_planes(&self) -> [u64; 3] {
        self.gated.map_or([0; 3], |(up, _)| up.planes())
    }

    /// What a tiled kernel is selected by: the product for the first `tokens` rows.
    pub(crate) fn problem(&self, tokens: usize, output: TiledOutput) -> Problem {
        let Matrix { ty, rows, cols, .. } = *self.matrix;
        Problem { ty, rows, cols, tokens, activation: self.gated.map(|g| g.1), output }
    }

    /// Tells a dispatch of `tokens` rows how much it reads and computes.
    pub(crate) fn count(&self, d: &mut Dispatch, tokens: usize) {
        let matrices = 1 + self.gated.is_some() as usize;
        d.bytes = self.matrix.bytes() + self.gated.map_or(0, |(up, _)| up.bytes());
        d.flops = (2 * matrices * self.matrix.rows * self.matrix.cols * tokens) as u64;
    }
}

impl Builder<'_> {
    /// Records the product of the first `rows` rows.
    pub(crate) fn product(&mut self, p: Product<'_>, input: Input<'_>, out: Output<'_>, rows: usize) {
        match (input, select::tier(p.matrix.ty, self.gpu)) {
            (Input::Half(a), Tier::Cooperative(_)) => return self.tiled(p, a, out, rows),
            (Input::Half(_), _) => return self.tiled_fallback(p, input, out, rows),
            (Input::Normed | Input::Inner, Tier::Dot) if self.path == Path::Matrix => {
                return self.tiled_fallback(p, input, out, rows);
            }
            _ => {}
        }
        for first in (0..rows).step_by(VECTOR_TOKENS) {
            self.vector(&p, input, &out, first, VECTOR_TOKENS.min(rows - first));
        }
    }

    /// Records the matrix-vector kernel for `tokens` rows from `first` on.
    fn vector(&mut self, p: &Product<'_>, input: Input<'_>, out: &Output<'_>, first: usize, tokens: usize) {
        let (s, m) = (self.scratch, p.matrix);
        let (groups_in, groups_out) = (m.cols / 32, m.rows.div_ceil(VECTOR_ROWS));
        let fold = fold(p, input, out);
        let eps = if let Input::Prepared { eps, .. } = input { eps } else { 0.0 };
        let kernel = select::linear_vector(m.ty, [m.rows, m.cols], tokens, fold, self.gpu);
        let quantized = |set: &Activations| {
            let (q, meta) = (set.q.address(), set.meta.address());
            [q + (first * groups_in * 32) as u64, meta + (first * groups_in * 8) as u64]
        };
        let a = match input {
            Input::Float(b) => [b.address() + (first * m.cols * 4) as u64, 0],
            Input::Prepared { float: true, .. } => [s.float.address() + (first * m.cols * 4) as u64, 0],
            Input::Inner => quantized(&s.inner),
            _ => quantized(&s.normed),
        };
        let y = out.y.map_or(0, |b| b.address() + ((first * out.stride + out.column) * 4) as u64);
        let next = if let Quantize::Next(n) = out.quantize { n.norm.weight.address() } else { 0 };
        let target = if fold.quantize == 1 { &s.inner } else { &s.normed };
        let written = if fold.quantize == 3 {
            [s.float.address() + (first * m.rows * 4) as u64, 0]
        } else {
            let groups = (first * groups_out) as u64;
            [target.q.address() + groups * 32, target.meta.address() + groups * 8]
        };
        let arguments = Arguments::new()
            .addresses(m.planes())
            .addresses(p.up_planes())
            .addresses(a)
            .addresses([s.squares.address() + (first * groups_in * 4) as u64, y, next])
            .addresses(written)
            .address(s.squares.address() + (first * groups_out * 4) as u64)
            .u32(m.rows)
            .u32(m.cols)
            .f32(eps)
            .u32(out.stride);
        let (reads, writes) = touched(s, fold, input, out);
        let d = self.dispatch(p.op, kernel, arguments, [groups_out, 1, 1], &reads, &writes);
        p.count(d, tokens);
        if let Some(y) = out.y.filter(|_| out.stride != m.rows && !out.accumulate) {
            // The columns beside these are other products', which need not wait for this one.
            let at = |row: usize| y.address() + ((row * out.stride + out.column) * 4) as u64;
            d.writes.retain(|w| w.address != y.address());
            let row = |row: usize| Range { address: at(row), bytes: (m.rows * 4) as u64 };
            d.writes.extend((first..first + tokens).map(row));
        }
    }

    /// Records a tiled product. The next norm is not folded in: many rows make it cheap beside the product.
    fn tiled(&mut self, p: Product<'_>, a: &Buffer, out: Output<'_>, rows: usize) {
        let s = self.scratch;
        let m = p.matrix;
        let Some((y, kind)) = self.tiled_target(&out) else { return };
        let tiled = select::matrix_product(&p.problem(rows, kind), self.gpu);
        let element = if kind == TiledOutput::Half { 2 } else { 4 };
        let target = y.address() + (out.column * element) as u64;
        let (to, stride) = if tiled.splits > 1 { (s.splits.address(), m.rows) } else { (target, out.stride) };
        let arguments = Arguments::new()
            .addresses(m.planes())
            .addresses(p.up_planes())
            .addresses([a.address(), to])
            .u32(m.rows)
            .u32(m.cols)
            .u32(rows)
            .u32(stride)
            .u32(tiled.span);
        let written = if tiled.splits > 1 { &s.splits } else { y };
        let mut reads = vec![a];
        if kind == TiledOutput::Add && tiled.splits == 1 {
            reads.push(y);
        }
        let groups = [rows.div_ceil(tiled.tokens), m.rows.div_ceil(tiled.rows), tiled.splits];
        let d = self.dispatch(p.op, tiled.kernel, arguments, groups, &reads, &[written]);
        p.count(d, rows);
        if tiled.splits == 1 {
            return;
        }
        let kernel = Kernel { shader: "split_sum".into(), constants: vec![256, kind as u32], subgroup: 0 };
        let arguments = Arguments::new()
            .addresses([s.splits.address(), target])
            .u32(m.rows)
            .u32(rows)
            .u32(out.stride)
            .u32(tiled.splits);
        let mut reads = vec![&s.splits];
        if kind == TiledOutput::Add {
            reads.push(y);
        }
        let d = self.dispatch("split_sum", kernel, arguments, [m.rows.div_ceil(256), rows, 1], &reads, &[y]);
        d.bytes = (tiled.splits * rows * m.rows * 4) as u64;
    }
}

/// What a matrix-vector kernel does beside its product.
fn fold(p: &Product<'_>, input: Input<'_>, out: &Output<'_>) -> Fold {
    Fold {
        activation: p.gated.map(|g| g.1),
        accumulate: out.accumulate,
        stored: out.y.is_some(),
        normed: matches!(input, Input::Prepared { .. }),
        quantize: match out.quantize {
            Quantize::No | Quantize::Half => 0,
            Quantize::Inner => 1,
            Quantize::Next(n) if n.float => 3,
            Quantize::Next(_) => 2,
        },
    }
}

/// Buffers that a matrix-vector kernel reads and writes, weights left out.
fn touched<'b>(
    s: &'b Scratch,
    fold: Fold,
    input: Input<'b>,
    out: &Output<'b>,
) -> (Vec<&'b Buffer>, Vec<&'b Buffer>) {
    let mut reads: Vec<&Buffer> = match input {
        Input::Float(b) => vec![b],
        Input::Prepared { float: true, .. } => vec![&s.float, &s.squares],
        Input::Inner => vec![&s.inner.q, &s.inner.meta],
        _ => vec![&s.normed.q, &s.normed.meta, &s.squares],
    };
    let mut writes: Vec<&Buffer> = out.y.into_iter().collect();
    if out.accumulate {
        reads.extend(out.y);
    }
    match fold.quantize {
        0 => {}
        1 => writes.extend([&s.inner.q, &s.inner.meta]),
        2 => writes.extend([&s.normed.q, &s.normed.meta]),
        _ => writes.push(&s.float),
    }
    if fold.quantize >= 2 {
        writes.push(&s.squares);
    }
    (reads, writes)
}
