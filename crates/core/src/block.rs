//! Block specs: what a block computes. The weights beside them say where its tensors lie.
//!
//! A block maps the residual stream in place, `x[rows, width] += f(norm(x))`: the pre-norm and the residual add belong
//! to the block, so the residual stream is the only tensor that ever crosses devices.

use crate::encoder::{
    EncoderAttentionSpec, EncoderAttentionWeights, EncoderEmbeddingSpec, EncoderEmbeddingWeights,
    EncoderFfnSpec, EncoderFfnWeights, EncoderHeadSpec,
};
use crate::short_conv::{ShortConvSpec, ShortConvWeights};
use crate::{KvType, NormSpec, RopeSpec, StateLayout, StateSpec, Weight};

/// Activation of a gated linear unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// `x * sigmoid(x)`: SwiGLU.
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: GeGLU as Gemma uses it.
    GeluTanh,
}

/// Token embedding: `x = table[token] * scale`.
#[derive(Clone, PartialEq, Debug)]
pub struct EmbeddingSpec {
    /// Model width.
    pub width: usize,
    /// Rows of the table.
    pub vocab: usize,
    /// Factor on every row (Gemma: `sqrt(width)`).
    pub scale: f32,
}

/// Softmax attention with grouped queries (GQA, Ainslie et al. 2023):
/// `x += post_norm(Wo attend(rope(qk_norm(Wq n)), rope(qk_norm(Wk n)), Wv n))` with `n = norm(x)`.
#[derive(Clone, PartialEq, Debug)]
pub struct AttentionSpec {
    /// Model width.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head, of keys and values alike.
    pub head_dim: usize,
    /// Factor on `q . k` before the softmax.
    pub scale: f32,
    /// Rotary position embedding of queries and keys.
    pub rope: RopeSpec,
    /// Sliding window: position `p` sees keys `p - window + 1 ..= p`. `None` sees all.
    pub window: Option<usize>,
    /// `s = cap * tanh(s / cap)` on the scaled scores.
    pub soft_cap: Option<f32>,
    /// Norm of the block's input.
    pub norm: NormSpec,
    /// Per-head norm of queries and keys before RoPE.
    pub qk_norm: Option<NormSpec>,
    /// Norm of the block's output before the residual add.
    pub post_norm: Option<NormSpec>,
}

/// Tensors of an attention block.
#[derive(Clone, PartialEq, Debug)]
pub struct AttentionWeights {
    /// `[width]`.
    pub norm: Weight,
    /// `[heads * head_dim, width]`.
    pub q: Weight,
    /// `[kv_heads * head_dim, width]`.
    pub k: Weight,
    /// `[kv_heads * head_dim, width]`.
    pub v: Weight,
    /// `[width, heads * head_dim]`.
    pub o: Weight,
    /// `[heads * head_dim]`.
    pub q_bias: Option<Weight>,
    /// `[kv_heads * head_dim]`.
    pub k_bias: Option<Weight>,
    /// `[kv_heads * head_dim]`.
    pub v_bias: Option<Weight>,
    /// `[width]`.
    pub o_bias: Option<Weight>,
    /// `[head_dim]`; present when the spec has `qk_norm`.
    pub q_norm: Option<Weight>,
    /// `[head_dim]`; present when the spec has `qk_norm`.
    pub k_norm: Option<Weight>,
    /// `[width]`; present when the spec has `post_norm`.
    pub post_norm: Option<Weight>,
}

/// Dense gated feed-forward network (Shazeer 2020): `x += post_norm(Wdown (act(Wgate n) * (Wup n)))`, `n = norm(x)`.
#[derive(Clone, PartialEq, Debug)]
pub struct FfnSpec {
    /// Model width.
    pub width: usize,
    /// Hidden width.
    pub hidden: usize,
    /// Activation of the gate.
    pub activation: Activation,
    /// Norm of the block's input.
    pub norm: NormSpec,
    /// Norm of the block's output before the residual add.
    pub post_norm: Option<NormSpec>,
}

/// Tensors of a feed-forward block.
#[derive(Clone, PartialEq, Debug)]
pub struct FfnWeights {
    /// `[width]`.
    pub norm: Weight,
    /// `[hidden, width]`.
    pub gate: Weight,
    /// `[hidden, width]`.
    pub up: Weight,
    /// `[width, hidden]`.
    pub down: Weight,
    /// `[width]`; present when the spec has `post_norm`.
    pub post_norm: Option<Weight>,
}

/// Output head: `logits = soft_cap(W norm(x))`.
#[derive(Clone, PartialEq, Debug)]
pub struct HeadSpec {
    /// Model width.
    pub width: usize,
    /// Logits per row.
    pub vocab: usize,
    /// Final norm.
    pub norm: NormSpec,
    /// `s = cap * tanh(s / cap)` on the logits.
    pub soft_cap: Option<f32>,
}

impl AttentionSpec {
    /// What it keeps per sequence.
    pub fn state(&self) -> StateSpec {
        self.window.map_or(StateSpec::Paged, StateSpec::Window)
    }

    /// Bytes of the keys and the values of a position, as all caches hold them: the one place that says so. `None` where the elements of a
    /// head are no whole number of blocks of this type, or too large to be counted.
    pub fn position_bytes(&self, kv: KvType) -> Option<usize> {
        let row = kv.tensor_type().row_bytes(self.head_dim)?;
        row.checked_mul(self.kv_heads)?.checked_mul(2)
    }

    /// Words of 4 bytes of a page of keys and values: what a page takes on the host. `None` where that is no whole number or too large to be
    /// counted.
    pub fn page_words(&self, layout: &StateLayout) -> Option<usize> {
        let bytes = self.position_bytes(layout.ty)?.checked_mul(layout.page_tokens)?;
        bytes.is_multiple_of(4).then_some(bytes / 4)
    }

    /// Bytes of keys and values in all pages of the mixer's group; `None` as [`AttentionSpec::position_bytes`] has it.
    pub fn cache_bytes(&self, layout: &StateLayout) -> Option<u64> {
        let positions = (layout.pages(self.state()) as u64).saturating_mul(layout.page_tokens as u64);
        Some((self.position_bytes(layout.ty)? as u64).saturating_mul(positions))
    }
}

/// One unit of placement: spec and weights.
#[derive(Clone, PartialEq, Debug)]
pub enum Block {
    /// Writes the residual stream from token ids.
    Embedding {
        /// What it computes.
        spec: EmbeddingSpec,
        /// `[vocab, width]`.
        table: Weight,
    },
    /// A mixer.
    Attention {
        /// What it computes.
        spec: AttentionSpec,
        /// Its tensors.
        weights: Box<AttentionWeights>,
    },
    /// A mixer with recurrent state.
    ShortConv {
        /// What it computes.
        spec: ShortConvSpec,
        /// Its tensors.
        weights: Box<ShortConvWeights>,
    },
    /// A feed-forward network.
    Ffn {
        /// What it computes.
        spec: FfnSpec,
        /// Its tensors.
        weights: Box<FfnWeights>,
    },
    /// Reads the residual stream and produces logits.
    Head {
        /// What it computes.
        spec: HeadSpec,
        /// `[width]`.
        norm: Weight,
        /// `[vocab, width]`; the embedding's span when tied.
        weight: Weight,
    },
    /// Writes an encoder's residual stream from token ids and positions.
    EncoderEmbedding {
        /// What it computes.
        spec: EncoderEmbeddingSpec,
        /// Its tensors.
        weights: Box<EncoderEmbeddingWeights>,
    },
    /// A mixer that keeps no state.
    EncoderAttention {
        /// What it computes.
        spec: EncoderAttentionSpec,
        /// Its tensors.
        weights: Box<EncoderAttentionWeights>,
    },
    /// An encoder's feed-forward network.
    EncoderFfn {
        /// What it computes.
        spec: EncoderFfnSpec,
        /// Its tensors.
        weights: Box<EncoderFfnWeights>,
    },
    /// Reads an encoder's residual stream.
    EncoderHead {
        /// What it computes.
        spec: EncoderHeadSpec,
    },
}

/// The kind of a block, for placement rules and messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlockKind {
    /// Token embedding.
    Embedding,
    /// A block that looks at other rows: attention, or a short convolution.
    Mixer,
    /// Feed-forward network.
    Ffn,
    /// Output head.
    Head,
}

impl Block {
    /// The block's kind.
    pub fn kind(&self) -> BlockKind {
        match self {
            Block::Embedding { .. } | Block::EncoderEmbedding { .. } => BlockKind::Embedding,
            Block::Attention { .. } | Block::ShortConv { .. } => BlockKind::Mixer,
            Block::EncoderAttention { .. } => BlockKind::Mixer,
            Block::Ffn { .. } | Block::EncoderFfn { .. } => BlockKind::Ffn,
            Block::Head { .. } | Block::EncoderHead { .. } => BlockKind::Head,
        }
    }

    /// All tensors of the block.
    pub fn weights(&self) -> Vec<&Weight> {
        match self {
            Block::Embedding { table, .. } => vec![table],
            Block::Attention { weights: w, .. } => {
                let mut all = vec![&w.norm, &w.q, &w.k, &w.v, &w.o];
                let optional =
                    [&w.q_bias, &w.k_bias, &w.v_bias, &w.o_bias, &w.q_norm, &w.k_norm, &w.post_norm];
                all.extend(optional.into_iter().flatten());
                all
            }
            Block::ShortConv { weights: w, .. } => vec![&w.norm, &w.input, &w.conv, &w.output],
            Block::Ffn { weights: w, .. } => {
                let mut all = vec![&w.norm, &w.gate, &w.up, &w.down];
                all.extend(w.post_norm.iter());
                all
            }
            Block::Head { norm, weight, .. } => vec![norm, weight],
            Block::EncoderEmbedding { weights, .. } => weights.all(),
            Block::EncoderAttention { weights, .. } => weights.all(),
            Block::EncoderFfn { weights, .. } => weights.all(),
            Block::EncoderHead { .. } => Vec::new(),
        }
    }
}

/// A whole model as blocks: embedding, then mixer and ffn of each layer in turn, then the head.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelSpec {
    /// Architecture name as the file gives it, for example `llama`.
    pub architecture: String,
    /// Model name, for people.
    pub name: String,
    /// Model width.
    pub width: usize,
    /// Token ids lie below this. A head has as many logits.
    pub vocab: usize,
    /// Longest context that the model was trained for.
    pub context_max: usize,
    /// All blocks in execution order.
    pub blocks: Vec<Block>,
}

impl ModelSpec {
    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.blocks.iter().filter(|b| b.kind() == BlockKind::Mixer).count()
    }

    /// Parameters, tied tensors counted once.
    pub fn parameters(&self) -> u64 {
        self.distinct_weights().iter().map(|w| w.elements() as u64).sum()
    }

    /// Bytes of weights, tied tensors counted once.
    pub fn weight_bytes(&self) -> u64 {
        self.distinct_weights().iter().map(|w| w.span.bytes).sum()
    }

    /// Every tensor once.
    pub fn distinct_weights(&self) -> Vec<&Weight> {
        let mut seen = std::collections::HashSet::new();
        self.blocks.iter().flat_map(Block::weights).filter(|w| seen.insert(w.span)).collect()
    }
}

impl Block {
    /// What the block keeps per sequence; `None` for blocks that are no mixers, and for mixers that see whole sequences.
    pub fn state(&self) -> Option<StateSpec> {
        match self {
            Block::Attention { spec, .. } => Some(spec.state()),
            Block::ShortConv { spec, .. } => Some(spec.state()),
            Block::Embedding { .. } | Block::Ffn { .. } | Block::Head { .. } => None,
            Block::EncoderEmbedding { .. } | Block::EncoderAttention { .. } => None,
            Block::EncoderFfn { .. } | Block::EncoderHead { .. } => None,
        }
    }

    /// Words of 4 bytes of a page of the block's state, as it lies on the host ([`crate::StateCopy`]). `None` for blocks without state, and
    /// where that is no whole number or too large to be counted.
    pub fn page_words(&self, layout: &StateLayout) -> Option<usize> {
        match self {
            Block::Attention { spec, .. } => spec.page_words(layout),
            Block::ShortConv { spec, .. } => Some(spec.state_floats()),
            Block::Embedding { .. } | Block::Ffn { .. } | Block::Head { .. } => None,
            Block::EncoderEmbedding { .. } | Block::EncoderAttention { .. } => None,
            Block::EncoderFfn { .. } | Block::EncoderHead { .. } => None,
        }
    }
}

impl ModelSpec {
    /// True where the embedding's table is the head's matrix too.
    pub fn is_tied(&self) -> bool {
        let spans = self.blocks.iter().map(|block| match block {
            Block::Embedding { table, .. } => (Some(table.span), None),
            Block::Head { weight, .. } => (None, Some(weight.span)),
            _ => (None, None),
        });
        let (table, matrix) = spans.fold((None, None), |all, one| (one.0.or(all.0), one.1.or(all.1)));
        table.is_some() && table == matrix
    }

    /// True for a model that turns texts into vectors and generates nothing. Its batches are of whole sequences.
    pub fn is_encoder(&self) -> bool {
        matches!(self.blocks.last(), Some(Block::EncoderHead { .. }))
    }

    /// The state groups of the model's mixers, in the order of their first mixer.
    pub fn state_groups(&self) -> Vec<StateSpec> {
        state_groups(&self.blocks)
    }
}

/// The state groups of the mixers among these blocks, in the order of their first mixer.
pub fn state_groups(blocks: &[Block]) -> Vec<StateSpec> {
    let mut groups = Vec::new();
    for spec in blocks.iter().filter_map(Block::state) {
        if !groups.contains(&spec) {
            groups.push(spec);
        }
    }
    groups
}
