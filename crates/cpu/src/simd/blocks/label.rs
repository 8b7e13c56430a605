//! Names of kernels and their times.

use unicorn_core::{RateKind, TensorType};

use crate::simd::linear::PackedMatrix;

/// Name and bounding rate of a kernel, for profiles.
#[derive(Clone, Debug)]
pub(crate) struct Label {
    pub(crate) name: String,
    pub(crate) rate: RateKind,
}

impl Label {
    /// `op types kernel` for a product with these matrices.
    pub(super) fn product(op: &str, matrices: &[&PackedMatrix]) -> Label {
        let mut types: Vec<TensorType> = matrices.iter().map(|m| m.ty()).collect();
        types.dedup();
        let mut kernels: Vec<&str> = matrices.iter().map(|m| m.kernel().name()).collect();
        kernels.dedup();
        let types: Vec<String> = types.iter().map(|t| t.name().to_lowercase()).collect();
        let rate = matrices.first().map_or(RateKind::Float, |m| m.kernel().rate());
        Label { name: format!("{op} {} {}", types.join("+"), kernels.join("+")), rate }
    }
}

/// Time of one step on thread 0, the wait for the other threads included.
pub(crate) struct Mark {
    pub(crate) label: Label,
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) flops: u64,
}
