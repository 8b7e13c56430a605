//! Cases of encoders' blocks.

use unicorn_core::{
    Block, EncoderAttentionSpec, EncoderAttentionWeights, EncoderEmbeddingSpec, EncoderEmbeddingWeights,
    EncoderFfnSpec, EncoderFfnWeights, EncoderHeadSpec, KvType, LayerNormWeights, Span, TensorType,
};

use super::names::lower;
use crate::synthetic::{SyntheticLayout, weight_rms};
use crate::{Case, Tolerance};

const EPS: f32 = 1e-6;
/// Rows of the tables of positions.
const POSITIONS: usize = 300;

/// Every case of encoders' blocks.
pub(super) fn encoder() -> Vec<Case> {
    let mut cases = Vec::new();
    for ty in TensorType::ALL {
        let width = if ty.block_len() == 256 { 256 } else { 96 };
        cases.push(embedding(ty, width, &[7]));
        for lengths in [&[1][..], &[3, 1, 40]] {
            cases.push(attention(ty, (width, width / 32, 32), lengths));
        }
        for rows in [1, 5, 33] {
            cases.push(ffn(ty, width, 2 * width, rows));
        }
    }
    cases.push(embedding(TensorType::F32, 384, &[1, 300, 2]));
    // Heads that are no whole vectors, more than one part of queries, sequences at the edges of tiles, and more room in heads than in the
    // residual stream.
    for (ty, shape, lengths) in [
        (TensorType::F32, (384, 12, 32), &[16, 17, 31, 32, 33, 128][..]),
        (TensorType::F32, (72, 3, 24), &[9, 2, 97]),
        (TensorType::F32, (40, 5, 20), &[64, 65]),
        (TensorType::F16, (64, 2, 64), &[200]),
        (TensorType::F32, (96, 2, 128), &[130, 1]),
        (TensorType::Q8_0, (384, 12, 32), &[1, 5, 256]),
    ] {
        cases.push(attention(ty, shape, lengths));
    }
    for (ty, width, hidden, rows) in
        [(TensorType::F32, 72, 200, 70), (TensorType::F16, 384, 1536, 150), (TensorType::Q4_K, 256, 768, 67)]
    {
        cases.push(ffn(ty, width, hidden, rows));
    }
    for (width, rows) in [(96, 1), (384, 37)] {
        cases.push(Case {
            name: format!("encoder_head/{width}/t{rows}"),
            block: Block::EncoderHead { spec: EncoderHeadSpec { width } },
            batch: whole(&[rows]),
            kv: KvType::F32,
            tolerance: Tolerance::embedding(),
        });
    }
    cases
}

/// Whole sequences.
fn whole(lengths: &[usize]) -> Vec<Span> {
    lengths.iter().map(|tokens| Span::new(0, *tokens)).collect()
}

fn listed(lengths: &[usize]) -> String {
    lengths.iter().map(usize::to_string).collect::<Vec<_>>().join("+")
}

fn norm(layout: &mut SyntheticLayout, name: &str, width: usize) -> LayerNormWeights {
    LayerNormWeights {
        weight: layout.norm(&format!("{name}.weight"), width),
        bias: layout.bias(&format!("{name}.bias"), width),
    }
}

fn embedding(ty: TensorType, width: usize, lengths: &[usize]) -> Case {
    let mut layout = SyntheticLayout::default();
    let spec = EncoderEmbeddingSpec { width, vocab: 50, positions: POSITIONS, token_types: 2, norm_eps: EPS };
    let weights = EncoderEmbeddingWeights {
        table: layout.matrix("token_embd", ty, spec.vocab, width),
        positions: layout.matrix("position_embd", ty, spec.positions, width),
        token_types: layout.matrix("token_types", ty, spec.token_types, width),
        norm: norm(&mut layout, "token_embd_norm", width),
    };
    Case {
        name: format!("encoder_embedding/{}/50x{width}/t{}", lower(ty), listed(lengths)),
        block: Block::EncoderEmbedding { spec, weights: Box::new(weights) },
        batch: whole(lengths),
        kv: KvType::F32,
        tolerance: Tolerance::encoder_embedding(),
    }
}

fn attention(ty: TensorType, (width, heads, head_dim): (usize, usize, usize), lengths: &[usize]) -> Case {
    let mut layout = SyntheticLayout::default();
    let inner = heads * head_dim;
    let mut matrix = |name: &str, rows, cols| layout.matrix(name, ty, rows, cols);
    let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(|name| matrix(name, inner, width));
    let o = matrix("attn_output", width, inner);
    let mut bias = |name: &str, len| layout.bias(name, len);
    let [q_bias, k_bias, v_bias] = ["q_bias", "k_bias", "v_bias"].map(|name| bias(name, inner));
    let o_bias = bias("o_bias", width);
    let norm = norm(&mut layout, "attn_output_norm", width);
    // Scores of 1.5 deviations: weights are small, and biases are the same for all positions.
    let projected = weight_rms(ty) * (width as f32).sqrt();
    let scale = 1.5 / ((head_dim as f32).sqrt() * projected * projected.hypot(0.3));
    let spec = EncoderAttentionSpec { width, heads, head_dim, scale, norm_eps: EPS };
    let weights = EncoderAttentionWeights { q, k, v, o, q_bias, k_bias, v_bias, o_bias, norm };
    Case {
        name: format!("encoder_attention/{}/{width}x{heads}x{head_dim}/t{}", lower(ty), listed(lengths)),
        block: Block::EncoderAttention { spec, weights: Box::new(weights) },
        batch: whole(lengths),
        kv: KvType::F32,
        tolerance: Tolerance::encoder(ty),
    }
}

fn ffn(ty: TensorType, width: usize, hidden: usize, rows: usize) -> Case {
    let mut layout = SyntheticLayout::default();
    let weights = EncoderFfnWeights {
        up: layout.matrix("ffn_up", ty, hidden, width),
        down: layout.matrix("ffn_down", ty, width, hidden),
        up_bias: layout.bias("ffn_up_bias", hidden),
        down_bias: layout.bias("ffn_down_bias", width),
        norm: norm(&mut layout, "layer_output_norm", width),
    };
    let spec = EncoderFfnSpec { width, hidden, norm_eps: EPS };
    Case {
        name: format!("encoder_ffn/{}/{width}x{hidden}/t{rows}", lower(ty)),
        block: Block::EncoderFfn { spec, weights: Box::new(weights) },
        batch: whole(&[rows]),
        kv: KvType::F32,
        tolerance: Tolerance::encoder(ty),
    }
}
