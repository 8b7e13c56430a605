//! Every kernel of every case and shape, selected, recorded and "compiled" for the recorded profiles, without a GPU.

use std::sync::Arc;

use unicorn_cases::synthetic::SyntheticSource;
use unicorn_cases::{plans, record, shapes};
use unicorn_core::{
    Device, DeviceError, DeviceOptions, Instrument, KvType, StateLayout, TensorType, WeightError,
    WeightSource, WeightSpan,
};

use crate::context::Context;
use crate::device::VulkanDevice;
use crate::load::Loader;
use crate::null_driver;
use crate::profiles::{all, recorded};
use crate::select::{BlockShape, Router};

/// Records the case table and whole models for one device: an error names a kernel that does not exist or breaks a limit.
fn everything_is_recorded(name: &str) {
    everything_is_recorded_with(name, &DeviceOptions::default());
}

/// [`everything_is_recorded`] on a device that must do without some kernels: loading a block that needs one of them is an error.
fn everything_is_recorded_without(name: &str, avoid: &[&str]) {
    everything_is_recorded_with(name, &avoiding(avoid));
}

/// [`everything_is_recorded`] with options. Recording asserts that loading checked every kernel, see `assert_selected`.
fn everything_is_recorded_with(name: &str, options: &DeviceOptions) {
    let device = VulkanDevice::new(Context::null(recorded(name)), name).unwrap();
    device.configure(options).unwrap();
    let mut done = 0;
    for plan in plans("") {
        match record(&plan, &device) {
            Ok(()) => done += 1,
            // A limit that a kernel breaks is an error of kernel selection.
            Err(error) => match error.root() {
                DeviceError::Unsupported { what, .. } if !what.contains("past the device's limit") => {}
                _ => panic!("{name}, {}: {error}", plan.name),
            },
        }
    }
    device.measure().unwrap();
    assert!(done > 700, "{name}: only {done} plans");
    let context = device.context();
    null_driver::assert_within_limits(context.profile(), &context.device);
}

#[test]
fn options_change_kernels_within_what_is_checked() {
    let apart = DeviceOptions { fused_ffn: false, ..DeviceOptions::default() };
    let invariant = DeviceOptions { batch_invariant: true, ..DeviceOptions::default() };
    for options in [apart, invariant] {
        everything_is_recorded_with("780m", &options);
    }
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

/// Weights that nobody may read.
struct Unread;

impl WeightSource for Unread {
    fn read(&self, _: &WeightSpan, _: u64, _: &mut [u8]) -> Result<(), WeightError> {
        Err(WeightError::Truncated { file: "weights that must not be read".into(), end: 0 })
    }
}

fn avoiding(kernels: &[&str]) -> DeviceOptions {
    DeviceOptions { avoid: kernels.iter().map(|k| k.to_string()).collect(), ..DeviceOptions::default() }
}

#[test]
fn a_block_without_a_kernel_is_refused_before_its_weights_are_read() {
    let device = VulkanDevice::new(Context::null(recorded("h100")), "h100").unwrap();
    let blocks = shapes::model("llama-1b", TensorType::Q4_K).unwrap().blocks;
    let refused = |index: usize, avoid: &[&str]| {
        device.configure(&avoiding(avoid)).unwrap();
        match device.load(&blocks[index], &(Arc::new(Unread) as Arc<dyn WeightSource>)).unwrap_err() {
            DeviceError::NoKernel { op, ty, .. } => (op, ty),
            other => panic!("{other}"),
        }
    };
    let q4 = ["linear_q4_k", "matmul_cooperative_q4_k", "matmul_dot_q4_k", "matmul_plain_q4_k"];
    let (op, ty) = refused(2, &q4);
    assert!(op.starts_with("ffn_down but ") && ty == TensorType::Q4_K, "{op} {ty}");
    let (op, ty) = refused(
        1,
        &["attention_decode_f16", "flash_matrix2_f16", "flash_cooperative_f16", "flash_plain_f16"],
    );
    assert!(op.starts_with("attention but ") && ty == TensorType::F16, "{op} {ty}");
    // Kernels that have no other in their place.
    for (index, kernel) in
        [(0, "embedding_q6_k"), (1, "rope_kv_f16"), (1, "norm"), (2, "norm"), (1, "flash_merge")]
    {
        assert!(refused(index, &[kernel]).0.contains(kernel), "{kernel}");
    }
    assert!(refused(blocks.len() - 1, &["top_k"]).0.contains("top_k"));
}

#[test]
fn what_is_loaded_keeps_its_kernels() {
    let device = VulkanDevice::new(Context::null(recorded("h100")), "h100").unwrap();
    let blocks = shapes::model("llama-1b", TensorType::Q4_K).unwrap().blocks;
    let id = device.load(&blocks[1], &(Arc::new(SyntheticSource::new(1)) as Arc<dyn WeightSource>)).unwrap();
    let before = device.describe(id);
    // A cache type whose kernels may not run, and options that leave a block without kernels: neither changes anything.
    device.configure(&avoiding(&["rope_kv_q8_0"])).unwrap();
    let layout = |ty| StateLayout::paged(32, 4, 128, ty);
    device.reserve(&layout(KvType::F16)).unwrap();
    let error = device.reserve(&layout(KvType::Q8_0)).unwrap_err();
    assert!(matches!(error, DeviceError::NoKernel { ty: TensorType::Q8_0, .. }), "{error}");
    let error = device.configure(&avoiding(&["rope_kv_f16"])).unwrap_err();
    assert!(matches!(error, DeviceError::NoKernel { .. }), "{error}");
    assert_eq!(device.describe(id), before);
}

#[test]
fn a_module_that_is_missing_is_found_at_selection() {
    for gpu in all() {
        for ty in [TensorType::Q4_K, TensorType::F16] {
            for block in &shapes::model("smollm2-135m", ty).unwrap().blocks[..3] {
                let options = DeviceOptions::default();
                let router = Router { gpu: &gpu, kv: KvType::F16, options: &options };
                let shape = BlockShape::of(block);
                assert_eq!(router.lacking(&shape, crate::shaders::exists), None, "{}", gpu.name);
                for kernel in router.kernels(&shape) {
                    let lacking = router.lacking(&shape, |name| name != kernel.shader).unwrap();
                    assert!(crate::shaders::exists(&kernel.shader) && !lacking.op.is_empty());
                    let same =
                        router.kernels(&shape).into_iter().find(|k| k.shader == kernel.shader).unwrap();
                    assert_eq!((lacking.op.as_str(), lacking.ty), (same.op, same.ty));
                }
            }
        }
    }
}

#[test]
fn loaded_blocks_have_the_shapes_that_were_checked() {
    let context = Arc::new(Context::null(recorded("780m")));
    let mut loader = Loader::new(&context);
    for plan in plans("").into_iter().step_by(7) {
        for block in &plan.blocks {
            let Ok(loaded) = loader.load(block, &SyntheticSource::new(1)) else { continue };
            assert_eq!(loaded.shape(), BlockShape::of(block), "{}", plan.name);
        }
    }
}
