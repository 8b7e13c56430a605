//! The 32-element formats with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Layouts, in byte order: `d` scale, `m` minimum (half floats), `qh` fifth bits (u32, bit `i` for element `i`), `qs`
//! nibbles: byte `i` holds element `i` in its low half and element `i + 16` in its high half.

use super::parts::{half_at, inverse, put_half, signed_max};

/// `d:2 qs:16`, `x = d (q - 8)`.
pub(crate) fn dequantize_q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (i, byte) in block[2..].iter().enumerate() {
        out[i] = d * ((byte & 15) as i32 - 8) as f32;
        out[i + 16] = d * ((byte >> 4) as i32 - 8) as f32;
    }
}

/// `d:2 m:2 qs:16`, `x = d q + m`.
pub(crate) fn dequantize_q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, byte) in block[4..].iter().enumerate() {
        out[i] = d * (byte & 15) as f32 + m;
        out[i + 16] = d * (byte >> 4) as f32 + m;
    }
}

/// `d:2 qh:4 qs:16`, `x = d (q - 16)`.
pub(crate) fn dequantize_q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let q = five_bits(&block[2..6], &block[6..]);
    for i in 0..32 {
        out[i] = d * (q[i] as i32 - 16) as f32;
    }
}

/// `d:2 m:2 qh:4 qs:16`, `x = d q + m`.
pub(crate) fn dequantize_q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let q = five_bits(&block[4..8], &block[8..]);
    for i in 0..32 {
        out[i] = d * q[i] as f32 + m;
    }
}

/// `d:2 qs:32` (signed bytes in element order), `x = d q`.
pub(crate) fn dequantize_q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (o, q) in out.iter_mut().zip(&block[2..]) {
        *o = d * (*q as i8) as f32;
    }
}

fn five_bits(high: &[u8], low: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| {
        let nibble = if i < 16 { low[i] & 15 } else { low[i - 16] >> 4 };
        nibble | ((high[i / 8] >> (i % 8)) & 1) << 4
    })
}

/// The element of the largest magnitude takes the code -8, which has no positive twin.
pub(crate) fn quantize_q4_0(values: &[f32; 32]) -> [u8; 18] {
    let mut block = [0; 18];
    let d = put_half(&mut block, 0, signed_max(values) / -8.0);
    let q = values.map(|v| code(v * inverse(d) + 8.0, 15));
    put_nibbles(&mut block[2..], &q);
    block
}

/// Codes 0 to 15 span minimum to maximum.
pub(crate) fn quantize_q4_1(values: &[f32; 32]) -> [u8; 20] {
    let mut block = [0; 20];
    let (min, max) = range(values);
    let d = put_half(&mut block, 0, (max - min) / 15.0);
    let m = put_half(&mut block, 2, min);
    let q = values.map(|v| code((v - m) * inverse(d), 15));
    put_nibbles(&mut block[4..], &q);
    block
}

/// The element of the largest magnitude takes the code -16.
pub(crate) fn quantize_q5_0(values: &[f32; 32]) -> [u8; 22] {
    let mut block = [0; 22];
    let d = put_half(&mut block, 0, signed_max(values) / -16.0);
    let q = values.map(|v| code(v * inverse(d) + 16.0, 31));
    block[2..6].copy_from_slice(&fifth_bits(&q));
    put_nibbles(&mut block[6..], &q);
    block
}

/// Codes 0 to 31 span minimum to maximum.
pub(crate) fn quantize_q5_1(values: &[f32; 32]) -> [u8; 24] {
    let mut block = [0; 24];
    let (min, max) = range(values);
    let d = put_half(&mut block, 0, (max - min) / 31.0);
    let m = put_half(&mut block, 2, min);
    let q = values.map(|v| code((v - m) * inverse(d), 31));
    block[4..8].copy_from_slice(&fifth_bits(&q));
    put_nibbles(&mut block[8..], &q);
    block
}

/// The largest magnitude takes the code 127; codes are rounded with the scale as it was before it became a half float, as
/// ggml does.
pub fn quantize_q8_0(values: &[f32; 32]) -> [u8; 34] {
    let mut block = [0; 34];
    let d = signed_max(values).abs() / 127.0;
    put_half(&mut block, 0, d);
    for (o, v) in block[2..].iter_mut().zip(values) {
        *o = (v * inverse(d)).round().clamp(-127.0, 127.0) as i8 as u8;
    }
    block
}

fn range(values: &[f32; 32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), v| (lo.min(*v), hi.max(*v)))
}

fn code(v: f32, max: u8) -> u8 {
    v.round().clamp(0.0, max as f32) as u8
}

fn put_nibbles(out: &mut [u8], q: &[u8; 32]) {
    for i in 0..16 {
        out[i] = q[i] & 15 | q[i + 16] << 4;
    }
}

fn fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    q.iter().enumerate().fold(0u32, |bits, (i, q)| bits | ((q >> 4) as u32 & 1) << i).to_le_bytes()
}
