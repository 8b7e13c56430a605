//! The few structures of `VK_NV_cooperative_matrix2` that the bindings lack, as its specification lays them out.

use std::ffi::{CStr, c_void};

use ash::vk;

use crate::error::VulkanError;

/// Extension name.
pub(crate) const NAME: &CStr = c"VK_NV_cooperative_matrix2";

const FEATURES: vk::StructureType = vk::StructureType::from_raw(1_000_593_000);

/// `VkPhysicalDeviceCooperativeMatrix2FeaturesNV`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
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
    fn suffices(&self) -> bool {
        [self.flexible_dimensions, self.reductions, self.conversions, self.per_element_operations]
            .iter()
            .all(|f| *f != 0)
    }
}

/// What our kernels use, switched on.
pub(crate) fn features_wanted() -> Features {
    Features {
        flexible_dimensions: 1,
        reductions: 1,
        conversions: 1,
        per_element_operations: 1,
        ..Features::default()
    }
}

/// `VkCooperativeMatrixFlexibleDimensionsPropertiesNV`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Dimensions {
    s_type: vk::StructureType,
    p_next: *mut c_void,
    m: u32,
    n: u32,
    k: u32,
    a: vk::ComponentTypeKHR,
    b: vk::ComponentTypeKHR,
    c: vk::ComponentTypeKHR,
    result: vk::ComponentTypeKHR,
    saturating: vk::Bool32,
    scope: vk::ScopeKHR,
    invocations: u32,
}

impl Dimensions {
    const EMPTY: Dimensions = Dimensions {
        s_type: vk::StructureType::from_raw(1_000_593_001),
        p_next: std::ptr::null_mut(),
        m: 0,
        n: 0,
        k: 0,
        a: vk::ComponentTypeKHR::FLOAT16,
        b: vk::ComponentTypeKHR::FLOAT16,
        c: vk::ComponentTypeKHR::FLOAT16,
        result: vk::ComponentTypeKHR::FLOAT16,
        saturating: 0,
        scope: vk::ScopeKHR::SUBGROUP,
        invocations: 0,
    };

    /// f16 products with f32 sums in a subgroup, every dimension any multiple of 16.
    fn suffices(&self) -> bool {
        let (half, float) = (vk::ComponentTypeKHR::FLOAT16, vk::ComponentTypeKHR::FLOAT32);
        (self.a, self.b, self.c, self.result) == (half, half, float, float)
            && self.saturating == 0
            && self.scope == vk::ScopeKHR::SUBGROUP
            && [self.m, self.n, self.k].iter().all(|granularity| *granularity != 0 && 16 % granularity == 0)
    }
}

type GetDimensions = unsafe extern "system" fn(vk::PhysicalDevice, *mut u32, *mut Dimensions) -> vk::Result;

/// Whether a device that has the extension, with these features, has what our kernels use of it.
pub(crate) fn usable(
    entry: &ash::Entry,
    instance: &ash::Instance,
    physical: vk::PhysicalDevice,
    features: &Features,
) -> Result<bool, VulkanError> {
    const NAME: &CStr = c"vkGetPhysicalDeviceCooperativeMatrixFlexibleDimensionsPropertiesNV";
    if !features.suffices() {
        return Ok(false);
    }
    // SAFETY: the instance is alive and the name is a C string.
    let Some(call) = (unsafe { entry.get_instance_proc_addr(instance.handle(), NAME.as_ptr()) }) else {
        return Ok(false);
    };
    // SAFETY: the function of this name has this type.
    let call: GetDimensions = unsafe { std::mem::transmute(call) };
    let mut count = 0;
    // SAFETY: a query for the count; the physical device belongs to the instance and has the extension.
    unsafe { call(physical, &mut count, std::ptr::null_mut()) }.result()?;
    let mut all = vec![Dimensions::EMPTY; count as usize];
    // SAFETY: room for as many as were counted, each with its structure type.
    unsafe { call(physical, &mut count, all.as_mut_ptr()) }.result()?;
    all.truncate(count as usize);
    Ok(all.iter().any(Dimensions::suffices))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_must_be_what_kernels_are_built_of() {
        let right = Dimensions {
            m: 16,
            n: 8,
            k: 16,
            c: vk::ComponentTypeKHR::FLOAT32,
            result: vk::ComponentTypeKHR::FLOAT32,
            ..Dimensions::EMPTY
        };
        assert!(right.suffices());
        for wrong in [
            Dimensions { m: 32, ..right },
            Dimensions { k: 0, ..right },
            Dimensions { saturating: 1, ..right },
            Dimensions { scope: vk::ScopeKHR::WORKGROUP, ..right },
            Dimensions { result: vk::ComponentTypeKHR::FLOAT16, ..right },
        ] {
            assert!(!wrong.suffices(), "{wrong:?}");
        }
        assert!(features_wanted().suffices() && !Features::default().suffices());
    }
}
