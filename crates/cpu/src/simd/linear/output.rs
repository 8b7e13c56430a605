//! The drivers: blocks of rows, kernels, and what becomes of the sums.

use std::mem::MaybeUninit;
use std::ops::Range;

use unicorn_core::Activation;

use super::activations::PackedActivations;
use super::compiled::functions;
use super::job::PanelJob;
use super::layout::PANEL_ROWS;
use super::matrix::PackedMatrix;
use crate::simd::elementary::activate;
use crate::simd::float_vector::{FloatVector, SimdFunction, dispatch};

/// Rows of activations per block: their integers and scales stay in the L2 cache while the panels pass by. A multiple of
/// every tile width.
const BLOCK_ROWS: usize = 120;
/// Panels per kernel call for one row of activations: enough independent sums in float kernels.
const DECODE_PANELS: usize = 4;
/// Panels per kernel call otherwise: two 512-bit vectors of rows.
const BLOCK_PANELS: usize = 2;

/// A matrix of f32 `[rows, cols]` that several threads write at once.
#[derive(Clone, Copy)]
pub struct OutputView<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    lifetime: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: writes go through `linear` and `linear_glu`, whose contract keeps them disjoint.
unsafe impl Send for OutputView<'_> {}
// SAFETY: as above.
unsafe impl Sync for OutputView<'_> {}

impl<'a> OutputView<'a> {
    /// A view of `out` with rows `stride` floats apart, `cols` of them used.
    ///
    /// # Panics
    /// When `cols` exceeds `stride`.
    pub fn new(out: &'a mut [f32], cols: usize, stride: usize) -> OutputView<'a> {
        // SAFETY: the slice is valid for writes for the view's lifetime.
        unsafe { OutputView::from_raw(out.as_mut_ptr(), out.len(), cols, stride) }
    }

    /// As [`OutputView::new`], from a pointer to `len` floats.
    ///
    /// # Safety
    /// The floats must stay valid for the lifetime, and be accessed by nothing else than `linear` and `linear_glu` while these
    /// write them.
    ///
    /// # Panics
    /// When `cols` exceeds `stride`.
    pub(crate) unsafe fn from_raw(start: *mut f32, len: usize, cols: usize, stride: usize) -> OutputView<'a> {
        assert!(cols <= stride && stride > 0, "{cols} columns in a stride of {stride}");
        let rows = if len < cols { 0 } else { (len - cols) / stride + 1 };
        OutputView { start, rows, cols, stride, lifetime: std::marker::PhantomData }
    }
}

/// What is done with a product.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// `out = y`.
    Store,
    /// `out += y`: the residual add.
    Add,
    /// `out = y + bias`; one element per row of the matrix.
    Bias(&'a [f32]),
    /// `out += y + bias`.
    AddBias(&'a [f32]),
}

/// `out[r, i] = epilogue(sum_k w[i, k] x[r, k])` for the rows of `w` in `panels` and the rows `r` of `x` in `rows`; row `r` of `x` goes to
/// row `r` of `out`.
///
/// # Safety
/// No other thread may access these elements of `out`, fill the panels, or write the activations at the same time; every
/// row of the activations in `rows` must have been quantized.
///
/// # Panics
/// When shapes, forms or ranges do not fit.
pub unsafe fn linear(
    w: &PackedMatrix,
    x: &PackedActivations,
    panels: Range<usize>,
    rows: Range<usize>,
    out: OutputView<'_>,
    epilogue: Epilogue<'_>,
) {
    check(w, x, &panels, &rows, &out);
    if let Epilogue::Bias(b) | Epilogue::AddBias(b) = epilogue {
        assert!(b.len() == w.rows(), "bias of {} for {} rows", b.len(), w.rows());
    }
    if x.rows() == 1 {
        // SAFETY: checked above, and by the caller's contract.
        unsafe { decode(&[w], x, panels, |y, sums| finish(sums[0], w, y, out, epilogue)) }
    } else {
        // SAFETY: as above.
        unsafe { blocks(&[w], x, panels, rows, |y, sums| finish(sums[0], w, y, out, epilogue)) }
    }
}

/// `out[r, i] = activation(gate_i . x_r) * (up_i . x_r)`: the gated half of a feed-forward block in one pass.
///
/// # Safety
/// As [`linear`].
///
/// # Panics
/// When shapes, forms or ranges do not fit, or the two matrices differ in shape or level.
pub(crate) unsafe fn linear_glu(
    gate: &PackedMatrix,
    up: &PackedMatrix,
    x: &PackedActivations,
    panels: Range<usize>,
    rows: Range<usize>,
    activation: Activation,
    out: OutputView<'_>,
) {
    check(gate, x, &panels, &rows, &out);
    check(up, x, &panels, &rows, &out);
    assert!(gate.rows() == up.rows() && gate.level() == up.level(), "gate and up differ in shape or level");
    if gate.kernel().tile() != up.kernel().tile() {
        // Integer and float tiles do not line up: one matrix after the other.
        // SAFETY: as above.
        unsafe { mixed_glu(gate, up, x, panels, rows, activation, out) };
        return;
    }
    let glu = |y: PanelSums, sums: [*const f32; 2]| {
        dispatch(gate.level(), Glu { y, sums, activation, out, w: gate })
    };
    if x.rows() == 1 {
        // SAFETY: checked above, and by the caller's contract.
        unsafe { decode(&[gate, up], x, panels, glu) }
    } else {
        // SAFETY: as above.
        unsafe { blocks(&[gate, up], x, panels, rows, glu) }
    }
}

/// [`linear_glu`] of matrices whose kernels differ in tile width.
unsafe fn mixed_glu(
    gate: &PackedMatrix,
    up: &PackedMatrix,
    x: &PackedActivations,
    panels: Range<usize>,
    rows: Range<usize>,
    activation: Activation,
    out: OutputView<'_>,
) {
    let width = panels.len() * PANEL_ROWS;
    let first_column = panels.start * PANEL_ROWS;
    let mut gates = vec![0f32; rows.len() * width];
    let columns = width.min(gate.rows() - first_column);
    // SAFETY: by the caller's contract; the gates land in rows `rows` of a view that starts before the buffer, at
    // their own column, and nowhere else.
    unsafe {
        let start = gates.as_mut_ptr().wrapping_sub(rows.start * width + first_column);
        let view = OutputView { start, rows: rows.end, cols: gate.rows(), stride: width, ..out };
        linear(gate, x, panels.clone(), rows.clone(), view, Epilogue::Store);
        linear(up, x, panels, rows.clone(), out, Epilogue::Store);
        for r in rows.clone() {
            for first in (0..columns).step_by(PANEL_ROWS) {
                let count = PANEL_ROWS.min(columns - first);
                let target = out.start.add(r * out.stride + first_column + first);
                let mut ups = [0f32; PANEL_ROWS];
                std::ptr::copy_nonoverlapping(target, ups.as_mut_ptr(), count);
                let y = PanelSums {
                    panels: 1,
                    panel: first_column / PANEL_ROWS + first / PANEL_ROWS,
                    row: r,
                    rows: 1,
                    stride: 0,
                };
                let sums = [gates.as_ptr().add((r - rows.start) * width + first), ups.as_ptr()];
                dispatch(gate.level(), Glu { y, sums, activation, out, w: gate });
            }
        }
    }
}

fn check(
    w: &PackedMatrix,
    x: &PackedActivations,
    panels: &Range<usize>,
    rows: &Range<usize>,
    out: &OutputView<'_>,
) {
    assert!(x.cols() == w.cols(), "activations of {} columns for {} weights per row", x.cols(), w.cols());
    assert!(x.forms().contains(w.activation_forms()), "activations lack the form for {}", w.kernel().name());
    assert!(panels.start <= panels.end && panels.end <= w.panels(), "panels {panels:?} of {}", w.panels());
    assert!(rows.start <= rows.end && rows.end <= x.rows(), "rows {rows:?} of {}", x.rows());
    assert!(rows.end <= out.rows && w.rows() <= out.cols, "output {} x {} is too small", out.rows, out.cols);
}

/// Sums that a kernel computed: `panels` panels from `panel` on, `rows` rows from `row` on, `[panel][row][16]` with
/// `stride` floats between panels.
#[derive(Clone, Copy)]
struct PanelSums {
    panels: usize,
    panel: usize,
    row: usize,
    rows: usize,
    stride: usize,
}

/// # Safety
/// As [`linear`], with its checks done; the activations must have one row.
unsafe fn decode<const N: usize>(
    ws: &[&PackedMatrix; N],
    x: &PackedActivations,
    panels: Range<usize>,
    finish: impl Fn(PanelSums, [*const f32; N]),
) {
    let compiled = ws.map(|w| functions(w.kernel()).decode);
    let mut sums = [[0f32; DECODE_PANELS * PANEL_ROWS]; N];
    for panel in panels.clone().step_by(DECODE_PANELS) {
        let count = DECODE_PANELS.min(panels.end - panel);
        for i in 0..N {
            let (matrix, out) = (ws[i], sums[i].as_mut_ptr());
            let job = PanelJob { matrix, panel, count, x, tile: 0, tiles: 1, out, out_stride: PANEL_ROWS };
            // SAFETY: by the caller's contract.
            unsafe { compiled[i](&job) };
        }
        let part = PanelSums { panels: count, panel, row: 0, rows: 1, stride: PANEL_ROWS };
        finish(part, std::array::from_fn(|i| sums[i].as_ptr()));
    }
}

#[repr(align(64))]
struct Sums(#[allow(dead_code)] [f32; BLOCK_PANELS * BLOCK_ROWS * PANEL_ROWS]);

/// # Safety
/// As [`linear`], with its checks done; the kernels must have the same tile width.
unsafe fn blocks<const N: usize>(
    ws: &[&PackedMatrix; N],
    x: &PackedActivations,
    panels: Range<usize>,
    rows: Range<usize>,
    finish: impl Fn(PanelSums, [*const f32; N]),
) {
    let compiled = ws.map(|w| functions(w.kernel()).tiles);
    let width = ws[0].kernel().tile();
    let tiles = PackedActivations::tiles(&rows, width);
    let mut sums = [const { MaybeUninit::<Sums>::uninit() }; N];
    let starts: [*mut f32; N] = std::array::from_fn(|i| sums[i].as_mut_ptr().cast());
    for tile in tiles.clone().step_by(BLOCK_ROWS / width) {
        let tiles = (BLOCK_ROWS / width).min(tiles.end - tile);
        // The first and last tile may hold rows that were not asked for.
        let first = (tile * width).max(rows.start);
        let last = ((tile + tiles) * width).min(rows.end);
        for panel in panels.clone().step_by(BLOCK_PANELS) {
            let count = BLOCK_PANELS.min(panels.end - panel);
            for i in 0..N {
                let out_stride = BLOCK_ROWS * PANEL_ROWS;
                let job =
                    PanelJob { matrix: ws[i], panel, count, x, tile, tiles, out: starts[i], out_stride };
                // SAFETY: by the caller's contract.
                unsafe { compiled[i](&job) };
            }
            let stride = BLOCK_ROWS * PANEL_ROWS;
            let part = PanelSums { panels: count, panel, row: first, rows: last - first, stride };
            finish(part, starts.map(|s| s.wrapping_add((first - tile * width) * PANEL_ROWS).cast_const()));
        }
    }
}

/// Writes sums to the output.
fn finish(sums: *const f32, w: &PackedMatrix, y: PanelSums, out: OutputView<'_>, epilogue: Epilogue<'_>) {
    for p in 0..y.panels {
        let column = (y.panel + p) * PANEL_ROWS;
        let count = PANEL_ROWS.min(w.rows() - column);
        let mut offset = [0f32; PANEL_ROWS];
        let add = match epilogue {
            Epilogue::Store | Epilogue::Bias(_) => false,
            Epilogue::Add | Epilogue::AddBias(_) => true,
        };
        if let Epilogue::Bias(b) | Epilogue::AddBias(b) = epilogue {
            offset[..count].copy_from_slice(&b[column..column + count]);
        }
        let biased = matches!(epilogue, Epilogue::Bias(_) | Epilogue::AddBias(_));
        for r in 0..y.rows {
            // SAFETY: the kernel has written these sums; the output was checked to have the row and the columns.
            unsafe {
                let mut values = sums.add(p * y.stride + r * PANEL_ROWS).cast::<[f32; PANEL_ROWS]>().read();
                let target = out.start.add((y.row + r) * out.stride + column);
                if biased {
                    (0..PANEL_ROWS).for_each(|i| values[i] += offset[i]);
                }
                if count < PANEL_ROWS {
                    for i in 0..count {
                        *target.add(i) = values[i] + if add { *target.add(i) } else { 0.0 };
                    }
                    continue;
                }
                let target = target.cast::<[f32; PANEL_ROWS]>();
                if add {
                    let before = target.read();
                    (0..PANEL_ROWS).for_each(|i| values[i] += before[i]);
                }
                target.write(values);
            }
        }
    }
}

/// Combines gate and up sums and writes them to the output.
struct Glu<'a> {
    y: PanelSums,
    sums: [*const f32; 2],
    activation: Activation,
    out: OutputView<'a>,
    w: &'a PackedMatrix,
}

impl SimdFunction for Glu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: FloatVector>(self) {
        let Glu { y, sums: [gates, ups], activation, out, w } = self;
        for p in 0..y.panels {
            let column = (y.panel + p) * PANEL_ROWS;
            let count = PANEL_ROWS.min(w.rows() - column);
            for r in 0..y.rows {
                let at = p * y.stride + r * PANEL_ROWS;
                let mut values = [0f32; PANEL_ROWS];
                // SAFETY: the kernels have written these sums; the output was checked to have the row and the columns.
                unsafe {
                    for i in (0..PANEL_ROWS).step_by(S::LANES) {
                        let gate = activate::<S>(activation, S::load(gates.add(at + i)));
                        S::store(values.as_mut_ptr().add(i), S::mul(gate, S::load(ups.add(at + i))));
                    }
                    let target = out.start.add((y.row + r) * out.stride + column);
                    std::ptr::copy_nonoverlapping(values.as_ptr(), target, count);
                }
            }
        }
    }
}
