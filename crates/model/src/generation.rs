//! Sampling defaults that a model's authors recommend.

use serde_json::Value;

use crate::ModelError;
use crate::locate::{Located, read_json};

/// From `generation_config.json`, or `general.sampling.*` of a GGUF. Absent means: not recommended.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct GenerationDefaults {
    /// Softmax temperature; 0 is greedy.
    pub temperature: Option<f32>,
    /// Largest logits kept.
    pub top_k: Option<u32>,
    /// Probability mass kept.
    pub top_p: Option<f32>,
    /// Least probability kept, relative to the largest.
    pub min_p: Option<f32>,
    /// Divisor of the logits of repeated tokens.
    pub repeat_penalty: Option<f32>,
    /// Tokens that end an answer, beside those that the tokenizer names.
    pub stop_tokens: Vec<u32>,
}

/// Reads the defaults of a model. Values of a wrong type or out of range are an error that names the key.
pub(crate) fn defaults(located: &Located) -> Result<GenerationDefaults, ModelError> {
    match located {
        Located::Gguf(model) => {
            let float = |name: &str| model.head.float(&format!("general.sampling.{name}"));
            let top_k = model.head.get("general.sampling.top_k").and_then(|v| v.as_int());
            check(GenerationDefaults {
                temperature: float("temp")?,
                // Writers use 0 and -1 for all.
                top_k: top_k.and_then(|k| u32::try_from(k).ok()).filter(|k| *k > 0),
                top_p: float("top_p")?,
                min_p: float("min_p")?,
                repeat_penalty: float("penalty_repeat")?,
                stop_tokens: Vec::new(),
            })
        }
        Located::HuggingFace(model) => {
            let path = model.directory.join("generation_config.json");
            let Some(config) = read_json(&path)? else { return Ok(GenerationDefaults::default()) };
            let float = |key: &str| config.get(key).and_then(Value::as_f64).map(|v| v as f32);
            let greedy = config.get("do_sample").and_then(Value::as_bool) == Some(false);
            let token = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
            let stop_tokens = match config.get("eos_token_id") {
                Some(Value::Array(ids)) => ids.iter().filter_map(token).collect(),
                Some(id) => token(id).into_iter().collect(),
                None => Vec::new(),
            };
            let top_k = config.get("top_k").and_then(token).filter(|k| *k > 0);
            check(GenerationDefaults {
                temperature: if greedy { Some(0.0) } else { float("temperature") },
                top_k,
                top_p: float("top_p"),
                min_p: float("min_p"),
                repeat_penalty: float("repetition_penalty"),
                stop_tokens,
            })
        }
    }
}

fn check(d: GenerationDefaults) -> Result<GenerationDefaults, ModelError> {
    let share = |v: f32| (0.0..=1.0).contains(&v);
    let checks = [
        ("temperature", d.temperature, d.temperature.is_none_or(|v| v.is_finite() && v >= 0.0)),
        ("top_p", d.top_p, d.top_p.is_none_or(share)),
        ("min_p", d.min_p, d.min_p.is_none_or(share)),
        ("repeat_penalty", d.repeat_penalty, d.repeat_penalty.is_none_or(|v| v.is_finite() && v > 0.0)),
    ];
    for (key, value, ok) in checks {
        if !ok {
            let reason = format!("{} is out of range", value.unwrap_or_default());
            return Err(ModelError::Invalid { key: format!("sampling default {key}"), reason });
        }
    }
    Ok(d)
}
