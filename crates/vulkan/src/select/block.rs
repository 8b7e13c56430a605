//! What kernels are chosen by: the operations of a block with the types and shapes of their weights, known before a weight is read.

use unicorn_core::{Activation, Block, TensorType, Weight};

/// Type and shape of a weight matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WeightShape {
    /// Type.
    pub ty: TensorType,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl WeightShape {
    /// Of one weight.
    pub(crate) fn of(weight: &Weight) -> WeightShape {
        WeightShape { ty: weight.ty, rows: weight.rows, cols: weight.cols }
    }

    /// True for float types, whose products take f32 activations where rows are few.
    pub(crate) fn is_float(&self) -> bool {
        !self.ty.is_quantized()
    }
}

/// A block without its weights.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum BlockShape {
    /// Token embedding from a table.
    Embedding(WeightShape),
    /// Softmax attention.
    Attention(AttentionShape),
    /// Short convolution.
    ShortConv(ShortConvShape),
    /// Gated feed-forward network.
    Ffn(FfnShape),
    /// Output head.
    Head(HeadShape),
    /// Embedding of tokens, from a table, and positions.
    EncoderEmbedding(WeightShape),
    /// Attention over whole sequences.
    EncoderAttention(EncoderAttentionShape),
    /// Feed-forward network without a gate.
    EncoderFfn(EncoderFfnShape),
    /// End of an encoder.
    EncoderHead,
}

/// What the kernels of an encoder's attention are chosen by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct EncoderAttentionShape {
    /// The products of queries, keys and values, by op.
    pub inputs: Vec<(&'static str, WeightShape)>,
    /// The output product.
    pub output: WeightShape,
}

/// What the kernels of an encoder's feed-forward network are chosen by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EncoderFfnShape {
    /// The up projection.
    pub up: WeightShape,
    /// The down projection.
    pub down: WeightShape,
}

/// What an attention block's kernels are chosen by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The products of queries, keys and values, by op.
    pub inputs: Vec<(&'static str, WeightShape)>,
    /// The output product.
    pub output: WeightShape,
    /// Whether the output has a bias.
    pub output_bias: bool,
    /// Whether the output is normed.
    pub post_norm: bool,
}

/// What a short convolution's kernels are chosen by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ShortConvShape {
    /// The product of the gates.
    pub input: WeightShape,
    /// The output product.
    pub output: WeightShape,
}

/// What a feed-forward block's kernels are chosen by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FfnShape {
    /// The gate projection.
    pub gate: WeightShape,
    /// The up projection.
    pub up: WeightShape,
    /// The down projection.
    pub down: WeightShape,
    /// Activation code of the shaders: 0 SiLU, 1 GELU (tanh).
    pub activation: u32,
    /// Whether the output is normed.
    pub post_norm: bool,
}

/// What a head's kernels are chosen by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HeadShape {
    /// The product.
    pub weight: WeightShape,
    /// Whether logits are capped.
    pub soft_cap: bool,
}

/// How the query, key and value projections are put together: those of one type that are neighbours become one matrix, so that one dispatch
/// computes them. Op and how many of the three, in order.
pub(crate) fn projections([q, k, v]: [TensorType; 3]) -> &'static [(&'static str, usize)] {
    match (q == k, k == v) {
        (true, true) => &[("attention_qkv", 3)],
        (true, false) => &[("attention_qk", 2), ("attention_v", 1)],
        (false, true) => &[("attention_q", 1), ("attention_kv", 2)],
        (false, false) => &[("attention_q", 1), ("attention_k", 1), ("attention_v", 1)],
    }
}

/// The matrices that these projections become, by op.
fn stacked(weights: [&Weight; 3]) -> Vec<(&'static str, WeightShape)> {
    let mut left = weights.into_iter();
    let inputs = projections(weights.map(|w| w.ty)).iter().filter_map(|(op, count)| {
        let first = left.next()?;
        let rows = first.rows + left.by_ref().take(count - 1).map(|w| w.rows).sum::<usize>();
        Some((*op, WeightShape { rows, ..WeightShape::of(first) }))
    });
    inputs.collect()
}

/// The shaders' code of an activation.
pub(crate) fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}

impl BlockShape {
    /// Of a block whose shapes agree with its spec.
    pub(crate) fn of(block: &Block) -> BlockShape {
        match block {
            Block::Embedding { table, .. } => BlockShape::Embedding(WeightShape::of(table)),
            Block::Attention { spec, weights: w } => BlockShape::Attention(AttentionShape {
                heads: spec.heads,
                kv_heads: spec.kv_heads,
                head_dim: spec.head_dim,
                inputs: stacked([&w.q, &w.k, &w.v]),
                output: WeightShape::of(&w.o),
                output_bias: w.o_bias.is_some(),
                post_norm: spec.post_norm.is_some(),
            }),
            Block::ShortConv { weights: w, .. } => BlockShape::ShortConv(ShortConvShape {
                input: WeightShape::of(&w.input),
                output: WeightShape::of(&w.output),
            }),
            Block::Ffn { spec, weights: w } => BlockShape::Ffn(FfnShape {
                gate: WeightShape::of(&w.gate),
                up: WeightShape::of(&w.up),
                down: WeightShape::of(&w.down),
                activation: activation_code(spec.activation),
                post_norm: spec.post_norm.is_some(),
            }),
            Block::Head { spec, weight, .. } => BlockShape::Head(HeadShape {
                weight: WeightShape::of(weight),
                soft_cap: spec.soft_cap.is_some(),
            }),
            Block::EncoderEmbedding { weights, .. } => {
                BlockShape::EncoderEmbedding(WeightShape::of(&weights.table))
            }
            Block::EncoderAttention { weights: w, .. } => {
                BlockShape::EncoderAttention(EncoderAttentionShape {
                    inputs: stacked([&w.q, &w.k, &w.v]),
                    output: WeightShape::of(&w.o),
                })
            }
            Block::EncoderFfn { weights: w, .. } => BlockShape::EncoderFfn(EncoderFfnShape {
                up: WeightShape::of(&w.up),
                down: WeightShape::of(&w.down),
            }),
            Block::EncoderHead { .. } => BlockShape::EncoderHead,
        }
    }

    /// The matrices of the block's products.
    pub(crate) fn products(&self) -> Vec<WeightShape> {
        match self {
            BlockShape::Embedding(_) => Vec::new(),
            BlockShape::Attention(a) => a.inputs.iter().map(|(_, w)| *w).chain([a.output]).collect(),
            BlockShape::ShortConv(c) => vec![c.input, c.output],
            BlockShape::Ffn(f) => vec![f.gate, f.up, f.down],
            BlockShape::Head(h) => vec![h.weight],
            BlockShape::EncoderEmbedding(_) | BlockShape::EncoderHead => Vec::new(),
            BlockShape::EncoderAttention(a) => a.inputs.iter().map(|(_, w)| *w).chain([a.output]).collect(),
            BlockShape::EncoderFfn(f) => vec![f.up, f.down],
        }
    }

    /// Whether all of its products have float weights.
    pub(crate) fn is_float(&self) -> bool {
        self.products().iter().all(WeightShape::is_float)
    }
}
