//! Llama 1 to 3 (Touvron et al. 2023; Grattafiori et al. 2024) and Mistral 7B (Jiang et al. 2023).

use unicorn_core::{Activation, RopeStyle};

use super::common::{apply_window, plan as common_plan, sliding_layers};
use super::context::{Architecture, Context};
use super::keys::{self, Class};
use super::plan::Plan;
use crate::error::ModelError;

pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    classes: &[("LlamaForCausalLM", Class::Llama), ("MistralForCausalLM", Class::Mistral)],
    model_types: &[("llama", Class::Llama), ("mistral", Class::Mistral)],
    // Converters permute the rows of Q and K.
    gguf_rope: RopeStyle::Normal,
    activation: Activation::Silu,
    plan,
};

fn plan(cx: &Context<'_>) -> Result<Plan, ModelError> {
    let mut plan = common_plan(cx)?;
    // Mistral: all layers, where a window is given.
    let count = plan.layers.len();
    let sliding = sliding_layers(&cx.meta, count)?.unwrap_or_else(|| vec![true; count]);
    apply_window(&mut plan, cx.meta.int(keys::WINDOW)?, &sliding);
    Ok(plan)
}
