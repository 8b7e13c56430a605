//! What tiled matrix products are built from, and in which form they take and leave activations.

use unicorn_core::TensorType;

use super::limits::subgroup;
use crate::profile::{GpuProfile, MatrixShape, MatrixTypes};

/// What a tiled matrix product is built from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tier {
    /// KHR cooperative matrices of this shape, f16 with f32 accumulation.
    Cooperative(MatrixShape),
    /// Packed 4x8 integer dot products: quantized weights, activations quantized to 8 bits.
    Dot,
    /// f32 arithmetic on f16 weights and activations.
    Plain,
}

impl Tier {
    /// The shader of this tier's products with weights of a type.
    pub(super) fn shader(self, ty: TensorType, gated: bool) -> String {
        let name = match self {
            Tier::Cooperative(_) => "cooperative",
            Tier::Dot => "dot",
            Tier::Plain => "plain",
        };
        let glu = if gated { "glu_" } else { "" };
        format!("matmul_{name}_{glu}{}", ty.name().to_lowercase())
    }
}

/// The shape of cooperative matrices that kernels use, where the device has them.
pub(crate) fn cooperative(gpu: &GpuProfile) -> Option<MatrixShape> {
    let float = gpu.matrices.iter().filter(|m| m.types == MatrixTypes::F16F32);
    let square = float.filter(|m| m.m == m.n && m.n == m.k && (m.m == 16 || m.m == 8));
    square.max_by_key(|m| m.m).copied()
}

/// The best tier that a device has for a weight type. A tier whose kernel is to be avoided is passed over, as long as another is left.
pub(crate) fn tier(ty: TensorType, gpu: &GpuProfile) -> Tier {
    let matrices = cooperative(gpu).map(Tier::Cooperative);
    let dot = dot(ty, gpu).then_some(Tier::Dot);
    let mut tiers = [matrices, dot, Some(Tier::Plain)].into_iter().flatten();
    let best = tiers.clone().next();
    tiers.find(|t| !gpu.avoids(&t.shader(ty, false))).or(best).unwrap_or(Tier::Plain)
}

/// What a tiled product writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TiledOutput {
    /// f32.
    Float = 0,
    /// Added to f32.
    Add,
    /// f16.
    Half,
    /// Quantized to 8 bits; only where the next product's tier is [`Tier::Dot`].
    Quantized,
}

/// Whether [`Tier::Dot`] serves a type. Its quantized output is put together by eight threads of one subgroup.
fn dot(ty: TensorType, gpu: &GpuProfile) -> bool {
    ty.is_quantized() && gpu.integer_dot && subgroup(gpu) >= 8
}
