//! [`PanelVector`] with AVX2, FMA and F16C.
#![allow(clippy::undocumented_unsafe_blocks)] // SAFETY of all blocks: the contract of the trait.

use std::arch::x86_64::*;

use super::kind::Kind;
use super::panel_vector::{GroupColumns, PanelVector};
use super::tile_job::{FloatTileJob, IntTileJob};
use super::{float, int};

/// 8 rows per register.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

impl PanelVector for Avx2 {
    type I = __m256i;
    type F = __m256;
    const LANES: usize = 8;
    const WORDS: bool = true;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, v: __m256i) {
        unsafe { _mm256_storeu_si256(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn splat(v: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(v) }
    }
    #[inline(always)]
    unsafe fn splat_at(p: *const u8) -> __m256i {
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn and(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn shift16(v: __m256i, n: i32) -> __m256i {
        unsafe {
            match n {
                8 => _mm256_slli_epi16::<8>(v),
                4 => _mm256_slli_epi16::<4>(v),
                3 => _mm256_slli_epi16::<3>(v),
                2 => _mm256_slli_epi16::<2>(v),
                1 => _mm256_slli_epi16::<1>(v),
                0 => v,
                -1 => _mm256_srli_epi16::<1>(v),
                -2 => _mm256_srli_epi16::<2>(v),
                -3 => _mm256_srli_epi16::<3>(v),
                -4 => _mm256_srli_epi16::<4>(v),
                -5 => _mm256_srli_epi16::<5>(v),
                -6 => _mm256_srli_epi16::<6>(v),
                n if n > 0 => _mm256_sll_epi16(v, _mm_cvtsi32_si128(n)),
                n => _mm256_srl_epi16(v, _mm_cvtsi32_si128(-n)),
            }
        }
    }
    #[inline(always)]
    unsafe fn shl32_16(v: __m256i) -> __m256i {
        unsafe { _mm256_slli_epi32::<16>(v) }
    }
    #[inline(always)]
    unsafe fn sar16_8(v: __m256i) -> __m256i {
        unsafe { _mm256_srai_epi16::<8>(v) }
    }
    #[inline(always)]
    unsafe fn add32(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], index: __m256i) -> __m256i {
        unsafe {
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), index)
        }
    }
    #[inline(always)]
    unsafe fn madd16(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_madd_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m256i {
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m256i {
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) }
    }

    // Sums live in i16 lanes, each the sum of products at two columns. VPMADDUBSW saturates only beyond two products of 255;
    // VPADDW wraps, so that only the final, centered sum has to fit.
    #[inline(always)]
    unsafe fn center(center: i32, _part: GroupColumns) -> __m256i {
        unsafe { _mm256_set1_epi16(center as i16) }
    }
    #[inline(always)]
    unsafe fn start(aux: *const i32, stride: usize, center: __m256i, part: GroupColumns) -> __m256i {
        unsafe {
            let word = match part {
                GroupColumns::Full => 0,
                GroupColumns::First => 1,
                GroupColumns::Last => 2,
            };
            _mm256_mullo_epi16(_mm256_set1_epi32(aux.add(word * stride).read_unaligned()), center)
        }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m256i, codes: __m256i, activations: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, activations)) }
    }
    #[inline(always)]
    unsafe fn finish(sum: __m256i) -> __m256i {
        unsafe { _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) }
    }
    #[inline(always)]
    unsafe fn finish_scaled(sum: __m256i, scale: __m256i) -> __m256i {
        unsafe { _mm256_madd_epi16(sum, scale) }
    }
    #[inline(always)]
    unsafe fn sub_scale(v: __m256i) -> __m256i {
        unsafe {
            let low = _mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
            _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(low))
        }
    }

    #[inline(always)]
    unsafe fn to_f32(v: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn zero_f() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat_f(v: f32) -> __m256 {
        unsafe { _mm256_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn load_f(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_f(p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m256 {
        unsafe {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))
        }
    }
    #[inline(always)]
    unsafe fn mul_f(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn exponent(e: __m256i) -> __m256 {
        unsafe {
            let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
            let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
            let is_normal = _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1));
            _mm256_castsi256_ps(_mm256_blendv_epi8(subnormal, normal, is_normal))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn int_tile<K: Kind, const T: usize>(job: &IntTileJob) {
        unsafe { int_tile::<K, T>(job) }
    }
    #[inline(always)]
    unsafe fn float_tile<const T: usize>(job: &FloatTileJob) {
        unsafe { float_tile::<T>(job) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn int_tile<K: Kind, const T: usize>(job: &IntTileJob) {
    unsafe { int::tile::<Avx2, K, T>(job) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn float_tile<const T: usize>(job: &FloatTileJob) {
    unsafe { float::tile::<Avx2, T>(job) }
}
