//! Gemma 3, text (Gemma Team 2025).

use unicorn_core::{Activation, RopeStyle};

use super::common::{apply_window, plan as common_plan, sliding_layers};
use super::context::{Architecture, Context};
use super::keys::{self, Class, GEMMA3_SIZES};
use super::meta::Meta;
use super::plan::Plan;
use super::rope;
use crate::error::ModelError;

pub(super) const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    classes: &[("Gemma3ForCausalLM", Class::Gemma3), ("Gemma3ForConditionalGeneration", Class::Gemma3)],
    model_types: &[("gemma3_text", Class::Gemma3), ("gemma3", Class::Gemma3)],
    gguf_rope: RopeStyle::Neox,
    activation: Activation::GeluTanh,
    plan,
};

/// The layer count by which files of the 27B model are known: GGUF does not store its attention scale.
const LAYERS_27B: usize = 62;

fn plan(cx: &Context<'_>) -> Result<Plan, ModelError> {
    let m = &cx.meta;
    let mut plan = common_plan(cx)?;
    // The embedding's factor stays in f32: checkpoints in bf16 were trained with a rounded one, but the reference on f32
    // weights does not round.
    plan.embedding_scale = (plan.width as f32).sqrt();
    if !m.is_gguf() {
        // Checkpoints store `w - 1`; GGUF converters add the one.
        plan.norm.weight_offset = 1.0;
    }
    let (width, count) = (plan.width, plan.layers.len());
    let scale = match m.positive(keys::QUERY_SCALAR)? {
        Some(scalar) => Some(1.0 / scalar.sqrt()),
        None => m.positive_if_set(keys::ATTENTION_SCALE)?,
    };
    for layer in &mut plan.layers {
        layer.qk_norm = true;
        layer.post_norm = true;
        layer.scale = match scale {
            Some(scale) => scale,
            None if count == LAYERS_27B => 1.0 / (width as f32 / layer.heads as f32).sqrt(),
            None => layer.scale,
        };
    }
    let sliding = sliding_layers(m, count)?.ok_or_else(|| m.missing(keys::WINDOW_PATTERN))?;
    if sliding.contains(&true) {
        let window = window(m, count, width)?;
        apply_window(&mut plan, Some(window), &sliding);
        let local = rope::spec(cx, plan.layers[0].head_dim, rope::Layers::Local)?;
        for layer in plan.layers.iter_mut().filter(|l| l.window.is_some()) {
            layer.rope = local.clone();
        }
    }
    Ok(plan)
}

/// The window of the local layers, 0 for none.
fn window(m: &Meta<'_>, layers: usize, width: usize) -> Result<usize, ModelError> {
    if let Some(window) = m.int(keys::WINDOW)? {
        return Ok(window);
    }
    let size = GEMMA3_SIZES.iter().find(|size| m.is_gguf() && (size.0, size.1) == (layers, width));
    let window = size.ok_or_else(|| m.missing(keys::WINDOW))?.2;
    let instead = format!("{window} is assumed, which Gemma 3 of {layers} layers has");
    m.notices.assumed(m.name(keys::WINDOW), instead);
    Ok(window)
}
