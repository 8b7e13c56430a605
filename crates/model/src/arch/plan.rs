//! What a model computes, before its tensors are looked up.

use unicorn_core::{Activation, NormSpec, RopeSpec};

use super::Context;
use super::meta::{self, Key, Meta};
use super::rope;
use crate::ModelError;

// Limits that keep a hostile file from asking for memory before its tensors are checked.
const LAYERS_MAX: usize = 4096;
const WIDTH_MAX: usize = 1 << 20;
const HIDDEN_MAX: usize = 1 << 24;
const HEADS_MAX: usize = 1 << 16;
pub(super) const HEAD_DIM_MAX: usize = 1 << 14;
const CONTEXT_MAX: usize = 1 << 31;

/// A whole model.
#[derive(Debug)]
pub(super) struct Plan {
    pub width: usize,
    pub context_max: usize,
    /// Every norm of the model is of this kind.
    pub norm: NormSpec,
    pub embedding_scale: f32,
    pub final_soft_cap: Option<f32>,
    /// Whether the head uses the embedding's table; `None` decides by the tensors present.
    pub tied: Option<bool>,
    pub layers: Vec<LayerPlan>,
}

/// One layer: a mixer and an ffn.
#[derive(Clone, Debug)]
pub(super) struct LayerPlan {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor on the attention scores.
    pub scale: f32,
    pub rope: RopeSpec,
    pub window: Option<usize>,
    pub soft_cap: Option<f32>,
    /// Per-head norms of queries and keys.
    pub qk_norm: bool,
    /// The biases of q, k and v must be there; otherwise they are used where the file has them.
    pub qkv_bias: bool,
    /// A norm after each block as well as before it.
    pub post_norm: bool,
    pub hidden: usize,
    pub activation: Activation,
}

impl Plan {
    /// Reads what all architectures share: pre-norm layers with grouped-query attention and a SwiGLU network.
    pub fn common(cx: &Context<'_>) -> Result<Plan, ModelError> {
        let m = &cx.meta;
        if let Some(experts) = m.int(meta::EXPERTS)?.filter(|n| *n > 0) {
            let what = format!("a mixture of experts ({} = {experts})", m.name(meta::EXPERTS));
            return Err(ModelError::Unsupported { what });
        }
        let width = m.need_size(meta::WIDTH, WIDTH_MAX)?;
        let count = m.need_size(meta::LAYERS, LAYERS_MAX)?;
        if count > cx.tensors.len() {
            let reason = format!("{count} layers, but the model has only {} tensors", cx.tensors.len());
            return Err(m.invalid(meta::LAYERS, reason));
        }
        let heads = need_sizes(m, meta::HEADS, count, HEADS_MAX)?;
        let kv_heads = m.sizes(meta::KV_HEADS, count, HEADS_MAX)?.unwrap_or_else(|| heads.clone());
        let hidden = need_sizes(m, meta::HIDDEN, count, HIDDEN_MAX)?;
        let head_dim = head_dim(m, width, heads[0])?;
        let eps = match m.float(meta::NORM_EPS)? {
            Some(eps) if eps < 0.0 => return Err(m.invalid(meta::NORM_EPS, format!("{eps} is below zero"))),
            Some(eps) => eps,
            // The default of the configuration classes; GGUF writers always store it.
            None if !m.is_gguf() => 1e-6,
            None => return Err(m.missing(meta::NORM_EPS)),
        };
        let rope = rope::spec(cx, head_dim, rope::Layers::Global)?;
        let soft_cap = m.soft_cap(meta::ATTENTION_SOFT_CAP)?;
        let scale = m.positive(meta::ATTENTION_SCALE)?.unwrap_or(1.0 / (head_dim as f32).sqrt());
        let mut layers = Vec::with_capacity(count);
        for i in 0..count {
            if heads[i] % kv_heads[i] != 0 {
                let reason =
                    format!("{} does not divide the {} query heads of layer {i}", kv_heads[i], heads[i]);
                return Err(m.invalid(meta::KV_HEADS, reason));
            }
            layers.push(LayerPlan {
                heads: heads[i],
                kv_heads: kv_heads[i],
                head_dim,
                scale,
                rope: rope.clone(),
                window: None,
                soft_cap,
                qk_norm: false,
                qkv_bias: false,
                post_norm: false,
                hidden: hidden[i],
                activation: activation(m)?.unwrap_or(Activation::Silu),
            });
        }
        Ok(Plan {
            width,
            context_max: m.need_size(meta::CONTEXT, CONTEXT_MAX)?,
            norm: NormSpec::rms(eps),
            embedding_scale: 1.0,
            final_soft_cap: m.soft_cap(meta::FINAL_SOFT_CAP)?,
            tied: m.json("tie_word_embeddings").and_then(|v| v.as_bool()),
            layers,
        })
    }
}

fn need_sizes(m: &Meta<'_>, key: Key, layers: usize, max: usize) -> Result<Vec<usize>, ModelError> {
    m.sizes(key, layers, max)?.ok_or_else(|| m.missing(key))
}

fn head_dim(m: &Meta<'_>, width: usize, heads: usize) -> Result<usize, ModelError> {
    let head_dim = match m.size(meta::HEAD_DIM, HEAD_DIM_MAX)? {
        Some(dim) => dim,
        None if !width.is_multiple_of(heads) => {
            return Err(m.invalid(meta::HEADS, format!("{heads} does not divide the width {width}")));
        }
        None => width / heads,
    };
    if head_dim > HEAD_DIM_MAX {
        return Err(m.invalid(meta::HEADS, format!("heads of {head_dim} elements are too long")));
    }
    match m.int(meta::VALUE_DIM)? {
        Some(v) if v != head_dim => {
            let what =
                format!("{} = {v} that differs from a key length of {head_dim}", m.name(meta::VALUE_DIM));
            Err(ModelError::Unsupported { what })
        }
        _ => Ok(head_dim),
    }
}

/// The activation that a `config.json` names; GGUF implies it by the architecture.
fn activation(m: &Meta<'_>) -> Result<Option<Activation>, ModelError> {
    let name = m.json("hidden_activation").or_else(|| m.json("hidden_act"));
    match name.and_then(|n| n.as_str()) {
        None => Ok(None),
        Some("silu" | "swish") => Ok(Some(Activation::Silu)),
        Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Some(Activation::GeluTanh)),
        Some(other) => Err(ModelError::Unsupported { what: format!("hidden_act {other:?}") }),
    }
}

/// Which layers see a window, from the list `layer_types` of a `config.json`.
pub(super) fn layer_types(m: &Meta<'_>, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let invalid = |reason: String| ModelError::Invalid { key: "layer_types".to_owned(), reason };
    let Some(list) = m.json("layer_types").and_then(|v| v.as_array()) else { return Ok(None) };
    if list.len() != layers {
        return Err(invalid(format!("{} entries for {layers} layers", list.len())));
    }
    let sliding = list.iter().map(|ty| match ty.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(invalid(format!("{ty} is not supported"))),
    });
    sliding.collect::<Result<_, _>>().map(Some)
}

/// Gives the layers chosen by `sliding` the window that the metadata names, if it names one.
pub(super) fn apply_window(
    cx: &Context<'_>,
    plan: &mut Plan,
    sliding: impl Fn(usize) -> bool,
) -> Result<(), ModelError> {
    // Writers store 0 for none.
    let Some(window) = cx.meta.int(meta::WINDOW)?.filter(|w| *w > 0) else { return Ok(()) };
    for (i, layer) in plan.layers.iter_mut().enumerate() {
        layer.window = sliding(i).then_some(window);
    }
    Ok(())
}
