//! Softmax attention: q, k and v products, then bias, norms, RoPE and the cache write, then attention (`decode` by splits of the cache,
//! `prefill` by tiles of rows), then the output product.

mod block;
mod decode;
mod prefill;
mod record;

pub(crate) use block::{AttentionBlock, Cache, Projection};
