//! Kernels count what blocks cost.

use unicorn_core::Instrument;
use unicorn_cpu::{CpuOptions, ReferenceDevice, SimdDevice};

#[test]
fn kernels_count_what_blocks_cost() {
    let simd = SimdDevice::open(CpuOptions { threads: Some(2), level: None }).unwrap();
    let devices: [Box<dyn Instrument>; 2] = [Box::new(simd), Box::new(ReferenceDevice::new())];
    for device in devices {
        unicorn_cases::costs::check(&*device)
            .unwrap_or_else(|what| panic!("{}: {what}", device.profile().name));
    }
}
