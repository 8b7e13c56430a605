//! One call of a kernel.

use super::activations::PackedActivations;
use super::matrix::PackedMatrix;

/// What to multiply: some panels of a matrix with some tiles of activations.
#[derive(Clone, Copy)]
pub(super) struct PanelJob<'a> {
    pub matrix: &'a PackedMatrix,
    /// First panel.
    pub panel: usize,
    /// Number of panels.
    pub count: usize,
    pub x: &'a PackedActivations,
    /// First tile of activations.
    pub tile: usize,
    /// Number of tiles.
    pub tiles: usize,
    /// Result `[panel][row][16]`, rows from the first tile's first row.
    pub out: *mut f32,
    /// Floats between panels of the result.
    pub out_stride: usize,
}

/// A compiled kernel.
///
/// # Safety
/// The processor must have the kernel's instructions; panels and tiles must exist; the matrix must have the kernel's
/// type and the activations its forms and columns; `out` must have room.
pub(super) type PanelFn = unsafe fn(&PanelJob<'_>);
