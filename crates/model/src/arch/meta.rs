//! Hyperparameters by key, from GGUF metadata or from a Hugging Face `config.json`.

use serde_json::{Map, Value};

use super::keys::{self, Class, Key, Neutral};
use crate::error::ModelError;
use crate::gguf::{Gguf, Value as GgufValue};
use crate::notice::Notices;

/// Where the hyperparameters come from, and where guesses are noted.
#[derive(Clone, Copy)]
pub(super) struct Meta<'a> {
    source: Source<'a>,
    pub notices: &'a Notices,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Gguf {
        file: &'a Gguf,
        architecture: &'a str,
    },
    /// Without a class there are no defaults.
    Json {
        config: &'a Map<String, Value>,
        class: Option<Class>,
    },
}

impl<'a> Meta<'a> {
    pub fn gguf(file: &'a Gguf, architecture: &'a str, notices: &'a Notices) -> Meta<'a> {
        Meta { source: Source::Gguf { file, architecture }, notices }
    }

    pub fn json(config: &'a Map<String, Value>, class: Class, notices: &'a Notices) -> Meta<'a> {
        Meta { source: Source::Json { config, class: Some(class) }, notices }
    }

    /// The same file seen through a nested JSON object, which has no defaults.
    pub fn nested(&self, config: &'a Map<String, Value>) -> Meta<'a> {
        Meta { source: Source::Json { config, class: None }, notices: self.notices }
    }

    pub fn is_gguf(&self) -> bool {
        self.file().is_some()
    }

    /// The GGUF metadata, if this is GGUF.
    pub fn file(&self) -> Option<&'a Gguf> {
        match self.source {
            Source::Gguf { file, .. } => Some(file),
            Source::Json { .. } => None,
        }
    }

    /// `general.architecture`, if this is GGUF.
    pub fn architecture(&self) -> Option<&'a str> {
        match self.source {
            Source::Gguf { architecture, .. } => Some(architecture),
            Source::Json { .. } => None,
        }
    }

    /// The class of `transformers`, if this is a `config.json`.
    pub fn class(&self) -> Option<Class> {
        match self.source {
            Source::Gguf { .. } => None,
            Source::Json { class, .. } => class,
        }
    }

    /// The key's full name for messages: the one that the file uses, else the usual one.
    pub fn name(&self, key: Key) -> String {
        let names = if self.is_gguf() { key.gguf } else { key.json };
        let used = names.iter().find(|name| match self.source {
            Source::Gguf { file, .. } => file.get(&self.full(name)).is_some(),
            Source::Json { config, .. } => config.contains_key(**name),
        });
        self.full(used.or(names.first()).unwrap_or(&""))
    }

    fn full(&self, name: &str) -> String {
        match self.source {
            Source::Gguf { architecture, .. } => format!("{architecture}.{name}"),
            Source::Json { .. } => name.to_owned(),
        }
    }

    pub fn missing(&self, key: Key) -> ModelError {
        ModelError::MissingKey { key: self.name(key) }
    }

    pub fn invalid(&self, key: Key, reason: impl Into<String>) -> ModelError {
        ModelError::Invalid { key: self.name(key), reason: reason.into() }
    }

    /// The value in the file, if it is there and not null. Two names of one key must agree.
    pub fn stored(&self, key: Key) -> Result<Option<Field<'a>>, ModelError> {
        let mut found: Option<(&str, Field<'a>)> = None;
        let names = if self.is_gguf() { key.gguf } else { key.json };
        for name in names {
            let field = match self.source {
                Source::Gguf { file, .. } => file.get(&self.full(name)).map(Field::Gguf),
                Source::Json { config, .. } => config.get(*name).filter(|v| !v.is_null()).map(Field::Json),
            };
            match (&found, field) {
                (None, Some(field)) => found = Some((name, field)),
                (Some((first, a)), Some(b)) if !a.agrees(&b) => {
                    let reason = format!("contradicts {}", self.full(first));
                    return Err(ModelError::Invalid { key: self.full(name), reason });
                }
                _ => {}
            }
        }
        Ok(found.map(|(_, field)| field))
    }

    /// The value in the file, else the default of the class or architecture.
    fn lookup(&self, key: Key) -> Result<Option<Field<'a>>, ModelError> {
        if self.class().is_some_and(|class| keys::without_effect(class).contains(&key)) {
            return Ok(None);
        }
        if let Some(field) = self.stored(key)? {
            return Ok(Some(field));
        }
        Ok(match self.source {
            Source::Gguf { architecture, .. } => {
                keys::gguf_default(architecture, key).map(|(value, guess)| {
                    if guess {
                        let instead = format!(
                            "{value} is assumed, which most models of architecture {architecture} have"
                        );
                        self.notices.assumed(self.name(key), instead);
                    }
                    Field::Default(value)
                })
            }
            // A null is a value: "none".
            Source::Json { config, .. } if key.json.iter().any(|name| config.contains_key(*name)) => None,
            Source::Json { class, .. } => {
                class.and_then(|class| keys::config_default(class, key)).map(Field::Default)
            }
        })
    }

    /// The JSON object of this name, if this is JSON and it is there and not null.
    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ModelError> {
        let Source::Json { config, .. } = self.source else { return Ok(None) };
        match config.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(Field::Json(other).wrong(name, "an object")),
        }
    }

    pub fn int(&self, key: Key) -> Result<Option<usize>, ModelError> {
        self.lookup(key)?.map(|f| f.int(&self.name(key))).transpose()
    }

    pub fn float(&self, key: Key) -> Result<Option<f32>, ModelError> {
        let Some(field) = self.lookup(key)? else { return Ok(None) };
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

    /// A required float above zero.
    pub fn need_positive(&self, key: Key) -> Result<f32, ModelError> {
        self.positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// A float above zero; zero means that it is not set.
    pub fn positive_if_set(&self, key: Key) -> Result<Option<f32>, ModelError> {
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
        let Some(values) = self.counts(key, layers, max)? else { return Ok(None) };
        values.into_iter().map(|v| self.check_size(key, v, max)).collect::<Result<_, _>>().map(Some)
    }

    /// The same, but 0 is a size too.
    pub fn counts(&self, key: Key, layers: usize, max: usize) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(field) = self.lookup(key)? else { return Ok(None) };
        let name = self.name(key);
        let values = match field.list() {
            None => vec![field.int(&name)?; layers],
            Some(len) if len != layers => {
                return Err(self.invalid(key, format!("{len} entries for {layers} layers")));
            }
            Some(_) => field.ints(&name)?,
        };
        let check = |v| if v == 0 { Ok(0) } else { self.check_size(key, v, max) };
        values.into_iter().map(check).collect::<Result<_, _>>().map(Some)
    }

    /// A list of integers of any length.
    pub fn ints(&self, key: Key) -> Result<Option<Vec<usize>>, ModelError> {
        self.lookup(key)?.map(|field| field.ints(&self.name(key))).transpose()
    }

    /// A flag per layer, if the value is an array of bools.
    pub fn flags(&self, key: Key, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        let Some(field) = self.lookup(key)? else { return Ok(None) };
        let Some(len) = field.list() else { return Ok(None) };
        if len != layers {
            return Err(self.invalid(key, format!("{len} entries for {layers} layers")));
        }
        field.flags().map(Some).ok_or_else(|| field.wrong(&self.name(key), "an array of bool"))
    }

    pub fn flag(&self, key: Key) -> Result<Option<bool>, ModelError> {
        let Some(field) = self.lookup(key)? else { return Ok(None) };
        field.flag().map(Some).ok_or_else(|| field.wrong(&self.name(key), "a bool"))
    }

    pub fn string(&self, key: Key) -> Result<Option<String>, ModelError> {
        match self.lookup(key)? {
            None => Ok(None),
            Some(Field::Gguf(GgufValue::String(text))) => Ok(Some(text.into_owned())),
            Some(Field::Json(Value::String(text))) => Ok(Some(text.clone())),
            Some(other) => Err(other.wrong(&self.name(key), "a string")),
        }
    }

    /// A list of strings; only JSON has such keys.
    pub fn strings(&self, key: Key) -> Result<Option<Vec<&'a str>>, ModelError> {
        let field = self.lookup(key)?;
        let wrong = |field: Field<'a>| field.wrong(&self.name(key), "an array of strings");
        match field {
            None => Ok(None),
            Some(Field::Json(Value::Array(list))) => {
                let texts = list.iter().map(|v| v.as_str().ok_or_else(|| wrong(Field::Json(v))));
                texts.collect::<Result<_, _>>().map(Some)
            }
            Some(other) => Err(wrong(other)),
        }
    }

    /// Refuses the keys of a table whose values are not the neutral ones, by name.
    pub fn refuse(&self, table: &[(&str, Neutral)]) -> Result<(), ModelError> {
        for (name, neutral) in table {
            let field = match self.source {
                Source::Gguf { file, .. } => file.get(&self.full(name)).map(Field::Gguf),
                Source::Json { config, .. } => config.get(*name).filter(|v| !v.is_null()).map(Field::Json),
            };
            let Some(field) = field.filter(|field| !field.is_neutral(*neutral)) else { continue };
            let what = format!("{} = {}", self.full(name), field.brief());
            let what = if name.contains("expert") { format!("a mixture of experts ({what})") } else { what };
            return Err(ModelError::Unsupported { what });
        }
        Ok(())
    }

    /// Notes the keys that nothing acts on.
    pub fn note_ignored(&self) -> Result<(), ModelError> {
        match self.source {
            Source::Gguf { file, architecture } => {
                let prefix = format!("{architecture}.");
                let unknown = |key: &&str| key.strip_prefix(&prefix).is_some_and(|n| !keys::is_known_gguf(n));
                let unknown: Vec<&str> = file.metadata().map(|(key, _)| key).filter(unknown).collect();
                if !unknown.is_empty() {
                    self.notices.ignored(unknown.join(", "), "the key is not known");
                }
            }
            Source::Json { class: Some(class), .. } => {
                for key in keys::without_effect(class) {
                    if self.stored(*key)?.is_some_and(|field| !field.is_neutral(Neutral::Off)) {
                        let reason = format!("the class {class:?} of transformers does not read it");
                        self.notices.ignored(self.name(*key), reason);
                    }
                }
            }
            Source::Json { .. } => {}
        }
        Ok(())
    }
}

/// A value of either format.
#[derive(Debug)]
pub(super) enum Field<'a> {
    Gguf(GgufValue<'a>),
    Json(&'a Value),
    Default(f64),
}

impl Field<'_> {
    pub fn wrong(&self, key: &str, expected: &'static str) -> ModelError {
        ModelError::WrongType { key: key.to_owned(), expected, found: self.brief() }
    }

    /// The value where it is short, else its type.
    fn brief(&self) -> String {
        match self {
            Field::Gguf(value @ (GgufValue::String(_) | GgufValue::Array(_))) => value.type_name(),
            Field::Gguf(value) => value.to_string(),
            Field::Json(Value::String(_)) => "a string".to_owned(),
            Field::Json(Value::Array(_)) => "an array".to_owned(),
            Field::Json(Value::Object(_)) => "an object".to_owned(),
            Field::Json(value) => value.to_string(),
            Field::Default(value) => value.to_string(),
        }
    }

    /// Whether two names of one key say the same. Values that are no numbers are compared as they stand.
    fn agrees(&self, other: &Field<'_>) -> bool {
        match (self.float(), other.float()) {
            (Some(a), Some(b)) => a as f32 == b as f32,
            _ => match (self, other) {
                (Field::Gguf(a), Field::Gguf(b)) => a == b,
                (Field::Json(a), Field::Json(b)) => a == b,
                _ => false,
            },
        }
    }

    /// Whether a key that is not implemented changes nothing with this value.
    fn is_neutral(&self, neutral: Neutral) -> bool {
        let number = self.float().or(self.flag().map(f64::from));
        match (number, neutral) {
            (Some(v), Neutral::Off) => v == 0.0,
            (Some(v), Neutral::One) => v == 1.0 || v == 0.0,
            (Some(v), Neutral::On) => v == 1.0,
            (None, Neutral::Off) => match self {
                Field::Gguf(GgufValue::String(text)) => text.is_empty(),
                Field::Gguf(GgufValue::Array(list)) => list.is_empty(),
                Field::Json(Value::String(text)) => text.is_empty(),
                Field::Json(Value::Array(list)) => list.is_empty(),
                Field::Json(Value::Object(map)) => map.is_empty(),
                _ => false,
            },
            (None, _) => false,
        }
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

    fn flag(&self) -> Option<bool> {
        match self {
            Field::Gguf(GgufValue::Bool(value)) | Field::Json(Value::Bool(value)) => Some(*value),
            Field::Default(value) => Some(*value != 0.0),
            _ => None,
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
