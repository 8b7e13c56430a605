//! Sizes of subgroups and workgroups, and the number of cores, that all kernels go by.

use crate::profile::GpuProfile;

/// The subgroup size that our kernels ask for: 32 where the device offers it, else its own.
pub(crate) fn subgroup(gpu: &GpuProfile) -> u32 {
    if gpu.subgroup_size_control && (gpu.subgroup_min..=gpu.subgroup_max).contains(&32) {
        32
    } else {
        gpu.subgroup_default
    }
}

/// The largest workgroup, at most `wanted` threads.
pub(crate) fn workgroup(wanted: usize, gpu: &GpuProfile) -> u32 {
    (wanted as u32).min(gpu.workgroup_invocations).min(subgroup(gpu).saturating_mul(gpu.workgroup_subgroups))
}

/// Shader cores; a middling number where the driver does not tell.
pub(crate) fn cores(gpu: &GpuProfile) -> usize {
    gpu.cores.unwrap_or(16) as usize
}
