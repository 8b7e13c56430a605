//! A weight matrix in packed form.

use std::ops::Range;

use half::{bf16, f16};
use unicorn_core::{TensorType, Weight, WeightError, WeightSource};

use super::activations::ActivationForms;
use super::allocation::Allocation;
use super::encoding::{Coding, row_group};
use super::layout::{GROUP, Layout, PANEL_ROWS, Panel};
use super::pack::pack_panel;
use super::select::{LinearKernel, select};
use crate::simd::level::SimdLevel;

/// Bytes read from the file at a time: a part of the L2 cache, and many times a system call's worth.
const READ_BYTES: usize = 256 << 10;

/// Why a matrix could not be made.
#[derive(thiserror::Error, Debug)]
pub enum PackError {
    /// The row length does not fit the type.
    #[error("{ty}: rows of {cols} elements are no whole number of blocks of {}", ty.block_len())]
    Columns {
        /// Type.
        ty: TensorType,
        /// Elements per row.
        cols: usize,
    },
    /// The system has no more memory, or the size is absurd.
    #[error("no memory for {rows} x {cols} weights of type {ty}")]
    OutOfMemory {
        /// Type.
        ty: TensorType,
        /// Rows.
        rows: usize,
        /// Elements per row.
        cols: usize,
    },
    /// The weight to read has another type or shape than the matrix.
    #[error("tensor {name} is {ty} {rows} x {cols}, unlike the matrix made for it")]
    Mismatch {
        /// Tensor name.
        name: String,
        /// Its type.
        ty: TensorType,
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
    },
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] WeightError),
}

/// A weight matrix `[rows, cols]`, its rows in panels of 16 interleaved for the kernels of one SIMD level. The panels are
/// the same at every level; see [`super::layout`].
pub struct PackedMatrix {
    ty: TensorType,
    rows: usize,
    cols: usize,
    level: SimdLevel,
    layout: Layout,
    kernel: LinearKernel,
    memory: Allocation,
}

// SAFETY: the memory is owned; shared writes happen only in `fill_panels`, whose contract keeps them disjoint and apart
// from reads.
unsafe impl Send for PackedMatrix {}
// SAFETY: as above.
unsafe impl Sync for PackedMatrix {}

impl PackedMatrix {
    /// Allocation for a matrix, all zero. `level` must be available on this processor (else the widest available below it is taken).
    ///
    /// Errors when `cols` is no whole number of blocks or memory is short.
    pub(crate) fn allocate(
        ty: TensorType,
        rows: usize,
        cols: usize,
        level: SimdLevel,
    ) -> Result<PackedMatrix, PackError> {
        if !cols.is_multiple_of(ty.block_len()) {
            return Err(PackError::Columns { ty, cols });
        }
        let level = level.or_narrower();
        let memory = PackedMatrix::packed_bytes(ty, rows, cols).and_then(Allocation::zeroed);
        match (Layout::new(ty, cols), memory) {
            (Some(layout), Some(memory)) => {
                Ok(PackedMatrix { ty, rows, cols, level, layout, kernel: select(ty, level), memory })
            }
            _ => Err(PackError::OutOfMemory { ty, rows, cols }),
        }
    }

    /// Bytes that a matrix will hold, at any level; `None` where they are too many to count.
    pub(crate) fn packed_bytes(ty: TensorType, rows: usize, cols: usize) -> Option<usize> {
        Layout::new(ty, cols)?.panel_bytes.checked_mul(rows.div_ceil(PANEL_ROWS))
    }

    /// Bytes that are read from the file at a time, and packed from there.
    pub(crate) fn read_bytes(weight: &Weight) -> usize {
        READ_BYTES.max(weight.row_bytes().saturating_mul(PANEL_ROWS)).min(weight.span.bytes as usize)
    }

    /// Allocates and fills a matrix on this thread.
    ///
    /// Errors as [`PackedMatrix::allocate`], and when a read fails.
    pub fn load(
        weight: &Weight,
        source: &dyn WeightSource,
        level: SimdLevel,
    ) -> Result<PackedMatrix, PackError> {
        let matrix = PackedMatrix::allocate(weight.ty, weight.rows, weight.cols, level)?;
        // SAFETY: nothing else knows the matrix yet.
        unsafe { matrix.fill_panels(weight, source, 0..matrix.panels())? };
        Ok(matrix)
    }

    /// Reads the rows of some panels and packs them.
    ///
    /// Errors when the weight is unlike the matrix, or a read fails.
    ///
    /// # Safety
    /// No other thread may fill or read the same panels at the same time.
    pub(crate) unsafe fn fill_panels(
        &self,
        weight: &Weight,
        source: &dyn WeightSource,
        panels: Range<usize>,
    ) -> Result<(), PackError> {
        if (weight.ty, weight.rows, weight.cols) != (self.ty, self.rows, self.cols)
            || panels.end > self.panels()
        {
            let (name, ty) = (weight.name.clone(), weight.ty);
            return Err(PackError::Mismatch { name, ty, rows: weight.rows, cols: weight.cols });
        }
        let row_bytes = weight.row_bytes();
        if row_bytes == 0 {
            return Ok(());
        }
        let step = (READ_BYTES / row_bytes / PANEL_ROWS).max(1) * PANEL_ROWS;
        let end = self.rows.min(panels.end * PANEL_ROWS);
        let mut buffer = vec![0; row_bytes * step.min(end.saturating_sub(panels.start * PANEL_ROWS))];
        for first in (panels.start * PANEL_ROWS..end).step_by(step) {
            let bytes = &mut buffer[..row_bytes * step.min(end - first)];
            source.read(&weight.span, (first * row_bytes) as u64, bytes)?;
            for (i, rows) in bytes.chunks(row_bytes * PANEL_ROWS).enumerate() {
                // SAFETY: the panel exists and is ours by the caller's contract; `first` is a multiple of 16.
                unsafe {
                    let at = (first / PANEL_ROWS + i) * self.layout.panel_bytes;
                    pack_panel(self.ty, &self.layout, self.memory.as_ptr().add(at), rows, row_bytes);
                }
            }
        }
        Ok(())
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Element type in the file.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// The level whose kernels run.
    pub fn level(&self) -> SimdLevel {
        self.level
    }

    /// Panels of 16 rows, the last padded with zeros.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// Bytes of memory, about as many as in the file.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// The forms of activations that the kernels read.
    pub fn activation_forms(&self) -> ActivationForms {
        self.kernel.forms()
    }

    /// The kernel that was selected.
    pub fn kernel(&self) -> LinearKernel {
        self.kernel
    }

    /// Panel `p`.
    ///
    /// # Safety
    /// `p` must be below [`PackedMatrix::panels`].
    #[inline(always)]
    pub(super) unsafe fn panel(&self, p: usize) -> Panel {
        // SAFETY: inside the allocation.
        unsafe { Panel::new(self.memory.as_ptr().add(p * self.layout.panel_bytes), self.layout) }
    }

    /// Expands one row, as for an embedding lookup.
    ///
    /// # Panics
    /// When `row` or the length of `out` does not fit.
    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {} x {}", self.rows, self.cols);
        let lane = row % PANEL_ROWS;
        // SAFETY: the row exists.
        let panel = unsafe { self.panel(row / PANEL_ROWS) };
        if !self.ty.is_quantized() {
            for (k, v) in out.iter_mut().enumerate() {
                // SAFETY: the column exists.
                *v = unsafe { float_at(self.ty, &panel, k, lane) };
            }
            return;
        }
        let coding = Coding::of(self.ty);
        for (g, values) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            // SAFETY: the group exists.
            let w = unsafe { row_group(&coding, &panel, g, lane) };
            for (k, v) in values.iter_mut().enumerate() {
                let code =
                    if coding.wide || !coding.offset { w.codes[k] as f32 } else { w.codes[k] as u8 as f32 };
                *v = w.scale[k / 16] * code + w.offset[k / 16];
            }
        }
    }
}

/// One float weight.
///
/// # Safety
/// Column and lane must lie in the panel, and the type be a float.
#[inline(always)]
pub(super) unsafe fn float_at(ty: TensorType, panel: &Panel, k: usize, lane: usize) -> f32 {
    // SAFETY: by the caller's contract.
    unsafe {
        let column = panel.low(k);
        match ty {
            TensorType::F16 => f16::from_bits(column.cast::<u16>().add(lane).read_unaligned()).to_f32(),
            TensorType::BF16 => bf16::from_bits(column.cast::<u16>().add(lane).read_unaligned()).to_f32(),
            _ => column.cast::<f32>().add(lane).read_unaligned(),
        }
    }
}
