//! The CPU device: reference loops and SIMD kernels.

pub mod reference;
pub mod simd;

pub use reference::{ActivationRounding, ReferenceDevice};
pub use simd::{CpuOptions, SimdDevice, SimdLevel};
