//! Quantized products and blocks against an oracle that rounds activations as the kernels do: a far closer comparison than the one with
//! activations in full, which bounds the error of that rounding.

use std::time::{SystemTime, UNIX_EPOCH};

use unicorn_cases::{Case, run, table};
use unicorn_core::Device;
use unicorn_cpu::{ActivationRounding, CpuOptions, ReferenceDevice, SimdDevice, SimdLevel};

/// Seeds of a case. A value on a tie may fall the other way with any of them; a wrong kernel is off with all.
const SEEDS: u64 = 3;

fn cases() -> Vec<Case> {
    table().into_iter().filter_map(Case::rounded).collect()
}

/// The cases that are off with every seed, one line each.
fn failures(device: &dyn Device, oracle: &dyn Device) -> Vec<String> {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    let outcomes = |case: &Case| {
        let mut last = String::new();
        for trial in 0..SEEDS {
            let outcome = run(case, device, oracle, seed.rotate_left(17 * trial as u32)).unwrap();
            if outcome.passed() {
                return None;
            }
            last = outcome.to_string();
        }
        Some(last)
    };
    cases().iter().filter_map(outcomes).collect()
}

#[test]
fn every_level_rounds_as_the_oracle() {
    let oracle = ReferenceDevice::with_rounding(ActivationRounding { block: 32 });
    for level in SimdLevel::available() {
        let device = SimdDevice::open(CpuOptions { threads: Some(2), level: Some(level) }).unwrap();
        let failed = failures(&device, &oracle);
        assert!(failed.is_empty(), "{level}: {} cases:\n{}", failed.len(), failed.join("\n"));
    }
}

#[test]
fn another_block_length_is_noticed() {
    // Rounding in blocks of 64 or not at all is as good in the mean, and another computation.
    let device = SimdDevice::open(CpuOptions { threads: Some(2), level: None }).unwrap();
    let all = cases().len();
    for oracle in [ReferenceDevice::with_rounding(ActivationRounding { block: 64 }), ReferenceDevice::new()] {
        let failed = failures(&device, &oracle).len();
        assert!(failed * 10 > all * 8, "{failed} of {all} cases notice");
    }
}
