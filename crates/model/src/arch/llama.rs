//! Llama 1 to 3 (Touvron et al. 2023; Grattafiori et al. 2024) and Mistral 7B (Jiang et al. 2023).

use unicorn_core::RopeStyle;

use super::plan::{Plan, apply_window, layer_types};
use super::{Architecture, Context};
use crate::ModelError;

pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    hugging_face: &["LlamaForCausalLM", "MistralForCausalLM"],
    // Converters permute the rows of Q and K.
    gguf_rope: RopeStyle::Normal,
    defaults: &[],
    plan,
};

fn plan(cx: &Context<'_>) -> Result<Plan, ModelError> {
    let mut plan = Plan::common(cx)?;
    // Mistral: all layers, where a window is given.
    let types = layer_types(&cx.meta, plan.layers.len())?;
    apply_window(cx, &mut plan, |i| types.as_ref().is_none_or(|t| t[i]))?;
    Ok(plan)
}
