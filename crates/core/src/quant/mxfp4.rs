//! MXFP4 (OCP Microscaling Formats 1.0): 32 elements of 4-bit floats (E2M1) with a power-of-two scale (E8M0).

use super::parts::signed_max;

/// Twice the E2M1 value of the codes 0 to 15; the scale of [`mxfp4_scale`] is halved to match.
pub const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `e:1 qs:16`, elements in the order of Q4_0, `x = 2^(e - 128) table[q]`.
pub(crate) fn dequantize_mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = mxfp4_scale(block[0]);
    for (i, byte) in block[1..].iter().enumerate() {
        out[i] = d * MXFP4_VALUES[(byte & 15) as usize] as f32;
        out[i + 16] = d * MXFP4_VALUES[(byte >> 4) as usize] as f32;
    }
}

/// `2^(e - 128)`, exact for every `e`: the two smallest are subnormal.
pub fn mxfp4_scale(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e as u32 - 1) << 23 })
}

/// The largest magnitude lands between the codes 4 and 6, as the specification suggests.
pub(crate) fn quantize_mxfp4(values: &[f32; 32]) -> [u8; 17] {
    let mut block = [0; 17];
    let max = signed_max(values).abs();
    let e = if max == 0.0 { 0 } else { (max.log2().floor() as i32 - 2 + 127).clamp(0, 254) };
    block[0] = e as u8;
    // In f64 the inverse of the smallest scales is still finite.
    let id = 1.0 / mxfp4_scale(e as u8) as f64;
    for i in 0..16 {
        block[1 + i] = nearest(values[i] as f64 * id) | nearest(values[i + 16] as f64 * id) << 4;
    }
    block
}

fn nearest(v: f64) -> u8 {
    let mut best = 0;
    for (q, value) in MXFP4_VALUES.iter().enumerate() {
        if (v - *value as f64).abs() < (v - MXFP4_VALUES[best] as f64).abs() {
            best = q;
        }
    }
    best as u8
}
