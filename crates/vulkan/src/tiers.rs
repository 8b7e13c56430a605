//! Limiting a device to a tier of matrix products below its best, so that each tier can be tested on one device.

use crate::error::VulkanError;
use crate::profile::GpuProfile;

/// The best tier that a device may use; see [`crate::GpuProfile`] for what it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// KHR cooperative matrices.
    Cooperative,
    /// Packed integer dot products, also where the driver emulates them.
    Dot,
    /// Plain arithmetic.
    Plain,
}

impl Limit {
    /// The profile without what lies above the tier.
    ///
    /// Errors when the device has no cooperative matrices and the limit asks for them.
    pub fn apply(self, gpu: &GpuProfile) -> Result<GpuProfile, VulkanError> {
        match self {
            Limit::Cooperative if gpu.matrices.is_empty() => Err(VulkanError::Missing {
                device: gpu.name.clone(),
                missing: "cooperative matrices, the tier that was asked for".into(),
            }),
            Limit::Cooperative => Ok(GpuProfile { matrix2: false, ..gpu.clone() }),
            Limit::Dot | Limit::Plain => Ok(GpuProfile {
                matrices: Vec::new(),
                matrix2: false,
                integer_dot: self == Limit::Dot,
                ..gpu.clone()
            }),
        }
    }
}
