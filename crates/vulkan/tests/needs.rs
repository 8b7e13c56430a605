//! Every Vulkan device that is here takes the memory that it told, no more and not much less.

use unicorn_cases::Held;
use unicorn_core::{KvType, TensorType};
use unicorn_vulkan::{Context, Library, LibraryOptions, VulkanDevice, VulkanOptions};

/// Of what was told, at least this share is held after the largest batches. Some of it is room that chunks for small buffers have left.
const SHARE_MIN: f64 = 0.9;

#[test]
fn packed_weights_caches_and_scratch_are_known_before() {
    let open = |number: usize| -> Option<VulkanDevice> {
        let library = Library::load(LibraryOptions::default()).ok()?;
        let candidates = library.candidates().ok()?;
        let chosen = candidates.into_iter().filter(|c| c.missing().is_empty()).nth(number)?;
        let name = chosen.profile.name.clone();
        let context = Context::open(library, &chosen).ok()?;
        VulkanDevice::open(context, &name, &VulkanOptions::default()).ok()
    };
    let required = std::env::var_os("UNICORN_REQUIRE_VULKAN").is_some_and(|v| !v.is_empty() && v != "0");
    if open(0).is_none() {
        assert!(!required, "no Vulkan device has what the kernels need");
        println!("NOT RUN: no Vulkan device has what the kernels need");
        return;
    }
    let cases = [
        (TensorType::Q4_K, KvType::F16, false),
        (TensorType::Q8_0, KvType::Q8_0, true),
        (TensorType::F16, KvType::F32, false),
    ];
    for device in (0..).map_while(open) {
        for (ty, kv, crosses) in cases {
            let held = Held::by(&device, ty, kv, crosses).unwrap();
            let name = &device.context().profile().name;
            held.judge(SHARE_MIN).unwrap_or_else(|e| panic!("{name} {ty} {kv:?}: {e}\n{held:#?}"));
        }
        let held = Held::by_encoder(&device, TensorType::Q8_0).unwrap();
        held.judge(SHARE_MIN).unwrap_or_else(|e| panic!("an encoder: {e}\n{held:#?}"));
    }
}
