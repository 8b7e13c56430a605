//! Which matrix products run.

use unicorn_core::TensorType;

use super::{subgroup, workgroup};
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

/// What a tiled matrix product is built from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// KHR cooperative matrices of this shape, f16 with f32 accumulation.
    Cooperative(MatrixShape),
}

/// The best tier that a device has.
pub fn tier(gpu: &GpuProfile) -> Option<Tier> {
    let float = gpu.matrices.iter().filter(|m| m.types == MatrixTypes::F16F32);
    let square = float.filter(|m| m.m == m.n && m.n == m.k && (m.m == 16 || m.m == 8));
    square.max_by_key(|m| m.m).map(|m| Tier::Cooperative(*m))
}

/// What a tiled product writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TiledOutput {
    /// f32.
    Float,
    /// Added to f32.
    Add,
    /// f16.
    Half,
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
}

/// A workgroup's tile and a subgroup's part of it, in rows and tokens.
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

    /// Shared memory of `matmul_cooperative`, bytes.
    fn shared(&self, edge: usize) -> usize {
        (self.rows + self.tokens) * (64 + 8) * 2 + self.subgroups() * edge * edge * 4
    }
}

/// The tiled product for a problem; `None` where the device has no tier for it.
pub fn matrix_product(problem: &Problem, gpu: &GpuProfile) -> Option<MatrixProduct> {
    let Tier::Cooperative(shape) = tier(gpu)?;
    let edge = shape.m as usize;
    let tile = cooperative_tile(problem, edge, gpu);
    let glu = if problem.activation.is_some() { "glu_" } else { "" };
    let threads = tile.subgroups() as u32 * subgroup(gpu);
    let output = match problem.output {
        TiledOutput::Float => 0,
        TiledOutput::Add => 1,
        TiledOutput::Half => 2,
    };
    let constants = vec![
        threads,
        tile.rows as u32,
        tile.tokens as u32,
        tile.subgroup_rows as u32,
        tile.subgroup_tokens as u32,
        edge as u32,
        problem.activation.unwrap_or(0),
        output,
    ];
    let shader = format!("matmul_cooperative_{glu}{}", problem.ty.name().to_lowercase());
    let rows = if problem.activation.is_some() { tile.rows / 2 } else { tile.rows };
    Some(MatrixProduct {
        kernel: Kernel { shader, constants, subgroup: subgroup(gpu) },
        rows,
        tokens: tile.tokens,
    })
}

/// The largest tile that fits the device and still gives every core work.
fn cooperative_tile(problem: &Problem, edge: usize, gpu: &GpuProfile) -> Tile {
    const TILES: [Tile; 4] = [
        Tile::new(128, 128, 64, 32),
        Tile::new(64, 128, 32, 32),
        Tile::new(64, 64, 32, 32),
        Tile::new(64, 32, 32, 16),
    ];
    if edge == 8 {
        // One subgroup: lavapipe takes subgroup barriers for workgroup barriers, and loses the subgroups that meet more of them.
        return Tile::new(16, 16, 16, 16);
    }
    let cores = gpu.cores.unwrap_or(16) as usize;
    let rows = problem.rows * if problem.activation.is_some() { 2 } else { 1 };
    let count = |t: &Tile| rows.div_ceil(t.rows) * problem.tokens.div_ceil(t.tokens);
    let fits = |t: &&Tile| t.shared(edge) <= gpu.shared_bytes as usize && t.tokens < 2 * problem.tokens;
    let mut tiles = TILES.iter().filter(fits);
    let best = tiles.clone().find(|t| count(t) >= cores).or_else(|| tiles.next_back());
    best.copied().unwrap_or(TILES[3])
}
