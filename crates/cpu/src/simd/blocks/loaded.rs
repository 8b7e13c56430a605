//! Any loaded block.

use super::attention::AttentionBlock;
use super::embedding::EmbeddingBlock;
use super::encoder::{EncoderAttentionBlock, EncoderEmbeddingBlock, EncoderFfnBlock, EncoderHeadBlock};
use super::ffn::FfnBlock;
use super::head::HeadBlock;
use super::region::Region;
use super::short_conv::ShortConvBlock;
use crate::simd::pool::Worker;

/// A loaded block.
pub(crate) enum Loaded {
    Embedding(EmbeddingBlock),
    Attention(Box<AttentionBlock>),
    ShortConv(Box<ShortConvBlock>),
    Ffn(FfnBlock),
    Head(HeadBlock),
    EncoderEmbedding(EncoderEmbeddingBlock),
    EncoderAttention(Box<EncoderAttentionBlock>),
    EncoderFfn(Box<EncoderFfnBlock>),
    EncoderHead(EncoderHeadBlock),
}

impl Loaded {
    /// Kernels, one line each.
    pub(crate) fn describe(&self) -> Vec<String> {
        match self {
            Loaded::Embedding(b) => vec![b.label.name.clone()],
            Loaded::Attention(b) => b.labels().map(|l| l.name.clone()).to_vec(),
            Loaded::ShortConv(b) => b.labels().iter().map(|l| l.name.clone()).collect(),
            Loaded::Ffn(b) => b.labels().map(|l| l.name.clone()).to_vec(),
            Loaded::Head(b) => b.labels().map(|l| l.name.clone()).to_vec(),
            Loaded::EncoderEmbedding(b) => vec![b.label.name.clone()],
            Loaded::EncoderAttention(b) => b.labels().map(|l| l.name.clone()).to_vec(),
            Loaded::EncoderFfn(b) => b.labels().map(|l| l.name.clone()).to_vec(),
            Loaded::EncoderHead(b) => vec![b.label.name.clone()],
        }
    }

    /// Model width.
    pub(crate) fn width(&self) -> usize {
        match self {
            Loaded::Embedding(b) => b.spec.width,
            Loaded::Attention(b) => b.spec.width,
            Loaded::ShortConv(b) => b.spec.width,
            Loaded::Ffn(b) => b.spec.width,
            Loaded::Head(b) => b.spec.width,
            Loaded::EncoderEmbedding(b) => b.spec.width,
            Loaded::EncoderAttention(b) => b.spec.width,
            Loaded::EncoderFfn(b) => b.spec.width,
            Loaded::EncoderHead(b) => b.spec.width,
        }
    }

    /// Runs the block on one thread of a region.
    ///
    /// # Safety
    /// All threads call it for the same sequence of blocks, over one region's shared buffers.
    pub(crate) unsafe fn run(&self, worker: &Worker, region: &Region) {
        // SAFETY: the caller's.
        unsafe {
            match self {
                Loaded::Embedding(b) => b.run(worker, region),
                Loaded::Attention(b) => b.run(worker, region),
                Loaded::ShortConv(b) => b.run(worker, region),
                Loaded::Ffn(b) => b.run(worker, region),
                Loaded::Head(b) => b.run(worker, region),
                Loaded::EncoderEmbedding(b) => b.run(worker, region),
                Loaded::EncoderAttention(b) => b.run(worker, region),
                Loaded::EncoderFfn(b) => b.run(worker, region),
                Loaded::EncoderHead(b) => b.run(worker, region),
            }
        }
    }
}
