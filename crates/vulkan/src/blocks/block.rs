//! A loaded block of any kind.

use unicorn_core::StateSpec;

use super::attention::AttentionBlock;
use super::builder::{NextInput, Norm};
use super::embedding::EmbeddingBlock;
use super::encoder::{EncoderAttentionBlock, EncoderEmbeddingBlock, EncoderFfnBlock, EncoderHeadBlock};
use super::ffn::FfnBlock;
use super::head::HeadBlock;
use super::short_conv::ShortConvBlock;
use crate::select::BlockShape;
use crate::weights::Matrix;

/// A loaded block.
pub(crate) enum GpuBlock {
    Embedding(EmbeddingBlock),
    Attention(Box<AttentionBlock>),
    ShortConv(Box<ShortConvBlock>),
    Ffn(FfnBlock),
    Head(HeadBlock),
    EncoderEmbedding(Box<EncoderEmbeddingBlock>),
    EncoderAttention(Box<EncoderAttentionBlock>),
    EncoderFfn(Box<EncoderFfnBlock>),
    EncoderHead(EncoderHeadBlock),
}

impl GpuBlock {
    /// What its kernels are chosen by: the same as [`BlockShape::of`] of the block that it was loaded from.
    pub(crate) fn shape(&self) -> BlockShape {
        match self {
            GpuBlock::Embedding(e) => BlockShape::Embedding(e.table.shape()),
            GpuBlock::Attention(a) => BlockShape::Attention(a.shape()),
            GpuBlock::ShortConv(c) => BlockShape::ShortConv(c.shape()),
            GpuBlock::Ffn(f) => BlockShape::Ffn(f.shape()),
            GpuBlock::Head(h) => BlockShape::Head(h.shape()),
            GpuBlock::EncoderEmbedding(e) => BlockShape::EncoderEmbedding(e.tokens.table.shape()),
            GpuBlock::EncoderAttention(a) => BlockShape::EncoderAttention(a.shape()),
            GpuBlock::EncoderFfn(f) => BlockShape::EncoderFfn(f.shape()),
            GpuBlock::EncoderHead(_) => BlockShape::EncoderHead,
        }
    }

    /// What the block keeps per sequence.
    pub(crate) fn state(&self) -> Option<StateSpec> {
        match self {
            GpuBlock::Attention(a) => Some(a.spec.state()),
            GpuBlock::ShortConv(c) => Some(c.spec.state()),
            GpuBlock::Embedding(_) | GpuBlock::Ffn(_) | GpuBlock::Head(_) => None,
            GpuBlock::EncoderEmbedding(_) | GpuBlock::EncoderAttention(_) => None,
            GpuBlock::EncoderFfn(_) | GpuBlock::EncoderHead(_) => None,
        }
    }

    /// The block's own pre-norm and the form that its first products take, so that the block before can prepare it; `None` where it
    /// needs both forms.
    pub(crate) fn input(&self) -> Option<NextInput<'_>> {
        fn form<'a>(norm: &'a Norm, matrices: &[&Matrix]) -> Option<NextInput<'a>> {
            let float = matrices[0].is_float();
            matrices.iter().all(|m| m.is_float() == float).then_some(NextInput { norm, float })
        }
        match self {
            GpuBlock::Embedding(_) => None,
            GpuBlock::Attention(a) => {
                let matrices: Vec<&Matrix> = a.inputs.iter().map(|p| &*p.matrix).collect();
                form(&a.norm, &matrices)
            }
            GpuBlock::ShortConv(c) => form(&c.norm, &[&c.input]),
            GpuBlock::Ffn(f) => form(&f.norm, &[&f.gate, &f.up]),
            GpuBlock::Head(h) => form(&h.norm, &[&h.weight]),
            GpuBlock::EncoderEmbedding(_) | GpuBlock::EncoderAttention(_) => None,
            GpuBlock::EncoderFfn(_) | GpuBlock::EncoderHead(_) => None,
        }
    }
}
