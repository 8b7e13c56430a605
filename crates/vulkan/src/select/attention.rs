//! Which attention kernels run.

use unicorn_core::KvType;

/// Positions of one split of decode attention.
pub const SPLIT: usize = 256;

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
