//! The CPU device: reference loops and SIMD kernels.

pub mod reference;
pub mod simd;
mod submitter;

pub use reference::{ActivationRounding, ReferenceDevice};
pub use simd::{CpuOptions, SimdDevice, SimdLevel};
