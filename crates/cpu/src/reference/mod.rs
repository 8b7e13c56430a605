//! The reference device: plain loops, one file per op, written to be compared with.
//!
//! Weights are expanded to f32 once, activations inside a block are f64, and so is every sum; nothing is fused, tiled,
//! reordered or quantized except the KV cache, which rounds what it stores. One thread. The functions over slices are
//! public so that kernels can be tested op by op.

mod attention;
mod check;
mod device;
mod embedding;
mod ffn;
mod head;
mod kv;
mod linear;
mod rms_norm;
mod rope;
mod rounding;
mod weights;

pub use attention::{first_visible, soft_cap, softmax};
pub use check::{check_block, check_layout, check_outputs, check_pages, check_tokens};
pub use device::ReferenceDevice;
pub use ffn::activate;
pub use head::top;
pub use kv::round_to;
pub use linear::{dot, linear};
pub use rms_norm::{rms_norm, rms_norm_rows};
pub use rope::rope;
pub use rounding::ActivationRounding;

use attention::Attention;
use embedding::Embedding;
use ffn::Ffn;
use head::Head;
use kv::KvCache;
use weights::{Matrix, Weights};

/// `x` as f64.
pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| *v as f64).collect()
}
