//! Well-known model shapes with synthetic weights: how fast a model would be before downloading it.

use unicorn_core::rope::RopeScaling;
use unicorn_core::{
    Activation, AttentionSpec, AttentionWeights, Block, EmbeddingSpec, FfnSpec, FfnWeights, HeadSpec,
    ModelSpec, NormSpec, RopeSpec, RopeStyle, TensorType,
};

use crate::synthetic::SyntheticLayout;

/// Sizes of a llama-like model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// For people, and for [`model`].
    pub name: &'static str,
    /// Model width; a multiple of `heads`.
    pub width: usize,
    /// Hidden width of the feed-forward blocks.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// The head multiplies with the embedding table.
    pub tied: bool,
}

const SHAPES: [Shape; 4] = [
    shape("llama-8b", 4096, 14336, 32, 32, 8, 128_256, false),
    shape("llama-3b", 3072, 8192, 28, 24, 8, 128_256, true),
    shape("llama-1b", 2048, 8192, 16, 32, 8, 128_256, true),
    shape("smollm2-135m", 576, 1536, 30, 9, 3, 49_152, true),
];

const fn shape(
    name: &'static str,
    width: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    tied: bool,
) -> Shape {
    Shape { name, width, hidden, layers, heads, kv_heads, vocab, tied }
}

/// The names that [`model`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|s| s.name)
}

/// A model of this shape with every matrix in `ty`; read its weights from any
/// [`SyntheticSource`](crate::synthetic::SyntheticSource). `None` for an unknown name.
///
/// As in files that people use, matrices whose rows are no whole number of blocks fall back to Q8_0 or F16, and the output head
/// of a Q4_K model is Q6_K. Small models have one matrix for the embedding and the head.
pub fn model(name: &str, ty: TensorType) -> Option<ModelSpec> {
    SHAPES.iter().find(|s| s.name.eq_ignore_ascii_case(name)).map(|shape| of(shape, ty))
}

/// A model of any shape, as [`model`] makes them.
pub fn of(shape: &Shape, ty: TensorType) -> ModelSpec {
    let mut layout = SyntheticLayout::default();
    let head = if ty == TensorType::Q4_K { TensorType::Q6_K } else { ty };
    let table_type = if shape.tied { head } else { ty };
    let table = matrix(&mut layout, "token_embd.weight", table_type, shape.vocab, shape.width);
    let mut blocks = vec![Block::Embedding {
        spec: EmbeddingSpec { width: shape.width, vocab: shape.vocab, scale: 1.0 },
        table: table.clone(),
    }];
    for layer in 0..shape.layers {
        blocks.push(attention(&mut layout, shape, ty, layer));
        blocks.push(ffn(&mut layout, shape, ty, layer));
    }
    let head = match shape.tied {
        true => table,
        false => matrix(&mut layout, "output.weight", head, shape.vocab, shape.width),
    };
    blocks.push(Block::Head {
        spec: HeadSpec { width: shape.width, vocab: shape.vocab, norm: NormSpec::rms(1e-5), soft_cap: None },
        norm: layout.norm("output_norm.weight", shape.width),
        weight: head,
    });
    ModelSpec {
        architecture: "llama".into(),
        name: format!("synthetic {} {ty}", shape.name),
        width: shape.width,
        vocab: shape.vocab,
        context_max: 131_072,
        blocks,
    }
}

fn matrix(
    layout: &mut SyntheticLayout,
    name: &str,
    ty: TensorType,
    rows: usize,
    cols: usize,
) -> unicorn_core::Weight {
    let fallback = if cols.is_multiple_of(32) { TensorType::Q8_0 } else { TensorType::F16 };
    layout.matrix(name, if ty.row_bytes(cols).is_some() { ty } else { fallback }, rows, cols)
}

fn attention(layout: &mut SyntheticLayout, shape: &Shape, ty: TensorType, layer: usize) -> Block {
    let head_dim = shape.width / shape.heads;
    let kv = shape.kv_heads * head_dim;
    let mut add = |name: &str, rows: usize, cols: usize| {
        matrix(layout, &format!("blk.{layer}.{name}.weight"), ty, rows, cols)
    };
    let q = add("attn_q", shape.width, shape.width);
    let k = add("attn_k", kv, shape.width);
    let v = add("attn_v", kv, shape.width);
    let o = add("attn_output", shape.width, shape.width);
    let weights = AttentionWeights {
        norm: layout.norm(&format!("blk.{layer}.attn_norm.weight"), shape.width),
        q,
        k,
        v,
        o,
        q_bias: None,
        k_bias: None,
        v_bias: None,
        o_bias: None,
        q_norm: None,
        k_norm: None,
        post_norm: None,
    };
    let spec = AttentionSpec {
        width: shape.width,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        rope: RopeSpec::new(RopeStyle::Normal, head_dim, 500_000.0, &RopeScaling::None),
        window: None,
        soft_cap: None,
        norm: NormSpec::rms(1e-5),
        qk_norm: None,
        post_norm: None,
    };
    Block::Attention { spec, weights: Box::new(weights) }
}

fn ffn(layout: &mut SyntheticLayout, shape: &Shape, ty: TensorType, layer: usize) -> Block {
    let mut add = |name: &str, rows: usize, cols: usize| {
        matrix(layout, &format!("blk.{layer}.{name}.weight"), ty, rows, cols)
    };
    let gate = add("ffn_gate", shape.hidden, shape.width);
    let up = add("ffn_up", shape.hidden, shape.width);
    let down = add("ffn_down", shape.width, shape.hidden);
    let norm = layout.norm(&format!("blk.{layer}.ffn_norm.weight"), shape.width);
    let spec = FfnSpec {
        width: shape.width,
        hidden: shape.hidden,
        activation: Activation::Silu,
        norm: NormSpec::rms(1e-5),
        post_norm: None,
    };
    Block::Ffn { spec, weights: Box::new(FfnWeights { norm, gate, up, down, post_norm: None }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_models() {
        let billions = |name| model(name, TensorType::Q4_K).unwrap().parameters() as f64 / 1e9;
        assert!((billions("llama-8b") - 8.03).abs() < 0.01);
        assert!((billions("llama-3b") - 3.21).abs() < 0.01);
        assert!((billions("llama-1b") - 1.236).abs() < 0.01);
        assert!((billions("smollm2-135m") - 0.1345).abs() < 0.001);
        assert!(model("llama-9b", TensorType::F16).is_none());
    }

    #[test]
    fn types_fall_back_where_rows_are_no_whole_blocks() {
        let spec = model("smollm2-135m", TensorType::Q4_K).unwrap();
        let ty = |name: &str| spec.distinct_weights().iter().find(|w| w.name == name).map(|w| w.ty);
        assert_eq!(ty("blk.0.attn_q.weight"), Some(TensorType::Q8_0));
        assert_eq!(ty("blk.0.ffn_down.weight"), Some(TensorType::Q4_K));
        let spec = model("llama-8b", TensorType::Q4_K).unwrap();
        let ty = |name: &str| spec.distinct_weights().iter().find(|w| w.name == name).map(|w| w.ty);
        assert_eq!(ty("output.weight"), Some(TensorType::Q6_K));
        assert_eq!(ty("token_embd.weight"), Some(TensorType::Q4_K));
        let spec = model("llama-1b", TensorType::Q4_K).unwrap();
        let ty = |name: &str| spec.distinct_weights().iter().find(|w| w.name == name).map(|w| w.ty);
        assert_eq!((ty("output.weight"), ty("token_embd.weight")), (None, Some(TensorType::Q6_K)));
    }
}
