//! Which matrix products run.

use unicorn_core::TensorType;

use super::{fallback, subgroup, workgroup};
use crate::pipeline::Kernel;
use crate::profile::{GpuProfile, MatrixShape, MatrixTypes};

/// Tokens of one dispatch of the matrix-vector kernels.
pub const VECTOR_TOKENS: usize = 8;
/// Output rows of a workgroup of the matrix-vector kernels: one group of the next product's input.
pub const VECTOR_ROWS: usize = 32;

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
    /// 0: f32 output only; 1: quantize; 2: multiply by the next norm's weight, quantize, and write sums of squares; 3: the same as f32.
    pub quantize: u32,
}

/// The matrix-vector kernel for `tokens` (1 ..= 8) tokens of a `[rows, cols]` matrix.
pub fn linear_vector(
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

/// What a tiled matrix product is built from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// KHR cooperative matrices of this shape, f16 with f32 accumulation.
    Cooperative(MatrixShape),
    /// Packed 4x8 integer dot products: quantized weights, activations quantized to 8 bits.
    Dot,
    /// f32 arithmetic on f16 weights and activations.
    Plain,
}

impl Tier {
    /// The shader of this tier's products with weights of a type.
    pub(super) fn shader(self, ty: TensorType, gated: bool) -> String {
        let name = match self {
            Tier::Cooperative(_) => "cooperative",
            Tier::Dot => "dot",
            Tier::Plain => "plain",
        };
        let glu = if gated { "glu_" } else { "" };
        format!("matmul_{name}_{glu}{}", ty.name().to_lowercase())
    }
}

/// The shape of cooperative matrices that kernels use, where the device has them.
pub fn cooperative(gpu: &GpuProfile) -> Option<MatrixShape> {
    let float = gpu.matrices.iter().filter(|m| m.types == MatrixTypes::F16F32);
    let square = float.filter(|m| m.m == m.n && m.n == m.k && (m.m == 16 || m.m == 8));
    square.max_by_key(|m| m.m).copied()
}

/// The best tier that a device has for a weight type. A tier whose kernel is to be avoided is passed over, as long as another is left.
pub fn tier(ty: TensorType, gpu: &GpuProfile) -> Tier {
    let matrices = cooperative(gpu).map(Tier::Cooperative);
    let dot = fallback::dot(ty, gpu).then_some(Tier::Dot);
    let mut tiers = [matrices, dot, Some(Tier::Plain)].into_iter().flatten();
    let best = tiers.clone().next();
    tiers.find(|t| !gpu.avoids(&t.shader(ty, false))).or(best).unwrap_or(Tier::Plain)
}

/// What a tiled product writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TiledOutput {
    /// f32.
    Float = 0,
    /// Added to f32.
    Add,
    /// f16.
    Half,
    /// Quantized to 8 bits; only where the next product's tier is [`Tier::Dot`].
    Quantized,
}

/// A product of many tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Weight type.
    pub ty: TensorType,
    /// Rows of the weight matrix (of each, for a gated unit).
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Tokens.
    pub tokens: usize,
    /// Gated unit with this activation code.
    pub activation: Option<u32>,
    /// What is written.
    pub output: TiledOutput,
}

/// A tiled matrix product.
#[derive(Clone, PartialEq, Debug)]
pub struct MatrixProduct {
    /// The kernel.
    pub kernel: Kernel,
    /// Rows of the weight matrix (of each matrix of a gated unit) that a workgroup computes.
    pub rows: usize,
    /// Tokens that a workgroup computes.
    pub tokens: usize,
    /// Parts of the columns that are summed by workgroups of their own and added afterwards; 1 writes the output itself.
    pub splits: usize,
    /// Columns of a split.
    pub span: usize,
}

/// Buffers of tiled products hold whole tiles of this many rows or tokens, so that kernels may load past the end.
pub const TILE_PADDING: usize = 128;

/// Columns of one step of a tiled product.
const STEP: usize = 64;

/// Floats of all splits of one product, at most.
pub fn split_floats(gpu: &GpuProfile) -> usize {
    4 * cores(gpu) * TILE_PADDING * TILE_PADDING
}

pub(super) fn cores(gpu: &GpuProfile) -> usize {
    gpu.cores.unwrap_or(16) as usize
}

/// A workgroup's tile and a subgroup's part of it, in rows (gate and up rows together) and tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tile {
    rows: usize,
    tokens: usize,
    subgroup_rows: usize,
    subgroup_tokens: usize,
}

impl Tile {
    const fn new(rows: usize, tokens: usize, subgroup_rows: usize, subgroup_tokens: usize) -> Tile {
        Tile { rows, tokens, subgroup_rows, subgroup_tokens }
    }

    fn subgroups(&self) -> usize {
        (self.rows / self.subgroup_rows) * (self.tokens / self.subgroup_tokens)
    }

    fn shared(&self) -> usize {
        (self.rows + self.tokens) * (STEP + 8) * 2
    }

    fn count(&self, problem: &Problem) -> usize {
        let rows = problem.rows * if problem.activation.is_some() { 2 } else { 1 };
        rows.div_ceil(self.rows) * problem.tokens.div_ceil(self.tokens)
    }
}

/// The tiled product for a problem.
pub fn matrix_product(problem: &Problem, gpu: &GpuProfile) -> MatrixProduct {
    let tier = tier(problem.ty, gpu);
    let Tier::Cooperative(shape) = tier else { return fallback::product(problem, tier, gpu) };
    let tile = cooperative_tile(problem, shape.m as usize, gpu);
    let (splits, span) = splits_of(problem, &tile, gpu);
    let output = match problem.output {
        _ if splits > 1 => TiledOutput::Float,
        output => output,
    };
    let constants = vec![
        tile.subgroups() as u32 * subgroup(gpu),
        tile.rows as u32,
        tile.tokens as u32,
        tile.subgroup_rows as u32,
        tile.subgroup_tokens as u32,
        shape.m,
        problem.activation.unwrap_or(0),
        output as u32,
        !problem.cols.is_multiple_of(STEP) as u32,
        // f32 weights would fill the registers twice over.
        (problem.ty != TensorType::F32) as u32,
    ];
    let shader = tier.shader(problem.ty, problem.activation.is_some());
    let rows = if problem.activation.is_some() { tile.rows / 2 } else { tile.rows };
    let kernel = Kernel { shader, constants, subgroup: subgroup(gpu) };
    MatrixProduct { kernel, rows, tokens: tile.tokens, splits, span }
}

/// The largest tile that gives every core work.
fn cooperative_tile(problem: &Problem, edge: usize, gpu: &GpuProfile) -> Tile {
    if edge == 8 {
        // One subgroup: lavapipe takes subgroup barriers for workgroup barriers, and loses the subgroups that meet more of them.
        return Tile::new(16, 16, 16, 16);
    }
    if problem.tokens <= 32 {
        return Tile::new(128, 32, 32, 32);
    }
    if problem.tokens <= 64 {
        return Tile::new(128, 64, 64, 32);
    }
    const WIDE: Tile = Tile::new(128, 128, 64, 64);
    let fits = WIDE.shared() <= gpu.shared_bytes as usize;
    // Long rows can be split instead of cut into smaller tiles.
    let splittable = problem.activation.is_none() && problem.cols >= 2048;
    if fits && (WIDE.count(problem) * 8 >= cores(gpu) * 7 || splittable) {
        return WIDE;
    }
    Tile::new(64, 64, 32, 32)
}

/// Splits of the columns and the columns of each: several where the tiles are too few to keep two workgroups on every core.
fn splits_of(problem: &Problem, tile: &Tile, gpu: &GpuProfile) -> (usize, usize) {
    let (tiles, steps) = (tile.count(problem), problem.cols.div_ceil(STEP));
    // Nearly a tile for every core is enough, unless rows are so long that two workgroups a core hide more.
    let enough = if problem.cols < 8192 { cores(gpu) * 7 / 8 } else { cores(gpu) * 3 / 2 };
    let wanted = if problem.activation.is_some() || tiles >= enough {
        1
    } else {
        let room = split_floats(gpu) / (problem.rows * problem.tokens).max(1);
        (2 * cores(gpu)).div_ceil(tiles).min(steps / 16).min(room).clamp(1, 16)
    };
    let span = steps.div_ceil(wanted) * STEP;
    (problem.cols.div_ceil(span), span)
}
