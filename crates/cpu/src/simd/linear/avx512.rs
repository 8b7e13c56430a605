//! [`PanelVector`] with AVX-512 F, BW, VL, DQ and VNNI.
#![allow(clippy::undocumented_unsafe_blocks)] // SAFETY of all blocks: the contract of the trait.

use std::arch::x86_64::*;

use super::group_words::{AUX_HALVES, AUX_PAIRS};
use super::kind::Kind;
use super::panel_vector::{GroupColumns, PanelVector};
use super::tile_job::{FloatTileJob, IntTileJob};
use super::{float, int};

/// 16 rows per register.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

impl PanelVector for Avx512 {
    type I = __m512i;
    type F = __m512;
    const LANES: usize = 16;
    const WORDS: bool = false;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, v: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn splat(v: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(v) }
    }
    #[inline(always)]
    unsafe fn splat_at(p: *const u8) -> __m512i {
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shift16(v: __m512i, n: i32) -> __m512i {
        unsafe {
            match n {
                8 => _mm512_slli_epi16::<8>(v),
                4 => _mm512_slli_epi16::<4>(v),
                3 => _mm512_slli_epi16::<3>(v),
                2 => _mm512_slli_epi16::<2>(v),
                1 => _mm512_slli_epi16::<1>(v),
                0 => v,
                -1 => _mm512_srli_epi16::<1>(v),
                -2 => _mm512_srli_epi16::<2>(v),
                -3 => _mm512_srli_epi16::<3>(v),
                -4 => _mm512_srli_epi16::<4>(v),
                -5 => _mm512_srli_epi16::<5>(v),
                -6 => _mm512_srli_epi16::<6>(v),
                n if n > 0 => _mm512_sll_epi16(v, _mm_cvtsi32_si128(n)),
                n => _mm512_srl_epi16(v, _mm_cvtsi32_si128(-n)),
            }
        }
    }
    #[inline(always)]
    unsafe fn shl32_16(v: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<16>(v) }
    }
    #[inline(always)]
    unsafe fn sar16_8(v: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi16::<8>(v) }
    }
    #[inline(always)]
    unsafe fn add32(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], index: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), index) }
    }
    #[inline(always)]
    unsafe fn madd16(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_madd_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    }

    // Sums live in i32 lanes; VPDPBUSD is exact.
    #[inline(always)]
    unsafe fn center(center: i32, part: GroupColumns) -> __m512i {
        let low = (-center) & 0xffff;
        let weights = match part {
            GroupColumns::Full => low | low << 16,
            GroupColumns::First => low,
            GroupColumns::Last => low << 16,
        };
        unsafe { _mm512_set1_epi32(weights) }
    }
    #[inline(always)]
    unsafe fn start(aux: *const i32, stride: usize, center: __m512i, _part: GroupColumns) -> __m512i {
        unsafe {
            let halves = aux.add((AUX_HALVES - AUX_PAIRS) * stride).read_unaligned();
            _mm512_madd_epi16(_mm512_set1_epi32(halves), center)
        }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, codes: __m512i, activations: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, codes, activations) }
    }
    #[inline(always)]
    unsafe fn finish(sum: __m512i) -> __m512i {
        sum
    }
    #[inline(always)]
    unsafe fn finish_scaled(sum: __m512i, scale: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(sum, scale) }
    }
    #[inline(always)]
    unsafe fn sub_scale(v: __m512i) -> __m512i {
        v
    }

    #[inline(always)]
    unsafe fn to_f32(v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn zero_f() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat_f(v: f32) -> __m512 {
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn load_f(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_f(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m512 {
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
        }
    }
    #[inline(always)]
    unsafe fn mul_f(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn exponent(e: __m512i) -> __m512 {
        unsafe {
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
            let subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
            let is_normal = _mm512_cmpgt_epi32_mask(e, _mm512_set1_epi32(1));
            _mm512_castsi512_ps(_mm512_mask_mov_epi32(subnormal, is_normal, normal))
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

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn int_tile<K: Kind, const T: usize>(job: &IntTileJob) {
    unsafe { int::tile::<Avx512, K, T>(job) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn float_tile<const T: usize>(job: &FloatTileJob) {
    unsafe { float::tile::<Avx512, T>(job) }
}
