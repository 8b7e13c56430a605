//! Qwen 2 / 2.5 (Yang et al. 2024) and Qwen 3 (Yang et al. 2025), dense.

use unicorn_core::{Activation, RopeStyle};

use super::common::{apply_window, plan as common_plan, sliding_layers};
use super::context::{Architecture, Context};
use super::keys::{self, Class};
use super::plan::{Bias, Plan};
use crate::error::ModelError;

pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    classes: &[("Qwen2ForCausalLM", Class::Qwen2)],
    model_types: &[("qwen2", Class::Qwen2)],
    gguf_rope: RopeStyle::Neox,
    activation: Activation::Silu,
    plan: |cx| {
        let mut plan = plan(cx)?;
        plan.layers.iter_mut().for_each(|layer| layer.qkv_bias = Bias::Required);
        Ok(plan)
    },
};

pub(super) const QWEN3: Architecture = Architecture {
    name: "qwen3",
    classes: &[("Qwen3ForCausalLM", Class::Qwen3)],
    model_types: &[("qwen3", Class::Qwen3)],
    gguf_rope: RopeStyle::Neox,
    activation: Activation::Silu,
    plan: |cx| {
        let mut plan = plan(cx)?;
        plan.layers.iter_mut().for_each(|layer| layer.qk_norm = true);
        Ok(plan)
    },
};

fn plan(cx: &Context<'_>) -> Result<Plan, ModelError> {
    let mut plan = common_plan(cx)?;
    let (m, count) = (&cx.meta, plan.layers.len());
    let listed = sliding_layers(m, count)?;
    if m.is_gguf() {
        let window = m.int(keys::WINDOW)?;
        // A window longer than the context limits nothing.
        let limits = window.filter(|w| *w > 0 && *w < plan.context_max);
        return match (limits, listed) {
            (None, _) => Ok(plan),
            (Some(_), Some(sliding)) => {
                apply_window(&mut plan, window, &sliding);
                Ok(plan)
            }
            // These architectures have no rule for which layers it is.
            (Some(window), None) => {
                let pattern = m.name(keys::WINDOW_PATTERN);
                let what = format!("{} = {window} without {pattern}", m.name(keys::WINDOW));
                Err(ModelError::Unsupported { what })
            }
        };
    }
    // The configuration always names a window, and mostly switches it off.
    if m.flag(keys::WINDOW_USED)? != Some(true) {
        if listed.is_some_and(|sliding| sliding.contains(&true)) {
            let reason = format!("sliding_attention, but {} is not set", m.name(keys::WINDOW_USED));
            return Err(m.invalid(keys::LAYER_TYPES, reason));
        }
        return Ok(plan);
    }
    let first = m.int(keys::WINDOW_FIRST_LAYER)?.ok_or_else(|| m.missing(keys::WINDOW_FIRST_LAYER))?;
    let sliding = listed.unwrap_or_else(|| (0..count).map(|i| i >= first).collect());
    apply_window(&mut plan, m.int(keys::WINDOW)?, &sliding);
    Ok(plan)
}
