//! The vector operations that the kernels are written in. One kernel body serves every level: it is compiled once inside
//! a function with the level's `#[target_feature]`, into which all of this inlines.

use super::kind::Kind;
use super::tile_job::{FloatTileJob, IntTileJob};

/// Which columns of a group a dot product covers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupColumns {
    /// All 32.
    Full,
    /// The first 16.
    First,
    /// The last 16.
    Last,
}

/// Vector operations of one SIMD level. `I` holds integers, `F` floats, one row of a panel per 32-bit lane.
///
/// # Safety
/// Every method requires that the processor has the level's instructions; those with pointers require that the bytes
/// they name may be read or written (no alignment).
pub(super) trait PanelVector: Copy {
    /// Integer vector.
    type I: Copy;
    /// Float vector.
    type F: Copy;
    /// Rows per vector.
    const LANES: usize;
    /// True where 8-bit codes are multiplied as 16-bit words, false where an instruction takes u8 x i8 exactly.
    const WORDS: bool;

    unsafe fn load(p: *const u8) -> Self::I;
    unsafe fn store(p: *mut u8, v: Self::I);
    unsafe fn zero() -> Self::I;
    unsafe fn splat(v: i32) -> Self::I;
    /// Repeats the 4 bytes at `p`.
    unsafe fn splat_at(p: *const u8) -> Self::I;
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn xor(a: Self::I, b: Self::I) -> Self::I;
    /// Shifts 16-bit lanes left by `n`, or right (unsigned) by `-n`.
    unsafe fn shift16(v: Self::I, n: i32) -> Self::I;
    /// Shifts 32-bit lanes left by 16.
    unsafe fn shl32_16(v: Self::I) -> Self::I;
    /// Signed right shift of 16-bit lanes by 8.
    unsafe fn sar16_8(v: Self::I) -> Self::I;
    unsafe fn add32(a: Self::I, b: Self::I) -> Self::I;
    /// `table[index]` per byte; indices are below 16.
    unsafe fn lookup(table: &[u8; 16], index: Self::I) -> Self::I;
    /// Multiplies i16 lanes and adds neighbours to i32 lanes.
    unsafe fn madd16(a: Self::I, b: Self::I) -> Self::I;
    /// `LANES` bytes to i32 lanes.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    /// `LANES` signed bytes to i32 lanes.
    unsafe fn load_i8(p: *const u8) -> Self::I;

    /// Prepares a center for [`PanelVector::start`].
    unsafe fn center(center: i32, part: GroupColumns) -> Self::I;
    /// The start of a dot product of codes with one token's activations that subtracts the center from every code. `aux` points to
    /// the group's [`AUX_PAIRS`](super::group_words::AUX_PAIRS) word of the token; words are `stride` apart.
    unsafe fn start(aux: *const i32, stride: usize, center: Self::I, part: GroupColumns) -> Self::I;
    /// Adds the products of 4 unsigned codes and 4 signed activations per lane.
    unsafe fn dot(sum: Self::I, codes: Self::I, activations: Self::I) -> Self::I;
    /// The i32 result of a dot product of at most 32 columns. Products of centered codes must sum to at most 32767 in 16 columns'
    /// worth of pairs: true for codes of up to 5 bits over 32 columns and 6 bits over 16.
    unsafe fn finish(sum: Self::I) -> Self::I;
    /// As [`PanelVector::finish`], times a scale made by [`PanelVector::sub_scale`].
    unsafe fn finish_scaled(sum: Self::I, scale: Self::I) -> Self::I;
    /// Prepares i32 scales of at most 8 bits for [`PanelVector::finish_scaled`].
    unsafe fn sub_scale(v: Self::I) -> Self::I;

    unsafe fn to_f32(v: Self::I) -> Self::F;
    unsafe fn zero_f() -> Self::F;
    unsafe fn splat_f(v: f32) -> Self::F;
    unsafe fn load_f(p: *const f32) -> Self::F;
    unsafe fn store_f(p: *mut f32, v: Self::F);
    /// `LANES` half floats.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// `LANES` bfloat16.
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    unsafe fn mul_f(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// E8M0 exponents (i32 lanes 0 to 255) to `2^(e - 128)`.
    unsafe fn exponent(e: Self::I) -> Self::F;
    /// Asks for the cache line at `p`, which may be any address.
    unsafe fn prefetch(p: *const u8);
    /// [`int::tile`](super::int::tile), compiled once per kind and width.
    unsafe fn int_tile<K: Kind, const T: usize>(job: &IntTileJob);
    /// [`float::tile`](super::float::tile), compiled once per width.
    unsafe fn float_tile<const T: usize>(job: &FloatTileJob);
}
