//! Loading blocks: from specs and weights to what [`crate::blocks`] keeps.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use unicorn_core::{
    AttentionSpec, AttentionWeights, Block, DeviceError, EncoderAttentionSpec, EncoderAttentionWeights,
    EncoderEmbeddingSpec, EncoderEmbeddingWeights, EncoderFfnSpec, EncoderFfnWeights, FfnSpec, FfnWeights,
    LayerNormWeights, NormSpec, ShortConvSpec, ShortConvWeights, Weight, WeightSource, WeightSpan,
};

use crate::blocks::{
    AttentionBlock, EmbeddingBlock, EncoderAttentionBlock, EncoderEmbeddingBlock, EncoderFfnBlock,
    EncoderHeadBlock, FfnBlock, GpuBlock, HeadBlock, LayerNorm, Norm, Projection, ShortConvBlock,
};
use crate::context::Context;
use crate::memory::Buffer;
use crate::scratch::Sizes;
use crate::select;
use crate::transfer::Uploader;
use crate::weights::{self, Matrix};

/// Loads blocks and keeps each weight once.
pub(crate) struct Loader {
    context: Arc<Context>,
    pub(crate) uploader: Uploader,
    matrices: HashMap<Vec<WeightSpan>, Weak<Matrix>>,
}

impl Loader {
    pub(crate) fn new(context: &Arc<Context>) -> Loader {
        Loader { context: context.clone(), uploader: Uploader::new(context), matrices: HashMap::new() }
    }

    pub(crate) fn load(&mut self, block: &Block, source: &dyn WeightSource) -> Result<GpuBlock, DeviceError> {
        match block {
            Block::Embedding { spec, table } => Ok(GpuBlock::Embedding(EmbeddingBlock {
                table: self.matrix(table, source)?,
                scale: spec.scale,
            })),
            Block::Attention { spec, weights } => self.attention(spec, weights, source),
            Block::ShortConv { spec, weights } => self.short_conv(spec, weights, source),
            Block::Ffn { spec, weights } => self.ffn(spec, weights, source),
            Block::Head { spec, norm, weight } => Ok(GpuBlock::Head(HeadBlock {
                norm: self.norm(&spec.norm, norm, source)?,
                weight: self.matrix(weight, source)?,
                soft_cap: spec.soft_cap,
            })),
            Block::EncoderEmbedding { spec, weights } => self.encoder_embedding(spec, weights, source),
            Block::EncoderAttention { spec, weights } => self.encoder_attention(spec, weights, source),
            Block::EncoderFfn { spec, weights } => self.encoder_ffn(spec, weights, source),
            Block::EncoderHead { spec } => Ok(GpuBlock::EncoderHead(EncoderHeadBlock { width: spec.width })),
        }
    }

    fn attention(
        &mut self,
        spec: &AttentionSpec,
        w: &AttentionWeights,
        source: &dyn WeightSource,
    ) -> Result<GpuBlock, DeviceError> {
        let bias = if [&w.q_bias, &w.k_bias, &w.v_bias].iter().any(|b| b.is_some()) {
            let mut all = Vec::new();
            for (bias, matrix) in [(&w.q_bias, &w.q), (&w.k_bias, &w.k), (&w.v_bias, &w.v)] {
                match bias {
                    Some(b) => all.extend(weights::read_vector(b, source)?),
                    None => all.resize(all.len() + matrix.rows, 0.0),
                }
            }
            Some(weights::upload_f32(&self.context, &self.uploader, &all, "attention bias")?)
        } else {
            None
        };
        let o_bias = match &w.o_bias {
            Some(b) => {
                let values = weights::read_vector(b, source)?;
                Some(weights::upload_f32(&self.context, &self.uploader, &values, &b.name)?)
            }
            None => None,
        };
        let qk_norm = match (&spec.qk_norm, &w.q_norm, &w.k_norm) {
            (Some(n), Some(q), Some(k)) => {
                Some((self.vector(n, q, source)?, self.vector(n, k, source)?, n.eps))
            }
            (None, _, _) => None,
            _ => return Err(self.invalid("a spec with query and key norms has no weights for them")),
        };
        Ok(GpuBlock::Attention(Box::new(AttentionBlock {
            spec: spec.clone(),
            norm: self.norm(&spec.norm, &w.norm, source)?,
            inputs: self.projections([&w.q, &w.k, &w.v], source)?,
            o: self.matrix(&w.o, source)?,
            bias,
            o_bias,
            qk_norm,
            post_norm: self.optional_norm(&spec.post_norm, &w.post_norm, source)?,
            cache: None,
        })))
    }

    fn short_conv(
        &mut self,
        spec: &ShortConvSpec,
        w: &ShortConvWeights,
        source: &dyn WeightSource,
    ) -> Result<GpuBlock, DeviceError> {
        // Neighbouring threads have neighbouring channels.
        let stored = weights::read_vector(&w.conv, source)?;
        let tap = |i: usize| stored[i % spec.width * spec.kernel + i / spec.width];
        let taps: Vec<f32> = (0..stored.len()).map(tap).collect();
        Ok(GpuBlock::ShortConv(Box::new(ShortConvBlock {
            spec: spec.clone(),
            norm: self.norm(&spec.norm, &w.norm, source)?,
            input: self.matrix(&w.input, source)?,
            output: self.matrix(&w.output, source)?,
            taps: weights::upload_f32(&self.context, &self.uploader, &taps, &w.conv.name)?,
            states: None,
        })))
    }

    fn ffn(
        &mut self,
        spec: &FfnSpec,
        w: &FfnWeights,
        source: &dyn WeightSource,
    ) -> Result<GpuBlock, DeviceError> {
        Ok(GpuBlock::Ffn(FfnBlock {
            norm: self.norm(&spec.norm, &w.norm, source)?,
            gate: self.matrix(&w.gate, source)?,
            up: self.matrix(&w.up, source)?,
            down: self.matrix(&w.down, source)?,
            activation: select::activation_code(spec.activation),
            post_norm: self.optional_norm(&spec.post_norm, &w.post_norm, source)?,
        }))
    }

    fn encoder_embedding(
        &mut self,
        spec: &EncoderEmbeddingSpec,
        w: &EncoderEmbeddingWeights,
        source: &dyn WeightSource,
    ) -> Result<GpuBlock, DeviceError> {
        let token_types = weights::read_vector(&w.token_types, source)?;
        let mut positions = weights::read_vector(&w.positions, source)?;
        // All tokens are of the first type.
        for row in positions.chunks_exact_mut(spec.width) {
            row.iter_mut().zip(&token_types).for_each(|(x, token_type)| *x += token_type);
        }
        Ok(GpuBlock::EncoderEmbedding(Box::new(EncoderEmbeddingBlock {
            spec: spec.clone(),
            tokens: EmbeddingBlock { table: self.matrix(&w.table, source)?, scale: 1.0 },
            positions: weights::upload_f32(&self.context, &self.uploader, &positions, &w.positions.name)?,
            norm: self.layer_norm(&w.norm, spec.norm_eps, source)?,
        })))
    }

    fn encoder_attention(
        &mut self,
        spec: &EncoderAttentionSpec,
        w: &EncoderAttentionWeights,
        source: &dyn WeightSource,
    ) -> Result<GpuBlock, DeviceError> {
        Ok(GpuBlock::EncoderAttention(Box::new(EncoderAttentionBlock {
            spec: spec.clone(),
            inputs: self.projections([&w.q, &w.k, &w.v], source)?,
            o: self.matrix(&w.o, source)?,
            bias: self.plain(&[&w.q_bias, &w.k_bias, &w.v_bias], source)?,
            o_bias: self.plain(&[&w.o_bias], source)?,
            norm: self.layer_norm(&w.norm, spec.norm_eps, source)?,
        })))
    }

    fn encoder_ffn(
        &mut self,
        spec: &EncoderFfnSpec,
        w: &EncoderFfnWeights,
        source: &dyn WeightSource,
    ) -> Result<GpuBlock, DeviceError> {
        Ok(GpuBlock::EncoderFfn(Box::new(EncoderFfnBlock {
            spec: spec.clone(),
            up: self.matrix(&w.up, source)?,
            down: self.matrix(&w.down, source)?,
            up_bias: self.plain(&[&w.up_bias], source)?,
            down_bias: self.plain(&[&w.down_bias], source)?,
            norm: self.layer_norm(&w.norm, spec.norm_eps, source)?,
        })))
    }

    /// Vectors as f32, one after the other.
    fn plain(&self, vectors: &[&Weight], source: &dyn WeightSource) -> Result<Buffer, DeviceError> {
        let mut all = Vec::new();
        for vector in vectors {
            all.extend(weights::read_vector(vector, source)?);
        }
        let name = vectors.first().map_or("", |v| v.name.as_str());
        weights::upload_f32(&self.context, &self.uploader, &all, name)
    }

    fn layer_norm(
        &self,
        w: &LayerNormWeights,
        eps: f32,
        source: &dyn WeightSource,
    ) -> Result<LayerNorm, DeviceError> {
        let (weight, bias) = (self.plain(&[&w.weight], source)?, self.plain(&[&w.bias], source)?);
        Ok(LayerNorm { weight, bias, eps })
    }

    fn matrix(&mut self, weight: &Weight, source: &dyn WeightSource) -> Result<Arc<Matrix>, DeviceError> {
        self.stacked(&[weight], source)
    }

    /// The query, key and value projections.
    fn projections(
        &mut self,
        [q, k, v]: [&Weight; 3],
        source: &dyn WeightSource,
    ) -> Result<Vec<Projection>, DeviceError> {
        let mut left = &[q, k, v][..];
        let mut load = |(op, count): &(&'static str, usize)| {
            let (together, others) = left.split_at(*count);
            left = others;
            Ok(Projection { op, matrix: self.stacked(together, source)? })
        };
        select::projections([q.ty, k.ty, v.ty]).iter().map(&mut load).collect()
    }

    /// One matrix of several weights' rows, kept once per list of spans.
    pub(crate) fn stacked(
        &mut self,
        weights: &[&Weight],
        source: &dyn WeightSource,
    ) -> Result<Arc<Matrix>, DeviceError> {
        let spans: Vec<WeightSpan> = weights.iter().map(|w| w.span).collect();
        if let Some(found) = self.matrices.get(&spans).and_then(Weak::upgrade) {
            return Ok(found);
        }
        self.matrices.retain(|_, m| m.strong_count() > 0);
        let matrix = Arc::new(match weights {
            [one] => Matrix::load(&self.context, &self.uploader, one, source)?,
            several => Matrix::load_stacked(&self.context, &self.uploader, several, source)?,
        });
        self.matrices.insert(spans, Arc::downgrade(&matrix));
        Ok(matrix)
    }

    fn vector(
        &self,
        spec: &NormSpec,
        weight: &Weight,
        source: &dyn WeightSource,
    ) -> Result<Buffer, DeviceError> {
        weights::upload_norm(&self.context, &self.uploader, spec, weight, source)
    }

    fn norm(&self, spec: &NormSpec, weight: &Weight, source: &dyn WeightSource) -> Result<Norm, DeviceError> {
        Ok(Norm { weight: Arc::new(self.vector(spec, weight, source)?), eps: spec.eps })
    }

    fn optional_norm(
        &self,
        spec: &Option<NormSpec>,
        weight: &Option<Weight>,
        source: &dyn WeightSource,
    ) -> Result<Option<Norm>, DeviceError> {
        match (spec, weight) {
            (Some(s), Some(w)) => Ok(Some(self.norm(s, w, source)?)),
            (None, _) => Ok(None),
            (Some(_), None) => Err(self.invalid("a spec with a post norm has no weight for it")),
        }
    }

    /// Bytes of all matrices that are still in use.
    pub(crate) fn matrix_bytes(&self) -> u64 {
        self.matrices.values().filter_map(Weak::upgrade).map(|m| m.bytes()).sum()
    }

    fn invalid(&self, what: &str) -> DeviceError {
        DeviceError::Invalid { device: self.context.profile().name.clone(), what: what.to_string() }
    }
}

/// What the kernels ask of a block's shapes; a text says which they lack.
pub(crate) fn unsupported(block: &Block) -> Option<&'static str> {
    let whole = |n: usize| n.is_multiple_of(32);
    match block {
        Block::Embedding { spec, table } if !whole(spec.width) && table.ty.is_quantized() => {
            Some("a width that is no multiple of 32")
        }
        Block::Attention { spec, .. } if !whole(spec.width) => Some("a width that is no multiple of 32"),
        Block::Attention { spec, .. } if !spec.head_dim.is_multiple_of(8) || spec.head_dim > 256 => {
            Some("a head size past 256 or no multiple of 8")
        }
        Block::Attention { spec, .. } if spec.heads > 16 * spec.kv_heads => {
            Some("more than 16 query heads per KV head")
        }
        Block::ShortConv { spec, .. } if !whole(spec.width) => Some("a width that is no multiple of 32"),
        Block::ShortConv { spec, .. } if spec.kernel > KERNEL_MAX => Some("a long convolution"),
        Block::Ffn { spec, .. } if !whole(spec.width) => Some("a width that is no multiple of 32"),
        Block::Ffn { spec, .. } if !whole(spec.hidden) => Some("a hidden width that is no multiple of 32"),
        Block::EncoderEmbedding { spec, .. } if !whole(spec.width) => {
            Some("a width that is no multiple of 32")
        }
        Block::EncoderAttention { spec, .. }
            if !whole(spec.width) || !whole(spec.heads * spec.head_dim) || spec.head_dim > 256 =>
        {
            Some("heads past 256, or widths that are no multiple of 32")
        }
        Block::EncoderFfn { spec, .. } if !whole(spec.width) || !whole(spec.hidden) => {
            Some("widths that are no multiple of 32")
        }
        Block::EncoderEmbedding { .. } | Block::EncoderAttention { .. } => None,
        Block::EncoderFfn { .. } | Block::EncoderHead { .. } => None,
        Block::Embedding { .. } | Block::Attention { .. } | Block::ShortConv { .. } => None,
        Block::Ffn { .. } | Block::Head { .. } => None,
    }
}

/// Positions that a row of a convolution sees, at most.
const KERNEL_MAX: usize = 16;

/// As [`sizes`], of a short convolution: its three gates, and what comes of them.
pub(crate) fn short_conv_sizes(width: usize) -> Sizes {
    Sizes { width, qkv: 3 * width, attended: width, ..Sizes::default() }
}

/// What a block needs of the scratch buffers, per row.
pub(crate) fn sizes(block: &GpuBlock) -> Sizes {
    match block {
        GpuBlock::Embedding(e) => Sizes { width: e.table.cols, ..Sizes::default() },
        GpuBlock::Attention(a) => Sizes {
            width: a.spec.width,
            qkv: a.columns(),
            attended: a.spec.heads * a.spec.head_dim,
            heads: a.spec.heads,
            partial: a.spec.heads * (a.spec.head_dim + 2),
            queries: a.spec.heads * a.spec.head_dim.next_multiple_of(16),
            ..Sizes::default()
        },
        GpuBlock::ShortConv(c) => short_conv_sizes(c.spec.width),
        GpuBlock::Ffn(f) => Sizes { width: f.down.rows, hidden: f.gate.rows, ..Sizes::default() },
        GpuBlock::Head(h) => Sizes { width: h.weight.cols, vocab: h.weight.rows, ..Sizes::default() },
        GpuBlock::EncoderEmbedding(e) => Sizes { width: e.spec.width, ..Sizes::default() },
        GpuBlock::EncoderAttention(a) => {
            let attended = a.spec.heads * a.spec.head_dim;
            Sizes { width: a.spec.width, qkv: 3 * attended, attended, ..Sizes::default() }
        }
        GpuBlock::EncoderFfn(f) => Sizes { width: f.spec.width, hidden: f.spec.hidden, ..Sizes::default() },
        GpuBlock::EncoderHead(h) => Sizes { width: h.width, ..Sizes::default() },
    }
}
