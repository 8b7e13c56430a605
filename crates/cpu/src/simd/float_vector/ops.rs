//! The operations on vectors of `f32`.

/// Lanes of `f32` and the operations that kernels need.
///
/// # Safety
/// All methods need the instruction set of the implementing type; pointers must be valid for `LANES` elements.
/// No method needs alignment.
pub(crate) trait FloatVector: Copy + Send + Sync + 'static {
    /// A vector of `LANES` floats.
    type F: Copy;
    /// Elements per vector.
    const LANES: usize;
    /// Most rows for which a matrix kernel keeps four vectors per row in registers.
    const WIDE_ROWS: usize;

    unsafe fn splat(v: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Expands half floats, given as bits.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Rounds to half floats, to nearest even.
    unsafe fn store_f16(p: *mut u16, v: Self::F);
    /// Converts signed bytes.
    unsafe fn load_i8(p: *const i8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`; fused except at the scalar level.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each pair; `b` where either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `2^n` for integral `n` in `-126 ..= 127`.
    unsafe fn exp2i(n: Self::F) -> Self::F;
    /// `a < b ? x : y` per lane.
    unsafe fn select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// One bit per lane: `a > b`, false for NaN.
    unsafe fn mask_gt(a: Self::F, b: Self::F) -> u32;
    /// Exchanges the lanes of each pair `(2i, 2i + 1)`.
    unsafe fn swap_pairs(a: Self::F) -> Self::F;
    /// Sum of all lanes, in a fixed order.
    unsafe fn sum(a: Self::F) -> f32;
    /// Largest lane.
    unsafe fn max_lane(a: Self::F) -> f32;
}
