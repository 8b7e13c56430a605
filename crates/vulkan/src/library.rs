//! Loading Vulkan and listing its devices. The library is loaded at run time, so the binary starts on a machine without it.

use std::ffi::{CStr, c_char};

use ash::vk;

use crate::error::VulkanError;
use crate::matrix2;
use crate::profile::{GpuProfile, Heap, MatrixShape, MatrixTypes};
use crate::validation::Validation;

const VALIDATION_LAYER: &CStr = c"VK_LAYER_KHRONOS_validation";

/// The loaded Vulkan library with an instance.
pub struct Library {
    pub(crate) entry: ash::Entry,
    pub(crate) instance: ash::Instance,
    pub(crate) options: LibraryOptions,
    /// Objects and commands get names.
    pub(crate) labels: bool,
    pub(crate) validation: Option<Validation>,
    /// Never destroyed: a device that no longer answers is alive.
    kept: bool,
}

impl Drop for Library {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // SAFETY: the device made from the instance is gone, since a context drops its library last.
        unsafe {
            if let Some(validation) = &self.validation {
                validation.stop();
            }
            self.instance.destroy_instance(None);
        }
    }
}

/// Options of [`Library::load`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LibraryOptions {
    /// Ask for the Khronos validation layer with synchronization validation; fails where it is not installed.
    pub validation: bool,
    /// Ask the driver for statistics of every pipeline, where it has them; see [`crate::Context::statistics`].
    pub statistics: bool,
    /// Record and compile, but execute nothing and upload nothing: what is computed is garbage. For statistics without the work.
    pub compile_only: bool,
    /// Name buffers, pipelines and ops for debuggers, where `VK_EXT_debug_utils` is there. Validation names them too.
    pub labels: bool,
}

/// Extensions of a physical device.
#[derive(Clone, Debug)]
pub(crate) struct Extensions(Vec<vk::ExtensionProperties>);

impl Extensions {
    pub(crate) fn has(&self, name: &CStr) -> bool {
        self.0.iter().any(|e| e.extension_name_as_c_str() == Ok(name))
    }
}

/// A device that can be opened.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub(crate) physical: vk::PhysicalDevice,
    pub(crate) extensions: Extensions,
    pub(crate) executable_info: bool,
    missing: Vec<&'static str>,
    /// What it can do.
    pub profile: GpuProfile,
}

impl Candidate {
    /// Features that every kernel needs and this device lacks.
    pub fn missing(&self) -> &[&'static str] {
        &self.missing
    }
}

impl Library {
    /// Loads the system's Vulkan loader and creates an instance.
    ///
    /// Errors when no loader is installed or it is older than Vulkan 1.3.
    pub fn load(options: LibraryOptions) -> Result<Library, VulkanError> {
        // SAFETY: loading the system's Vulkan loader runs its initializers, which is the documented use.
        let entry =
            unsafe { ash::Entry::load() }.map_err(|e| VulkanError::NoLoader { reason: e.to_string() })?;
        let app =
            vk::ApplicationInfo::default().application_name(c"unicorn").api_version(vk::API_VERSION_1_3);
        // SAFETY: the entry is loaded; no layer name is passed.
        let extensions = unsafe { entry.enumerate_instance_extension_properties(None) }
            .map_err(VulkanError::NoInstance)?;
        let debug_utils =
            extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(ash::ext::debug_utils::NAME));
        let mut names: Vec<*const c_char> = Vec::new();
        // The validation layer brings the extension where the loader does not.
        let labels = options.validation || options.labels && debug_utils;
        if labels {
            names.push(ash::ext::debug_utils::NAME.as_ptr());
        }
        let layers = if options.validation { vec![VALIDATION_LAYER.as_ptr()] } else { Vec::new() };
        let enabled = [vk::ValidationFeatureEnableEXT::SYNCHRONIZATION_VALIDATION];
        let mut features = vk::ValidationFeaturesEXT::default().enabled_validation_features(&enabled);
        let mut info = vk::InstanceCreateInfo::default()
            .application_info(&app)
            .enabled_extension_names(&names)
            .enabled_layer_names(&layers);
        if options.validation {
            info = info.push_next(&mut features);
        }
        // SAFETY: all pointers in `info` outlive the call.
        let instance = unsafe { entry.create_instance(&info, None) }.map_err(|e| match e {
            vk::Result::ERROR_LAYER_NOT_PRESENT => {
                VulkanError::NoLayer { layer: VALIDATION_LAYER.to_string_lossy().into_owned() }
            }
            vk::Result::ERROR_INCOMPATIBLE_DRIVER => VulkanError::NoDriver,
            other => VulkanError::NoInstance(other),
        })?;
        let validation = options.validation.then(|| Validation::listen(&entry, &instance)).transpose();
        let validation = validation.inspect_err(|_| {
            // SAFETY: nothing was made from the instance.
            unsafe { instance.destroy_instance(None) }
        })?;
        Ok(Library { entry, instance, options, labels, validation, kept: false })
    }

    /// On a driver that does nothing.
    #[cfg(test)]
    pub(crate) fn null(entry: ash::Entry, instance: ash::Instance, options: LibraryOptions) -> Library {
        Library { entry, instance, options, labels: false, validation: None, kept: false }
    }

    /// Keeps the instance for good.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    /// All physical devices with their profiles, in the driver's order.
    pub fn candidates(&self) -> Result<Vec<Candidate>, VulkanError> {
        // SAFETY: the instance is alive.
        let physicals = unsafe { self.instance.enumerate_physical_devices() }?;
        physicals.into_iter().map(|p| self.candidate(p)).collect()
    }

    fn candidate(&self, physical: vk::PhysicalDevice) -> Result<Candidate, VulkanError> {
        // SAFETY: the physical device belongs to the instance.
        let extensions =
            Extensions(unsafe { self.instance.enumerate_device_extension_properties(physical) }?);
        let mut f11 = vk::PhysicalDeviceVulkan11Features::default();
        let mut f12 = vk::PhysicalDeviceVulkan12Features::default();
        let mut f13 = vk::PhysicalDeviceVulkan13Features::default();
        let mut matrix = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
        let mut matrix2 = matrix2::Features::default();
        let mut executable = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default();
        let has_matrix = extensions.has(ash::khr::cooperative_matrix::NAME);
        let has_matrix2 = extensions.has(matrix2::NAME);
        let has_executable = extensions.has(ash::khr::pipeline_executable_properties::NAME);
        let mut features = vk::PhysicalDeviceFeatures2::default()
            .push_next(&mut f11)
            .push_next(&mut f12)
            .push_next(&mut f13);
        if has_matrix {
            features = features.push_next(&mut matrix);
        }
        if has_matrix2 {
            features = features.push_next(&mut matrix2);
        }
        if has_executable {
            features = features.push_next(&mut executable);
        }
        // SAFETY: every structure in the chain belongs to Vulkan 1.3 or a supported extension.
        unsafe { self.instance.get_physical_device_features2(physical, &mut features) };
        let base = features.features;
        let needs: [(bool, &'static str); 8] = [
            (f12.buffer_device_address != 0, "bufferDeviceAddress"),
            (f12.timeline_semaphore != 0, "timelineSemaphore"),
            (f12.shader_float16 != 0, "shaderFloat16"),
            (f12.shader_int8 != 0, "shaderInt8"),
            (f12.storage_buffer8_bit_access != 0, "storageBuffer8BitAccess"),
            (f11.storage_buffer16_bit_access != 0, "storageBuffer16BitAccess"),
            (f13.synchronization2 != 0, "synchronization2"),
            (base.shader_int64 != 0 && base.shader_int16 != 0, "shaderInt64 and shaderInt16"),
        ];
        let missing = needs.iter().filter(|n| !n.0).map(|n| n.1).collect();
        let matrices =
            if has_matrix && matrix.cooperative_matrix != 0 { self.matrix_shapes(physical)? } else { vec![] };
        let matrix2 = has_matrix2
            && !matrices.is_empty()
            && matrix2::usable(&self.entry, &self.instance, physical, &matrix2)?;
        let profile = self.profile(physical, &extensions, &f13, matrices, matrix2);
        let executable_info = has_executable && executable.pipeline_executable_info != 0;
        Ok(Candidate { physical, extensions, executable_info, missing, profile })
    }

    fn matrix_shapes(&self, physical: vk::PhysicalDevice) -> Result<Vec<MatrixShape>, VulkanError> {
        let khr = ash::khr::cooperative_matrix::Instance::new(&self.entry, &self.instance);
        // SAFETY: the extension is supported by this physical device.
        let all = unsafe { khr.get_physical_device_cooperative_matrix_properties(physical) }?;
        use vk::ComponentTypeKHR as C;
        let shape = |p: &vk::CooperativeMatrixPropertiesKHR| {
            if p.scope != vk::ScopeKHR::SUBGROUP || p.saturating_accumulation != 0 {
                return None;
            }
            let types = match (p.a_type, p.b_type, p.c_type, p.result_type) {
                (C::FLOAT16, C::FLOAT16, C::FLOAT32, C::FLOAT32) => MatrixTypes::F16F32,
                (C::SINT8, C::SINT8, C::SINT32, C::SINT32) => MatrixTypes::I8I32,
                _ => return None,
            };
            Some(MatrixShape { m: p.m_size, n: p.n_size, k: p.k_size, types })
        };
        Ok(all.iter().filter_map(shape).collect())
    }

    fn profile(
        &self,
        physical: vk::PhysicalDevice,
        extensions: &Extensions,
        f13: &vk::PhysicalDeviceVulkan13Features<'_>,
        matrices: Vec<MatrixShape>,
        matrix2: bool,
    ) -> GpuProfile {
        let mut p11 = vk::PhysicalDeviceVulkan11Properties::default();
        let mut p12 = vk::PhysicalDeviceVulkan12Properties::default();
        let mut p13 = vk::PhysicalDeviceVulkan13Properties::default();
        let mut sm = vk::PhysicalDeviceShaderSMBuiltinsPropertiesNV::default();
        let mut cu = vk::PhysicalDeviceShaderCorePropertiesAMD::default();
        let has_sm = extensions.has(ash::nv::shader_sm_builtins::NAME);
        let has_cu = extensions.has(ash::amd::shader_core_properties::NAME);
        let mut properties = vk::PhysicalDeviceProperties2::default()
            .push_next(&mut p11)
            .push_next(&mut p12)
            .push_next(&mut p13);
        if has_sm {
            properties = properties.push_next(&mut sm);
        }
        if has_cu {
            properties = properties.push_next(&mut cu);
        }
        // SAFETY: every structure in the chain belongs to Vulkan 1.3 or a supported extension.
        unsafe { self.instance.get_physical_device_properties2(physical, &mut properties) };
        let base = properties.properties;
        // SAFETY: the physical device belongs to the instance.
        let memory = unsafe { self.instance.get_physical_device_memory_properties(physical) };
        let heaps = memory.memory_heaps_as_slice().iter().map(|h| Heap {
            bytes: h.size,
            device_local: h.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL),
        });
        let cores = if has_sm {
            Some(sm.shader_sm_count)
        } else if has_cu {
            Some(
                cu.shader_engine_count
                    * cu.shader_arrays_per_engine_count
                    * cu.compute_units_per_shader_array,
            )
        } else {
            None
        };
        let text =
            |r: Result<&CStr, _>| r.map(|s: &CStr| s.to_string_lossy().into_owned()).unwrap_or_default();
        GpuProfile {
            name: text(base.device_name_as_c_str()),
            driver: format!("{} {}", text(p12.driver_name_as_c_str()), text(p12.driver_info_as_c_str())),
            vendor: base.vendor_id,
            integrated: base.device_type == vk::PhysicalDeviceType::INTEGRATED_GPU,
            software: base.device_type == vk::PhysicalDeviceType::CPU,
            subgroup_min: p13.min_subgroup_size,
            subgroup_max: p13.max_subgroup_size,
            subgroup_default: p11.subgroup_size,
            subgroup_size_control: f13.subgroup_size_control != 0 && f13.compute_full_subgroups != 0,
            shared_bytes: base.limits.max_compute_shared_memory_size,
            workgroup_invocations: base.limits.max_compute_work_group_invocations,
            // RADV says u32::MAX.
            workgroup_subgroups: p13
                .max_compute_workgroup_subgroups
                .min(base.limits.max_compute_work_group_invocations),
            push_bytes: base.limits.max_push_constants_size,
            allocation_bytes: p11.max_memory_allocation_size,
            f16: true,
            integer_dot: p13.integer_dot_product4x8_bit_packed_signed_accelerated != 0,
            matrices,
            matrix2,
            heaps: heaps.collect(),
            timestamp_ns: if base.limits.timestamp_compute_and_graphics != 0 {
                base.limits.timestamp_period
            } else {
                0.0
            },
            cores,
            avoid: Vec::new(),
        }
    }
}
