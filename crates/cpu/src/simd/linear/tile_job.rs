//! One call of a tile kernel: unpacked weights and a tile of activations.

use super::activations::IntTile;

/// Where the second vector of rows lies after the first: bytes of codes, words of scales, floats of results.
#[derive(Clone, Copy)]
pub(super) struct Strides {
    pub codes: usize,
    pub scales: usize,
    pub out: usize,
}

/// Unpacked weights times one tile of activations. With `resume` the sums go on from what `out` holds.
pub(super) struct IntTileJob {
    pub codes: *const u8,
    pub lines: *const f32,
    pub strides: Strides,
    pub groups: usize,
    pub center: i32,
    /// Quads per dot product: 8, or 4 with scales per half. Not a constant, lest the compiler unroll the loop over them: it then
    /// loads everything first and spills.
    pub quads: usize,
    pub x: IntTile,
    pub resume: bool,
    pub out: *mut f32,
}

/// Converted weights times one tile of activations: vector `r` of column `k` lies at `16 k + r * weight_stride`. With `resume`
/// the sums go on from what `out` holds.
pub(super) struct FloatTileJob {
    pub weights: *const f32,
    pub weight_stride: usize,
    pub len: usize,
    pub x: *const f32,
    pub resume: bool,
    pub out: *mut f32,
    pub out_stride: usize,
}
