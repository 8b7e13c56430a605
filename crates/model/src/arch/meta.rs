//! Hyperparameters by key, from GGUF metadata or from a Hugging Face `config.json`.

use serde_json::{Map, Value};

use crate::ModelError;
use crate::gguf::{Gguf, GgufError, Value as GgufValue};

/// One hyperparameter: its GGUF name after the architecture prefix, and its name in `config.json`. An empty name
/// does not exist in that format.
#[derive(Clone, Copy)]
pub(super) struct Key {
    pub gguf: &'static str,
    pub json: &'static str,
}

macro_rules! keys {
    ($($name:ident = $gguf:literal, $json:literal;)*) => {
        $(pub(super) const $name: Key = Key { gguf: $gguf, json: $json };)*
    };
}

keys! {
    WIDTH = "embedding_length", "hidden_size";
    LAYERS = "block_count", "num_hidden_layers";
    HIDDEN = "feed_forward_length", "intermediate_size";
    HEADS = "attention.head_count", "num_attention_heads";
    KV_HEADS = "attention.head_count_kv", "num_key_value_heads";
    HEAD_DIM = "attention.key_length", "head_dim";
    VALUE_DIM = "attention.value_length", "";
    CONTEXT = "context_length", "max_position_embeddings";
    NORM_EPS = "attention.layer_norm_rms_epsilon", "rms_norm_eps";
    VOCAB = "vocab_size", "vocab_size";
    EXPERTS = "expert_count", "num_local_experts";
    WINDOW = "attention.sliding_window", "sliding_window";
    WINDOW_PATTERN = "attention.sliding_window_pattern", "sliding_window_pattern";
    ATTENTION_SCALE = "attention.scale", "";
    QUERY_SCALAR = "", "query_pre_attn_scalar";
    ATTENTION_SOFT_CAP = "attn_logit_softcapping", "attn_logit_softcapping";
    FINAL_SOFT_CAP = "final_logit_softcapping", "final_logit_softcapping";
    ROPE_DIMS = "rope.dimension_count", "";
    ROPE_BASE = "rope.freq_base", "rope_theta";
    ROPE_BASE_LOCAL = "rope.freq_base_swa", "rope_local_base_freq";
    ROPE_PARTIAL = "", "partial_rotary_factor";
    ROPE_TYPE = "rope.scaling.type", "";
    ROPE_FACTOR = "rope.scaling.factor", "";
    ROPE_FACTOR_OLD = "rope.scale_linear", "";
    ROPE_CONTEXT = "rope.scaling.original_context_length", "";
    ROPE_ATTENTION = "rope.scaling.attn_factor", "";
    ROPE_BETA_FAST = "rope.scaling.yarn_beta_fast", "";
    ROPE_BETA_SLOW = "rope.scaling.yarn_beta_slow", "";
    ROPE_YARN_LOG_MUL = "rope.scaling.yarn_log_multiplier", "";
}

/// Where the hyperparameters come from.
#[derive(Clone, Copy)]
pub(super) enum Meta<'a> {
    Gguf { file: &'a Gguf, prefix: &'a str },
    Json { config: &'a Map<String, Value>, defaults: &'static [(&'static str, f64)] },
}

impl<'a> Meta<'a> {
    pub fn is_gguf(&self) -> bool {
        matches!(self, Meta::Gguf { .. })
    }

    /// The key's full name in this file, for messages.
    pub fn name(&self, key: Key) -> String {
        match self {
            Meta::Gguf { prefix, .. } => format!("{prefix}.{}", key.gguf),
            Meta::Json { .. } => key.json.to_owned(),
        }
    }

    pub fn missing(&self, key: Key) -> ModelError {
        ModelError::MissingKey { key: self.name(key) }
    }

    pub fn invalid(&self, key: Key, reason: impl Into<String>) -> ModelError {
        ModelError::Invalid { key: self.name(key), reason: reason.into() }
    }

    fn lookup(&self, key: Key) -> Option<Field<'a>> {
        match self {
            Meta::Gguf { .. } if key.gguf.is_empty() => None,
            Meta::Gguf { file, .. } => file.get(&self.name(key)).map(Field::Gguf),
            Meta::Json { config, defaults } => match config.get(key.json) {
                Some(Value::Null) | None => {
                    let default = defaults.iter().find(|d| d.0 == key.json);
                    default.map(|d| Field::Default(d.1))
                }
                Some(value) => Some(Field::Json(value)),
            },
        }
    }

    /// The JSON object of this name, if this is JSON and it is there.
    pub fn object(&self, name: &str) -> Option<&'a Map<String, Value>> {
        match self {
            Meta::Json { config, .. } => config.get(name)?.as_object(),
            Meta::Gguf { .. } => None,
        }
    }

    /// The JSON value of this name, if this is JSON and it is there and not null.
    pub fn json(&self, name: &str) -> Option<&'a Value> {
        match self {
            Meta::Json { config, .. } => config.get(name).filter(|v| !v.is_null()),
            Meta::Gguf { .. } => None,
        }
    }

    /// The same source seen through a nested JSON object.
    pub fn nested(config: &'a Map<String, Value>) -> Meta<'a> {
        Meta::Json { config, defaults: &[] }
    }

    pub fn int(&self, key: Key) -> Result<Option<usize>, ModelError> {
        self.lookup(key).map(|f| f.int(&self.name(key))).transpose()
    }

    pub fn float(&self, key: Key) -> Result<Option<f32>, ModelError> {
        let Some(field) = self.lookup(key) else { return Ok(None) };
        let value = field.float().ok_or_else(|| field.wrong(&self.name(key), "a number"))?;
        if !(value as f32).is_finite() {
            return Err(self.invalid(key, format!("{value} is not a finite number")));
        }
        Ok(Some(value as f32))
    }

    /// A float that must be above zero.
    pub fn positive(&self, key: Key) -> Result<Option<f32>, ModelError> {
        match self.float(key)? {
            Some(v) if v <= 0.0 => Err(self.invalid(key, format!("{v} is not above zero"))),
            other => Ok(other),
        }
    }

    /// A soft cap; zero means none.
    pub fn soft_cap(&self, key: Key) -> Result<Option<f32>, ModelError> {
        match self.float(key)? {
            Some(v) if v < 0.0 => Err(self.invalid(key, format!("{v} is below zero"))),
            other => Ok(other.filter(|v| *v != 0.0)),
        }
    }

    /// An integer in `1..=max`.
    pub fn size(&self, key: Key, max: usize) -> Result<Option<usize>, ModelError> {
        self.int(key)?.map(|v| self.check_size(key, v, max)).transpose()
    }

    /// A required integer in `1..=max`.
    pub fn need_size(&self, key: Key, max: usize) -> Result<usize, ModelError> {
        self.size(key, max)?.ok_or_else(|| self.missing(key))
    }

    fn check_size(&self, key: Key, value: usize, max: usize) -> Result<usize, ModelError> {
        match value {
            0 => Err(self.invalid(key, "must be at least 1")),
            v if v > max => Err(self.invalid(key, format!("{v} is more than the limit of {max}"))),
            v => Ok(v),
        }
    }

    /// A size per layer: one number for all, or an array with one for each.
    pub fn sizes(&self, key: Key, layers: usize, max: usize) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(field) = self.lookup(key) else { return Ok(None) };
        let name = self.name(key);
        let values = match field.list() {
            None => vec![field.int(&name)?; layers],
            Some(len) if len != layers => {
                return Err(self.invalid(key, format!("{len} entries for {layers} layers")));
            }
            Some(_) => field.ints(&name)?,
        };
        values.into_iter().map(|v| self.check_size(key, v, max)).collect::<Result<_, _>>().map(Some)
    }

    /// A flag per layer, if the value is an array of bools.
    pub fn flags(&self, key: Key, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        let Some(field) = self.lookup(key) else { return Ok(None) };
        let Some(len) = field.list() else { return Ok(None) };
        if len != layers {
            return Err(self.invalid(key, format!("{len} entries for {layers} layers")));
        }
        field.flags().map(Some).ok_or_else(|| field.wrong(&self.name(key), "an array of bool"))
    }

    pub fn string(&self, key: Key) -> Result<Option<String>, ModelError> {
        match self.lookup(key) {
            None => Ok(None),
            Some(Field::Gguf(GgufValue::String(text))) => Ok(Some(text.into_owned())),
            Some(Field::Json(Value::String(text))) => Ok(Some(text.clone())),
            Some(other) => Err(other.wrong(&self.name(key), "a string")),
        }
    }
}

/// A value of either format.
enum Field<'a> {
    Gguf(GgufValue<'a>),
    Json(&'a Value),
    Default(f64),
}

impl Field<'_> {
    fn wrong(&self, key: &str, expected: &'static str) -> ModelError {
        let found = match self {
            Field::Gguf(value) => value.type_name(),
            Field::Json(Value::String(_)) => "a string".to_owned(),
            Field::Json(Value::Array(_)) => "an array".to_owned(),
            Field::Json(Value::Object(_)) => "an object".to_owned(),
            Field::Json(value) => value.to_string(),
            Field::Default(value) => value.to_string(),
        };
        ModelError::WrongType { key: key.to_owned(), expected, found }
    }

    fn int(&self, key: &str) -> Result<usize, ModelError> {
        let value = match self {
            Field::Gguf(value) => value.as_int(),
            Field::Json(value) => value.as_i64().map(i128::from).or(value.as_u64().map(i128::from)),
            Field::Default(value) => Some(*value as i128),
        };
        let value = value.ok_or_else(|| self.wrong(key, "an integer"))?;
        usize::try_from(value).map_err(|_| ModelError::Invalid {
            key: key.to_owned(),
            reason: format!("{value} is out of range"),
        })
    }

    fn float(&self) -> Option<f64> {
        match self {
            Field::Gguf(value) => value.as_float(),
            Field::Json(value) => value.as_f64(),
            Field::Default(value) => Some(*value),
        }
    }

    /// Number of elements, if this is an array.
    fn list(&self) -> Option<usize> {
        match self {
            Field::Gguf(GgufValue::Array(array)) => Some(array.len()),
            Field::Json(Value::Array(array)) => Some(array.len()),
            _ => None,
        }
    }

    fn ints(&self, key: &str) -> Result<Vec<usize>, ModelError> {
        match self {
            Field::Gguf(GgufValue::Array(array)) => array.iter().map(|v| Field::Gguf(v).int(key)).collect(),
            Field::Json(Value::Array(array)) => array.iter().map(|v| Field::Json(v).int(key)).collect(),
            _ => Err(self.wrong(key, "an array")),
        }
    }

    fn flags(&self) -> Option<Vec<bool>> {
        match self {
            // Some writers store flags as integers.
            Field::Gguf(GgufValue::Array(array)) => array
                .iter()
                .map(|v| match v {
                    GgufValue::Bool(b) => Some(b),
                    other => other.as_int().map(|i| i != 0),
                })
                .collect(),
            Field::Json(Value::Array(array)) => array.iter().map(Value::as_bool).collect(),
            _ => None,
        }
    }
}

impl From<GgufError> for ModelError {
    /// For errors about a key's value, which need no path to be understood.
    fn from(error: GgufError) -> ModelError {
        match error {
            GgufError::MissingKey { key } => ModelError::MissingKey { key },
            GgufError::WrongType { key, expected, found } => ModelError::WrongType { key, expected, found },
            other => ModelError::Invalid { key: "metadata".to_owned(), reason: other.to_string() },
        }
    }
}
