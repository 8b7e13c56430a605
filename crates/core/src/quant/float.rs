//! F32, F16 and BF16: one element per block, little-endian.

use half::{bf16, f16};

pub(super) fn expand_f32(bytes: &[u8], out: &mut [f32]) {
    for (b, o) in bytes.as_chunks::<4>().0.iter().zip(out) {
        *o = f32::from_le_bytes(*b);
    }
}

pub(super) fn expand_f16(bytes: &[u8], out: &mut [f32]) {
    for (b, o) in bytes.as_chunks::<2>().0.iter().zip(out) {
        *o = f16::from_le_bytes(*b).to_f32();
    }
}

pub(super) fn expand_bf16(bytes: &[u8], out: &mut [f32]) {
    for (b, o) in bytes.as_chunks::<2>().0.iter().zip(out) {
        *o = bf16::from_le_bytes(*b).to_f32();
    }
}

pub(super) fn store_f32(values: &[f32], out: &mut Vec<u8>) {
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
}

pub(super) fn store_f16(values: &[f32], out: &mut Vec<u8>) {
    out.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
}

pub(super) fn store_bf16(values: &[f32], out: &mut Vec<u8>) {
    out.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()));
}
