//! LFM2 (Liquid AI 2025), dense: most layers mix by a short convolution, the others by attention with norms of queries and keys.

use unicorn_core::{Activation, RopeStyle};

use super::common::plan_with_gaps;
use super::context::{Architecture, Context};
use super::keys::{self, Class};
use super::meta::Meta;
use super::plan::Plan;
use crate::error::ModelError;

/// Positions that a convolution may see.
const KERNEL_MAX: usize = 1 << 10;
/// What hidden widths may be multiples of, and their limit.
const MULTIPLE_MAX: usize = 1 << 20;

pub(super) const LFM2: Architecture = Architecture {
    name: "lfm2",
    classes: &[("Lfm2ForCausalLM", Class::Lfm2)],
    model_types: &[("lfm2", Class::Lfm2)],
    gguf_rope: RopeStyle::Neox,
    activation: Activation::Silu,
    plan,
};

fn plan(cx: &Context<'_>) -> Result<Plan, ModelError> {
    let m = &cx.meta;
    let (mut plan, gaps) = plan_with_gaps(cx)?;
    let convolutions = if m.is_gguf() { gaps } else { listed(m, plan.layers.len())? };
    let kernel = m.need_size(keys::CONV_KERNEL, KERNEL_MAX)?;
    if kernel < 2 {
        return Err(m.invalid(keys::CONV_KERNEL, "must be at least 2"));
    }
    for (layer, convolution) in plan.layers.iter_mut().zip(convolutions) {
        layer.qk_norm = true;
        layer.short_conv = convolution.then_some(kernel);
    }
    if !m.is_gguf() {
        for layer in &mut plan.layers {
            layer.hidden = hidden(m, layer.hidden)?;
        }
    }
    Ok(plan)
}

/// Which layers of a `config.json` are convolutions: as listed, or all that are not listed as attention; none where nothing is.
fn listed(m: &Meta<'_>, layers: usize) -> Result<Vec<bool>, ModelError> {
    if let Some(types) = m.strings(keys::LAYER_TYPES)? {
        if types.len() != layers {
            return Err(m.invalid(keys::LAYER_TYPES, format!("{} entries for {layers} layers", types.len())));
        }
        let convolution = types.iter().map(|ty| match *ty {
            "conv" => Ok(true),
            "full_attention" => Ok(false),
            other => Err(m.invalid(keys::LAYER_TYPES, format!("{other:?} is not supported"))),
        });
        return convolution.collect();
    }
    let attention = m.ints(keys::ATTENTION_LAYERS)?;
    Ok((0..layers).map(|i| attention.as_ref().is_some_and(|all| !all.contains(&i))).collect())
}

/// The hidden width that a `config.json` means: two thirds of what it says, rounded up, unless it says that this was done.
fn hidden(m: &Meta<'_>, usual: usize) -> Result<usize, ModelError> {
    let hidden = m.size(keys::BLOCK_HIDDEN, keys::HIDDEN_MAX)?.unwrap_or(usual);
    if m.flag(keys::HIDDEN_ADJUSTED)? != Some(true) {
        return Ok(hidden);
    }
    let factor = m.positive(keys::HIDDEN_FACTOR)?.unwrap_or(1.0);
    let scaled = (f64::from(factor) * (2 * hidden / 3) as f64) as usize;
    let multiple = m.need_size(keys::HIDDEN_MULTIPLE, MULTIPLE_MAX)?;
    let rounded = scaled.div_ceil(multiple).saturating_mul(multiple);
    if rounded == 0 || rounded > keys::HIDDEN_MAX {
        return Err(m.invalid(keys::BLOCK_HIDDEN, format!("a hidden width of {rounded} is not possible")));
    }
    Ok(rounded)
}
