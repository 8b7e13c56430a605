//! A small encoder of random weights.

use unicorn_core::{
    Block, EncoderAttentionSpec, EncoderAttentionWeights, EncoderEmbeddingSpec, EncoderEmbeddingWeights,
    EncoderFfnSpec, EncoderFfnWeights, EncoderHeadSpec, LayerNormWeights, TensorType,
};

use crate::synthetic::SyntheticLayout;

const EPS: f32 = 1e-12;
const VOCAB: usize = 2000;
const POSITIONS: usize = 512;
const WIDTH: usize = 384;
const HEADS: usize = 12;
const HEAD_DIM: usize = 32;
const HIDDEN: usize = 1536;

/// Layers of the shape of all-MiniLM-L6-v2 with a smaller vocabulary; vocabulary and width.
pub(crate) fn blocks(ty: TensorType, layers: usize) -> (Vec<Block>, usize, usize) {
    let mut layout = SyntheticLayout::default();
    let spec = EncoderEmbeddingSpec {
        width: WIDTH,
        vocab: VOCAB,
        positions: POSITIONS,
        token_types: 2,
        norm_eps: EPS,
    };
    let weights = EncoderEmbeddingWeights {
        table: layout.matrix("token_embd", ty, VOCAB, WIDTH),
        positions: layout.matrix("position_embd", TensorType::F32, POSITIONS, WIDTH),
        token_types: layout.matrix("token_types", TensorType::F32, 2, WIDTH),
        norm: norm(&mut layout),
    };
    let mut blocks = vec![Block::EncoderEmbedding { spec, weights: Box::new(weights) }];
    for _ in 0..layers {
        blocks.push(attention(&mut layout, ty));
        blocks.push(ffn(&mut layout, ty));
    }
    blocks.push(Block::EncoderHead { spec: EncoderHeadSpec { width: WIDTH } });
    (blocks, VOCAB, WIDTH)
}

fn norm(layout: &mut SyntheticLayout) -> LayerNormWeights {
    LayerNormWeights { weight: layout.norm("norm.weight", WIDTH), bias: layout.bias("norm.bias", WIDTH) }
}

fn attention(layout: &mut SyntheticLayout, ty: TensorType) -> Block {
    let inner = HEADS * HEAD_DIM;
    let [q, k, v] = ["q", "k", "v"].map(|name| layout.matrix(name, ty, inner, WIDTH));
    let [q_bias, k_bias, v_bias] = ["q.bias", "k.bias", "v.bias"].map(|name| layout.bias(name, inner));
    let (o, o_bias) = (layout.matrix("o", ty, WIDTH, inner), layout.bias("o.bias", WIDTH));
    let norm = norm(layout);
    let scale = 1.0 / (HEAD_DIM as f32).sqrt();
    let spec = EncoderAttentionSpec { width: WIDTH, heads: HEADS, head_dim: HEAD_DIM, scale, norm_eps: EPS };
    let weights = EncoderAttentionWeights { q, k, v, o, q_bias, k_bias, v_bias, o_bias, norm };
    Block::EncoderAttention { spec, weights: Box::new(weights) }
}

fn ffn(layout: &mut SyntheticLayout, ty: TensorType) -> Block {
    let weights = EncoderFfnWeights {
        up: layout.matrix("up", ty, HIDDEN, WIDTH),
        down: layout.matrix("down", ty, WIDTH, HIDDEN),
        up_bias: layout.bias("up.bias", HIDDEN),
        down_bias: layout.bias("down.bias", WIDTH),
        norm: norm(layout),
    };
    let spec = EncoderFfnSpec { width: WIDTH, hidden: HIDDEN, norm_eps: EPS };
    Block::EncoderFfn { spec, weights: Box::new(weights) }
}
