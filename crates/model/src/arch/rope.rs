//! Rotary embedding parameters from either format.

use unicorn_core::rope::RopeScaling;
use unicorn_core::{RopeSpec, RopeStyle, TensorType};

use super::Context;
use super::meta::{self, Key, Meta};
use crate::ModelError;
use crate::tensors::StoredType;

/// Which layers of a model with two rotary embeddings.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Layers {
    /// Layers that see everything; all layers of most models.
    Global,
    /// Sliding-window layers of Gemma 3: their own base, no scaling.
    Local,
}

/// Resolves the rotary embedding of these layers.
pub(super) fn spec(cx: &Context<'_>, head_dim: usize, layers: Layers) -> Result<RopeSpec, ModelError> {
    let m = &cx.meta;
    let style = if m.is_gguf() { cx.architecture.gguf_rope } else { RopeStyle::Neox };
    let (dims, base, scaling) = match m {
        Meta::Gguf { .. } => from_gguf(cx, head_dim, layers)?,
        Meta::Json { .. } => from_json(m, head_dim, layers)?,
    };
    if dims == 0 || dims % 2 != 0 || dims > head_dim {
        let reason = format!("{dims} rotary dimensions do not fit heads of {head_dim} elements");
        let key = if m.is_gguf() { m.name(meta::ROPE_DIMS) } else { "partial_rotary_factor".to_owned() };
        return Err(ModelError::Invalid { key, reason });
    }
    let spec = RopeSpec::new(style, dims, base, &scaling);
    if !spec.magnitude.is_finite() || spec.frequencies.iter().any(|f| !f.is_finite()) {
        let reason = format!("base {base} with {scaling:?} gives no finite frequencies");
        return Err(ModelError::Invalid { key: m.name(meta::ROPE_BASE), reason });
    }
    Ok(spec)
}

fn from_gguf(
    cx: &Context<'_>,
    head_dim: usize,
    layers: Layers,
) -> Result<(usize, f32, RopeScaling), ModelError> {
    let m = &cx.meta;
    let dims = m.int(meta::ROPE_DIMS)?.unwrap_or(head_dim);
    if layers == Layers::Local {
        return Ok((dims, m.positive(meta::ROPE_BASE_LOCAL)?.unwrap_or(10_000.0), RopeScaling::None));
    }
    let base = m.positive(meta::ROPE_BASE)?.unwrap_or(10_000.0);
    // A factor of zero means none.
    let factor = match m.float(meta::ROPE_FACTOR)? {
        Some(factor) => Some(factor),
        None => m.float(meta::ROPE_FACTOR_OLD)?,
    };
    let factor = factor.filter(|f| *f != 0.0).unwrap_or(1.0);
    check_factor(&m.name(meta::ROPE_FACTOR), factor)?;
    let scaling = match m.string(meta::ROPE_TYPE)?.as_deref().unwrap_or("linear") {
        "none" => RopeScaling::None,
        "linear" if factor == 1.0 => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor },
        "yarn" => {
            let magnitude = m.positive(meta::ROPE_ATTENTION)?;
            // DeepSeek's variant changes the magnitude; no known file of these architectures has it.
            if m.float(meta::ROPE_YARN_LOG_MUL)?.is_some_and(|v| v != 0.0) {
                return Err(ModelError::Unsupported { what: m.name(meta::ROPE_YARN_LOG_MUL) });
            }
            RopeScaling::Yarn {
                factor,
                original_context: match m.size(meta::ROPE_CONTEXT, usize::MAX)? {
                    Some(context) => context,
                    None => m.need_size(meta::CONTEXT, usize::MAX)?,
                },
                beta_fast: m.positive(meta::ROPE_BETA_FAST)?.unwrap_or(32.0),
                beta_slow: m.positive(meta::ROPE_BETA_SLOW)?.unwrap_or(1.0),
                // GGUF stores a factor on top of YaRN's own.
                attention_factor: Some(magnitude.unwrap_or(1.0) * (0.1 * factor.max(1.0).ln() + 1.0)),
            }
        }
        other => {
            return Err(ModelError::Unsupported { what: format!("{} {other:?}", m.name(meta::ROPE_TYPE)) });
        }
    };
    match (stored_factors(cx, dims)?, scaling) {
        (None, scaling) => Ok((dims, base, scaling)),
        (Some(factors), RopeScaling::None) => Ok((dims, base, RopeScaling::Factors(factors))),
        (Some(mut factors), RopeScaling::Linear { factor }) => {
            factors.iter_mut().for_each(|f| *f *= factor);
            Ok((dims, base, RopeScaling::Factors(factors)))
        }
        (Some(_), _) => {
            Err(ModelError::Unsupported { what: "rope_freqs.weight together with YaRN".to_owned() })
        }
    }
}

/// The tensor `rope_freqs.weight`, if the file has it: one divisor per rotated pair.
fn stored_factors(cx: &Context<'_>, dims: usize) -> Result<Option<Vec<f32>>, ModelError> {
    let name = "rope_freqs.weight";
    let Some(info) = cx.tensors.get(name) else { return Ok(None) };
    if info.ty != StoredType::Supported(TensorType::F32) {
        return Err(ModelError::TensorType { name: name.to_owned(), ty: info.ty.name().to_owned() });
    }
    if info.elements() != dims as u64 / 2 {
        let (expected, found) = (vec![dims as u64 / 2], info.shape.clone());
        return Err(ModelError::TensorShape { name: name.to_owned(), expected, found });
    }
    let mut bytes = vec![0; info.span.bytes as usize];
    let read = cx.source.read(&info.span, 0, &mut bytes);
    read.map_err(|source| ModelError::Weight { tensor: name.to_owned(), source })?;
    let factors: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
        let reason = "divisors must be finite and above zero".to_owned();
        return Err(ModelError::Invalid { key: name.to_owned(), reason });
    }
    Ok(Some(factors))
}

macro_rules! json_keys {
    ($($name:ident = $json:literal;)*) => {
        $(const $name: Key = Key { gguf: "", json: $json };)*
    };
}

json_keys! {
    FACTOR = "factor";
    LOW = "low_freq_factor";
    HIGH = "high_freq_factor";
    ORIGINAL = "original_max_position_embeddings";
    BETA_FAST = "beta_fast";
    BETA_SLOW = "beta_slow";
    ATTENTION = "attention_factor";
    MSCALE = "mscale";
    MSCALE_ALL = "mscale_all_dim";
}

/// `config.json` has either `rope_theta` with an optional `rope_scaling`, or (since transformers 5) `rope_parameters`,
/// which models with two rotary embeddings nest by layer type.
fn from_json(m: &Meta<'_>, head_dim: usize, layers: Layers) -> Result<(usize, f32, RopeScaling), ModelError> {
    let nested = match layers {
        Layers::Global => "full_attention",
        Layers::Local => "sliding_attention",
    };
    let all = m.object("rope_parameters");
    let by_type = all.and_then(|all| all.get(nested)).and_then(|v| v.as_object());
    let parameters = match layers {
        Layers::Global => by_type.or(all).or_else(|| m.object("rope_scaling")),
        // A flat object describes the global layers.
        Layers::Local => by_type,
    };
    let inner = parameters.map(Meta::nested);
    let inner_base = inner.map(|p| p.positive(meta::ROPE_BASE)).transpose()?.flatten();
    let base = match (inner_base, layers) {
        (Some(base), _) => base,
        (None, Layers::Global) => m.positive(meta::ROPE_BASE)?.unwrap_or(10_000.0),
        (None, Layers::Local) => m.positive(meta::ROPE_BASE_LOCAL)?.unwrap_or(10_000.0),
    };
    let inner_partial = inner.map(|p| p.positive(meta::ROPE_PARTIAL)).transpose()?.flatten();
    let partial = match inner_partial {
        Some(partial) => partial,
        None => m.positive(meta::ROPE_PARTIAL)?.unwrap_or(1.0),
    };
    let dims = (head_dim as f32 * partial) as usize;
    let scaling = inner.map(|p| json_scaling(m, &p)).transpose()?.unwrap_or(RopeScaling::None);
    Ok((dims, base, scaling))
}

fn json_scaling(m: &Meta<'_>, p: &Meta<'_>) -> Result<RopeScaling, ModelError> {
    let kind = p.json("rope_type").or_else(|| p.json("type")).and_then(|v| v.as_str()).unwrap_or("default");
    if kind == "default" {
        return Ok(RopeScaling::None);
    }
    let need = |key: Key| p.positive(key)?.ok_or_else(|| p.missing(key));
    let original = match p.size(ORIGINAL, usize::MAX)? {
        Some(context) => context,
        None => m.size(meta::CONTEXT, usize::MAX)?.ok_or_else(|| m.missing(meta::CONTEXT))?,
    };
    let factor = match p.positive(FACTOR)? {
        Some(factor) => factor,
        // transformers derives the factor of YaRN from the two contexts.
        None if kind == "yarn" && m.int(meta::CONTEXT)?.is_some() => {
            m.need_size(meta::CONTEXT, usize::MAX)? as f32 / original as f32
        }
        None => return Err(p.missing(FACTOR)),
    };
    check_factor(FACTOR.json, factor)?;
    match kind {
        "linear" => Ok(RopeScaling::Linear { factor }),
        "llama3" => {
            let (low, high) = (need(LOW)?, need(HIGH)?);
            if low >= high {
                return Err(p.invalid(HIGH, format!("{high} is not above low_freq_factor {low}")));
            }
            Ok(RopeScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context: original,
            })
        }
        "yarn" => {
            if p.json("truncate").and_then(|v| v.as_bool()) == Some(false) {
                return Err(ModelError::Unsupported { what: "YaRN with truncate = false".to_owned() });
            }
            Ok(RopeScaling::Yarn {
                factor,
                original_context: original,
                beta_fast: p.positive(BETA_FAST)?.unwrap_or(32.0),
                beta_slow: p.positive(BETA_SLOW)?.unwrap_or(1.0),
                attention_factor: yarn_magnitude(p, factor)?,
            })
        }
        other => Err(ModelError::Unsupported { what: format!("rope_type {other:?}") }),
    }
}

/// As transformers computes it: explicit, or from `mscale` and `mscale_all_dim`, or YaRN's own.
fn yarn_magnitude(p: &Meta<'_>, factor: f32) -> Result<Option<f32>, ModelError> {
    if let Some(magnitude) = p.positive(ATTENTION)? {
        return Ok(Some(magnitude));
    }
    let of = |mscale: f32| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    // transformers ignores the pair when either is zero.
    match (p.float(MSCALE)?, p.float(MSCALE_ALL)?) {
        (Some(a), Some(b)) if a != 0.0 && b != 0.0 => Ok(Some(of(a) / of(b))),
        _ => Ok(Some(of(1.0))),
    }
}

fn check_factor(key: &str, factor: f32) -> Result<(), ModelError> {
    if factor > 0.0 && factor.is_finite() {
        return Ok(());
    }
    Err(ModelError::Invalid { key: key.to_owned(), reason: format!("{factor} is not above zero") })
}
