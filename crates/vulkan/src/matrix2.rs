//! The few structures of `VK_NV_cooperative_matrix2` that the bindings lack, as its specification lays them out.

use std::ffi::{CStr, c_void};

use ash::vk;

/// Extension name.
pub const NAME: &CStr = c"VK_NV_cooperative_matrix2";

const FEATURES: vk::StructureType = vk::StructureType::from_raw(1_000_593_000);

/// `VkPhysicalDeviceCooperativeMatrix2FeaturesNV`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Features {
    s_type: vk::StructureType,
    p_next: *mut c_void,
    /// Workgroup-scope matrices.
    pub workgroup_scope: vk::Bool32,
    /// Flexible dimensions.
    pub flexible_dimensions: vk::Bool32,
    /// Row and column reductions.
    pub reductions: vk::Bool32,
    /// Type and use conversions.
    pub conversions: vk::Bool32,
    /// Per-element operations.
    pub per_element_operations: vk::Bool32,
    /// Tensor layouts for loads and stores.
    pub tensor_addressing: vk::Bool32,
    /// Decode functions on loads.
    pub block_loads: vk::Bool32,
}

// SAFETY: the layout is that of the specification, and `s_type` is its structure type.
unsafe impl vk::TaggedStructure for Features {
    const STRUCTURE_TYPE: vk::StructureType = FEATURES;
}
// SAFETY: the specification lets it extend both.
unsafe impl vk::ExtendsPhysicalDeviceFeatures2 for Features {}
// SAFETY: as above.
unsafe impl vk::ExtendsDeviceCreateInfo for Features {}

impl Default for Features {
    fn default() -> Features {
        Features {
            s_type: FEATURES,
            p_next: std::ptr::null_mut(),
            workgroup_scope: 0,
            flexible_dimensions: 0,
            reductions: 0,
            conversions: 0,
            per_element_operations: 0,
            tensor_addressing: 0,
            block_loads: 0,
        }
    }
}

impl Features {
    /// True when every part that our kernels use is there.
    pub fn complete(&self) -> bool {
        [
            self.workgroup_scope,
            self.flexible_dimensions,
            self.reductions,
            self.conversions,
            self.per_element_operations,
            self.tensor_addressing,
            self.block_loads,
        ]
        .iter()
        .all(|f| *f != 0)
    }
}

/// Everything switched on.
pub fn features_wanted() -> Features {
    Features {
        workgroup_scope: 1,
        flexible_dimensions: 1,
        reductions: 1,
        conversions: 1,
        per_element_operations: 1,
        tensor_addressing: 1,
        block_loads: 1,
        ..Features::default()
    }
}
