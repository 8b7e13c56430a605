//! The 16-lane kernels in plain Rust: what AVX-512 computes, on any machine that runs the tests.

use half::{bf16, f16};
use unicorn_core::quant::{Random, random_blocks};
use unicorn_core::{TensorType, Weight, WeightSpan};

use super::encoding::Encoding;
use super::group_words::{AUX_HALVES, AUX_PAIRS};
use super::job::{PanelFn, PanelJob};
use super::kind::Kind;
use super::panel_vector::{GroupColumns, PanelVector};
use super::tests::{Bytes, fill, fresh_seed};
use super::tile_job::{FloatTileJob, IntTileJob};
use super::{PackedActivations, PackedMatrix, encoding, float, int};
use crate::simd::level::SimdLevel;

/// 16 lanes, `VPDPBUSD` semantics.
#[derive(Clone, Copy)]
struct Emulated;

type I = [i32; 16];
type F = [f32; 16];

fn words(v: I, f: impl Fn(u16) -> u16) -> I {
    v.map(|v| f(v as u16) as i32 | (f((v >> 16) as u16) as i32) << 16)
}

fn bytes(v: I, f: impl Fn(u8) -> u8) -> I {
    v.map(|v| i32::from_le_bytes(v.to_le_bytes().map(&f)))
}

fn zip<T: Copy, U: Copy>(a: [T; 16], b: [T; 16], f: impl Fn(T, T) -> U) -> [U; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

// SAFETY of all blocks: the contract of the trait.
#[allow(clippy::undocumented_unsafe_blocks)]
impl PanelVector for Emulated {
    type I = I;
    type F = F;
    const LANES: usize = 16;
    const WORDS: bool = false;

    unsafe fn load(p: *const u8) -> I {
        unsafe { p.cast::<I>().read_unaligned() }
    }
    unsafe fn store(p: *mut u8, v: I) {
        unsafe { p.cast::<I>().write_unaligned(v) }
    }
    unsafe fn zero() -> I {
        [0; 16]
    }
    unsafe fn splat(v: i32) -> I {
        [v; 16]
    }
    unsafe fn splat_at(p: *const u8) -> I {
        [unsafe { p.cast::<i32>().read_unaligned() }; 16]
    }
    unsafe fn and(a: I, b: I) -> I {
        zip(a, b, |a, b| a & b)
    }
    unsafe fn or(a: I, b: I) -> I {
        zip(a, b, |a, b| a | b)
    }
    unsafe fn xor(a: I, b: I) -> I {
        zip(a, b, |a, b| a ^ b)
    }
    unsafe fn shift16(v: I, n: i32) -> I {
        words(v, |w| if n >= 0 { w << n } else { w >> -n })
    }
    unsafe fn shl32_16(v: I) -> I {
        v.map(|v| v << 16)
    }
    unsafe fn sar16_8(v: I) -> I {
        words(v, |w| (w as i16 >> 8) as u16)
    }
    unsafe fn add32(a: I, b: I) -> I {
        zip(a, b, i32::wrapping_add)
    }
    unsafe fn lookup(table: &[u8; 16], index: I) -> I {
        bytes(index, |b| table[b as usize])
    }
    unsafe fn madd16(a: I, b: I) -> I {
        zip(a, b, |a, b| a as i16 as i32 * b as i16 as i32 + (a >> 16) * (b >> 16))
    }
    unsafe fn load_u8(p: *const u8) -> I {
        unsafe { p.cast::<[u8; 16]>().read() }.map(i32::from)
    }
    unsafe fn load_i8(p: *const u8) -> I {
        unsafe { p.cast::<[i8; 16]>().read() }.map(i32::from)
    }
    unsafe fn center(center: i32, part: GroupColumns) -> I {
        let low = (-center) & 0xffff;
        [match part {
            GroupColumns::Full => low | low << 16,
            GroupColumns::First => low,
            GroupColumns::Last => low << 16,
        }; 16]
    }
    unsafe fn start(aux: *const i32, stride: usize, center: I, _part: GroupColumns) -> I {
        unsafe { Self::madd16([*aux.add((AUX_HALVES - AUX_PAIRS) * stride); 16], center) }
    }
    unsafe fn dot(sum: I, codes: I, activations: I) -> I {
        let products = zip(codes, activations, |a, b| {
            let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
            (0..4).map(|i| a[i] as i32 * b[i] as i8 as i32).sum::<i32>()
        });
        zip(sum, products, |a, b| a + b)
    }
    unsafe fn finish(sum: I) -> I {
        sum
    }
    unsafe fn finish_scaled(sum: I, scale: I) -> I {
        zip(sum, scale, |a, b| a * b)
    }
    unsafe fn sub_scale(v: I) -> I {
        v
    }
    unsafe fn to_f32(v: I) -> F {
        v.map(|v| v as f32)
    }
    unsafe fn zero_f() -> F {
        [0.0; 16]
    }
    unsafe fn splat_f(v: f32) -> F {
        [v; 16]
    }
    unsafe fn load_f(p: *const f32) -> F {
        unsafe { p.cast::<F>().read_unaligned() }
    }
    unsafe fn store_f(p: *mut f32, v: F) {
        unsafe { p.cast::<F>().write_unaligned(v) }
    }
    unsafe fn load_f16(p: *const u8) -> F {
        unsafe { p.cast::<[u16; 16]>().read_unaligned() }.map(|h| f16::from_bits(h).to_f32())
    }
    unsafe fn load_bf16(p: *const u8) -> F {
        unsafe { p.cast::<[u16; 16]>().read_unaligned() }.map(|h| bf16::from_bits(h).to_f32())
    }
    unsafe fn mul_f(a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }
    unsafe fn fma(a: F, b: F, c: F) -> F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    unsafe fn exponent(e: I) -> F {
        e.map(|e| unicorn_core::quant::mxfp4_scale(e as u8))
    }
    unsafe fn prefetch(_p: *const u8) {}
    unsafe fn int_tile<K: Kind, const T: usize>(job: &IntTileJob) {
        unsafe { int::tile::<Emulated, K, T>(job) }
    }
    unsafe fn float_tile<const T: usize>(job: &FloatTileJob) {
        unsafe { float::tile::<Emulated, T>(job) }
    }
}

unsafe fn int_decode<E: Encoding>(job: &PanelJob<'_>) {
    // SAFETY: by the contract of `PanelFn`.
    unsafe { int::decode::<Emulated, E>(job) }
}

unsafe fn int_tiles<E: Encoding>(job: &PanelJob<'_>) {
    // SAFETY: by the contract of `PanelFn`.
    unsafe { int::tiles::<Emulated, E>(job) }
}

unsafe fn float_decode(job: &PanelJob<'_>) {
    // SAFETY: by the contract of `PanelFn`.
    unsafe { float::decode::<Emulated, float::Half>(job) }
}

unsafe fn float_tiles(job: &PanelJob<'_>) {
    // SAFETY: by the contract of `PanelFn`.
    unsafe { float::tiles::<Emulated, float::Half>(job) }
}

/// The 16-lane kernels against the portable one, on one to four panels at a time.
fn check(ty: TensorType, cols: usize, decode: PanelFn, tiles: PanelFn) {
    let mut random = Random::new(fresh_seed());
    let rows = 64;
    let bytes = random_blocks(ty, rows, cols, random.bits());
    let span = WeightSpan { file: 0, offset: 0, bytes: bytes.len() as u64 };
    let weight = Weight { name: "w".into(), ty, rows, cols, span };
    let w = PackedMatrix::load(&weight, &Bytes(bytes), SimdLevel::Scalar).unwrap();
    let portable = super::compiled::functions(w.kernel()).tiles;
    for n in [1, 2, 3, 4, 7, 13] {
        let mut x = PackedActivations::new();
        fill(&mut x, &random.normals(n * cols, 1.0), cols, w.activation_forms());
        for count in 1..=4 {
            let run = |f: PanelFn| {
                let mut sums = vec![0f32; 4 * n * 16];
                let (out, tiles) = (sums.as_mut_ptr(), n.div_ceil(w.kernel().tile()));
                let job =
                    PanelJob { matrix: &w, panel: 0, count, x: &x, tile: 0, tiles, out, out_stride: n * 16 };
                // SAFETY: the job describes the buffers above.
                unsafe { f(&job) };
                sums
            };
            let want = run(portable);
            let size = want.iter().fold(0f32, |m, v| m.max(v.abs()));
            let single = if n == 1 { Some(run(decode)) } else { None };
            for got in single.into_iter().chain([run(tiles)]) {
                for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                    assert!((g - w).abs() <= 2e-5 * size, "{ty} {n} rows, {count} panels, {i}: {g} for {w}");
                }
            }
        }
    }
}

#[test]
fn sixteen_lane_kernels() {
    use encoding::*;
    check(TensorType::Q4_0, 96, int_decode::<Q40>, int_tiles::<Q40>);
    check(TensorType::Q4_K, 768, int_decode::<Q4K>, int_tiles::<Q4K>);
    check(TensorType::Q5_1, 1056, int_decode::<Q51>, int_tiles::<Q51>);
    check(TensorType::Q8_0, 576, int_decode::<Q80>, int_tiles::<Q80>);
    check(TensorType::Q2_K, 512, int_decode::<Q2K>, int_tiles::<Q2K>);
    check(TensorType::Q6_K, 1536, int_decode::<Q6K>, int_tiles::<Q6K>);
    check(TensorType::IQ4_XS, 256, int_decode::<Iq4Xs>, int_tiles::<Iq4Xs>);
    check(TensorType::MXFP4, 64, int_decode::<Mxfp4>, int_tiles::<Mxfp4>);
    check(TensorType::F16, 300, float_decode, float_tiles);
}
