//! The 4-bit formats with a fixed table of 16 unevenly spaced values: IQ4_NL and IQ4_XS.

use super::parts::{half_at, inverse, put_half, signed_max};

/// What the codes 0 to 15 stand for.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// `d:2 qs:16`, 32 elements in the order of Q4_0, `x = d table[q]`.
pub(crate) fn dequantize_iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (i, byte) in block[2..].iter().enumerate() {
        out[i] = d * IQ4_VALUES[(byte & 15) as usize] as f32;
        out[i + 16] = d * IQ4_VALUES[(byte >> 4) as usize] as f32;
    }
}

/// `d:2 scales_h:2 scales_l:4 qs:128`, 8 groups of 32 elements, each group's 16 bytes in the order of Q4_0,
/// `x = (d scale) table[q]`.
pub(crate) fn dequantize_iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for g in 0..8 {
        let d = d * iq4_xs_scale(&block[2..8], g) as f32;
        for i in 0..16 {
            let byte = block[8 + g * 16 + i];
            out[g * 32 + i] = d * IQ4_VALUES[(byte & 15) as usize] as f32;
            out[g * 32 + i + 16] = d * IQ4_VALUES[(byte >> 4) as usize] as f32;
        }
    }
}

/// Scale of group `g < 8`, -32 to 31, from `scales_h:2 scales_l:4`: four low bits in nibble `g` of `scales_l`, two high bits
/// at bit `2g` of `scales_h`.
pub fn iq4_xs_scale(packed: &[u8], g: usize) -> i32 {
    let low = packed[2 + g / 2] >> (4 * (g % 2)) & 15;
    let high = packed[g / 4] >> (2 * (g % 4)) & 3;
    (low | high << 4) as i32 - 32
}

/// The code whose value is nearest to `v`.
pub(crate) fn iq4_nearest(v: f32) -> u8 {
    let mut best = 0;
    for (q, value) in IQ4_VALUES.iter().enumerate() {
        if (v - *value as f32).abs() < (v - IQ4_VALUES[best] as f32).abs() {
            best = q;
        }
    }
    best as u8
}

/// The scale that fits a group best (least squares) once its codes are those of the group's largest magnitude at -127.
fn fitted_scale(values: &[f32]) -> f32 {
    let id = inverse(signed_max(values) / -127.0);
    let (mut xy, mut yy) = (0.0f32, 0.0f32);
    for v in values {
        let y = IQ4_VALUES[iq4_nearest(v * id) as usize] as f32;
        xy += v * y;
        yy += y * y;
    }
    xy / yy
}

fn put_codes(out: &mut [u8], values: &[f32], d: f32) {
    let id = inverse(d);
    for i in 0..16 {
        out[i] = iq4_nearest(values[i] * id) | iq4_nearest(values[i + 16] * id) << 4;
    }
}

/// One scale per 32 elements.
pub(crate) fn quantize_iq4_nl(values: &[f32; 32]) -> [u8; 18] {
    let mut block = [0; 18];
    let d = put_half(&mut block, 0, fitted_scale(values));
    put_codes(&mut block[2..], values, d);
    block
}

/// 6-bit scales per 32 elements.
pub(crate) fn quantize_iq4_xs(values: &[f32; 256]) -> [u8; 136] {
    let mut block = [0; 136];
    let fitted: [f32; 8] = std::array::from_fn(|g| fitted_scale(&values[g * 32..(g + 1) * 32]));
    let d = put_half(&mut block, 0, signed_max(&fitted) / -32.0);
    for g in 0..8 {
        let scale = (fitted[g] * inverse(d)).round().clamp(-32.0, 31.0) as i32;
        let code = (scale + 32) as u8;
        block[2 + g / 4] |= (code >> 4) << (2 * (g % 4));
        block[4 + g / 2] |= (code & 15) << (4 * (g % 2));
        put_codes(&mut block[8 + g * 16..8 + (g + 1) * 16], &values[g * 32..(g + 1) * 32], d * scale as f32);
    }
    block
}
