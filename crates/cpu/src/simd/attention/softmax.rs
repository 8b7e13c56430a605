//! The running softmax of one query row, and the merge of partial results.

use super::shapes::BLOCK;
use crate::simd::elementary::{exp, soft_cap};
use crate::simd::float_vector::FloatVector;

/// `e^x` of one number, by the vector kernel.
#[inline(always)]
unsafe fn exp_one<S: FloatVector>(x: f32) -> f32 {
    // All lanes are equal, and so is the largest; NaN must survive, which a maximum might drop.
    if x.is_nan() {
        return x;
    }
    // SAFETY: the caller has the instruction set.
    unsafe { S::max_lane(exp::<S>(S::splat(x))) }
}

/// `values *= factor`; the length is a multiple of LANES.
#[inline(always)]
unsafe fn scale<S: FloatVector>(values: &mut [f32], factor: f32) {
    for at in (0..values.len()).step_by(S::LANES) {
        // SAFETY: inside the slice.
        unsafe {
            let p = values.as_mut_ptr().add(at);
            S::store(p, S::mul(S::load(p), S::splat(factor)));
        }
    }
}

/// Turns a row of `BLOCK` scores into probabilities relative to the running maximum, and rescales what was accumulated
/// before. Only the scores in `visible` count; the rest become zero. `state` is (accumulated values, maximum, sum).
///
/// # Safety
/// The CPU has the instruction set of `S`; `scores` holds `BLOCK` floats.
#[inline(always)]
pub(super) unsafe fn softmax_row<S: FloatVector>(
    scores: *mut f32,
    visible: (usize, usize),
    cap: Option<f32>,
    state: (&mut [f32], &mut f32, &mut f32),
) {
    let (sums, max, total) = state;
    // SAFETY: all indices are below BLOCK.
    unsafe {
        if let Some(cap) = cap {
            for at in (0..BLOCK).step_by(S::LANES) {
                S::store(scores.add(at), soft_cap::<S>(S::load(scores.add(at)), cap));
            }
        }
        if visible != (0, BLOCK) {
            let scores = std::slice::from_raw_parts_mut(scores, BLOCK);
            scores[..visible.0].fill(f32::NEG_INFINITY);
            scores[visible.1..].fill(f32::NEG_INFINITY);
        }
        let mut largest = S::load(scores);
        for at in (S::LANES..BLOCK).step_by(S::LANES) {
            largest = S::max(largest, S::load(scores.add(at)));
        }
        let largest = S::max_lane(largest);
        if largest == f32::NEG_INFINITY {
            for at in (0..BLOCK).step_by(S::LANES) {
                S::store(scores.add(at), S::splat(0.0));
            }
            return;
        }
        if largest > *max {
            let factor = exp_one::<S>(*max - largest);
            scale::<S>(sums, factor);
            *total *= factor;
            *max = largest;
        }
        let mut sum = S::splat(0.0);
        for at in (0..BLOCK).step_by(S::LANES) {
            let p = exp::<S>(S::sub(S::load(scores.add(at)), S::splat(*max)));
            sum = S::add(sum, p);
            S::store(scores.add(at), p);
        }
        *total += S::sum(sum);
    }
}

/// Merges a partial result (sums, maximum, total) into a whole one. Call in ascending order of positions.
///
/// # Safety
/// The CPU has the instruction set of `S`.
///
/// # Panics
/// When the two have different lengths.
#[inline(always)]
pub(super) unsafe fn merge<S: FloatVector>(
    whole: (&mut [f32], &mut f32, &mut f32),
    part: (&[f32], f32, f32),
) {
    let (sums, max, total) = whole;
    assert_eq!(sums.len(), part.0.len(), "partial results of different heads");
    if part.1 == f32::NEG_INFINITY && !part.2.is_nan() {
        return;
    }
    if *max == f32::NEG_INFINITY {
        sums.copy_from_slice(part.0);
        (*max, *total) = (part.1, part.2);
        return;
    }
    let largest = if part.1 > *max { part.1 } else { *max };
    // SAFETY: the caller's; both slices have the same length, a multiple of 16.
    unsafe {
        let (old, new) = (exp_one::<S>(*max - largest), exp_one::<S>(part.1 - largest));
        for at in (0..sums.len()).step_by(S::LANES) {
            let p = sums.as_mut_ptr().add(at);
            let kept = S::mul(S::load(p), S::splat(old));
            S::store(p, S::fma(S::load(part.0.as_ptr().add(at)), S::splat(new), kept));
        }
        *total = *total * old + part.2 * new;
    }
    *max = largest;
}

/// `out = sums / total`; `sums` is at least as long as `out`.
pub(super) fn finish(sums: &[f32], total: f32, out: &mut [f32]) {
    let inverse = 1.0 / total;
    for (o, s) in out.iter_mut().zip(sums) {
        *o = s * inverse;
    }
}
