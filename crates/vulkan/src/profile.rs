//! What a GPU and its driver can do, as plain data. Kernel selection is a pure function of this and the problem, so recorded profiles
//! of real devices drive its tests.

use serde::{Deserialize, Serialize};

/// Element types of a cooperative matrix product.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MatrixTypes {
    /// f16 x f16 accumulated in f32.
    F16F32,
    /// i8 x i8 accumulated in i32.
    I8I32,
}

/// One cooperative matrix shape at subgroup scope.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MatrixShape {
    /// Rows of the result.
    pub m: u32,
    /// Columns of the result.
    pub n: u32,
    /// Depth.
    pub k: u32,
    /// Element types.
    pub types: MatrixTypes,
}

/// One memory heap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Heap {
    /// Bytes.
    pub bytes: u64,
    /// True for memory local to the device.
    pub device_local: bool,
}

/// Features and limits of one GPU with one driver.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GpuProfile {
    /// Name as the driver gives it.
    pub name: String,
    /// Driver name and version.
    pub driver: String,
    /// PCI vendor.
    pub vendor: u32,
    /// True for a GPU that shares the host's memory.
    pub integrated: bool,
    /// True for a driver that runs on the processor (lavapipe).
    pub software: bool,
    /// Smallest subgroup a pipeline may ask for.
    pub subgroup_min: u32,
    /// Largest subgroup a pipeline may ask for.
    pub subgroup_max: u32,
    /// The subgroup size where none is asked for.
    pub subgroup_default: u32,
    /// True where a pipeline may ask for a subgroup size.
    pub subgroup_size_control: bool,
    /// Shared memory of a workgroup, bytes.
    pub shared_bytes: u32,
    /// Largest workgroup.
    pub workgroup_invocations: u32,
    /// Most subgroups in a workgroup whose subgroup size was asked for.
    pub workgroup_subgroups: u32,
    /// Largest push constant block, bytes.
    pub push_bytes: u32,
    /// Largest single allocation, bytes.
    pub allocation_bytes: u64,
    /// f16 arithmetic in shaders.
    pub f16: bool,
    /// Packed 4x8 integer dot products that the hardware has.
    pub integer_dot: bool,
    /// KHR cooperative matrix shapes at subgroup scope.
    pub matrices: Vec<MatrixShape>,
    /// NV cooperative matrix 2 at subgroup scope: any multiples of 16 as dimensions, reductions, conversions, operations by element.
    pub matrix2: bool,
    /// Memory heaps.
    pub heaps: Vec<Heap>,
    /// Nanoseconds per timestamp tick; 0 where timestamps are missing.
    pub timestamp_ns: f32,
    /// Shader cores (compute units, multiprocessors), where the driver tells.
    pub cores: Option<u32>,
    /// Kernels that are wrong with this driver, as `op shader` or as the shader alone: selection passes them over.
    #[serde(default)]
    pub avoid: Vec<String>,
}

impl GpuProfile {
    /// Whether selection must pass over this shader for this op. A shader that is wrong for one op is not trusted for another.
    pub(crate) fn avoids(&self, shader: &str) -> bool {
        self.avoid.iter().any(|a| a.rsplit(' ').next() == Some(shader))
    }
}
