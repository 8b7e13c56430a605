//! Quantized formats: the scalar definition of every [`TensorType`](crate::TensorType), one file per family.
//!
//! [`dequantize`] is the specification that every kernel is compared with; it gives the same bits as the `gguf`
//! package of ggml's authors. [`quantize`] is plain rounding, good enough for tests, synthetic weights and the KV cache;
//! it does not search for better scales. Scales are little-endian IEEE half floats unless a family says otherwise.

mod float;
mod iq4;
mod k_affine;
mod k_symmetric;
mod mxfp4;
mod parts;
mod random;
mod simple;

pub use iq4::{IQ4_VALUES, iq4_xs_scale};
pub use k_affine::scale_min_6bit;
pub use k_symmetric::q3_k_scale;
pub use mxfp4::{MXFP4_VALUES, mxfp4_scale};
pub use random::{Random, random_blocks};
pub use simple::quantize_q8_0;

use crate::TensorType;
use iq4::{dequantize_iq4_nl, dequantize_iq4_xs, quantize_iq4_nl, quantize_iq4_xs};
use k_affine::{
    dequantize_q2_k, dequantize_q4_k, dequantize_q5_k, quantize_q2_k, quantize_q4_k, quantize_q5_k,
};
use k_symmetric::{dequantize_q3_k, dequantize_q6_k, quantize_q3_k, quantize_q6_k};
use mxfp4::{dequantize_mxfp4, quantize_mxfp4};
use simple::{
    dequantize_q4_0, dequantize_q4_1, dequantize_q5_0, dequantize_q5_1, dequantize_q8_0, quantize_q4_0,
    quantize_q4_1, quantize_q5_0, quantize_q5_1,
};

/// Expands whole blocks to floats: `bytes` holds `out.len() / block_len` blocks.
///
/// # Panics
/// When the two lengths do not describe the same number of whole blocks.
pub fn dequantize(ty: TensorType, bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.len() / ty.block_bytes();
    assert!(
        bytes.len() == blocks * ty.block_bytes() && out.len() == blocks * ty.block_len(),
        "{ty}: {} bytes do not hold {} elements",
        bytes.len(),
        out.len()
    );
    match ty {
        TensorType::F32 => float::expand_f32(bytes, out),
        TensorType::F16 => float::expand_f16(bytes, out),
        TensorType::BF16 => float::expand_bf16(bytes, out),
        TensorType::Q4_0 => expand(bytes, out, dequantize_q4_0),
        TensorType::Q4_1 => expand(bytes, out, dequantize_q4_1),
        TensorType::Q5_0 => expand(bytes, out, dequantize_q5_0),
        TensorType::Q5_1 => expand(bytes, out, dequantize_q5_1),
        TensorType::Q8_0 => expand(bytes, out, dequantize_q8_0),
        TensorType::Q2_K => expand(bytes, out, dequantize_q2_k),
        TensorType::Q3_K => expand(bytes, out, dequantize_q3_k),
        TensorType::Q4_K => expand(bytes, out, dequantize_q4_k),
        TensorType::Q5_K => expand(bytes, out, dequantize_q5_k),
        TensorType::Q6_K => expand(bytes, out, dequantize_q6_k),
        TensorType::IQ4_NL => expand(bytes, out, dequantize_iq4_nl),
        TensorType::IQ4_XS => expand(bytes, out, dequantize_iq4_xs),
        TensorType::MXFP4 => expand(bytes, out, dequantize_mxfp4),
    }
}

/// Rounds floats to whole blocks and appends them to `out`.
///
/// # Panics
/// When `values.len()` is no multiple of the block length.
pub fn quantize(ty: TensorType, values: &[f32], out: &mut Vec<u8>) {
    assert!(
        values.len().is_multiple_of(ty.block_len()),
        "{ty}: {} elements are no whole number of blocks",
        values.len()
    );
    out.reserve(values.len() / ty.block_len() * ty.block_bytes());
    match ty {
        TensorType::F32 => float::store_f32(values, out),
        TensorType::F16 => float::store_f16(values, out),
        TensorType::BF16 => float::store_bf16(values, out),
        TensorType::Q4_0 => store(values, out, quantize_q4_0),
        TensorType::Q4_1 => store(values, out, quantize_q4_1),
        TensorType::Q5_0 => store(values, out, quantize_q5_0),
        TensorType::Q5_1 => store(values, out, quantize_q5_1),
        TensorType::Q8_0 => store(values, out, quantize_q8_0),
        TensorType::Q2_K => store(values, out, quantize_q2_k),
        TensorType::Q3_K => store(values, out, quantize_q3_k),
        TensorType::Q4_K => store(values, out, quantize_q4_k),
        TensorType::Q5_K => store(values, out, quantize_q5_k),
        TensorType::Q6_K => store(values, out, quantize_q6_k),
        TensorType::IQ4_NL => store(values, out, quantize_iq4_nl),
        TensorType::IQ4_XS => store(values, out, quantize_iq4_xs),
        TensorType::MXFP4 => store(values, out, quantize_mxfp4),
    }
}

/// Applies a block decoder to every block.
fn expand<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, values) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, values);
    }
}

/// Applies a block encoder to every block.
fn store<const BYTES: usize, const LEN: usize>(
    values: &[f32],
    out: &mut Vec<u8>,
    encode: fn(&[f32; LEN]) -> [u8; BYTES],
) {
    for block in values.as_chunks().0 {
        out.extend_from_slice(&encode(block));
    }
}

#[cfg(test)]
mod tests;
