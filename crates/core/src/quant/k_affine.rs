//! The 256-element formats with scales and minimums: Q2_K, Q4_K, Q5_K. `x = (d scale) q - (dmin min)`.

use super::parts::{half_at, inverse, put_half};

/// `scales:16 qs:64 d:2 dmin:2`: 16 groups of 16 elements; the low nibble of `scales[g]` is the scale, the high one the
/// minimum. Each half of 128 elements lies in 32 bytes: element `32 k + i` of a half is bits `2k` of byte `i`.
pub(crate) fn dequantize_q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (e, o) in out.iter_mut().enumerate() {
        let (half, k, i) = (e / 128, e / 32 % 4, e % 32);
        let q = block[16 + half * 32 + i] >> (2 * k) & 3;
        let scale = block[e / 16];
        *o = (d * (scale & 15) as f32) * q as f32 - dmin * (scale >> 4) as f32;
    }
}

/// `d:2 dmin:2 scales:12 qs:128`: 8 groups of 32 elements with 6-bit scales and minimums ([`scale_min_6bit`]). Byte
/// `32 c + i` holds element `64 c + i` in its low half and element `64 c + 32 + i` in its high half.
pub(crate) fn dequantize_q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for g in 0..8 {
        let (scale, min) = scale_min_6bit(&block[4..16], g);
        let (d, m) = (d * scale as f32, dmin * min as f32);
        for i in 0..32 {
            let q = block[16 + g / 2 * 32 + i] >> (4 * (g % 2)) & 15;
            out[g * 32 + i] = d * q as f32 - m;
        }
    }
}

/// `d:2 dmin:2 scales:12 qh:32 qs:128`: as Q4_K, with the fifth bit of element `32 g + i` in bit `g` of `qh[i]`.
pub(crate) fn dequantize_q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for g in 0..8 {
        let (scale, min) = scale_min_6bit(&block[4..16], g);
        let (d, m) = (d * scale as f32, dmin * min as f32);
        for i in 0..32 {
            let low = block[48 + g / 2 * 32 + i] >> (4 * (g % 2)) & 15;
            let q = low | (block[16 + i] >> g & 1) << 4;
            out[g * 32 + i] = d * q as f32 - m;
        }
    }
}

/// Scale and minimum of group `g < 8` in the 12 packed bytes of Q4_K and Q5_K: groups 0 to 3 lie in the low six bits of
/// bytes `g` and `g + 4`; groups 4 to 7 have their low four bits in byte `g + 4` and their high two bits on top of
/// bytes `g - 4` and `g`.
pub fn scale_min_6bit(packed: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        (packed[g + 4] & 15 | packed[g - 4] >> 6 << 4, packed[g + 4] >> 4 | packed[g] >> 6 << 4)
    }
}

/// The inverse of [`scale_min_6bit`].
pub(crate) fn pack_scales_6bit(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for g in 0..4 {
        packed[g] = scales[g] & 63 | scales[g + 4] >> 4 << 6;
        packed[g + 4] = mins[g] & 63 | mins[g + 4] >> 4 << 6;
        packed[g + 8] = scales[g + 4] & 15 | mins[g + 4] << 4;
    }
    packed
}

/// Scales, minimums and codes of one block of 256, in element order.
struct Affine<const GROUPS: usize> {
    scales: [u8; GROUPS],
    mins: [u8; GROUPS],
    q: [u8; 256],
}

/// Rounds each group to codes `0 ..= q_max` between its minimum (at most zero) and maximum, with scales and minimums of
/// `0 ..= scale_max`. `put(which, value)` stores `d` (0) and `dmin` (1) and returns them as stored.
fn affine<const GROUPS: usize>(
    values: &[f32; 256],
    q_max: u8,
    scale_max: u8,
    mut put: impl FnMut(usize, f32) -> f32,
) -> Affine<GROUPS> {
    let len = 256 / GROUPS;
    let group = |g: usize| &values[g * len..(g + 1) * len];
    let min: [f32; GROUPS] = std::array::from_fn(|g| group(g).iter().fold(0.0, |m: f32, v| m.min(*v)));
    let step: [f32; GROUPS] =
        std::array::from_fn(|g| (group(g).iter().fold(0.0, |m: f32, v| m.max(*v)) - min[g]) / q_max as f32);
    let largest = |list: &[f32]| list.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
    let d = put(0, largest(&step) / scale_max as f32);
    let dmin = put(1, largest(&min) / scale_max as f32);
    let scales = step.map(|s| (s * inverse(d)).round().min(scale_max as f32) as u8);
    let mins = min.map(|m| (-m * inverse(dmin)).round().min(scale_max as f32) as u8);
    let q = std::array::from_fn(|e| {
        let g = e / len;
        let step = inverse(d * scales[g] as f32);
        ((values[e] + dmin * mins[g] as f32) * step).round().clamp(0.0, q_max as f32) as u8
    });
    Affine { scales, mins, q }
}

/// 4-bit scales and minimums, 2-bit codes.
pub(crate) fn quantize_q2_k(values: &[f32; 256]) -> [u8; 84] {
    let mut block = [0; 84];
    let a: Affine<16> = affine(values, 3, 15, |which, v| put_half(&mut block, 80 + 2 * which, v));
    for g in 0..16 {
        block[g] = a.scales[g] | a.mins[g] << 4;
    }
    for (e, q) in a.q.iter().enumerate() {
        block[16 + e / 128 * 32 + e % 32] |= q << (2 * (e / 32 % 4));
    }
    block
}

/// 6-bit scales and minimums, 4-bit codes.
pub(crate) fn quantize_q4_k(values: &[f32; 256]) -> [u8; 144] {
    let mut block = [0; 144];
    let a: Affine<8> = affine(values, 15, 63, |which, v| put_half(&mut block, 2 * which, v));
    block[4..16].copy_from_slice(&pack_scales_6bit(&a.scales, &a.mins));
    for (e, q) in a.q.iter().enumerate() {
        block[16 + e / 64 * 32 + e % 32] |= q << (4 * (e / 32 % 2));
    }
    block
}

/// 6-bit scales and minimums, 5-bit codes.
pub(crate) fn quantize_q5_k(values: &[f32; 256]) -> [u8; 176] {
    let mut block = [0; 176];
    let a: Affine<8> = affine(values, 31, 63, |which, v| put_half(&mut block, 2 * which, v));
    block[4..16].copy_from_slice(&pack_scales_6bit(&a.scales, &a.mins));
    for (e, q) in a.q.iter().enumerate() {
        block[48 + e / 64 * 32 + e % 32] |= (q & 15) << (4 * (e / 32 % 2));
        block[16 + e % 32] |= (q >> 4) << (e / 32);
    }
    block
}
