//! Blocks on the GPU: what each keeps in device memory, and the dispatches it records.

mod attention;
mod block;
mod builder;
mod embedding;
mod encoder;
mod ffn;
mod head;
mod linear;
mod residual;
mod short_conv;
mod tiled;

pub(crate) use attention::{AttentionBlock, Cache, Projection};
pub(crate) use block::GpuBlock;
#[cfg(test)]
pub(crate) use builder::flat_groups;
pub(crate) use builder::{Builder, Norm};
pub(crate) use embedding::EmbeddingBlock;
pub(crate) use encoder::{
    EncoderAttentionBlock, EncoderEmbeddingBlock, EncoderFfnBlock, EncoderHeadBlock, LayerNorm,
};
pub(crate) use ffn::FfnBlock;
pub(crate) use head::HeadBlock;
pub(crate) use short_conv::ShortConvBlock;
