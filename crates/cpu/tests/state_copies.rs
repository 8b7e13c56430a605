//! Pages of state keep their bytes through the caches of both devices.

use std::sync::Arc;

use unicorn_core::Device;
use unicorn_cpu::{CpuOptions, ReferenceDevice, SimdDevice};

#[test]
fn pages_keep_their_bytes() {
    let simd: Arc<dyn Device> =
        Arc::new(SimdDevice::open(CpuOptions { threads: Some(2), level: None }).unwrap());
    let reference: Arc<dyn Device> = Arc::new(ReferenceDevice::new());
    for device in [simd, reference] {
        unicorn_cases::pages::check(&device)
            .unwrap_or_else(|what| panic!("{}: {what}", device.profile().name));
    }
}
