//! Blocks of encoders: models whose rows see the whole of their sequence at once, and whose result is a vector for each row.
//!
//! They are those of BERT (Devlin et al. 2019): every norm is a LayerNorm (Ba et al. 2016) with weight and bias, and comes after the
//! residual add. So `x` becomes `norm(x + f(x))`, in place as with every block.

use crate::{BlockError, Weight};

/// Weight and bias of a LayerNorm, `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`.
#[derive(Clone, PartialEq, Debug)]
pub struct LayerNormWeights {
    /// `[width]`.
    pub weight: Weight,
    /// `[width]`.
    pub bias: Weight,
}

/// Embedding of tokens and positions: `x = norm(table[token] + token_types[0] + positions[position])`.
#[derive(Clone, PartialEq, Debug)]
pub struct EncoderEmbeddingSpec {
    /// Model width.
    pub width: usize,
    /// Rows of the table.
    pub vocab: usize,
    /// Rows of the position table: tokens of a sequence, at most.
    pub positions: usize,
    /// Rows of the table of token types. All tokens are of type 0.
    pub token_types: usize,
    /// Added under the root of the norm.
    pub norm_eps: f32,
}

/// Tensors of an embedding of tokens and positions.
#[derive(Clone, PartialEq, Debug)]
pub struct EncoderEmbeddingWeights {
    /// `[vocab, width]`.
    pub table: Weight,
    /// `[positions, width]`.
    pub positions: Weight,
    /// `[token_types, width]`.
    pub token_types: Weight,
    /// The norm at the end.
    pub norm: LayerNormWeights,
}

/// Softmax attention in which every row of a slice sees all rows of it: `x = norm(x + Wo attend(Wq x, Wk x, Wv x))`, with biases. It
/// keeps nothing, so a slice is a whole sequence ([`crate::Batch::of_whole_sequences`]).
#[derive(Clone, PartialEq, Debug)]
pub struct EncoderAttentionSpec {
    /// Model width.
    pub width: usize,
    /// Heads, of queries, keys and values alike.
    pub heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Factor on `q . k` before the softmax.
    pub scale: f32,
    /// Added under the root of the norm.
    pub norm_eps: f32,
}

/// Tensors of an encoder's attention.
#[derive(Clone, PartialEq, Debug)]
pub struct EncoderAttentionWeights {
    /// `[heads * head_dim, width]`.
    pub q: Weight,
    /// `[heads * head_dim, width]`.
    pub k: Weight,
    /// `[heads * head_dim, width]`.
    pub v: Weight,
    /// `[width, heads * head_dim]`.
    pub o: Weight,
    /// `[heads * head_dim]`.
    pub q_bias: Weight,
    /// `[heads * head_dim]`.
    pub k_bias: Weight,
    /// `[heads * head_dim]`.
    pub v_bias: Weight,
    /// `[width]`.
    pub o_bias: Weight,
    /// The norm at the end.
    pub norm: LayerNormWeights,
}

/// Feed-forward network without a gate: `x = norm(x + Wdown gelu(Wup x + up_bias) + down_bias)` with the exact
/// `gelu(x) = x (1 + erf(x / sqrt(2))) / 2` (Hendrycks and Gimpel 2016).
#[derive(Clone, PartialEq, Debug)]
pub struct EncoderFfnSpec {
    /// Model width.
    pub width: usize,
    /// Hidden width.
    pub hidden: usize,
    /// Added under the root of the norm.
    pub norm_eps: f32,
}

/// Tensors of an encoder's feed-forward network.
#[derive(Clone, PartialEq, Debug)]
pub struct EncoderFfnWeights {
    /// `[hidden, width]`.
    pub up: Weight,
    /// `[width, hidden]`.
    pub down: Weight,
    /// `[hidden]`.
    pub up_bias: Weight,
    /// `[width]`.
    pub down_bias: Weight,
    /// The norm at the end.
    pub norm: LayerNormWeights,
}

/// End of a model without a vocabulary to choose from: the residual stream is the result ([`crate::Select::Hidden`]).
#[derive(Clone, PartialEq, Debug)]
pub struct EncoderHeadSpec {
    /// Model width.
    pub width: usize,
}

impl EncoderEmbeddingWeights {
    pub(crate) fn all(&self) -> Vec<&Weight> {
        vec![&self.table, &self.positions, &self.token_types, &self.norm.weight, &self.norm.bias]
    }
}

impl EncoderAttentionWeights {
    pub(crate) fn all(&self) -> Vec<&Weight> {
        let matrices = [&self.q, &self.k, &self.v, &self.o];
        let biases = [&self.q_bias, &self.k_bias, &self.v_bias, &self.o_bias];
        let norm = [&self.norm.weight, &self.norm.bias];
        matrices.into_iter().chain(biases).chain(norm).collect()
    }
}

impl EncoderFfnWeights {
    pub(crate) fn all(&self) -> Vec<&Weight> {
        vec![&self.up, &self.down, &self.up_bias, &self.down_bias, &self.norm.weight, &self.norm.bias]
    }
}

/// Holds a tensor against rows and columns.
type Shape = fn(&Weight, usize, usize) -> Result<(), BlockError>;

fn norm(shape: Shape, norm: &LayerNormWeights, eps: f32, width: usize) -> Result<(), BlockError> {
    if !(eps.is_finite() && eps > 0.0) {
        return Err(BlockError::Spec(format!("a LayerNorm with eps {eps}")));
    }
    shape(&norm.weight, 1, width)?;
    shape(&norm.bias, 1, width)
}

impl EncoderEmbeddingSpec {
    pub(crate) fn check(&self, w: &EncoderEmbeddingWeights, shape: Shape) -> Result<(), BlockError> {
        if self.positions == 0 || self.token_types == 0 {
            let (positions, types) = (self.positions, self.token_types);
            return Err(BlockError::Spec(format!("tables of {positions} positions and {types} token types")));
        }
        shape(&w.table, self.vocab, self.width)?;
        shape(&w.positions, self.positions, self.width)?;
        shape(&w.token_types, self.token_types, self.width)?;
        norm(shape, &w.norm, self.norm_eps, self.width)
    }
}

impl EncoderAttentionSpec {
    pub(crate) fn check(&self, w: &EncoderAttentionWeights, shape: Shape) -> Result<(), BlockError> {
        if self.heads == 0 || self.head_dim == 0 {
            return Err(BlockError::Spec(format!("{} heads of {}", self.heads, self.head_dim)));
        }
        let inner = self.heads * self.head_dim;
        for (matrix, bias) in [(&w.q, &w.q_bias), (&w.k, &w.k_bias), (&w.v, &w.v_bias)] {
            shape(matrix, inner, self.width)?;
            shape(bias, 1, inner)?;
        }
        shape(&w.o, self.width, inner)?;
        shape(&w.o_bias, 1, self.width)?;
        norm(shape, &w.norm, self.norm_eps, self.width)
    }
}

impl EncoderFfnSpec {
    pub(crate) fn check(&self, w: &EncoderFfnWeights, shape: Shape) -> Result<(), BlockError> {
        shape(&w.up, self.hidden, self.width)?;
        shape(&w.down, self.width, self.hidden)?;
        shape(&w.up_bias, 1, self.hidden)?;
        shape(&w.down_bias, 1, self.width)?;
        norm(shape, &w.norm, self.norm_eps, self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchShape, Block, BlockKind, KvType, TensorType, WeightSpan};

    fn weight(name: &str, rows: usize, cols: usize) -> Weight {
        let span = WeightSpan { file: 0, offset: 0, bytes: (rows * cols * 4) as u64 };
        Weight { name: name.into(), ty: TensorType::F32, rows, cols, span }
    }

    fn norm() -> LayerNormWeights {
        LayerNormWeights { weight: weight("norm", 1, 32), bias: weight("norm_bias", 1, 32) }
    }

    fn attention() -> (EncoderAttentionSpec, EncoderAttentionWeights) {
        let spec = EncoderAttentionSpec { width: 32, heads: 3, head_dim: 8, scale: 0.3, norm_eps: 1e-12 };
        let [q, k, v] = ["q", "k", "v"].map(|name| weight(name, 24, 32));
        let [q_bias, k_bias, v_bias] = ["qb", "kb", "vb"].map(|name| weight(name, 1, 24));
        let (o, o_bias, norm) = (weight("o", 32, 24), weight("ob", 1, 32), norm());
        (spec, EncoderAttentionWeights { q, k, v, o, q_bias, k_bias, v_bias, o_bias, norm })
    }

    fn block((spec, weights): (EncoderAttentionSpec, EncoderAttentionWeights)) -> Block {
        Block::EncoderAttention { spec, weights: Box::new(weights) }
    }

    #[test]
    fn tensors_are_held_against_the_spec() {
        let whole = block(attention());
        assert_eq!((whole.check(), whole.kind(), whole.state()), (Ok(()), BlockKind::Mixer, None));
        assert_eq!(whole.weights().len(), 10);
        type Edit = fn(&mut (EncoderAttentionSpec, EncoderAttentionWeights));
        let edits: [(Edit, &str); 5] = [
            (|b| b.0.heads = 0, "0 heads"),
            (|b| b.0.norm_eps = 0.0, "eps 0"),
            (|b| b.1.v.rows = 32, "v: shape"),
            (|b| b.1.o_bias.cols = 24, "ob: shape"),
            (|b| b.1.norm.bias.span.bytes = 4, "norm_bias: 4 bytes"),
        ];
        for (edit, part) in edits {
            let mut parts = attention();
            edit(&mut parts);
            let error = block(parts).check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn every_row_sees_every_row_of_its_sequence() {
        let spans = [5, 2].map(|tokens| crate::Span::new(0, tokens)).to_vec();
        let cost = block(attention()).cost(&BatchShape { spans, outputs: 7 }, KvType::F16);
        assert_eq!(cost.attention_flops, 4 * (25 + 4) * 24);
        assert_eq!(cost.flops() - cost.attention_flops, 2 * 7 * 4 * 24 * 32);
        assert_eq!((cost.kv_bytes, cost.weight_bytes), (0, 4 * (4 * 24 * 32 + 3 * 24 + 32 + 64)));
    }
}
