//! LayerNorm (Ba et al. 2016).

use super::Matrix;

/// A LayerNorm with its tensors.
pub(super) struct LayerNorm {
    /// `[width]`.
    pub weight: Matrix,
    /// `[width]`.
    pub bias: Matrix,
    pub eps: f32,
}

impl LayerNorm {
    /// Norms every row of `x[rows, width]`, in place.
    pub fn rows(&self, x: &mut [f64]) {
        x.chunks_exact_mut(self.weight.len())
            .for_each(|row| layer_norm(&self.weight, &self.bias, self.eps, row));
    }
}

/// `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias` over one row, in place.
pub(crate) fn layer_norm(weight: &[f32], bias: &[f32], eps: f32, x: &mut [f64]) {
    let count = x.len() as f64;
    let mean = x.iter().sum::<f64>() / count;
    let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
    let scale = 1.0 / (variance + eps as f64).sqrt();
    for i in 0..x.len() {
        x[i] = (x[i] - mean) * scale * weight[i] as f64 + bias[i] as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // Mean 5, variance 4, plus eps 5.
        let mut x = [3.0, 7.0];
        layer_norm(&[1.0, 2.0], &[0.5, -1.0], 1.0, &mut x);
        let scale = 1.0 / 5f64.sqrt();
        assert!((x[0] - (0.5 - 2.0 * scale)).abs() < 1e-15 && (x[1] - (4.0 * scale - 1.0)).abs() < 1e-15);
    }
}
