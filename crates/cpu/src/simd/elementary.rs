//! Vectorized elementary functions: exponential, tanh, SiLU, GELU (tanh form), soft cap.

use unicorn_core::Activation;

use super::float_vector::{FloatVector, SimdFunction, dispatch};
use super::level::SimdLevel;

/// Below this argument `exp` underflows the normal range and the result is zero.
const EXP_MIN: f32 = -87.0;
/// Above this argument `exp` saturates near the largest float.
const EXP_MAX: f32 = 88.0;

/// `e^x` within 2 units in the last place on `-87 ..= 88`; zero below, saturated above; NaN stays NaN.
///
/// Range reduction by `ln 2` in two parts (Cody and Waite), then a polynomial of degree six.
#[inline(always)]
pub(crate) unsafe fn exp<S: FloatVector>(x: S::F) -> S::F {
    // SAFETY: the caller has the instruction set.
    unsafe {
        // `max` and `min` return the second operand for NaN, which carries it through.
        let clamped = S::min(S::splat(EXP_MAX), S::max(S::splat(EXP_MIN), x));
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 720.0);
        for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        S::select_lt(x, S::splat(EXP_MIN), S::splat(0.0), S::mul(p, S::exp2i(n)))
    }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
unsafe fn sigmoid_times<S: FloatVector>(x: S::F, argument: S::F) -> S::F {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), argument));
        S::div(x, S::add(S::splat(1.0), e))
    }
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub(crate) unsafe fn silu<S: FloatVector>(x: S::F) -> S::F {
    // SAFETY: the caller has the instruction set.
    unsafe { sigmoid_times::<S>(x, x) }
}

/// `0.5 x (1 + tanh(u)) = x * sigmoid(2u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`; this form loses no digits for
/// negative `x`.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<S: FloatVector>(x: S::F) -> S::F {
    // SAFETY: the caller has the instruction set.
    unsafe {
        const TWICE_ROOT: f32 = 1.595_769_1;
        let cubic = S::fma(S::mul(x, x), S::splat(0.044_715 * TWICE_ROOT), S::splat(TWICE_ROOT));
        sigmoid_times::<S>(x, S::mul(x, cubic))
    }
}

/// `x (1 + erf(x / sqrt(2))) / 2`, as `max(x, 0) - |x| erfc(|x| / sqrt(2)) / 2`, with the complementary error function of Abramowitz and
/// Stegun 7.1.26: at most 1.5e-7 off.
#[inline(always)]
unsafe fn gelu_erf<S: FloatVector>(x: S::F) -> S::F {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let zero = S::splat(0.0);
        let magnitude = S::max(S::sub(zero, x), x);
        let z = S::mul(magnitude, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(S::splat(1.0), S::fma(z, S::splat(0.327_591_1), S::splat(1.0)));
        let mut p = S::splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6, 0.0] {
            p = S::fma(p, t, S::splat(c));
        }
        let tail = S::mul(p, exp::<S>(S::sub(zero, S::mul(z, z))));
        let half = S::mul(S::mul(magnitude, S::splat(0.5)), tail);
        // The second operand of `max` is what comes back for NaN.
        S::sub(S::max(zero, x), half)
    }
}

/// Hyperbolic tangent: a polynomial below 0.625 (Cephes `tanhf`), `1 - 2 / (e^2x + 1)` above.
#[inline(always)]
pub(crate) unsafe fn tanh<S: FloatVector>(x: S::F) -> S::F {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let zero = S::splat(0.0);
        let magnitude = S::max(S::sub(zero, x), x);
        let square = S::mul(x, x);
        let mut p = S::splat(-5.704_988_7e-3);
        for c in [2.063_908_9e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328_2e-1] {
            p = S::fma(p, square, S::splat(c));
        }
        let small = S::fma(S::mul(p, square), x, x);
        let e = exp::<S>(S::add(magnitude, magnitude));
        let large = S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(e, S::splat(1.0))));
        let large = S::select_lt(x, zero, S::sub(zero, large), large);
        S::select_lt(magnitude, S::splat(0.625), small, large)
    }
}

/// One gate value.
#[inline(always)]
pub(crate) unsafe fn activate<S: FloatVector>(activation: Activation, x: S::F) -> S::F {
    // SAFETY: the caller has the instruction set.
    unsafe {
        match activation {
            Activation::Silu => silu::<S>(x),
            Activation::GeluTanh => gelu_tanh::<S>(x),
        }
    }
}

/// Elementwise function over a slice, in place.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Elementwise {
    /// `cap * tanh(x / cap)`.
    SoftCap(f32),
    /// The exact GELU.
    Gelu,
    #[cfg(test)]
    Exp,
    #[cfg(test)]
    Tanh,
    #[cfg(test)]
    Activate(Activation),
}

struct Apply<'a>(Elementwise, &'a mut [f32]);

impl SimdFunction for Apply<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: FloatVector>(self) {
        let Apply(function, values) = self;
        let mut chunks = values.chunks_exact_mut(S::LANES);
        for chunk in &mut chunks {
            // SAFETY: the chunk has LANES elements.
            unsafe { S::store(chunk.as_mut_ptr(), evaluate::<S>(function, S::load(chunk.as_ptr()))) };
        }
        let rest = chunks.into_remainder();
        let mut last = [0f32; 16];
        last[..rest.len()].copy_from_slice(rest);
        // SAFETY: LANES is at most 16.
        unsafe { S::store(last.as_mut_ptr(), evaluate::<S>(function, S::load(last.as_ptr()))) };
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[inline(always)]
unsafe fn evaluate<S: FloatVector>(function: Elementwise, x: S::F) -> S::F {
    // SAFETY: the caller has the instruction set.
    unsafe {
        match function {
            Elementwise::SoftCap(cap) => soft_cap::<S>(x, cap),
            Elementwise::Gelu => gelu_erf::<S>(x),
            #[cfg(test)]
            Elementwise::Exp => exp::<S>(x),
            #[cfg(test)]
            Elementwise::Tanh => tanh::<S>(x),
            #[cfg(test)]
            Elementwise::Activate(a) => activate::<S>(a, x),
        }
    }
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub(crate) unsafe fn soft_cap<S: FloatVector>(x: S::F, cap: f32) -> S::F {
    // SAFETY: the caller has the instruction set.
    unsafe { S::mul(S::splat(cap), tanh::<S>(S::div(x, S::splat(cap)))) }
}

/// The exact GELU (Hendrycks and Gimpel 2016) of every element, in place.
pub(crate) fn gelu(level: SimdLevel, values: &mut [f32]) {
    apply(level, Elementwise::Gelu, values);
}

/// Applies a function to every element.
pub(crate) fn apply(level: SimdLevel, function: Elementwise, values: &mut [f32]) {
    dispatch(level, Apply(function, values));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(function: Elementwise, range: (f32, f32), exact: fn(f64) -> f64, tolerance: f64) {
        for level in SimdLevel::available() {
            let inputs: Vec<f32> =
                (0..100_003).map(|i| range.0 + (range.1 - range.0) * i as f32 / 100_002.0).collect();
            let mut values = inputs.clone();
            apply(level, function, &mut values);
            for (x, y) in inputs.iter().zip(&values) {
                let want = exact(f64::from(*x));
                let error = (f64::from(*y) - want).abs();
                assert!(
                    error <= tolerance * want.abs() + 1e-37,
                    "{level:?} {function:?}({x}) = {y}, exact {want}"
                );
            }
        }
    }

    #[test]
    fn exponential() {
        check(Elementwise::Exp, (-86.9, 87.9), f64::exp, 3e-7);
        for level in SimdLevel::available() {
            let mut edge = [f32::NEG_INFINITY, -1e9, f32::NAN, 0.0, f32::INFINITY];
            apply(level, Elementwise::Exp, &mut edge);
            assert_eq!((edge[0], edge[1], edge[3]), (0.0, 0.0, 1.0));
            assert!(edge[2].is_nan() && edge[4] > 1e38, "{level:?} {edge:?}");
        }
    }

    #[test]
    fn exact_gelu() {
        for level in SimdLevel::available() {
            let inputs: Vec<f32> = (-120_001..120_001).map(|i| i as f32 / 10_000.0).collect();
            let mut values = inputs.clone();
            gelu(level, &mut values);
            for (x, y) in inputs.iter().zip(&values) {
                let want = crate::reference::gelu(f64::from(*x));
                let error = (f64::from(*y) - want).abs();
                assert!(
                    error <= 1e-7 * (1.0 + 2.0 * f64::from(x.abs())),
                    "{level:?}: {x}: {y}, exact {want}"
                );
            }
            let mut edge = [f32::NEG_INFINITY, -1e9, f32::NAN, 1e9];
            gelu(level, &mut edge[1..]);
            assert!(edge[1] == 0.0 && edge[2].is_nan() && edge[3] == 1e9, "{level:?} {edge:?}");
        }
    }

    #[test]
    fn hyperbolic_tangent() {
        check(Elementwise::Tanh, (-20.0, 20.0), f64::tanh, 4e-7);
        check(Elementwise::Tanh, (-0.01, 0.01), f64::tanh, 4e-7);
    }

    #[test]
    fn gates() {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        check(Elementwise::Activate(Activation::Silu), (-60.0, 60.0), silu, 5e-7);
        let gelu = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x / (1.0 + (-2.0 * u).exp())
        };
        // The argument of the exponential reaches 20, and its rounding error is the result's relative error.
        check(Elementwise::Activate(Activation::GeluTanh), (-5.0, 30.0), gelu, 3e-6);
    }
}
