//! The CPU device: reference loops and SIMD kernels.

pub mod reference;
pub mod simd;

pub use reference::ReferenceDevice;
pub use simd::{CpuOptions, SimdDevice, SimdLevel};
