//! Rotary embedding parameters from either format.

use unicorn_core::rope::RopeScaling;
use unicorn_core::{RopeSpec, RopeStyle, TensorType};

use serde_json::{Map, Value};

use super::context::Context;
use super::keys::{self, GEMMA3_SIZES, ROPE_REFUSED};
use super::meta::Meta;
use crate::error::ModelError;
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
    let (dims, base, scaling) = match m.is_gguf() {
        true => from_gguf(cx, head_dim, layers)?,
        false => from_json(m, head_dim, layers)?,
    };
    if dims == 0 || dims % 2 != 0 || dims > head_dim {
        let reason = format!("{dims} rotary dimensions do not fit heads of {head_dim} elements");
        let key = m.name(if m.is_gguf() { keys::ROPE_DIMS } else { keys::ROPE_PARTIAL });
        return Err(ModelError::Invalid { key, reason });
    }
    let spec = RopeSpec::new(style, dims, base, &scaling);
    if !spec.magnitude.is_finite() || spec.frequencies.iter().any(|f| !f.is_finite()) {
        let reason = format!("base {base} with {scaling:?} gives no finite frequencies");
        return Err(ModelError::Invalid { key: m.name(keys::ROPE_BASE), reason });
    }
    Ok(spec)
}

fn from_gguf(
    cx: &Context<'_>,
    head_dim: usize,
    layers: Layers,
) -> Result<(usize, f32, RopeScaling), ModelError> {
    let m = &cx.meta;
    let dims = m.int(keys::ROPE_DIMS)?.unwrap_or(head_dim);
    if layers == Layers::Local {
        let dims = m.int(keys::ROPE_DIMS_LOCAL)?.unwrap_or(dims);
        return Ok((dims, m.need_positive(keys::ROPE_BASE_LOCAL)?, RopeScaling::None));
    }
    let base = m.need_positive(keys::ROPE_BASE)?;
    let scaling = gguf_scaling(m)?;
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

fn gguf_scaling(m: &Meta<'_>) -> Result<RopeScaling, ModelError> {
    let kind = m.string(keys::ROPE_TYPE)?;
    // A factor of zero means none.
    let factor = match m.positive_if_set(keys::ROPE_FACTOR)? {
        Some(factor) => factor,
        None if kind.is_none() => published_factor(m)?,
        None => {
            if matches!(kind.as_deref(), Some("linear" | "yarn")) && m.float(keys::ROPE_FACTOR)?.is_none() {
                m.notices.assumed(m.name(keys::ROPE_FACTOR), "1 is assumed, which is no scaling");
            }
            1.0
        }
    };
    match kind.as_deref().unwrap_or("linear") {
        "none" => Ok(RopeScaling::None),
        "linear" if factor == 1.0 => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor }),
        "yarn" => {
            let magnitude = m.positive(keys::ROPE_ATTENTION)?;
            Ok(RopeScaling::Yarn {
                factor,
                original_context: match m.size(keys::ROPE_CONTEXT, usize::MAX)? {
                    Some(context) => context,
                    None => m.need_size(keys::CONTEXT, usize::MAX)?,
                },
                beta_fast: m.positive(keys::ROPE_BETA_FAST)?.unwrap_or(32.0),
                beta_slow: m.positive(keys::ROPE_BETA_SLOW)?.unwrap_or(1.0),
                // GGUF stores a factor on top of YaRN's own.
                attention_factor: Some(magnitude.unwrap_or(1.0) * (0.1 * factor.max(1.0).ln() + 1.0)),
            })
        }
        other => Err(ModelError::Unsupported { what: format!("{} {other:?}", m.name(keys::ROPE_TYPE)) }),
    }
}

/// The factor where a file says nothing of scaling: none, save for the sizes of Gemma 3 that were published with one.
fn published_factor(m: &Meta<'_>) -> Result<f32, ModelError> {
    if m.architecture() != Some("gemma3") {
        return Ok(1.0);
    }
    let (layers, width) = (m.int(keys::LAYERS)?, m.int(keys::WIDTH)?);
    let size = GEMMA3_SIZES.iter().find(|s| (Some(s.0), Some(s.1)) == (layers, width));
    let factor = size.map_or(1.0, |s| s.3);
    if factor != 1.0 {
        let instead = format!("{factor} is assumed, which Gemma 3 of this size has");
        m.notices.assumed(m.name(keys::ROPE_FACTOR), instead);
    }
    Ok(factor)
}

/// The tensor `rope_freqs.weight`, if the file has it: one divisor per rotated pair.
fn stored_factors(cx: &Context<'_>, dims: usize) -> Result<Option<Vec<f32>>, ModelError> {
    let name = "rope_freqs.weight";
    let Some(info) = cx.tensors.and_then(|tensors| tensors.get(name)) else { return Ok(None) };
    if info.ty != StoredType::Supported(TensorType::F32) {
        return Err(ModelError::TensorType { name: name.to_owned(), ty: info.ty.name().to_owned() });
    }
    if info.elements() != dims as u64 / 2 {
        let (expected, found) = (vec![dims as u64 / 2], info.shape.clone());
        return Err(ModelError::TensorShape { name: name.to_owned(), expected, found });
    }
    let Some(source) = cx.source else { return Ok(None) };
    let mut bytes = vec![0; info.span.bytes as usize];
    let read = source.read(&info.span, 0, &mut bytes);
    read.map_err(|source| ModelError::Weight { tensor: name.to_owned(), source })?;
    let factors: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
        let reason = "divisors must be finite and above zero".to_owned();
        return Err(ModelError::Invalid { key: name.to_owned(), reason });
    }
    Ok(Some(factors))
}

/// `config.json` has either `rope_theta` with an optional `rope_scaling`, or (since transformers 5) `rope_parameters`,
/// which models with two rotary embeddings nest by layer type. Where both are there, `rope_scaling` holds.
fn from_json(m: &Meta<'_>, head_dim: usize, layers: Layers) -> Result<(usize, f32, RopeScaling), ModelError> {
    let parameters = parameters(m, layers)?;
    let inner = parameters.map(|(_, p)| m.nested(p));
    let inner_base = inner.map(|p| p.positive(keys::ROPE_BASE)).transpose()?.flatten();
    let base = match (inner_base, layers) {
        (Some(base), _) => base,
        (None, Layers::Global) => m.need_positive(keys::ROPE_BASE)?,
        (None, Layers::Local) => m.need_positive(keys::ROPE_BASE_LOCAL)?,
    };
    let inner_partial = inner.map(|p| p.positive(keys::ROPE_PARTIAL)).transpose()?.flatten();
    let partial = match inner_partial {
        Some(partial) => partial,
        None => m.positive(keys::ROPE_PARTIAL)?.unwrap_or(1.0),
    };
    let dims = (head_dim as f32 * partial) as usize;
    let scaling = parameters.map(|(object, p)| json_scaling(m, object, p)).transpose()?;
    Ok((dims, base, scaling.unwrap_or(RopeScaling::None)))
}

/// A JSON object and the key of `config.json` that it stands under.
type Named<'a> = (&'static str, &'a Map<String, Value>);

/// The object that describes the rotary embedding of these layers.
fn parameters<'a>(m: &Meta<'a>, layers: Layers) -> Result<Option<Named<'a>>, ModelError> {
    let named = |key: &'static str| m.object(key).map(|map| map.map(|map| (key, map)));
    let (older, newer) = (named("rope_scaling")?, named("rope_parameters")?);
    let older = older.filter(|(_, map)| !map.is_empty());
    let by_type = |(key, map): Named<'a>, name: &str| match map.get(name) {
        None => Ok(None),
        Some(_) => m.nested(map).object(name).map(|map| map.map(|map| (key, map))),
    };
    let is_nested = |(_, map): Named<'a>| {
        ["full_attention", "sliding_attention"].iter().any(|name| map.contains_key(*name))
    };
    match layers {
        Layers::Global => match (older, newer) {
            (Some(older), _) if !is_nested(older) => Ok(Some(older)),
            (Some(map), _) | (None, Some(map)) if is_nested(map) => by_type(map, "full_attention"),
            (_, newer) => Ok(newer),
        },
        // A flat object describes the global layers alone.
        Layers::Local => match newer.or(older).filter(|map| is_nested(*map)) {
            Some(map) => by_type(map, "sliding_attention"),
            None => Ok(None),
        },
    }
}

/// `object` is the key that `map` stands under.
fn json_scaling(m: &Meta<'_>, object: &str, map: &Map<String, Value>) -> Result<RopeScaling, ModelError> {
    let p = &m.nested(map);
    p.refuse(&ROPE_REFUSED)?;
    let named = p.string(keys::ROPE_TYPE)?;
    let kind = named.as_deref().unwrap_or("default");
    if kind == "default" {
        tell_unused(m, object, map, named.is_some());
        return Ok(RopeScaling::None);
    }
    // Beside the object it has priority over the one inside.
    let original = match (m.size(keys::ROPE_CONTEXT, usize::MAX)?, p.size(keys::ROPE_CONTEXT, usize::MAX)?) {
        (Some(context), _) | (None, Some(context)) => context,
        (None, None) => m.need_size(keys::CONTEXT, usize::MAX)?,
    };
    let factor = match p.positive(keys::ROPE_FACTOR)? {
        Some(factor) => factor,
        // transformers derives the factor of YaRN from the two contexts.
        None if kind == "yarn" => m.need_size(keys::CONTEXT, usize::MAX)? as f32 / original as f32,
        None => return Err(p.missing(keys::ROPE_FACTOR)),
    };
    match kind {
        "linear" => Ok(RopeScaling::Linear { factor }),
        "llama3" => {
            let (low, high) = (p.need_positive(keys::ROPE_LOW)?, p.need_positive(keys::ROPE_HIGH)?);
            if low >= high {
                return Err(p.invalid(keys::ROPE_HIGH, format!("{high} is not above low_freq_factor {low}")));
            }
            Ok(RopeScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context: original,
            })
        }
        "yarn" => Ok(RopeScaling::Yarn {
            factor,
            original_context: original,
            beta_fast: p.positive_if_set(keys::ROPE_BETA_FAST)?.unwrap_or(32.0),
            beta_slow: p.positive_if_set(keys::ROPE_BETA_SLOW)?.unwrap_or(1.0),
            attention_factor: yarn_magnitude(p, factor)?,
        }),
        other => Err(ModelError::Unsupported { what: format!("rope_type {other:?}") }),
    }
}

/// Names the parameters that have no effect where nothing is scaled. transformers takes a missing type as "default".
fn tell_unused(m: &Meta<'_>, object: &str, map: &Map<String, Value>, typed: bool) {
    let used = [keys::ROPE_TYPE, keys::ROPE_BASE, keys::ROPE_PARTIAL];
    let unused = map.iter().filter(|(key, value)| {
        !value.is_null() && !used.iter().any(|used| used.json.contains(&key.as_str()))
    });
    let unused: Vec<String> = unused.map(|(key, _)| format!("{object}.{key}")).collect();
    if unused.is_empty() {
        return;
    }
    let reason = match typed {
        true => "rope_type \"default\" scales nothing".to_owned(),
        false => format!("{object} has no rope_type, which counts as \"default\": nothing is scaled"),
    };
    m.notices.ignored(unused.join(", "), reason);
}

/// As transformers computes it: explicit, or from `mscale` and `mscale_all_dim`, or YaRN's own.
fn yarn_magnitude(p: &Meta<'_>, factor: f32) -> Result<Option<f32>, ModelError> {
    if let Some(magnitude) = p.positive(keys::ROPE_ATTENTION)? {
        return Ok(Some(magnitude));
    }
    let of = |mscale: f32| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    // transformers ignores the pair when either is zero.
    match (p.float(keys::ROPE_MSCALE)?, p.float(keys::ROPE_MSCALE_ALL)?) {
        (Some(a), Some(b)) if a != 0.0 && b != 0.0 => Ok(Some(of(a) / of(b))),
        _ => Ok(Some(of(1.0))),
    }
}
