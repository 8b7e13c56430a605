//! The blocks of encoders, whose norms come after the residual add.

use unicorn_core::{Batch, EncoderAttentionSpec, EncoderEmbeddingSpec, EncoderFfnSpec, HeadOutput};

use super::attention::softmax;
use super::{LayerNorm, Matrix};

/// `erf(x)` by a series of positive terms, `2 / sqrt(pi) e^(-x^2) sum x (2 x^2)^n / (2n + 1)!!`.
pub(crate) fn erf(x: f64) -> f64 {
    // What is missing from 1 there is less than half a unit in the last place.
    if x.is_nan() || x.abs() > 6.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > sum.abs() * 1e-17 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// `x (1 + erf(x / sqrt(2))) / 2` (Hendrycks and Gimpel 2016).
pub(crate) fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
}

/// The residual add and the norm behind it.
fn add_norm(x: &[f64], y: &mut [f64], norm: &LayerNorm) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    norm.rows(y);
}

/// Tensors of an encoder's embedding; shapes as in [`EncoderEmbeddingWeights`](unicorn_core::EncoderEmbeddingWeights).
pub(super) struct EncoderEmbedding {
    pub spec: EncoderEmbeddingSpec,
    pub table: Matrix,
    pub positions: Matrix,
    pub token_types: Matrix,
    pub norm: LayerNorm,
}

impl EncoderEmbedding {
    /// The residual stream `[rows, width]`. Token ids and positions have been checked.
    pub fn forward(&self, batch: &Batch) -> Vec<f64> {
        let width = self.spec.width;
        let mut x = Vec::with_capacity(batch.rows() * width);
        for slice in batch.slices() {
            for (position, token) in slice.tokens.iter().enumerate() {
                for i in 0..width {
                    let token = self.table[*token as usize * width + i] as f64;
                    x.push(token + self.token_types[i] as f64 + self.positions[position * width + i] as f64);
                }
            }
        }
        self.norm.rows(&mut x);
        x
    }
}

/// Tensors of an encoder's attention; shapes as in [`EncoderAttentionWeights`](unicorn_core::EncoderAttentionWeights).
pub(super) struct EncoderAttention {
    pub spec: EncoderAttentionSpec,
    pub q: Matrix,
    pub k: Matrix,
    pub v: Matrix,
    pub o: Matrix,
    pub q_bias: Matrix,
    pub k_bias: Matrix,
    pub v_bias: Matrix,
    pub o_bias: Matrix,
    pub norm: LayerNorm,
}

impl EncoderAttention {
    /// What `x[rows, width]` becomes. The slices are whole sequences.
    pub fn forward(&self, x: &[f64], batch: &Batch) -> Vec<f64> {
        let spec = &self.spec;
        let (width, inner) = (spec.width, spec.heads * spec.head_dim);
        let q = self.q.multiply(width, Some(&self.q_bias), x);
        let k = self.k.multiply(width, Some(&self.k_bias), x);
        let v = self.v.multiply(width, Some(&self.v_bias), x);
        let mut attended = vec![0.0; q.len()];
        let mut first = 0;
        for slice in batch.slices() {
            let rows = first..first + slice.tokens.len();
            for row in rows.clone() {
                for head in 0..spec.heads {
                    let of = |row: usize| {
                        row * inner + head * spec.head_dim..row * inner + (head + 1) * spec.head_dim
                    };
                    let score = |key: usize| {
                        let products = q[of(row)].iter().zip(&k[of(key)]).map(|(a, b)| a * b);
                        products.sum::<f64>() * spec.scale as f64
                    };
                    let mut weights: Vec<f64> = rows.clone().map(score).collect();
                    softmax(&mut weights);
                    for (key, weight) in rows.clone().zip(&weights) {
                        for (out, value) in attended[of(row)].iter_mut().zip(&v[of(key)]) {
                            *out += weight * value;
                        }
                    }
                }
            }
            first = rows.end;
        }
        let mut y = self.o.multiply(inner, Some(&self.o_bias), &attended);
        add_norm(x, &mut y, &self.norm);
        y
    }
}

/// Tensors of an encoder's feed-forward network; shapes as in [`EncoderFfnWeights`](unicorn_core::EncoderFfnWeights).
pub(super) struct EncoderFfn {
    pub spec: EncoderFfnSpec,
    pub up: Matrix,
    pub down: Matrix,
    pub up_bias: Matrix,
    pub down_bias: Matrix,
    pub norm: LayerNorm,
}

impl EncoderFfn {
    /// What `x[rows, width]` becomes.
    pub fn forward(&self, x: &[f64]) -> Vec<f64> {
        let mut h = self.up.multiply(self.spec.width, Some(&self.up_bias), x);
        h.iter_mut().for_each(|v| *v = gelu(*v));
        let mut y = self.down.multiply(self.spec.hidden, Some(&self.down_bias), &h);
        add_norm(x, &mut y, &self.norm);
        y
    }
}

/// The rows of the residual stream that the batch reads, all of which ask for hidden states.
pub(super) fn encoder_head(width: usize, x: &[f32], batch: &Batch) -> HeadOutput {
    let row = |row: u32| &x[row as usize * width..(row as usize + 1) * width];
    let hidden = batch.outputs().iter().flat_map(|o| row(o.row)).copied().collect();
    HeadOutput { hidden, ..HeadOutput::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_function_at_known_points() {
        // Abramowitz and Stegun, table 7.1, and its complement at 3 and 5.
        let known = [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 1.0 - 2.209_049_699_858_544e-5),
            (5.0, 1.0 - 1.537_459_794_428_035e-12),
            (7.0, 1.0),
        ];
        for (x, want) in known {
            assert!((erf(x) - want).abs() < 1e-15 && (erf(-x) + want).abs() < 1e-15, "{x}: {}", erf(x));
        }
        assert!(erf(f64::NAN).is_nan());
        assert!((gelu(1.0) - 0.841_344_746_068_542_9).abs() < 1e-15);
        assert!(gelu(-40.0) == 0.0 && gelu(40.0) == 40.0);
    }
}
