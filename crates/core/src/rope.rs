//! Rotary position embedding (Su et al. 2021) and its context-extension variants, resolved to a list of frequencies.

use std::f64::consts::PI;
use std::sync::Arc;

/// Which elements of a head form the rotated pairs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RopeStyle {
    /// Pairs `(2i, 2i + 1)`: GGUF files of the llama architecture.
    Normal,
    /// Pairs `(i, i + dims / 2)`: GPT-NeoX order; every other file.
    Neox,
}

/// A resolved rotary embedding: pair `i` at position `p` turns by `p * frequencies[i]`, and the rotated elements are multiplied by
/// `magnitude`. Elements past `2 * frequencies.len()` of a head are left alone.
#[derive(Clone, PartialEq, Debug)]
pub struct RopeSpec {
    /// Pairing.
    pub style: RopeStyle,
    /// Radians per position of each pair.
    pub frequencies: Arc<[f32]>,
    /// Factor on the rotated elements (YaRN's attention factor; else 1).
    pub magnitude: f32,
}

/// How a model stretches its positions beyond the context it was trained on.
#[derive(Clone, PartialEq, Debug)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by a factor.
    Linear {
        /// Divisor.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a smooth ramp between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low` are divided.
        low_frequency_factor: f32,
        /// Wavelengths below `original_context / high` are kept.
        high_frequency_factor: f32,
        /// Context of the original training.
        original_context: usize,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// Context extension factor.
        factor: f32,
        /// Context of the original training.
        original_context: usize,
        /// Ramp start, in rotations over the original context (paper: 32).
        beta_fast: f32,
        /// Ramp end (paper: 1).
        beta_slow: f32,
        /// Magnitude; `None` takes `0.1 ln(factor) + 1`.
        attention_factor: Option<f32>,
    },
    /// Divisors stored with the model, one per pair (GGUF tensor `rope_freqs.weight`).
    Factors(Vec<f32>),
}

impl RopeSpec {
    /// Resolves a rotary embedding over the first `dims` elements of a head.
    ///
    /// `dims` must be even; `base` is theta.
    pub fn new(style: RopeStyle, dims: usize, base: f32, scaling: &RopeScaling) -> RopeSpec {
        let half = dims / 2;
        let plain = |i: usize| (base as f64).powf(-2.0 * i as f64 / dims as f64);
        let mut magnitude = 1.0;
        let frequencies: Vec<f64> = match scaling {
            RopeScaling::None => (0..half).map(plain).collect(),
            RopeScaling::Linear { factor } => (0..half).map(|i| plain(i) / *factor as f64).collect(),
            RopeScaling::Factors(f) => {
                (0..half).map(|i| plain(i) / f.get(i).copied().unwrap_or(1.0) as f64).collect()
            }
            RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_context } => {
                let (factor, low, high) =
                    (*factor as f64, *low_frequency_factor as f64, *high_frequency_factor as f64);
                let context = *original_context as f64;
                (0..half)
                    .map(|i| {
                        let frequency = plain(i);
                        let wavelength = 2.0 * PI / frequency;
                        if wavelength < context / high {
                            frequency
                        } else if wavelength > context / low {
                            frequency / factor
                        } else {
                            let smooth = (context / wavelength - low) / (high - low);
                            (1.0 - smooth) * frequency / factor + smooth * frequency
                        }
                    })
                    .collect()
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
                magnitude = attention_factor.unwrap_or(0.1 * factor.ln() + 1.0);
                let pair_at = |rotations: f32| {
                    dims as f64 * (*original_context as f64 / (rotations as f64 * 2.0 * PI)).ln()
                        / (2.0 * (base as f64).ln())
                };
                let low = pair_at(*beta_fast).floor().max(0.0);
                let high = pair_at(*beta_slow).ceil().min(dims as f64 - 1.0);
                (0..half)
                    .map(|i| {
                        let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                        plain(i) / *factor as f64 * ramp + plain(i) * (1.0 - ramp)
                    })
                    .collect()
            }
        };
        RopeSpec { style, frequencies: frequencies.iter().map(|f| *f as f32).collect(), magnitude }
    }

    /// Indices inside a head of the two elements of pair `i`.
    pub fn pair(&self, i: usize) -> (usize, usize) {
        match self.style {
            RopeStyle::Normal => (2 * i, 2 * i + 1),
            RopeStyle::Neox => (i, i + self.frequencies.len()),
        }
    }
}
