//! A norm with its weight.

use std::sync::Arc;

use unicorn_core::NormSpec;

/// A norm with its weight.
#[derive(Clone)]
pub(crate) struct Norm {
    pub(crate) weight: Arc<[f32]>,
    pub(crate) eps: f32,
}

impl Norm {
    /// The weight has its offset added already.
    pub(crate) fn new(spec: &NormSpec, weight: Arc<[f32]>) -> Norm {
        Norm { weight, eps: spec.eps }
    }
}
