//! Which family of kernels runs a batch.

use super::linear::VECTOR_TOKENS;
use super::tier::cooperative;
use crate::profile::GpuProfile;

/// Which family of kernels runs a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Path {
    /// Matrix-vector products with activations quantized to 8 bits: few rows, bound by reading the weights.
    Vector,
    /// Tiled matrix products, with activations in the form that each matrix's [`Tier`] takes.
    Matrix,
}

impl Path {
    /// The other one.
    pub(crate) fn other(self) -> Path {
        match self {
            Path::Vector => Path::Matrix,
            Path::Matrix => Path::Vector,
        }
    }
}

/// The faster path of `rows` rows through a block; `float` where all of its weights are floats.
///
/// Matrix-vector products of float weights convert every weight once for each token, and from 3 tokens on that costs a discrete GPU more
/// than reading them (H200, 8B in F16: a step takes 4.8 ms for one token, 5.6 for 2, 7.3 for 3 and 8.4 for 4, by tiled products 6.8 for 4 to 8).
pub(crate) fn path(rows: usize, float: bool, gpu: &GpuProfile) -> Path {
    let most = if float && cooperative(gpu).is_some() && !gpu.integrated { 2 } else { VECTOR_TOKENS };
    if rows > most { Path::Matrix } else { Path::Vector }
}
