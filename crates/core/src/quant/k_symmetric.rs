//! The 256-element formats with signed scales: Q3_K and Q6_K, 16 groups of 16 elements. `x = (d scale) q`.

use super::parts::{half_at, inverse, put_half, signed_max};

/// `hmask:32 qs:64 scales:12 d:2`, codes -4 to 3: two low bits as in Q2_K; the third bit of element `32 k + i` is bit `k`
/// of `hmask[i]`, and 4 is subtracted where it is clear. Scales as in [`q3_k_scale`].
pub(crate) fn dequantize_q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 108);
    for g in 0..16 {
        let d = d * q3_k_scale(&block[96..108], g) as f32;
        for e in g * 16..(g + 1) * 16 {
            let low = block[32 + e / 128 * 32 + e % 32] >> (2 * (e / 32 % 4)) & 3;
            let high = block[e % 32] >> (e / 32) & 1;
            out[e] = d * ((low | high << 2) as i32 - 4) as f32;
        }
    }
}

/// Scale of group `g < 16`, -32 to 31: four low bits in byte `g % 8` (high half from group 8 on), two high bits in
/// byte `8 + g % 4` at bit `2 (g / 4)`.
pub fn q3_k_scale(packed: &[u8], g: usize) -> i32 {
    let low = packed[g % 8] >> (4 * (g / 8)) & 15;
    let high = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
    (low | high << 4) as i32 - 32
}

/// `ql:128 qh:64 scales:16 d:2`, codes -32 to 31, signed byte scales. In each half of 128 elements, element `32 k + i` has
/// its four low bits in byte `32 (k % 2) + i` of the half's 64 bytes of `ql` (high half for `k >= 2`) and its two high bits
/// at bit `2k` of byte `i` of the half's 32 bytes of `qh`.
pub(crate) fn dequantize_q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for g in 0..16 {
        let d = d * (block[192 + g] as i8) as f32;
        for e in g * 16..(g + 1) * 16 {
            let (half, k, i) = (e / 128, e / 32 % 4, e % 32);
            let low = block[half * 64 + k % 2 * 32 + i] >> (4 * (k / 2)) & 15;
            let high = block[128 + half * 32 + i] >> (2 * k) & 3;
            out[e] = d * ((low | high << 4) as i32 - 32) as f32;
        }
    }
}

/// Rounds each group to codes `-q_max ..= q_max - 1`, its largest magnitude at `-q_max`, with scales
/// `-scale_max ..= scale_max - 1`. Returns scales and codes; codes are shifted to start at zero.
fn symmetric(
    values: &[f32; 256],
    q_max: i32,
    scale_max: i32,
    put: impl FnOnce(f32) -> f32,
) -> ([i32; 16], [u8; 256]) {
    let (q_max, scale_max) = (q_max as f32, scale_max as f32);
    let step: [f32; 16] = std::array::from_fn(|g| signed_max(&values[g * 16..(g + 1) * 16]) / -q_max);
    let d = put(signed_max(&step) / -scale_max);
    let scales = step.map(|s| (s * inverse(d)).round().clamp(-scale_max, scale_max - 1.0) as i32);
    let q = std::array::from_fn(|e| {
        let step = inverse(d * scales[e / 16] as f32);
        ((values[e] * step).round().clamp(-q_max, q_max - 1.0) + q_max) as u8
    });
    (scales, q)
}

/// 6-bit scales, 3-bit codes.
pub(crate) fn quantize_q3_k(values: &[f32; 256]) -> [u8; 110] {
    let mut block = [0; 110];
    let (scales, q) = symmetric(values, 4, 32, |d| put_half(&mut block, 108, d));
    for (g, scale) in scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        block[96 + g % 8] |= (scale & 15) << (4 * (g / 8));
        block[104 + g % 4] |= (scale >> 4) << (2 * (g / 4));
    }
    for (e, q) in q.iter().enumerate() {
        block[32 + e / 128 * 32 + e % 32] |= (q & 3) << (2 * (e / 32 % 4));
        block[e % 32] |= (q >> 2) << (e / 32);
    }
    block
}

/// 8-bit scales, 6-bit codes.
pub(crate) fn quantize_q6_k(values: &[f32; 256]) -> [u8; 210] {
    let mut block = [0; 210];
    let (scales, q) = symmetric(values, 32, 128, |d| put_half(&mut block, 208, d));
    for (g, scale) in scales.iter().enumerate() {
        block[192 + g] = *scale as i8 as u8;
    }
    for (e, q) in q.iter().enumerate() {
        let (half, k, i) = (e / 128, e / 32 % 4, e % 32);
        block[half * 64 + k % 2 * 32 + i] |= (q & 15) << (4 * (k / 2));
        block[128 + half * 32 + i] |= (q >> 4) << (2 * k);
    }
    block
}
