//! Profiles that tests of selection make up.

use crate::profile::GpuProfile;

/// What matters of recorded profiles: name, subgroup sizes, workgroup limits, integrated.
pub(super) fn gpu(
    name: &str,
    min: u32,
    max: u32,
    default: u32,
    invocations: u32,
    subgroups: u32,
    integrated: bool,
) -> GpuProfile {
    GpuProfile {
        name: name.into(),
        driver: String::new(),
        vendor: 0,
        integrated,
        software: min == 8,
        subgroup_min: min,
        subgroup_max: max,
        subgroup_default: default,
        subgroup_size_control: true,
        shared_bytes: 32 << 10,
        workgroup_invocations: invocations,
        workgroup_subgroups: subgroups,
        push_bytes: 128,
        allocation_bytes: 1 << 31,
        f16: true,
        integer_dot: true,
        matrices: Vec::new(),
        matrix2: false,
        heaps: Vec::new(),
        timestamp_ns: 1.0,
        cores: None,
        avoid: Vec::new(),
    }
}
