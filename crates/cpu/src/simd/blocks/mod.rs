//! The blocks, as every thread of a region runs them, and what they share.
//!
//! All threads walk the same steps, see [`Worker::step`]. What is cheaper to repeat than to wait for (norm and quantization of a
//! single row) is done by every thread for itself, inside the step that needs it.

mod attention;
mod embedding;
mod encoder;
mod ffn;
mod head;
mod label;
mod loaded;
mod norm;
mod region;
mod scratch;
mod short_conv;

pub(crate) use attention::{AttentionBlock, QkNorm};
pub(crate) use embedding::EmbeddingBlock;
pub(crate) use encoder::{
    EncoderAttentionBlock, EncoderEmbeddingBlock, EncoderFfnBlock, EncoderHeadBlock, LayerNorm,
};
pub(crate) use ffn::FfnBlock;
pub(crate) use head::{HeadBlock, LOGITS_MAX, all_logits, head_group, head_output};
pub(crate) use loaded::Loaded;
pub(crate) use norm::Norm;
pub(crate) use region::{Buffers, Needs, REDUNDANT_ELEMENTS, Region, RopeTable};
pub(crate) use scratch::{SharedActivations, ThreadScratch};
pub(crate) use short_conv::ShortConvBlock;
