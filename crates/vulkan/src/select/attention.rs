//! Which attention kernels run.

use unicorn_core::KvType;

use super::limits::{cores, subgroup, workgroup};
use crate::profile::GpuProfile;

/// Suffix of kernels that touch the KV cache.
pub(crate) fn kv_suffix(ty: KvType) -> &'static str {
    match ty {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
        KvType::Q8_0 => "q8_0",
    }
}

/// Positions that a recording for sequences of up to `positions` positions serves: a power of two, so that few serve all lengths.
pub(crate) fn served_positions(positions: usize) -> usize {
    positions.max(256).next_power_of_two()
}

/// Most splits of decode attention: `MOST_SPLITS` of `attention_decode.comp`.
const DECODE_SPLITS_MAX: usize = 128;
/// Positions of the smallest split.
const DECODE_SPLIT: usize = 64;

/// Most splits of decode attention that rows may have which see at most `positions` positions, on any device.
fn decode_splits_most(positions: usize) -> usize {
    positions.div_ceil(DECODE_SPLIT).clamp(1, DECODE_SPLITS_MAX)
}

/// Splits of decode attention of rows that see at most `positions` positions, of which `wanted` suffice. A row's split grows with the
/// number of positions it sees alone (`split_positions` of `attention_decode.comp`).
pub(crate) fn decode_splits(positions: usize, wanted: usize) -> usize {
    decode_splits_most(positions).min(wanted)
}

/// The most partial results of decode attention that one dispatch has, counted in (row, split): 8 rows of [`DECODE_SPLITS_MAX`] splits.
const DECODE_RECORDS_MAX: usize = 8 * DECODE_SPLITS_MAX;

/// Partial results, counted in (row, split), that decode attention of a batch needs room for, whatever the device and the block: the rows
/// see at most `positions` positions.
pub(crate) fn decode_records(rows: usize, positions: usize) -> usize {
    (rows * decode_splits_most(positions)).min(DECODE_RECORDS_MAX)
}

/// Rows of one dispatch of decode attention whose rows have `splits` splits: those whose partial results fit what [`decode_records`] says.
pub(crate) fn decode_rows(splits: usize) -> usize {
    (DECODE_RECORDS_MAX / splits.max(1)).max(1)
}

/// Splits that are worth having where each position is visible to `heads` workgroups: one workgroup a core, since what precedes and
/// follows the positions costs each of them the same.
pub(crate) fn decode_splits_wanted(heads: usize, gpu: &GpuProfile) -> usize {
    (cores(gpu) / heads.max(1)).clamp(4, DECODE_SPLITS_MAX)
}

/// How the workgroups of decode attention divide the heads and positions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DecodeTiles {
    /// Threads of a workgroup.
    pub threads: u32,
    /// Subgroups of a workgroup.
    pub subgroups: u32,
    /// Query heads of a workgroup: all that share a KV head, or an equal part of them.
    pub part: u32,
    /// Workgroups that share a KV head.
    pub parts: u32,
    /// Lanes that share a position.
    pub lanes: u32,
    /// Positions that a lane loads at once.
    pub flight: u32,
    /// Lots of splits that are added up side by side at the end.
    pub lots: u32,
}

/// Decode attention of heads of `head_dim`, `group` query heads per KV head.
pub(crate) fn decode_tiles(head_dim: usize, group: usize, kv: KvType, gpu: &GpuProfile) -> DecodeTiles {
    let subgroup = subgroup(gpu);
    let threads = workgroup(8 * subgroup as usize, gpu);
    let subgroups = (threads / subgroup).max(1);
    // Queries and outputs of all heads stay in registers, and one set of sums per subgroup in 16 KiB of shared memory.
    let most = (512 / head_dim).clamp(1, 4);
    let parts = group.div_ceil(most).max(1);
    let part = group.div_ceil(parts);
    // Two chunks of eight columns a lane: half the steps of adding up a score that one would take, and no more registers than fit.
    let lanes = (head_dim as u32).div_ceil(16).next_power_of_two().min(subgroup);
    // Positions of a smallest split in one pass where registers allow.
    let each = (head_dim as u32 / 8).div_ceil(lanes);
    let most = if kv == KvType::F32 { 2 } else { 4 };
    let flight = (64 * lanes / threads).clamp(1, (most / each).max(1));
    let lots = (threads / (part * head_dim / 4).max(1) as u32).clamp(1, subgroups);
    DecodeTiles {
        threads,
        subgroups,
        part: part as u32,
        parts: group.div_ceil(part) as u32,
        lanes,
        flight,
        lots,
    }
}
