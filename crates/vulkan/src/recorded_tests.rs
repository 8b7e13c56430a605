//! Every kernel of every case and shape, selected, recorded and "compiled" for the recorded profiles, without a GPU.

use unicorn_cases::{plans, record};
use unicorn_core::{Device, DeviceError, DeviceOptions};

use crate::context::Context;
use crate::device::VulkanDevice;
use crate::null_driver;
use crate::profiles::{all, recorded};

/// Records the case table and whole models for one device: an error names a kernel that does not exist or breaks a limit.
fn everything_is_recorded(name: &str) {
    everything_is_recorded_without(name, &[]);
}

/// The same while kernels are avoided: recording one of them is an error.
fn everything_is_recorded_without(name: &str, avoid: &[&str]) {
    let device = VulkanDevice::new(Context::null(recorded(name)), name).unwrap();
    let avoid = avoid.iter().map(|a| a.to_string()).collect();
    device.configure(&DeviceOptions { avoid, ..DeviceOptions::default() }).unwrap();
    let mut done = 0;
    for plan in plans("") {
        match record(&plan, &device) {
            Ok(()) => done += 1,
            // A limit that a kernel breaks is an error of kernel selection.
            Err(DeviceError::Unsupported { what, .. }) if !what.contains("past the device's limit") => {}
            Err(error) => panic!("{name}, {}: {error}", plan.name),
        }
    }
    device.measure().unwrap();
    assert!(done > 700, "{name}: only {done} plans");
    let context = device.context();
    null_driver::assert_within_limits(context.profile(), &context.device);
}

#[test]
fn kernels_exist_for_the_780m() {
    everything_is_recorded("780m");
}

#[test]
fn kernels_exist_for_the_7900_xtx() {
    everything_is_recorded("7900-xtx");
}

#[test]
fn kernels_exist_for_arc() {
    everything_is_recorded("arc-a770");
    everything_is_recorded("arc-b580");
}

#[test]
fn kernels_exist_for_the_h100() {
    everything_is_recorded("h100");
}

#[test]
fn kernels_exist_for_lavapipe() {
    everything_is_recorded("lavapipe-22.3");
    everything_is_recorded("lavapipe-26.1");
}

#[test]
fn a_kernel_to_avoid_has_another_in_its_place() {
    let matrices = ["matmul_cooperative_q6_k", "matmul_cooperative_glu_q4_k", "matmul_cooperative_f16"];
    let vectors = ["linear_glu_q4_k", "linear_glu_f16", "matmul_dot_glu_q8_0"];
    everything_is_recorded_without("h100", &[matrices, vectors].concat());
    everything_is_recorded_without("7900-xtx", &["matmul_cooperative_q4_k", "matmul_dot_q4_k"]);
    // Either way from rows to sums serves any number of rows.
    let few = ["linear_q4_k", "linear_glu_q4_k", "linear_f16", "linear_glu_f16", "attention_decode_f16"];
    let tiers = ["matmul_cooperative", "matmul_dot", "matmul_plain", "flash_cooperative", "flash_plain"];
    let tiles = |ty: &str| tiers.map(|tier| format!("{tier}_{ty}")).into_iter();
    let many: Vec<String> = ["q4_k", "glu_q4_k", "f16", "glu_f16"].into_iter().flat_map(tiles).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain(["flash_matrix2_f16"]).collect();
    for device in ["h100", "780m", "lavapipe-22.3"] {
        everything_is_recorded_without(device, &few);
        everything_is_recorded_without(device, &many);
    }
}

#[test]
fn profiles_are_plausible() {
    for gpu in all() {
        assert!(
            gpu.subgroup_min <= gpu.subgroup_default && gpu.subgroup_default <= gpu.subgroup_max,
            "{}",
            gpu.name
        );
        assert!(gpu.shared_bytes >= 32 << 10 && gpu.push_bytes >= 128, "{}", gpu.name);
        assert!(gpu.heaps.iter().any(|h| h.device_local), "{}", gpu.name);
    }
}
