//! The reference device: plain loops, one file per op, written to be compared with.
//!
//! Weights are expanded to f32 once, activations inside a block are f64, and so is every sum; nothing is fused, tiled,
//! reordered or quantized except the KV cache, which rounds what it stores. One thread. The functions over slices are
//! public so that kernels can be tested op by op.

mod attention;
mod device;
mod embedding;
mod encoder;
mod ffn;
mod head;
mod kv;
mod layer_norm;
mod linear;
mod rms_norm;
mod rope;
mod rounding;
mod short_conv;
mod weights;

pub use device::ReferenceDevice;
pub use rounding::ActivationRounding;

use attention::{Attention, soft_cap};
use embedding::Embedding;
#[cfg(test)]
pub(crate) use encoder::gelu;
use encoder::{EncoderAttention, EncoderEmbedding, EncoderFfn, encoder_head};
use ffn::Ffn;
use head::Head;
use kv::KvCache;
pub(crate) use kv::KvLayout;
use layer_norm::LayerNorm;
use linear::dot;
use rms_norm::rms_norm_rows;
use rope::rope;
pub(crate) use short_conv::StatesLayout;
use short_conv::{ShortConv, States};
use weights::{Matrix, Weights};

/// `x` as f64.
pub(crate) fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| *v as f64).collect()
}
