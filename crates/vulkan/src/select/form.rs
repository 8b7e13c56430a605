//! The form in which products take their activations.

use unicorn_core::TensorType;

use super::path::Path;
use super::tier::{Tier, tier};
use crate::profile::GpuProfile;

/// The form of a product's input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// f32.
    Float,
    /// f16.
    Half,
    /// Quantized to 8 bits, with scale and sums per 32 columns.
    Quantized,
}

/// What the product of weights of a type takes on a path.
pub(crate) fn form(ty: TensorType, path: Path, gpu: &GpuProfile) -> Form {
    match path {
        Path::Vector if !ty.is_quantized() => Form::Float,
        Path::Vector => Form::Quantized,
        Path::Matrix => match tier(ty, gpu) {
            Tier::Dot => Form::Quantized,
            Tier::Cooperative(_) | Tier::Plain => Form::Half,
        },
    }
}
