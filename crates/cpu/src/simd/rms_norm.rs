//! RMS norm (Zhang and Sennrich 2019) of one row.

use super::float_vector::{FloatVector, SimdFunction, dispatch};
use super::level::SimdLevel;

/// `out = x / sqrt(mean(x^2) + eps) * weight`; all three have the row's length.
///
/// # Panics
/// When the lengths differ.
pub(crate) fn rms_norm(level: SimdLevel, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "rms norm of unequal lengths");
    dispatch(level, Norm { x, weight, eps, out, add: false });
}

/// `out += x / sqrt(mean(x^2) + eps) * weight`: the norm of a block's output, and the residual add.
///
/// # Panics
/// When the lengths differ.
pub(crate) fn rms_norm_add(level: SimdLevel, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "rms norm of unequal lengths");
    dispatch(level, Norm { x, weight, eps, out, add: true });
}

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
    add: bool,
}

impl SimdFunction for Norm<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: FloatVector>(self) {
        // SAFETY: the caller has the instruction set.
        let scale = unsafe { inverse_rms::<S>(self.x, self.eps) };
        let n = self.x.len();
        let whole = n - n % S::LANES;
        let (x, w, out) = (self.x.as_ptr(), self.weight.as_ptr(), self.out.as_mut_ptr());
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: the three lengths are equal, and `i + LANES` is at most that.
            unsafe {
                let normed = S::mul(S::mul(S::load(x.add(i)), S::splat(scale)), S::load(w.add(i)));
                let old = if self.add { S::load(out.add(i)) } else { S::splat(0.0) };
                S::store(out.add(i), if self.add { S::add(old, normed) } else { normed });
            }
        }
        for i in whole..n {
            let normed = self.x[i] * scale * self.weight[i];
            self.out[i] = if self.add { self.out[i] + normed } else { normed };
        }
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(crate) unsafe fn inverse_rms<S: FloatVector>(x: &[f32], eps: f32) -> f32 {
    let n = x.len();
    let wide = n - n % (4 * S::LANES);
    let whole = n - n % S::LANES;
    let p = x.as_ptr();
    // SAFETY: every load ends at or before `whole`, which is at most the length.
    let mut sum = unsafe {
        let mut sums = [S::splat(0.0); 4];
        for i in (0..wide).step_by(4 * S::LANES) {
            for j in 0..4 {
                let v = S::load(p.add(i + j * S::LANES));
                sums[j] = S::fma(v, v, sums[j]);
            }
        }
        for i in (wide..whole).step_by(S::LANES) {
            let v = S::load(p.add(i));
            sums[0] = S::fma(v, v, sums[0]);
        }
        S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    };
    for v in &x[whole..] {
        sum += v * v;
    }
    1.0 / (sum / n as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::testing::random_source;

    #[test]
    fn equals_plain_loops() {
        let mut random = random_source("rms_norm");
        for n in [1, 7, 8, 64, 100, 576, 640, 1000] {
            let x: Vec<f32> = (0..n).map(|_| random.normal() * 3.0).collect();
            let w: Vec<f32> = (0..n).map(|_| random.normal()).collect();
            let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
            for level in SimdLevel::available() {
                let mut out = vec![0.0; n];
                rms_norm(level, &x, &w, 1e-5, &mut out);
                let mut sum = x.clone();
                rms_norm_add(level, &x, &w, 1e-5, &mut sum);
                for i in 0..n {
                    let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(w[i]);
                    assert!((f64::from(out[i]) - want).abs() <= 1e-6 * want.abs(), "{level:?} n {n} at {i}");
                    let want = f64::from(x[i]) + want;
                    assert!((f64::from(sum[i]) - want).abs() <= 2e-6 * (1.0 + want.abs()), "{level:?} add");
                }
            }
        }
    }
}
