//! What the driver's compiler tells about each pipeline (`VK_KHR_pipeline_executable_properties`): registers, spills, occupancy, and the
//! matrix and dot product instructions in its listing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ash::vk;
use serde::{Deserialize, Serialize};

use crate::error::VulkanError;
use crate::kernel::Kernel;

/// Statistics of one compiled kernel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KernelStatistics {
    /// Name of the SPIR-V module.
    pub shader: String,
    /// Values of the specialization constants 0, 1, 2, ...
    pub constants: Vec<u32>,
    /// Subgroup size that the driver compiled for.
    pub subgroup: u32,
    /// The driver's figures by the driver's names, for example `VGPRs`. Booleans are 0 and 1.
    pub values: BTreeMap<String, f64>,
    /// Matrix and dot product instructions in the driver's listing, by mnemonic.
    pub instructions: BTreeMap<String, u32>,
}

/// A growing list of statistics.
pub type SharedStatistics = Arc<Mutex<Vec<KernelStatistics>>>;

/// Asks for statistics and keeps them.
pub(crate) struct Statistics {
    calls: ash::khr::pipeline_executable_properties::Device,
    found: SharedStatistics,
}

impl Statistics {
    pub(crate) fn new(instance: &ash::Instance, device: &ash::Device) -> Statistics {
        let calls = ash::khr::pipeline_executable_properties::Device::new(instance, device);
        Statistics { calls, found: SharedStatistics::default() }
    }

    pub(crate) fn shared(&self) -> SharedStatistics {
        self.found.clone()
    }

    /// What a pipeline must be made with.
    pub(crate) fn flags(&self) -> vk::PipelineCreateFlags {
        vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
            | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR
    }

    /// Adds what the driver tells about a fresh pipeline. A compute pipeline has one executable, or none where the driver says nothing.
    pub(crate) fn collect(&self, kernel: &Kernel, pipeline: vk::Pipeline) -> Result<(), VulkanError> {
        let info = vk::PipelineInfoKHR::default().pipeline(pipeline);
        // SAFETY: the pipeline is alive and was made with the flags above.
        let executables = unsafe { self.calls.get_pipeline_executable_properties(&info) }?;
        for (index, executable) in executables.iter().enumerate() {
            let info =
                vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(index as u32);
            // SAFETY: the index is below the number of executables.
            let statistics = unsafe { self.calls.get_pipeline_executable_statistics(&info) }?;
            let mut values = BTreeMap::new();
            for s in &statistics {
                let name = s.name_as_c_str().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                values.insert(name, value(s));
            }
            let instructions = instructions(&self.listing(&info)?);
            let found = KernelStatistics {
                shader: kernel.shader.clone(),
                constants: kernel.constants.clone(),
                subgroup: executable.subgroup_size,
                values,
                instructions,
            };
            self.found.lock().unwrap_or_else(|e| e.into_inner()).push(found);
        }
        Ok(())
    }

    /// The last text that the driver gives, which is the nearest to the machine.
    fn listing(&self, info: &vk::PipelineExecutableInfoKHR<'_>) -> Result<String, VulkanError> {
        let call = self.calls.fp().get_pipeline_executable_internal_representations_khr;
        let device = self.calls.device();
        let mut count = 0;
        // SAFETY: a query for the count.
        unsafe { call(device, info, &mut count, std::ptr::null_mut()) }.result()?;
        let mut all = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
        // SAFETY: room for as many as were counted; without data pointers the sizes are told.
        unsafe { call(device, info, &mut count, all.as_mut_ptr()) }.result()?;
        let mut texts: Vec<Vec<u8>> = all.iter().map(|r| vec![0u8; r.data_size]).collect();
        for (r, text) in all.iter_mut().zip(&mut texts) {
            r.p_data = text.as_mut_ptr().cast();
        }
        // SAFETY: every data pointer has room for the size told.
        unsafe { call(device, info, &mut count, all.as_mut_ptr()) }.result()?;
        let last = all.iter().zip(&texts).rfind(|(r, _)| r.is_text != 0);
        Ok(last.map(|(_, text)| String::from_utf8_lossy(text).into_owned()).unwrap_or_default())
    }
}

fn value(s: &vk::PipelineExecutableStatisticKHR<'_>) -> f64 {
    use vk::PipelineExecutableStatisticFormatKHR as F;
    // SAFETY: the format says which member is set.
    unsafe {
        match s.format {
            F::BOOL32 => f64::from(s.value.b32 != 0),
            F::INT64 => s.value.i64 as f64,
            F::UINT64 => s.value.u64 as f64,
            _ => s.value.f64,
        }
    }
}

/// Counts the instructions of matrix and dot product units: AMD's and Intel's mnemonics.
fn instructions(listing: &str) -> BTreeMap<String, u32> {
    const UNITS: [&str; 6] = ["v_wmma", "v_swmmac", "v_dot", "v_mfma", "dpas", "dp4a"];
    let mut out = BTreeMap::new();
    for word in listing.split_whitespace().filter(|w| UNITS.iter().any(|u| w.starts_with(u))) {
        let mnemonic = word.split(['.', '(']).next().unwrap_or(word);
        *out.entry(mnemonic.to_string()).or_insert(0) += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_by_mnemonic() {
        let listing = "v1: %5 = v_dot4_i32_iu8 %1, %2\n\tv_dot4_i32_iu8 v1, v2, v3 ; comment\n\
            v_wmma_f32_16x16x16_f16 v[0:7]\nv_add_u32 v1\ndpas.8x8(8) g1\n";
        let found = instructions(listing);
        let found: Vec<(&str, u32)> = found.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        assert_eq!(found, [("dpas", 1), ("v_dot4_i32_iu8", 2), ("v_wmma_f32_16x16x16_f16", 1)]);
        assert!(instructions("").is_empty());
    }
}
