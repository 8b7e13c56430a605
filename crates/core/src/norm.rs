//! Normalization specs.

/// What a norm computes over the last dimension.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps) * w` (Zhang and Sennrich 2019).
    Rms,
}

/// A normalization with a learned weight.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct NormSpec {
    /// Formula.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f32,
    /// Added to the stored weight before use: 1 for Gemma weights from safetensors, which store `w - 1`; else 0.
    pub weight_offset: f32,
}

impl NormSpec {
    /// RMS norm with the stored weight used as it is.
    pub fn rms(eps: f32) -> NormSpec {
        NormSpec { kind: NormKind::Rms, eps, weight_offset: 0.0 }
    }
}
