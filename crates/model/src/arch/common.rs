//! What all architectures share: how the common plan is read from a file's hyperparameters.

use unicorn_core::{Activation, NormSpec};

use super::context::Context;
use super::keys::{self, Class, Key};
use super::meta::Meta;
use super::names::Role;
use super::plan::{Bias, LayerPlan, Plan};
use super::rope;
use crate::error::ModelError;

// Limits that keep a hostile file from asking for memory before its tensors are checked.
pub(super) const LAYERS_MAX: usize = 4096;
pub(super) const WIDTH_MAX: usize = 1 << 20;
pub(super) const HEADS_MAX: usize = 1 << 16;
pub(super) const HEAD_DIM_MAX: usize = 1 << 14;
pub(super) const CONTEXT_MAX: usize = 1 << 31;

/// Reads what all architectures share: pre-norm layers with grouped-query attention and a SwiGLU network.
pub(super) fn plan(cx: &Context<'_>) -> Result<Plan, ModelError> {
    let (plan, gaps) = plan_with_gaps(cx)?;
    if gaps.contains(&true) {
        return Err(cx.meta.invalid(keys::KV_HEADS, "must be at least 1"));
    }
    Ok(plan)
}

/// The same, with which layers have no key heads, and so no attention.
pub(super) fn plan_with_gaps(cx: &Context<'_>) -> Result<(Plan, Vec<bool>), ModelError> {
    let m = &cx.meta;
    let width = m.need_size(keys::WIDTH, WIDTH_MAX)?;
    let count = m.need_size(keys::LAYERS, LAYERS_MAX)?;
    if let Some(tensors) = cx.tensors.filter(|tensors| count > tensors.len()) {
        let reason = format!("{count} layers, but the model has only {} tensors", tensors.len());
        return Err(m.invalid(keys::LAYERS, reason));
    }
    let heads = need_sizes(m, keys::HEADS, count, HEADS_MAX)?;
    let mut kv_heads = m.counts(keys::KV_HEADS, count, HEADS_MAX)?.unwrap_or_else(|| heads.clone());
    let gaps: Vec<bool> = kv_heads.iter().map(|n| *n == 0).collect();
    kv_heads.iter_mut().zip(&heads).filter(|(n, _)| **n == 0).for_each(|(n, heads)| *n = *heads);
    let hidden = need_sizes(m, keys::HIDDEN, count, keys::HIDDEN_MAX)?;
    let head_dim = head_dim(cx, width, heads[0])?;
    let key = if m.class() == Some(Class::Lfm2) { keys::LFM2_NORM_EPS } else { keys::NORM_EPS };
    let eps = m.float(key)?.ok_or_else(|| m.missing(key))?;
    if eps < 0.0 {
        return Err(m.invalid(key, format!("{eps} is below zero")));
    }
    let rope = rope::spec(cx, head_dim, rope::Layers::Global)?;
    let soft_cap = m.positive_if_set(keys::ATTENTION_SOFT_CAP)?;
    let scale = m.positive_if_set(keys::ATTENTION_SCALE)?.unwrap_or(1.0 / (head_dim as f32).sqrt());
    let activation = activation(m, cx.architecture.activation)?;
    let bias = biases(m)?;
    let mut layers = Vec::with_capacity(count);
    for i in 0..count {
        if heads[i] % kv_heads[i] != 0 {
            let reason = format!("{} does not divide the {} query heads of layer {i}", kv_heads[i], heads[i]);
            return Err(m.invalid(keys::KV_HEADS, reason));
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
            qkv_bias: bias,
            o_bias: bias,
            post_norm: false,
            short_conv: None,
            hidden: hidden[i],
            activation,
        });
    }
    let plan = Plan {
        width,
        context_max: m.need_size(keys::CONTEXT, CONTEXT_MAX)?,
        norm: NormSpec::rms(eps),
        embedding_scale: 1.0,
        final_soft_cap: m.positive_if_set(keys::FINAL_SOFT_CAP)?,
        tied: tied(cx)?,
        layers,
    };
    Ok((plan, gaps))
}

fn need_sizes(m: &Meta<'_>, key: Key, layers: usize, max: usize) -> Result<Vec<usize>, ModelError> {
    m.sizes(key, layers, max)?.ok_or_else(|| m.missing(key))
}

fn head_dim(cx: &Context<'_>, width: usize, heads: usize) -> Result<usize, ModelError> {
    let m = &cx.meta;
    let head_dim = match m.size(keys::HEAD_DIM, HEAD_DIM_MAX)? {
        Some(dim) => dim,
        // The file itself tells where it has no key.
        None => match query_rows(cx).filter(|rows| rows.is_multiple_of(heads)) {
            Some(rows) => rows / heads,
            None if width.is_multiple_of(heads) => width / heads,
            None => return Err(m.invalid(keys::HEADS, format!("{heads} does not divide the width {width}"))),
        },
    };
    if head_dim == 0 || head_dim > HEAD_DIM_MAX {
        return Err(m.invalid(keys::HEADS, format!("heads of {head_dim} elements are not possible")));
    }
    for key in [keys::VALUE_DIM, keys::HEAD_DIM_LOCAL, keys::VALUE_DIM_LOCAL] {
        if let Some(other) = m.int(key)?.filter(|other| *other != head_dim) {
            let what = format!("{} = {other} that differs from a key length of {head_dim}", m.name(key));
            return Err(ModelError::Unsupported { what });
        }
    }
    Ok(head_dim)
}

/// Rows of the first layer's query projection in a GGUF file; the classes of `transformers` have rules of their own.
fn query_rows(cx: &Context<'_>) -> Option<usize> {
    let name = cx.naming.layer(0, Role::Q, false) + ".weight";
    let info = cx.tensors.filter(|_| cx.meta.is_gguf())?.get(&name)?;
    info.shape.first().and_then(|rows| usize::try_from(*rows).ok()).filter(|rows| *rows > 0)
}

/// The activation that the file names, else that of the architecture. GGUF files name none; one that did would have to agree.
fn activation(m: &Meta<'_>, default: Activation) -> Result<Activation, ModelError> {
    let key = if m.class() == Some(Class::Gemma3) { keys::GEMMA_ACTIVATION } else { keys::ACTIVATION };
    let Some(name) = m.string(key)? else { return Ok(default) };
    let named = match name.as_str() {
        "silu" | "swish" => Activation::Silu,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
        _ => return Err(ModelError::Unsupported { what: format!("{} {name:?}", m.name(key)) }),
    };
    if m.is_gguf() && named != default {
        return Err(ModelError::Unsupported { what: format!("{} {name:?}", m.name(key)) });
    }
    Ok(named)
}

/// The biases of attention that a class has unless its architecture says otherwise.
fn biases(m: &Meta<'_>) -> Result<Bias, ModelError> {
    Ok(match m.is_gguf() {
        true => Bias::IfPresent,
        false if m.flag(keys::ATTENTION_BIAS)? == Some(true) => Bias::Required,
        false => Bias::Never,
    })
}

/// Whether the head uses the embedding's table. GGUF says so by leaving the head out. A `config.json` that does not say and a
/// checkpoint without a head can only mean that they are tied, whatever the default of the class.
fn tied(cx: &Context<'_>) -> Result<Option<bool>, ModelError> {
    let m = &cx.meta;
    if m.is_gguf() {
        return Ok(None);
    }
    // A null says nothing: the tensors decide.
    let Some(tied) = m.flag(keys::TIED)? else { return Ok(None) };
    let head = cx.naming.head();
    let absent = cx.tensors.is_some_and(|tensors| tensors.get(&head).is_none());
    if !tied && absent && m.stored(keys::TIED)?.is_none() {
        m.notices.assumed(m.name(keys::TIED), format!("true is assumed, as the file has no tensor {head}"));
        return Ok(Some(true));
    }
    Ok(Some(tied))
}

/// Which layers see a window: as listed, or by the flags or the period that the file or the architecture has. `None` where
/// nothing tells.
pub(super) fn sliding_layers(m: &Meta<'_>, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    if let Some(types) = m.strings(keys::LAYER_TYPES)? {
        if types.len() != layers {
            let reason = format!("{} entries for {layers} layers", types.len());
            return Err(m.invalid(keys::LAYER_TYPES, reason));
        }
        let sliding = types.iter().map(|ty| match *ty {
            "sliding_attention" => Ok(true),
            "full_attention" => Ok(false),
            other => Err(m.invalid(keys::LAYER_TYPES, format!("{other:?} is not supported"))),
        });
        return sliding.collect::<Result<_, _>>().map(Some);
    }
    if let Some(flags) = m.flags(keys::WINDOW_PATTERN, layers)? {
        return Ok(Some(flags));
    }
    // One layer of each period, the last, sees everything.
    let period = m.size(keys::WINDOW_PATTERN, usize::MAX)?;
    Ok(period.map(|period| (1..=layers).map(|i| i % period != 0).collect()))
}

/// Gives the layers of `sliding` the window that the file names. Writers store 0 for none.
pub(super) fn apply_window(plan: &mut Plan, window: Option<usize>, sliding: &[bool]) {
    let Some(window) = window.filter(|w| *w > 0) else { return };
    for (layer, sliding) in plan.layers.iter_mut().zip(sliding) {
        layer.window = sliding.then_some(window);
    }
}
