//! Tiled matrix products: which kernel, which tile, and where long rows are split.

use unicorn_core::TensorType;

use super::fallback;
use super::limits::{cores, subgroup};
use super::problem::{MatrixProduct, Problem, TILE_PADDING};
use super::tier::{Tier, TiledOutput, tier};
use crate::kernel::Kernel;
use crate::profile::GpuProfile;

/// Columns of one step of a tiled product.
const STEP: usize = 64;

/// Floats of all splits of one product, at most.
pub(crate) fn split_floats(gpu: &GpuProfile) -> usize {
    4 * cores(gpu) * TILE_PADDING * TILE_PADDING
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
pub(crate) fn matrix_product(problem: &Problem, gpu: &GpuProfile) -> MatrixProduct {
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

/// Whether the columns of a product may be split for some number of tokens. Fewer tokens in tiles of one size mean more splits.
pub(crate) fn may_split(ty: TensorType, [rows, cols]: [usize; 2], gpu: &GpuProfile) -> bool {
    const TOKENS_MAX: usize = 8192;
    let splits = |tokens| {
        let problem = Problem { ty, rows, cols, tokens, activation: None, output: TiledOutput::Float };
        matrix_product(&problem, gpu).splits
    };
    [1, 33].into_iter().chain((65..TOKENS_MAX).step_by(TILE_PADDING)).any(|tokens| splits(tokens) > 1)
}
