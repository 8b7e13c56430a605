//! LayerNorm (Ba et al. 2016) of one row.

use super::float_vector::{FloatVector, SimdFunction, dispatch};
use super::level::SimdLevel;

/// `x = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias`; all three have the row's length.
///
/// # Panics
/// When the lengths differ.
pub(crate) fn layer_norm(level: SimdLevel, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    assert!(x.len() == weight.len() && x.len() == bias.len(), "layer norm of unequal lengths");
    dispatch(level, Norm { x, weight, bias, eps });
}

struct Norm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl SimdFunction for Norm<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: FloatVector>(self) {
        let Norm { x, weight, bias, eps } = self;
        let n = x.len();
        let whole = n - n % S::LANES;
        // SAFETY: the caller has the instruction set; all lengths are equal, and `i + LANES` is at most that.
        unsafe {
            let mean = sum::<S>(x, 0.0, |v, _| v) / n as f32;
            let squares = sum::<S>(x, mean, |v, mean| {
                let centered = S::sub(v, mean);
                S::mul(centered, centered)
            });
            let scale = 1.0 / (squares / n as f32 + eps).sqrt();
            for i in (0..whole).step_by(S::LANES) {
                let p = x.as_mut_ptr().add(i);
                let normed = S::mul(S::sub(S::load(p), S::splat(mean)), S::splat(scale));
                S::store(p, S::fma(normed, S::load(weight.as_ptr().add(i)), S::load(bias.as_ptr().add(i))));
            }
            for i in whole..n {
                x[i] = (x[i] - mean) * scale * weight[i] + bias[i];
            }
        }
    }
}

/// The sum of `f(x[i], argument)` over all elements.
#[inline(always)]
unsafe fn sum<S: FloatVector>(x: &[f32], argument: f32, f: impl Fn(S::F, S::F) -> S::F) -> f32 {
    let whole = x.len() - x.len() % S::LANES;
    // SAFETY: the caller has the instruction set; every load ends at or before `whole`.
    unsafe {
        let argument = S::splat(argument);
        let mut sums = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            sums = S::add(sums, f(S::load(x.as_ptr().add(i)), argument));
        }
        let mut total = S::sum(sums);
        for value in &x[whole..] {
            let mut lanes = [0f32; 16];
            S::store(lanes.as_mut_ptr(), f(S::splat(*value), argument));
            total += lanes[0];
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::testing::random_source;

    #[test]
    fn equals_plain_loops_at_every_length() {
        let mut random = random_source("layer_norm");
        for level in SimdLevel::available() {
            for n in [1, 3, 15, 16, 17, 64, 100, 384, 1027] {
                // Far from zero, so that a variance of squares alone would lose its digits.
                let x: Vec<f32> = random.normals(n, 1.0).iter().map(|v| v + 30.0).collect();
                let (weight, bias) = (random.normals(n, 1.0), random.normals(n, 1.0));
                let mut got = x.clone();
                layer_norm(level, &mut got, &weight, &bias, 1e-5);
                let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
                let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n as f64;
                for i in 0..n {
                    let normed = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
                    let want = normed * f64::from(weight[i]) + f64::from(bias[i]);
                    let error = (f64::from(got[i]) - want).abs();
                    assert!(error <= 5e-5 * (1.0 + want.abs()), "{level:?} n {n} at {i}: {error}");
                }
            }
        }
    }
}
