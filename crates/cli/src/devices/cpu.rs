//! `cpu`: the SIMD kernels, at the widest level of this processor or at a named one.

use std::sync::Arc;

use unicorn_core::{DeviceError, Instrument};
use unicorn_cpu::simd::{CpuOptions, SimdDevice, SimdLevel};

use super::backend::{Backend, OpenOptions, Preference};

pub(super) const BACKEND: Backend = Backend {
    name: "cpu",
    about: "processor cores",
    present: || vec![None],
    variants: || SimdLevel::ALL.iter().map(|level| level.name().to_owned()).collect(),
    tiers: false,
    accepts: |variant| SimdLevel::ALL.iter().any(|level| level.name() == variant),
    preferred: || Preference { variant: Some(None), why: String::new() },
    unasked: || vec![None],
    instead: Some("scalar"),
    kernels: || 0,
    open,
    watch: None,
};

fn open(variant: Option<&str>, options: &OpenOptions<'_>) -> Result<Arc<dyn Instrument>, DeviceError> {
    let level = variant.and_then(SimdLevel::parse);
    let device = SimdDevice::open(CpuOptions { level, threads: options.threads })?;
    Ok(Arc::new(device))
}
