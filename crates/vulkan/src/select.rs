//! Which kernel runs an operation: a pure function of the operation, its types and shape, and the device profile.

use unicorn_core::{KvType, TensorType};

use crate::pipeline::Kernel;
use crate::profile::GpuProfile;

/// Tokens of one dispatch of the matrix-vector kernels.
pub const VECTOR_TOKENS: usize = 8;
/// Output rows of a workgroup of the matrix-vector kernels: one group of the next product's input.
pub const VECTOR_ROWS: usize = 32;
/// Positions of one split of decode attention.
pub const SPLIT: usize = 256;

/// What is folded into a matrix-vector product.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fold {
    /// Gated unit with this activation code.
    pub activation: Option<u32>,
    /// Add to the output.
    pub accumulate: bool,
    /// Store the f32 result.
    pub stored: bool,
    /// Multiply by the input's inverse RMS.
    pub normed: bool,
    /// 0: f32 output only; 1: quantize; 2: also multiply by the next norm's weight and write sums of squares.
    pub quantize: u32,
}

/// The matrix-vector kernel for `tokens` (1 ..= 8) tokens of a `[rows, cols]` matrix.
pub fn linear_vector(ty: TensorType, cols: usize, tokens: usize, fold: Fold, gpu: &GpuProfile) -> Kernel {
    let lanes = lanes(cols, gpu);
    let glu = if fold.activation.is_some() { "glu_" } else { "" };
    Kernel {
        shader: format!("linear_{glu}{}", ty.name().to_lowercase()),
        constants: vec![
            VECTOR_ROWS as u32 * lanes,
            tokens as u32,
            lanes,
            fold.accumulate as u32,
            fold.activation.unwrap_or(0),
            fold.normed as u32,
            fold.quantize,
            fold.stored as u32,
        ],
        subgroup: subgroup(gpu),
    }
}

/// Lanes that share an output row: enough groups each to hide latency, few enough that short rows keep them busy. They lie in one subgroup.
fn lanes(cols: usize, gpu: &GpuProfile) -> u32 {
    let groups = (cols / 32).max(1) as u32;
    let most =
        subgroup(gpu).min(workgroup(1024, gpu) / VECTOR_ROWS as u32).min(if gpu.integrated { 8 } else { 32 });
    let mut lanes = 8.min(most);
    while lanes * 2 <= most && lanes * 4 <= groups {
        lanes *= 2;
    }
    lanes
}

/// The subgroup size that our kernels ask for: 32 where the device offers it, else its own.
pub fn subgroup(gpu: &GpuProfile) -> u32 {
    if gpu.subgroup_size_control && (gpu.subgroup_min..=gpu.subgroup_max).contains(&32) {
        32
    } else {
        gpu.subgroup_default
    }
}

/// The largest workgroup, at most `wanted` threads.
pub fn workgroup(wanted: usize, gpu: &GpuProfile) -> u32 {
    (wanted as u32).min(gpu.workgroup_invocations).min(subgroup(gpu) * gpu.workgroup_subgroups)
}

/// Suffix of kernels that touch the KV cache.
pub fn kv_suffix(ty: KvType) -> &'static str {
    match ty {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
        KvType::Q8_0 => "q8_0",
    }
}

/// Splits that a recording for sequences of up to `positions` positions has: a power of two, so that few recordings serve all lengths.
pub fn splits(positions: usize) -> usize {
    positions.div_ceil(SPLIT).max(1).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What matters of recorded profiles: name, subgroup sizes, workgroup limits, integrated.
    fn gpu(
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

    #[test]
    fn a_row_never_leaves_its_subgroup_and_a_workgroup_fits() {
        let gpus = [
            gpu("780M", 32, 64, 64, 1024, 32, true),
            gpu("H100", 32, 32, 32, 1024, 32, false),
            gpu("Arc", 8, 32, 32, 1024, 64, false),
            gpu("llvmpipe", 8, 8, 8, 1024, 32, false),
        ];
        for gpu in &gpus {
            for cols in [32, 64, 576, 1536, 4096, 14336] {
                let kernel = linear_vector(TensorType::Q4_K, cols, 1, Fold::default(), gpu);
                let (threads, lanes) = (kernel.constants[0], kernel.constants[2]);
                assert!(lanes <= subgroup(gpu) && lanes.is_power_of_two(), "{} {cols}", gpu.name);
                assert_eq!(threads, lanes * VECTOR_ROWS as u32);
                assert_eq!(workgroup(threads as usize, gpu), threads, "{} {cols}", gpu.name);
                assert!(crate::shaders::words(&kernel.shader).is_some());
            }
        }
    }

    #[test]
    fn every_type_has_its_kernels() {
        let gpu = gpu("H100", 32, 32, 32, 1024, 32, false);
        for ty in TensorType::ALL {
            for activation in [None, Some(0)] {
                let kernel = linear_vector(ty, 512, 1, Fold { activation, ..Fold::default() }, &gpu);
                assert!(crate::shaders::words(&kernel.shader).is_some(), "{}", kernel.shader);
            }
            let embedding = format!("embedding_{}", ty.name().to_lowercase());
            assert!(crate::shaders::words(&embedding).is_some(), "{embedding}");
        }
    }

    #[test]
    fn splits_cover_all_positions() {
        for positions in [1, 256, 257, 5000] {
            assert!(splits(positions) * SPLIT >= positions);
        }
    }
}
