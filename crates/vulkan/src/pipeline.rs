//! Compute pipelines: SPIR-V plus specialization constants, compiled on first use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use ash::vk;

use crate::context::Context;
use crate::error::VulkanError;
use crate::statistics::Statistics;

/// A kernel: one shader with its specialization. Equal values share a pipeline.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Kernel {
    /// Name of the SPIR-V module in [`crate::shaders`].
    pub shader: String,
    /// Values of the specialization constants 0, 1, 2, ...
    pub constants: Vec<u32>,
    /// Subgroup size to ask for; 0 takes the driver's.
    pub subgroup: u32,
}

/// A compiled kernel.
#[derive(Clone, Copy, Debug)]
pub struct Pipeline {
    pub(crate) handle: vk::Pipeline,
}

/// Builds pipelines on demand and keeps them until it is dropped.
pub struct Pipelines {
    context: Arc<Context>,
    layout: vk::PipelineLayout,
    built: Mutex<HashMap<Kernel, Pipeline>>,
}

/// Push constants are the only bindings: device addresses and sizes. Vulkan guarantees 128 bytes.
pub const PUSH_BYTES: u32 = 128;

impl Pipelines {
    /// No pipeline yet.
    pub fn new(context: &Arc<Context>) -> Result<Pipelines, VulkanError> {
        let device = &context.device;
        let push =
            [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(PUSH_BYTES)];
        let info = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&push);
        // SAFETY: plain creation; destroyed on drop.
        let layout = unsafe { device.create_pipeline_layout(&info, None) }?;
        Ok(Pipelines { context: context.clone(), layout, built: Mutex::new(HashMap::new()) })
    }

    pub(crate) fn layout(&self) -> vk::PipelineLayout {
        self.layout
    }

    /// The pipeline of a kernel, compiled now if it is new.
    pub fn get(&self, kernel: &Kernel) -> Result<Pipeline, VulkanError> {
        let mut built = self.built.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(found) = built.get(kernel) {
            return Ok(*found);
        }
        let pipeline = self.build(kernel)?;
        built.insert(kernel.clone(), pipeline);
        Ok(pipeline)
    }

    fn build(&self, kernel: &Kernel) -> Result<Pipeline, VulkanError> {
        let device = &self.context.device;
        let code = crate::shaders::words(&kernel.shader).ok_or_else(|| VulkanError::Missing {
            device: self.context.profile().name.clone(),
            missing: format!("shader {}", kernel.shader),
        })?;
        let info = vk::ShaderModuleCreateInfo::default().code(&code);
        // SAFETY: the code is SPIR-V that the build committed; the module is destroyed below.
        let module = unsafe { device.create_shader_module(&info, None) }?;
        let entries: Vec<_> = (0..kernel.constants.len() as u32)
            .map(|i| vk::SpecializationMapEntry { constant_id: i, offset: 4 * i, size: 4 })
            .collect();
        let data: Vec<u8> = kernel.constants.iter().flat_map(|c| c.to_le_bytes()).collect();
        let special = vk::SpecializationInfo::default().map_entries(&entries).data(&data);
        let mut size = vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default()
            .required_subgroup_size(kernel.subgroup);
        let mut stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(c"main")
            .specialization_info(&special);
        let control = self.context.profile().subgroup_size_control;
        if control && kernel.subgroup != 0 {
            stage =
                stage.flags(vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS).push_next(&mut size);
        }
        let flags = self.context.statistics.as_ref().map(Statistics::flags).unwrap_or_default();
        let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(self.layout).flags(flags)];
        // SAFETY: all structures outlive the call.
        let made = unsafe { device.create_compute_pipelines(vk::PipelineCache::null(), &info, None) };
        // SAFETY: pipelines do not need their module once made.
        unsafe { device.destroy_shader_module(module, None) };
        match made {
            Ok(pipelines) => {
                if let Some(statistics) = &self.context.statistics {
                    statistics.collect(kernel, pipelines[0])?;
                }
                Ok(Pipeline { handle: pipelines[0] })
            }
            Err((_, error)) => Err(self.context.named(error, &kernel.shader)),
        }
    }
}

impl Drop for Pipelines {
    fn drop(&mut self) {
        let built = self.built.lock().unwrap_or_else(|e| e.into_inner());
        // SAFETY: callers wait for GPU work before dropping the device.
        unsafe {
            for pipeline in built.values() {
                self.context.device.destroy_pipeline(pipeline.handle, None);
            }
            self.context.device.destroy_pipeline_layout(self.layout, None);
        }
    }
}
