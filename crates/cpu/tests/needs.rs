//! A device takes the memory that it told, no more and not much less.

use unicorn_cases::Held;
use unicorn_core::{Block, Device, DeviceError, KvType, StateLayout, TensorType, Workload};
use unicorn_cpu::{CpuOptions, ReferenceDevice, SimdDevice, SimdLevel};

/// Of what was told, at least this share is held after the largest batches.
const SHARE_MIN: f64 = 0.9;

/// The device at a level, where the processor has it.
fn simd(level: SimdLevel) -> Option<SimdDevice> {
    SimdDevice::open(CpuOptions { threads: Some(2), level: Some(level) }).ok()
}

#[test]
fn packed_weights_caches_and_scratch_are_known_before() {
    for level in SimdLevel::ALL.into_iter().filter(|l| *l != SimdLevel::Scalar) {
        for ty in [TensorType::Q4_0, TensorType::Q8_0, TensorType::F16] {
            for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
                let Some(device) = simd(level) else { continue };
                let crosses = kv == KvType::F32;
                let held = Held::by(&device, ty, kv, crosses).unwrap();
                held.judge(SHARE_MIN).unwrap_or_else(|e| panic!("{level} {ty} {kv:?}: {e}\n{held:#?}"));
            }
        }
    }
}

#[test]
fn encoders_need_no_cache() {
    for ty in [TensorType::F32, TensorType::Q8_0] {
        // New ones for each type: what one has grown to stays.
        let reference = ReferenceDevice::new();
        let simd = SimdLevel::ALL.into_iter().filter(|l| *l != SimdLevel::Scalar).filter_map(simd);
        let simd: Vec<SimdDevice> = simd.collect();
        for device in simd.iter().map(|d| d as &dyn Device).chain([&reference as &dyn Device]) {
            let held = Held::by_encoder(device, ty).unwrap();
            assert_eq!((held.need.kv, held.memory.kv), (0, 0));
            let name = &device.profile().name;
            held.judge(SHARE_MIN).unwrap_or_else(|e| panic!("{name} {ty}: {e}\n{held:#?}"));
        }
    }
}

#[test]
fn the_reference_knows_too() {
    let held = Held::by(&ReferenceDevice::new(), TensorType::Q8_0, KvType::F16, false).unwrap();
    held.judge(SHARE_MIN).unwrap_or_else(|e| panic!("{e}\n{held:#?}"));
}

#[test]
fn what_cannot_be_loaded_is_told_before_anything_is_read() {
    let spec = unicorn_cases::shapes::model("smollm2-135m", TensorType::Q8_0).unwrap();
    let mut block = spec.blocks[1].clone();
    let layout = StateLayout::paged(32, 8, 256, KvType::F16);
    let workload = Workload { layout, rows: 8, sequences: 1, outputs: 1, top: 0, streams: 1, crosses: false };
    let device = simd(SimdLevel::Scalar).unwrap();
    assert!(device.needs(&[&block], &workload).is_ok());
    let Block::Attention { spec, .. } = &mut block else { panic!("the first mixer") };
    spec.window = Some(64);
    // No pages are reserved for a window.
    let error = device.needs(&[&block], &workload).unwrap_err();
    assert!(matches!(error, DeviceError::Unsupported { .. }), "{error}");
    let Block::Attention { spec, .. } = &mut block else { panic!("the first mixer") };
    spec.window = None;
    spec.kv_heads = 7;
    assert!(matches!(device.needs(&[&block], &workload).unwrap_err(), DeviceError::Invalid { .. }));
}
