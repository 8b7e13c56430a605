//! Gated feed-forward network (Shazeer 2020).

use unicorn_core::{Activation, FfnSpec};

use super::{Matrix, rms_norm_rows};

/// The gate's activation.
pub(crate) fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
    }
}

/// Tensors of a feed-forward block; shapes as in [`FfnWeights`](unicorn_core::FfnWeights).
pub(super) struct Ffn {
    pub spec: FfnSpec,
    pub norm: Matrix,
    pub gate: Matrix,
    pub up: Matrix,
    pub down: Matrix,
    pub post_norm: Option<Matrix>,
}

impl Ffn {
    /// What the block adds to `x[tokens, width]`.
    pub fn forward(&self, x: &[f64]) -> Vec<f64> {
        let (width, hidden) = (self.spec.width, self.spec.hidden);
        let mut n = x.to_vec();
        rms_norm_rows(&self.spec.norm, &self.norm, &mut n);
        let mut h = self.gate.multiply(width, None, &n);
        let up = self.up.multiply(width, None, &n);
        for (h, up) in h.iter_mut().zip(&up) {
            *h = activate(self.spec.activation, *h) * up;
        }
        let mut y = self.down.multiply(hidden, None, &h);
        if let (Some(spec), Some(weight)) = (&self.spec.post_norm, &self.post_norm) {
            rms_norm_rows(spec, weight, &mut y);
        }
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_at_known_points() {
        assert!((activate(Activation::Silu, 1.0) - 0.731_058_578_630_005).abs() < 1e-12);
        assert!((activate(Activation::GeluTanh, 1.0) - 0.841_191_990_607_477).abs() < 1e-9);
        for a in [Activation::Silu, Activation::GeluTanh] {
            assert_eq!(activate(a, 0.0), 0.0);
            assert!(activate(a, -800.0).abs() < 1e-9 && (activate(a, 800.0) - 800.0).abs() < 1e-9, "{a:?}");
        }
    }
}
