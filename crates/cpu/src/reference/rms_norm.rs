//! RMS norm (Zhang and Sennrich 2019).

use unicorn_core::{NormKind, NormSpec};

/// `out[i] = x[i] / sqrt(mean(x^2) + eps) * (weight[i] + weight_offset)` over one row.
pub(crate) fn rms_norm(spec: &NormSpec, weight: &[f32], x: &[f64], out: &mut [f64]) {
    match spec.kind {
        NormKind::Rms => {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
            let scale = 1.0 / (mean + spec.eps as f64).sqrt();
            for i in 0..x.len() {
                out[i] = x[i] * scale * (weight[i] as f64 + spec.weight_offset as f64);
            }
        }
    }
}

/// [`rms_norm`] of every row of `x[rows, weight.len()]`, in place.
pub(crate) fn rms_norm_rows(spec: &NormSpec, weight: &[f32], x: &mut [f64]) {
    for row in x.chunks_exact_mut(weight.len()) {
        let input = row.to_vec();
        rms_norm(spec, weight, &input, row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let mut spec = NormSpec::rms(0.5);
        let mut out = [0.0; 2];
        // mean square 12.5, plus eps 13, so the divisor is sqrt(13).
        rms_norm(&spec, &[1.0, 2.0], &[3.0, 4.0], &mut out);
        assert!((out[0] - 3.0 / 13f64.sqrt()).abs() < 1e-15 && (out[1] - 8.0 / 13f64.sqrt()).abs() < 1e-15);
        spec.weight_offset = 1.0;
        rms_norm(&spec, &[1.0, 2.0], &[3.0, 4.0], &mut out);
        assert!((out[0] - 6.0 / 13f64.sqrt()).abs() < 1e-15 && (out[1] - 12.0 / 13f64.sqrt()).abs() < 1e-15);
    }
}
