//! Holds a block's tensors against its spec, so that devices can trust the shapes.

use crate::block_error::{BlockError, shape};
use crate::{AttentionSpec, AttentionWeights, Block, Weight};

impl Block {
    /// Holds shapes, byte counts and the presence of tensors against the spec.
    ///
    /// Errors name the tensor or the part of the spec that is wrong.
    pub fn check(&self) -> Result<(), BlockError> {
        match self {
            Block::Embedding { spec, table } => shape(table, spec.vocab, spec.width),
            Block::Head { spec, norm, weight } => {
                shape(norm, 1, spec.width)?;
                shape(weight, spec.vocab, spec.width)
            }
            Block::Ffn { spec, weights: w } => {
                shape(&w.norm, 1, spec.width)?;
                shape(&w.gate, spec.hidden, spec.width)?;
                shape(&w.up, spec.hidden, spec.width)?;
                shape(&w.down, spec.width, spec.hidden)?;
                paired("post_norm", spec.post_norm.is_some(), &w.post_norm, spec.width)
            }
            Block::Attention { spec, weights } => attention(spec, weights),
            Block::ShortConv { spec, weights } => spec.check(weights),
            Block::EncoderEmbedding { spec, weights } => spec.check(weights, shape),
            Block::EncoderAttention { spec, weights } => spec.check(weights, shape),
            Block::EncoderFfn { spec, weights } => spec.check(weights, shape),
            Block::EncoderHead { .. } => Ok(()),
        }
    }
}

fn attention(spec: &AttentionSpec, w: &AttentionWeights) -> Result<(), BlockError> {
    let wrong = |what: String| Err(BlockError::Spec(what));
    if spec.kv_heads == 0 || !spec.heads.is_multiple_of(spec.kv_heads) {
        return wrong(format!("{} heads do not share {} key heads", spec.heads, spec.kv_heads));
    }
    if 2 * spec.rope.frequencies.len() > spec.head_dim {
        let pairs = spec.rope.frequencies.len();
        return wrong(format!("{pairs} rope pairs in a head of {}", spec.head_dim));
    }
    if spec.window == Some(0) {
        return wrong("a sliding window of 0 positions".into());
    }
    let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    shape(&w.norm, 1, spec.width)?;
    shape(&w.q, q, spec.width)?;
    shape(&w.k, kv, spec.width)?;
    shape(&w.v, kv, spec.width)?;
    shape(&w.o, spec.width, q)?;
    for (bias, len) in [(&w.q_bias, q), (&w.k_bias, kv), (&w.v_bias, kv), (&w.o_bias, spec.width)] {
        bias.as_ref().map_or(Ok(()), |bias| shape(bias, 1, len))?;
    }
    paired("q_norm", spec.qk_norm.is_some(), &w.q_norm, spec.head_dim)?;
    paired("k_norm", spec.qk_norm.is_some(), &w.k_norm, spec.head_dim)?;
    paired("post_norm", spec.post_norm.is_some(), &w.post_norm, spec.width)
}

fn paired(what: &'static str, wanted: bool, weight: &Option<Weight>, cols: usize) -> Result<(), BlockError> {
    match weight {
        Some(weight) if wanted => shape(weight, 1, cols),
        None if !wanted => Ok(()),
        Some(weight) => Err(BlockError::Unasked { tensor: weight.name.clone(), what }),
        None => Err(BlockError::Missing(what)),
    }
}
