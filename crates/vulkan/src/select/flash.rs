//! Which flash attention kernel runs, and how a batch is cut for it.

use unicorn_core::KvType;

use super::attention::kv_suffix;
use super::limits::{subgroup, workgroup};
use super::linear::VECTOR_TOKENS;
use super::tier::cooperative;
use crate::kernel::Kernel;
use crate::profile::GpuProfile;

/// Rows of a tile of flash attention: the unit that the host lists.
pub(crate) const TILE_ROWS: usize = 64;
/// Where all sequences of a batch have at most this many rows, the decode kernels waste less.
pub(crate) const DECODE_ROWS: usize = 4;
/// The fewest positions that are worth a workgroup of their own.
const SPAN_MIN: usize = 256;
const NVIDIA: u32 = 0x10DE;
/// The most splits of a sequence's keys.
const SPLITS_MAX: usize = 32;

/// One sequence's part of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SliceShape {
    /// Position of its first row.
    pub start: usize,
    /// Rows.
    pub rows: usize,
    /// Entries of its page list.
    pub pages: usize,
}

/// A tile of rows of one sequence, as `lib/flash.glsl` reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FlashTile {
    /// First row of the batch.
    pub row: u32,
    /// Rows.
    pub rows: u32,
    /// Index of the sequence's first page in the page lists.
    pub pages: u32,
    /// Position of the first row.
    pub start: u32,
    /// Positions of a split of the keys, 0 where they are not split.
    pub span: u32,
    /// First record of partial results, counted in (row, split).
    pub partial: u32,
}

impl FlashTile {
    /// Size of a tile in memory.
    pub(crate) const BYTES: usize = 32;

    /// The bytes that the shaders read.
    pub(crate) fn bytes(&self) -> [u8; FlashTile::BYTES] {
        let mut out = [0; FlashTile::BYTES];
        let words = [self.row, self.rows, self.pages, self.start, self.span, self.partial];
        for (to, word) in out.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

/// How flash attention cuts a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FlashTiling {
    /// Tiles, in row order.
    pub tiles: Vec<FlashTile>,
    /// The most splits of a tile's keys, a power of two, so that few recordings serve all lengths.
    pub splits: usize,
    /// Records of partial results, counted in (row, split).
    pub records: usize,
}

/// Whether flash attention suits a batch better than the decode kernels.
pub(crate) fn flash_suits(slices: &[SliceShape]) -> bool {
    let rows: usize = slices.iter().map(|s| s.rows).sum();
    rows > VECTOR_TOKENS && slices.iter().any(|s| s.rows > DECODE_ROWS)
}

/// Cuts a batch for flash attention. `heads` are the query heads of a block.
///
/// How a sequence's keys are split follows from its own rows and positions, never from the rest of the batch.
pub(crate) fn flash_tiling(slices: &[SliceShape], heads: usize, gpu: &GpuProfile) -> FlashTiling {
    let mut plan = FlashTiling { tiles: Vec::new(), splits: 1, records: 0 };
    let (mut row, mut pages) = (0, 0);
    for s in slices {
        let span = span(s.rows, s.start + s.rows, heads, gpu);
        for first in (0..s.rows).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(s.rows - first);
            let start = s.start + first;
            plan.tiles.push(FlashTile {
                row: (row + first) as u32,
                rows: rows as u32,
                pages: pages as u32,
                start: start as u32,
                span: span.unwrap_or(0) as u32,
                partial: plan.records as u32,
            });
            if let Some(span) = span {
                let splits = (start + rows).div_ceil(span);
                plan.records += rows * splits;
                plan.splits = plan.splits.max(splits.next_power_of_two());
            }
        }
        row += s.rows;
        pages += s.pages;
    }
    plan
}

/// Positions of a split, where the pieces of a sequence's rows cannot keep the cores busy and its keys are many.
fn span(rows: usize, end: usize, heads: usize, gpu: &GpuProfile) -> Option<usize> {
    let cores = gpu.cores.unwrap_or(16) as usize;
    let pieces = (rows * heads).div_ceil(TILE_ROWS).max(1);
    let splits = (2 * cores / pieces).min(end / SPAN_MIN).min(SPLITS_MAX);
    (splits > 1).then(|| end.div_ceil(splits).next_multiple_of(TILE_ROWS))
}

/// What flash attention computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FlashProblem {
    /// Elements of a head.
    pub head_dim: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Query heads of each of them.
    pub group: usize,
    /// Cache type.
    pub kv: KvType,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// The most splits of a tile's keys.
    pub splits: usize,
}

/// A flash attention kernel.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct FlashKernel {
    /// The kernel.
    pub kernel: Kernel,
    /// Stacked rows (rows times heads of a group) of a workgroup.
    pub rows: usize,
    /// Elements of a head among the f16 queries that it reads; 0 where it reads f32 queries in place.
    pub query_pitch: usize,
}

/// The flash attention kernel for a problem: on cooperative matrices where the device has them and a tile fits.
pub(crate) fn flash_kernel(p: &FlashProblem, gpu: &GpuProfile) -> FlashKernel {
    // A driver on the processor compiles the long straight code of large tiles for a minute and gains nothing by it.
    let slow = gpu.software && (p.head_dim > 64 || p.kv != KvType::F16);
    let usable = |f: &FlashKernel| !gpu.avoids(&f.kernel.shader);
    let matrix2 = || flash_matrix2(p, gpu).filter(usable);
    let matrices = match cooperative(gpu) {
        Some(shape) if !slow => {
            matrix2().or_else(|| flash_cooperative(p, shape.m as usize, gpu).filter(usable))
        }
        _ => None,
    };
    matrices.unwrap_or_else(|| flash_plain(p, gpu))
}

/// On NV cooperative matrices 2; `None` where the device has none or no tile fits the shared memory.
fn flash_matrix2(p: &FlashProblem, gpu: &GpuProfile) -> Option<FlashKernel> {
    const ROWS: u32 = 16;
    const SUBGROUPS: u32 = 4;
    let (lanes, pitch) = (subgroup(gpu), p.head_dim.next_multiple_of(16));
    let shared = |keys: usize| 2 * 16 * keys * (pitch / 8 + 1);
    let fits = |keys: &usize| shared(*keys) <= gpu.shared_bytes as usize;
    // Accumulators of longer heads would not stay in registers. Lavapipe 26.1 has the extension and computes garbage with it.
    if !gpu.matrix2 || gpu.software || p.head_dim > 256 {
        return None;
    }
    let keys = [64, 32, 16].into_iter().find(fits)?;
    let mut constants = vec![
        SUBGROUPS * lanes,
        ROWS,
        lanes,
        p.group as u32,
        keys as u32,
        p.splits as u32,
        (p.head_dim <= 128) as u32,
    ];
    constants.resize(10, 0);
    constants.extend(p.cache_constants());
    let shader = format!("flash_matrix2_{}", kv_suffix(p.kv));
    let kernel = Kernel { shader, constants, subgroup: lanes };
    Some(FlashKernel { kernel, rows: (SUBGROUPS * ROWS) as usize, query_pitch: pitch })
}

/// On matrices of this edge; `None` where no tile fits the shared memory.
fn flash_cooperative(p: &FlashProblem, edge: usize, gpu: &GpuProfile) -> Option<FlashKernel> {
    let lanes = subgroup(gpu) as usize;
    let pitch = p.head_dim.next_multiple_of(edge);
    // NVIDIA transposes while it loads from shared memory; elsewhere a column would be loaded element by element.
    let turned = gpu.vendor != NVIDIA;
    let shared = |(subgroups, keys): (usize, usize)| {
        let values = if turned { pitch * (keys / 8 + 1) } else { keys * (pitch / 8 + 1) };
        let cached = keys * (pitch / 8 + 1) + values;
        16 * (cached + subgroups * edge * (keys / 4 + 1 + keys / 8 + 1))
    };
    // Accumulators of longer heads would not stay in registers.
    let fits = |t: &(usize, usize)| {
        shared(*t) <= gpu.shared_bytes as usize && t.1 * edge >= 8 * lanes.max(edge) && p.head_dim <= 256
    };
    // On the processor what counts is how long the kernel compiles; and lavapipe takes the barrier of a subgroup, which the others may
    // not reach, for one of the whole workgroup.
    // Beside the accumulators of long heads the registers hold fewer keys.
    let tiles = match (gpu.software, p.head_dim > 128) {
        (true, _) => [(1, 16); 4],
        (false, true) => [(4, 16), (2, 32), (2, 16), (2, 16)],
        (false, false) => [(4, 32), (4, 16), (2, 32), (2, 16)],
    };
    let (subgroups, keys) = tiles.into_iter().find(fits)?;
    let mut constants = vec![
        (subgroups * lanes) as u32,
        edge as u32,
        lanes as u32,
        p.group as u32,
        keys as u32,
        p.splits as u32,
        (p.head_dim <= 128 && gpu.vendor == NVIDIA) as u32,
        turned as u32,
    ];
    constants.resize(10, 0);
    constants.extend(p.cache_constants());
    let shader = format!("flash_cooperative_{}", kv_suffix(p.kv));
    Some(FlashKernel {
        kernel: Kernel { shader, constants, subgroup: lanes as u32 },
        rows: subgroups * edge,
        query_pitch: pitch,
    })
}

fn flash_plain(p: &FlashProblem, gpu: &GpuProfile) -> FlashKernel {
    let element = if p.kv == KvType::F32 { 4 } else { 2 };
    let shared = |(rows, keys): (usize, usize)| {
        (rows + keys) * (p.head_dim + 4) * element + rows * (keys + 1) * 4 + rows * 8
    };
    let tiles = [(32, 32), (32, 16), (16, 16), (32, 8), (16, 8)];
    // Two threads a row, in whole subgroups.
    let whole = |rows: usize| (2 * rows).is_multiple_of(subgroup(gpu) as usize);
    let fits = tiles.into_iter().find(|t| shared(*t) <= gpu.shared_bytes as usize && whole(t.0));
    let (rows, keys) = fits.or_else(|| tiles.into_iter().rfind(|t| whole(t.0))).unwrap_or((32, 8));
    let mut constants = vec![2 * rows as u32, rows as u32, 0, p.group as u32, keys as u32, p.splits as u32];
    constants.resize(10, 0);
    constants.extend(p.cache_constants());
    let shader = format!("flash_plain_{}", kv_suffix(p.kv));
    FlashKernel { kernel: Kernel { shader, constants, subgroup: subgroup(gpu) }, rows, query_pitch: 0 }
}

impl FlashProblem {
    fn cache_constants(&self) -> [u32; 3] {
        [self.kv_heads as u32, self.head_dim as u32, self.page_tokens as u32]
    }
}

/// Threads of a workgroup of `rope_kv`, and lanes that share a head: four elements each where a subgroup is that large.
pub(crate) fn rope_threads(head_dim: usize, gpu: &GpuProfile) -> (u32, u32) {
    let lanes = ((head_dim / 4).next_power_of_two().max(8) as u32).min(subgroup(gpu));
    let shared = |threads: u32| threads / lanes * (head_dim as u32 / 4 + 1) * 16;
    let mut threads = workgroup(256, gpu);
    while shared(threads) > gpu.shared_bytes && threads / 2 >= subgroup(gpu) {
        threads /= 2;
    }
    (threads, lanes)
}

#[cfg(test)]
mod tests {
    use super::super::test_gpus::gpu;
    use super::*;
    use crate::profile::{MatrixShape, MatrixTypes};

    fn slice(start: usize, rows: usize) -> SliceShape {
        SliceShape { start, rows, pages: (start + rows).div_ceil(64) }
    }

    fn h100() -> GpuProfile {
        let mut gpu = gpu("H100", 32, 32, 32, 1024, 32, false);
        gpu.cores = Some(132);
        gpu.vendor = NVIDIA;
        gpu
    }

    #[test]
    fn heads_being_turned_fit_shared_memory() {
        for (min, max) in [(8, 8), (32, 32), (32, 64)] {
            let gpu = gpu("any", min, max, max, 1024, 32, false);
            for head_dim in (8..=256).step_by(8) {
                let (threads, lanes) = rope_threads(head_dim, &gpu);
                assert!(threads.is_multiple_of(subgroup(&gpu)) && subgroup(&gpu).is_multiple_of(lanes));
                assert!(threads / lanes * (head_dim as u32 / 4 + 1) * 16 <= gpu.shared_bytes, "{head_dim}");
            }
        }
    }

    #[test]
    fn tiles_hold_every_row_once_and_never_two_sequences() {
        let slices = [slice(20, 33), slice(0, 130), slice(8000, 9), slice(77, 1)];
        let plan = flash_tiling(&slices, 32, &h100());
        let rows: Vec<_> = plan.tiles.iter().map(|t| (t.row, t.rows, t.start, t.pages)).collect();
        let want = [(0, 33, 20, 0), (33, 64, 0, 1), (97, 64, 64, 1), (161, 2, 128, 1)];
        assert_eq!(rows[..4], want);
        assert_eq!(rows[4..], [(163, 9, 8000, 4), (172, 1, 77, 130)]);
    }

    #[test]
    fn keys_are_split_by_the_sequence_alone_and_records_do_not_overlap() {
        let alone = flash_tiling(&[slice(8000, 40)], 32, &h100());
        let among = flash_tiling(&[slice(0, 512), slice(8000, 40), slice(4000, 9)], 32, &h100());
        let find = |plan: &FlashTiling, start| *plan.tiles.iter().find(|t| t.start == start).unwrap();
        assert!(alone.splits > 1);
        assert_eq!(find(&alone, 8000).span, find(&among, 8000).span);
        assert_eq!(find(&among, 0).span, 0);
        let mut next = 0;
        for t in among.tiles.iter().filter(|t| t.span != 0) {
            assert_eq!((t.partial, t.span as usize % TILE_ROWS), (next, 0));
            let splits = (t.start + t.rows).div_ceil(t.span);
            assert!(splits as usize <= among.splits);
            next += t.rows * splits;
        }
        assert_eq!(next as usize, among.records);
    }

    #[test]
    fn decode_steps_keep_their_kernels() {
        assert!(!flash_suits(&[slice(100, 8)]));
        assert!(!flash_suits(&[slice(100, 1); 64]));
        assert!(flash_suits(&[slice(100, 9)]));
    }

    #[test]
    fn the_best_tier_of_attention_is_taken_unless_it_is_to_be_avoided() {
        let mut gpu = h100();
        let shape = MatrixShape { m: 16, n: 16, k: 16, types: MatrixTypes::F16F32 };
        gpu.matrices.push(shape);
        gpu.matrix2 = true;
        gpu.shared_bytes = 48 << 10;
        let problem = |head_dim| FlashProblem {
            head_dim,
            kv_heads: 8,
            group: 4,
            kv: KvType::F16,
            page_tokens: 64,
            splits: 1,
        };
        for (head_dim, keys) in [(64, 64), (128, 64), (256, 32)] {
            let flash = flash_kernel(&problem(head_dim), &gpu);
            assert_eq!(
                (flash.kernel.shader.as_str(), flash.kernel.constants[4]),
                ("flash_matrix2_f16", keys)
            );
            assert_eq!((flash.rows, flash.query_pitch), (64, head_dim));
        }
        gpu.avoid = vec!["flash_matrix2_f16".into()];
        assert_eq!(flash_kernel(&problem(128), &gpu).kernel.shader, "flash_cooperative_f16");
        gpu.avoid = Vec::new();
        gpu.matrix2 = false;
        assert_eq!(flash_kernel(&problem(128), &gpu).kernel.shader, "flash_cooperative_f16");
    }

    #[test]
    fn a_kernel_exists_for_every_head_and_cache() {
        for (edge, subgroup) in [(0, 8), (0, 64), (8, 8), (16, 32), (16, 64)] {
            let mut gpu = gpu("any", subgroup, subgroup, subgroup, 1024, 32, false);
            let shape = MatrixShape { m: edge, n: edge, k: edge, types: MatrixTypes::F16F32 };
            gpu.matrices.extend((edge != 0).then_some(shape));
            for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
                for head_dim in [64, 72, 80, 96, 128, 256] {
                    let p = FlashProblem { head_dim, kv_heads: 8, group: 4, kv, page_tokens: 64, splits: 1 };
                    let flash = flash_kernel(&p, &gpu);
                    assert!(crate::shaders::words(&flash.kernel.shader).is_some());
                    assert_eq!(flash.kernel.constants[0] % subgroup, 0);
                    assert_eq!(flash.query_pitch != 0, flash.kernel.shader.starts_with("flash_cooperative"));
                    // 32 KiB hold a tile of common heads.
                    assert!(
                        edge != 16 || head_dim > 128 || flash.query_pitch != 0,
                        "{edge} {subgroup} {head_dim}"
                    );
                    assert!(flash.query_pitch <= head_dim.next_multiple_of(16));
                }
            }
        }
    }
}
