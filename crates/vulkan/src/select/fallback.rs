//! Tiled matrix products for GPUs without matrix units: which tier, which tile.

use super::limits::{subgroup, workgroup};
use super::problem::{MatrixProduct, Problem};
use super::tier::{Tier, TiledOutput};
use crate::kernel::Kernel;
use crate::profile::GpuProfile;

/// A workgroup's tile and a thread's part of it, see `shaders/lib/tile.glsl`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tile {
    rows: u32,
    tokens: u32,
    /// Blocks of 32 rows of which a thread holds four rows each.
    blocks: u32,
    thread_tokens: u32,
}

/// From large to small. Gated units need an even number of blocks.
const TILES: [Tile; 5] = [
    Tile { rows: 128, tokens: 128, blocks: 2, thread_tokens: 8 },
    Tile { rows: 128, tokens: 64, blocks: 2, thread_tokens: 4 },
    Tile { rows: 64, tokens: 64, blocks: 2, thread_tokens: 4 },
    Tile { rows: 64, tokens: 32, blocks: 2, thread_tokens: 4 },
    Tile { rows: 64, tokens: 16, blocks: 2, thread_tokens: 4 },
];

impl Tile {
    fn threads(&self) -> u32 {
        8 * (self.rows / (32 * self.blocks)) * (self.tokens / self.thread_tokens)
    }

    /// Shared memory, bytes.
    fn shared(&self, tier: Tier) -> u32 {
        let (rows, tokens) = (self.rows, self.tokens);
        match tier {
            // Two groups of bytes, with padding; scales and minima of two halves.
            Tier::Dot => {
                2 * 16 * (2 * (rows + tokens) + 8) + 2 * 2 * 4 * (2 * rows + tokens) + 2 * 4 * tokens
            }
            // 32 pairs of f16 columns, with padding.
            _ => 16 * (2 * (4 * rows + 4) + 32 * (tokens / 4 + 1)),
        }
    }

    /// Whether the device can run it at all.
    fn fits(&self, tier: Tier, gpu: &GpuProfile) -> bool {
        let threads = self.threads();
        self.shared(tier) <= gpu.shared_bytes
            && workgroup(threads as usize, gpu) == threads
            && threads.is_multiple_of(subgroup(gpu))
    }
}

/// The largest tile that fits the device and the number of tokens, and still gives every core work.
fn tile(problem: &Problem, tier: Tier, gpu: &GpuProfile) -> Tile {
    // A software driver has a few cores and registers, and compiles slowly: one tile for all problems.
    let tiles = if gpu.software { &TILES[3..4] } else { &TILES[..] };
    let rows = problem.rows * if problem.activation.is_some() { 2 } else { 1 };
    let cores = gpu.cores.unwrap_or(16) as usize;
    let work =
        |t: &&Tile| rows.div_ceil(t.rows as usize) * problem.tokens.div_ceil(t.tokens as usize) >= cores;
    let mut all = tiles.iter().filter(|t| t.fits(tier, gpu));
    let mut close = all.clone().filter(|t| (t.tokens as usize) < 2 * problem.tokens);
    let best = close.clone().find(work).or_else(|| close.next_back()).or_else(|| all.next_back());
    best.copied().unwrap_or(TILES[3])
}

/// Groups of 32 columns of a step: half as much code for software drivers, which compile it slowly.
fn groups(gpu: &GpuProfile) -> u32 {
    if gpu.software { 1 } else { 2 }
}

/// The product on [`Tier::Dot`] or [`Tier::Plain`].
pub(super) fn product(problem: &Problem, tier: Tier, gpu: &GpuProfile) -> MatrixProduct {
    let tile = tile(problem, tier, gpu);
    let output = match problem.output {
        TiledOutput::Float => 0,
        TiledOutput::Add => 1,
        TiledOutput::Half => 2,
        TiledOutput::Quantized => 3,
    };
    let kernel = Kernel {
        shader: tier.shader(problem.ty, problem.activation.is_some()),
        constants: vec![
            tile.threads(),
            tile.rows,
            tile.tokens,
            tile.blocks,
            tile.thread_tokens,
            problem.activation.unwrap_or(0),
            output,
            groups(gpu),
        ],
        subgroup: subgroup(gpu),
    };
    let rows = tile.rows as usize / if problem.activation.is_some() { 2 } else { 1 };
    MatrixProduct { kernel, rows, tokens: tile.tokens as usize, splits: 1, span: problem.cols }
}

#[cfg(test)]
mod tests {
    use unicorn_core::TensorType;

    use super::super::form::{Form, form};
    use super::super::path::Path;
    use super::super::product::matrix_product;
    use super::super::test_gpus::gpu;
    use super::super::tier::tier;
    use super::*;
    use crate::profile::{MatrixShape, MatrixTypes};
    use crate::tiers::Limit;

    fn gpus() -> Vec<GpuProfile> {
        let with = |gpu: GpuProfile, kib: u32, cores: u32| GpuProfile {
            shared_bytes: kib << 10,
            cores: Some(cores),
            matrices: vec![MatrixShape { m: 16, n: 16, k: 16, types: MatrixTypes::F16F32 }],
            ..gpu
        };
        vec![
            with(gpu("780M", 32, 64, 64, 1024, 32, true), 64, 12),
            with(gpu("7900 XTX", 32, 64, 64, 1024, 32, false), 64, 96),
            with(gpu("H100", 32, 32, 32, 1024, 32, false), 48, 132),
            GpuProfile { cores: None, ..gpu("Arc", 8, 32, 32, 1024, 64, false) },
            GpuProfile { cores: Some(64), ..gpu("GCN", 64, 64, 64, 1024, 16, false) },
            gpu("llvmpipe", 8, 8, 8, 1024, 32, false),
            GpuProfile { integer_dot: false, ..gpu("llvmpipe, 128 bits", 4, 4, 4, 1024, 32, false) },
        ]
    }

    #[test]
    fn every_type_has_a_kernel_of_every_tier_that_fits() {
        for gpu in gpus() {
            for limit in [Limit::Dot, Limit::Plain] {
                let limited = limit.apply(&gpu).unwrap();
                for ty in TensorType::ALL {
                    let tier = tier(ty, &limited);
                    let dot = limit == Limit::Dot && ty.is_quantized() && subgroup(&gpu) >= 8;
                    assert_eq!(tier, if dot { Tier::Dot } else { Tier::Plain }, "{} {ty}", gpu.name);
                    for (rows, tokens) in [(1, 9), (300, 33), (4096, 128), (128_256, 512), (576, 4096)] {
                        for activation in [None, Some(1)] {
                            let output = TiledOutput::Float;
                            let problem = Problem { ty, rows, cols: 576, tokens, activation, output };
                            let product = product(&problem, tier, &limited);
                            check(&product, &problem, tier, &limited);
                        }
                    }
                }
            }
        }
    }

    fn check(product: &MatrixProduct, problem: &Problem, tier: Tier, gpu: &GpuProfile) {
        let kernel = &product.kernel;
        let name = format!("{} {} {problem:?}", gpu.name, kernel.shader);
        assert!(crate::shaders::words(&kernel.shader).is_some(), "{name}");
        let [threads, rows, tokens, blocks, thread_tokens, ..] = kernel.constants[..] else {
            panic!("{name}: too few constants")
        };
        let tile = Tile { rows, tokens, blocks, thread_tokens };
        assert_eq!(tile.threads(), threads, "{name}");
        assert!(tile.fits(tier, gpu), "{name}");
        assert!(tile.shared(tier) <= gpu.shared_bytes, "{name}");
        assert_eq!(rows % (32 * blocks), 0, "{name}");
        assert!(blocks.is_multiple_of(2) && thread_tokens.is_multiple_of(4), "{name}");
        assert_eq!(product.rows as u32, if problem.activation.is_some() { rows / 2 } else { rows });
    }

    #[test]
    fn a_device_with_matrices_takes_them() {
        for gpu in gpus().iter().filter(|g| !g.matrices.is_empty()) {
            for ty in TensorType::ALL {
                assert!(matches!(tier(ty, gpu), Tier::Cooperative(_)), "{} {ty}", gpu.name);
                assert_eq!(form(ty, Path::Matrix, gpu), Form::Half);
            }
        }
    }

    #[test]
    fn a_tier_to_avoid_is_passed_over_while_another_is_left() {
        let names = ["matmul_cooperative_q4_k", "matmul_dot_q4_k", "matmul_plain_q4_k"];
        let avoiding = |gpu: &GpuProfile, count: usize| {
            let avoid = names[..count].iter().map(|n| format!("ffn_down {n}")).collect();
            GpuProfile { avoid, ..gpu.clone() }
        };
        let gpus = gpus();
        let h100 = gpus.iter().find(|g| g.name == "H100").unwrap();
        let of = |gpu: &GpuProfile, ty| tier(ty, gpu);
        let q4 = TensorType::Q4_K;
        assert!(matches!(of(&avoiding(h100, 0), q4), Tier::Cooperative(_)));
        assert_eq!(of(&avoiding(h100, 1), q4), Tier::Dot);
        assert_eq!(form(q4, Path::Matrix, &avoiding(h100, 1)), Form::Quantized);
        assert_eq!(of(&avoiding(h100, 2), q4), Tier::Plain);
        // Nothing is left: the best one is named, and refused by who records it.
        assert!(matches!(of(&avoiding(h100, 3), q4), Tier::Cooperative(_)));
        // Other types have kernels of their own; float weights have no dot products.
        assert!(matches!(of(&avoiding(h100, 3), TensorType::Q6_K), Tier::Cooperative(_)));
        let float = GpuProfile { avoid: vec!["head matmul_cooperative_f16".into()], ..h100.clone() };
        assert_eq!(of(&float, TensorType::F16), Tier::Plain);
        let problem = Problem {
            ty: q4,
            rows: 64,
            cols: 256,
            tokens: 64,
            activation: Some(0),
            output: TiledOutput::Half,
        };
        let product = matrix_product(&problem, &avoiding(h100, 1));
        assert_eq!(product.kernel.shader, "matmul_dot_glu_q4_k");
    }
}
