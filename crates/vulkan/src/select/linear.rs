//! Matrix-vector products: the kernel for few tokens.

use unicorn_core::TensorType;

use super::limits::{cores, subgroup, workgroup};
use crate::kernel::Kernel;
use crate::profile::GpuProfile;

/// Tokens of one dispatch of the matrix-vector kernels.
pub(crate) const VECTOR_TOKENS: usize = 8;
/// Output rows of a workgroup of the matrix-vector kernels: one group of the next product's input.
pub(crate) const VECTOR_ROWS: usize = 32;

/// What is folded into a matrix-vector product.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fold {
    /// Gated unit with this activation code.
    pub activation: Option<u32>,
    /// Add to the output.
    pub accumulate: bool,
    /// Store the f32 result.
    pub stored: bool,
    /// Multiply by the input's inverse RMS.
    pub normed: bool,
    /// 0: f32 output only; 1: quantize; 2: multiply by the next norm's weight, quantize, and write sums of squares; 3: the same as f32.
    pub quantize: u32,
}

/// The matrix-vector kernel for `tokens` (1 ..= 8) tokens of a `[rows, cols]` matrix.
pub(crate) fn linear_vector(
    ty: TensorType,
    [rows, cols]: [usize; 2],
    tokens: usize,
    fold: Fold,
    gpu: &GpuProfile,
) -> Kernel {
    // Columns that a lane takes at once.
    let chunks = cols.div_ceil(if ty.is_quantized() { 32 } else { 8 });
    let all_rows = rows * if fold.activation.is_some() { 2 } else { 1 };
    let lanes = lanes(all_rows, chunks, if ty.is_quantized() { 8 } else { 32 }, gpu);
    // Each lane loads the activations of all tokens, so with many tokens it takes several rows. Float weights lose more by fewer loads in
    // flight than they gain.
    let rows_of_lane = match (tokens, fold.activation) {
        (5.., None) if ty.is_quantized() => 4,
        (5.., Some(_)) if ty.is_quantized() => 2,
        _ => 1,
    }
    .min(lanes);
    // More loads in flight than this cost more in registers than they gain.
    let most = if tokens <= 4 { 2 } else { 1 };
    let glu = if fold.activation.is_some() { "glu_" } else { "" };
    Kernel {
        shader: format!("linear_{glu}{}", ty.name().to_lowercase()),
        constants: vec![
            VECTOR_ROWS as u32 * lanes / rows_of_lane,
            tokens as u32,
            lanes,
            fold.accumulate as u32,
            fold.activation.unwrap_or(0),
            fold.normed as u32,
            fold.quantize,
            fold.stored as u32,
            (chunks as u32).div_ceil(lanes).clamp(1, most),
            rows_of_lane,
        ],
        subgroup: subgroup(gpu),
    }
}

/// Lanes that share an output row: as many as there are chunks, so that all loads are in flight at once, but no more threads than fill
/// the cores. They lie in one subgroup.
fn lanes(rows: usize, chunks: usize, least: u32, gpu: &GpuProfile) -> u32 {
    let room = (1024 * cores(gpu) / rows.max(1)).max(1).ilog2();
    let most =
        subgroup(gpu).min(workgroup(1024, gpu) / VECTOR_ROWS as u32).min(if gpu.integrated { 8 } else { 32 });
    (chunks as u32).next_power_of_two().min((1 << room.min(16)).max(least)).clamp(1, most)
}
