//! Gemma 3, text (Gemma Team 2025).

use unicorn_core::{Activation, RopeStyle};

use super::meta::{self, Meta};
use super::plan::{Plan, apply_window, layer_types};
use super::{Architecture, Context, rope};
use crate::ModelError;

pub(super) const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    hugging_face: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    gguf_rope: RopeStyle::Neox,
    // The text part of a multimodal configuration leaves out what equals the defaults of its class.
    defaults: &[
        ("hidden_size", 2304.0),
        ("intermediate_size", 9216.0),
        ("num_hidden_layers", 26.0),
        ("num_attention_heads", 8.0),
        ("num_key_value_heads", 4.0),
        ("head_dim", 256.0),
        ("max_position_embeddings", 131_072.0),
        ("rope_theta", 1_000_000.0),
        ("query_pre_attn_scalar", 256.0),
        ("sliding_window", 4096.0),
    ],
    plan,
};

/// One layer in six sees everything.
const PATTERN: usize = 6;
/// The layer count by which files of the 27B model are known: GGUF does not store its attention scale.
const LAYERS_27B: usize = 62;

fn plan(cx: &Context<'_>) -> Result<Plan, ModelError> {
    let m = &cx.meta;
    if m.json("use_bidirectional_attention").and_then(|v| v.as_bool()) == Some(true) {
        return Err(ModelError::Unsupported { what: "use_bidirectional_attention".to_owned() });
    }
    let mut plan = Plan::common(cx)?;
    // The embedding's factor stays in f32: checkpoints in bf16 were trained with a rounded one, but the reference on f32
    // weights does not round.
    plan.embedding_scale = (plan.width as f32).sqrt();
    plan.tied = match m {
        Meta::Gguf { .. } => None,
        Meta::Json { .. } => Some(plan.tied.unwrap_or(true)),
    };
    if !m.is_gguf() {
        // Checkpoints store `w - 1`; GGUF converters add the one.
        plan.norm.weight_offset = 1.0;
    }
    let (width, count) = (plan.width, plan.layers.len());
    let scale = match m.positive(meta::QUERY_SCALAR)? {
        Some(scalar) => Some(1.0 / scalar.sqrt()),
        None => m.positive(meta::ATTENTION_SCALE)?,
    };
    for layer in &mut plan.layers {
        layer.qk_norm = true;
        layer.post_norm = true;
        layer.activation = Activation::GeluTanh;
        layer.scale = match scale {
            Some(scale) => scale,
            None if count == LAYERS_27B => 1.0 / (width as f32 / layer.heads as f32).sqrt(),
            None => layer.scale,
        };
    }
    let local = local_layers(m, count)?;
    apply_window(cx, &mut plan, |i| local[i])?;
    let local_rope = rope::spec(cx, plan.layers[0].head_dim, rope::Layers::Local)?;
    for layer in plan.layers.iter_mut().filter(|l| l.window.is_some()) {
        layer.rope = local_rope.clone();
    }
    Ok(plan)
}

/// Which layers have a sliding window: as listed, else all but every sixth (or what the file gives for six).
fn local_layers(m: &Meta<'_>, count: usize) -> Result<Vec<bool>, ModelError> {
    if let Some(types) = layer_types(m, count)? {
        return Ok(types);
    }
    if let Some(flags) = m.flags(meta::WINDOW_PATTERN, count)? {
        return Ok(flags);
    }
    let pattern = m.size(meta::WINDOW_PATTERN, usize::MAX)?.unwrap_or(PATTERN);
    Ok((1..=count).map(|i| i % pattern != 0).collect())
}
