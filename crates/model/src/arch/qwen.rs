//! Qwen 2 / 2.5 (Yang et al. 2024) and Qwen 3 (Yang et al. 2025), dense.

use unicorn_core::RopeStyle;

use super::plan::{LayerPlan, Plan, apply_window, layer_types};
use super::{Architecture, Context};
use crate::ModelError;

pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    hugging_face: &["Qwen2ForCausalLM"],
    gguf_rope: RopeStyle::Neox,
    defaults: &[],
    plan: |cx| plan(cx, |layer| layer.qkv_bias = true),
};

pub(super) const QWEN3: Architecture = Architecture {
    name: "qwen3",
    hugging_face: &["Qwen3ForCausalLM"],
    gguf_rope: RopeStyle::Neox,
    defaults: &[],
    plan: |cx| plan(cx, |layer| layer.qk_norm = true),
};

fn plan(cx: &Context<'_>, differ: fn(&mut LayerPlan)) -> Result<Plan, ModelError> {
    let mut plan = Plan::common(cx)?;
    plan.layers.iter_mut().for_each(differ);
    // The configuration always names a window, and mostly switches it off. GGUF files do not say which layers would use it.
    let m = &cx.meta;
    if m.json("use_sliding_window").and_then(|v| v.as_bool()) == Some(true) {
        let types = layer_types(m, plan.layers.len())?;
        let first = m.json("max_window_layers").and_then(|v| v.as_u64()).unwrap_or(28);
        apply_window(cx, &mut plan, |i| types.as_ref().map_or(i as u64 >= first, |t| t[i]))?;
    }
    Ok(plan)
}
