//! What the block formats share: half floats in a block, and the extremes of its values.

use half::f16;

/// The half float at `at`.
pub(crate) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Stores a half float at `at` and returns what it reads back as.
pub(crate) fn put_half(block: &mut [u8], at: usize, value: f32) -> f32 {
    let half = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

/// `1 / d`, or 0 for an all-zero block.
pub(crate) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The element of the largest magnitude, with its sign.
pub(crate) fn signed_max(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m: f32, v| if v.abs() > m.abs() { *v } else { m })
}
