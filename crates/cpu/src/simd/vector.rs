//! Vectors of `f32` behind one trait, so that every kernel is written once and compiled per instruction set.
//!
//! A kernel is a struct of arguments with a generic [`Kernel::run`]; [`dispatch`] compiles it inside a function that
//! has the level's target features. All trait methods are `inline(always)`: they must end up in that function.

use super::level::SimdLevel;

/// Lanes of `f32` and the operations that kernels need.
///
/// # Safety
/// All methods need the instruction set of the implementing type; pointers must be valid for `LANES` elements.
/// No method needs alignment.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
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

/// A function that is compiled once per instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The body. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// The CPU must have the instruction set of `S`.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs a kernel at a level that [`SimdLevel`]'s constructor has checked against the CPU.
#[inline]
pub(crate) fn dispatch<K: Kernel>(level: SimdLevel, kernel: K) -> K::Output {
    match level {
        // SAFETY: plain Rust.
        SimdLevel::Scalar => unsafe { kernel.run::<Scalar>() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level is only opened where the CPU has its features.
        SimdLevel::Avx2 => unsafe { avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        SimdLevel::Avx512 => unsafe { avx512(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        // SAFETY: plain Rust.
        _ => unsafe { kernel.run::<Scalar>() },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has these features.
    unsafe { kernel.run::<x86::Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has these features.
    unsafe { kernel.run::<x86::Avx512>() }
}

/// Eight lanes of plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

macro_rules! lanes {
    (|$i:ident| $value:expr) => {{
        let mut out = [0f32; 8];
        let mut $i = 0;
        while $i < 8 {
            out[$i] = $value;
            $i += 1;
        }
        out
    }};
}

impl Simd for Scalar {
    type F = [f32; 8];
    const LANES: usize = 8;
    const WIDE_ROWS: usize = 0;

    #[inline(always)]
    unsafe fn splat(v: f32) -> [f32; 8] {
        [v; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: valid for eight elements.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: valid for eight elements.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> [f32; 8] {
        // SAFETY: valid for eight elements.
        let h = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        lanes!(|i| half::f16::from_bits(h[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: [f32; 8]) {
        let mut h = [0u16; 8];
        for i in 0..8 {
            h[i] = half::f16::from_f32(v[i]).to_bits();
        }
        // SAFETY: valid for eight elements.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(h) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> [f32; 8] {
        // SAFETY: valid for eight elements.
        let q = unsafe { p.cast::<[i8; 8]>().read_unaligned() };
        lanes!(|i| q[i] as f32)
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes!(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes!(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes!(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes!(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        lanes!(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes!(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes!(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(a: [f32; 8]) -> [f32; 8] {
        lanes!(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn exp2i(n: [f32; 8]) -> [f32; 8] {
        lanes!(|i| f32::from_bits((n[i] as i32).wrapping_add(127).wrapping_shl(23) as u32))
    }
    #[inline(always)]
    unsafe fn select_lt(a: [f32; 8], b: [f32; 8], x: [f32; 8], y: [f32; 8]) -> [f32; 8] {
        lanes!(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn mask_gt(a: [f32; 8], b: [f32; 8]) -> u32 {
        let mut mask = 0;
        for i in 0..8 {
            mask |= u32::from(a[i] > b[i]) << i;
        }
        mask
    }
    #[inline(always)]
    unsafe fn swap_pairs(a: [f32; 8]) -> [f32; 8] {
        lanes!(|i| a[i ^ 1])
    }
    #[inline(always)]
    unsafe fn sum(a: [f32; 8]) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
    #[inline(always)]
    unsafe fn max_lane(a: [f32; 8]) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |m, v| if v > m { v } else { m })
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;
