//! Reading the fields of a request, each error with the path of the field.
//!
//! Fields that are absent or `null` have their defaults, unknown ones are not looked at.

use axum::http::StatusCode;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// An object of a request and where it stands in it.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

/// What a value is, for errors.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl<'a> Fields<'a> {
    /// The fields of a whole request.
    pub fn of(value: &'a Value) -> Result<Fields<'a>, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { map, path: String::new() }),
            other => Err(ApiError::bad_request(format!("the body must be an object, not {}", kind(other)))),
        }
    }

    /// The fields of an object at `path`.
    pub fn at(value: &'a Value, path: impl Into<String>) -> Result<Fields<'a>, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Fields { map, path }),
            other => Err(ApiError::param(path, format!("must be an object, not {}", kind(other)))),
        }
    }

    /// The path of a field.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// An error about a field.
    pub fn wrong(&self, name: &str, message: impl std::fmt::Display) -> ApiError {
        ApiError::param(self.path(name), message)
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn read<T>(
        &self,
        name: &str,
        wanted: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => {
                let found = match value {
                    Value::Number(number) => number.to_string(),
                    other => kind(other).to_owned(),
                };
                Err(self.wrong(name, format!("must be {wanted}, not {found}")))
            }
        }
    }

    pub fn str(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.read(name, "a string", Value::as_str)
    }

    pub fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        self.read(name, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(name).map(|value| Fields::at(value, self.path(name))).transpose()
    }

    /// A number within bounds.
    pub fn number(&self, name: &str, min: f64, max: f64) -> Result<Option<f32>, ApiError> {
        let wanted = format!("a number from {min} to {max}");
        let number = |value: &Value| value.as_f64().filter(|n| (min..=max).contains(n));
        Ok(self.read(name, &wanted, number)?.map(|n| n as f32))
    }

    /// A whole number within bounds; 3.0 is one.
    pub fn integer(&self, name: &str, min: i64, max: i64) -> Result<Option<i64>, ApiError> {
        let whole = |value: &Value| {
            let number = value.as_i64().or_else(|| {
                let number = value.as_f64()?;
                (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
            })?;
            (min..=max).contains(&number).then_some(number)
        };
        let wanted = match max {
            i64::MAX => format!("a whole number of at least {min}"),
            max => format!("a whole number from {min} to {max}"),
        };
        self.read(name, &wanted, whole)
    }

    /// As [`Fields::integer`], from 0.
    pub fn count(&self, name: &str, min: usize, max: usize) -> Result<Option<usize>, ApiError> {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        Ok(self.integer(name, min as i64, max)?.map(|n| n as usize))
    }

    /// One of some words.
    pub fn choice(&self, name: &str, words: &[&'static str]) -> Result<Option<&'static str>, ApiError> {
        let Some(word) = self.str(name)? else { return Ok(None) };
        let known = words.iter().find(|known| **known == word).copied();
        known.map(Some).ok_or_else(|| self.wrong(name, format!("must be one of {}", words.join(", "))))
    }

    /// A list of strings, or one alone.
    pub fn strings(&self, name: &str, max: usize) -> Result<Vec<String>, ApiError> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(list)) if list.len() > max => {
                Err(self.wrong(name, format!("has {} entries, at most {max} are taken", list.len())))
            }
            Some(Value::Array(list)) => {
                let text = |(i, value): (usize, &Value)| match value {
                    Value::String(text) => Ok(text.clone()),
                    other => {
                        Err(self
                            .wrong(&format!("{name}[{i}]"), format!("must be a string, not {}", kind(other))))
                    }
                };
                list.iter().enumerate().map(text).collect()
            }
            Some(other) => {
                Err(self.wrong(name, format!("must be a string or a list of strings, not {}", kind(other))))
            }
        }
    }

    /// A field that must be there.
    pub fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, ApiError> {
        value.ok_or_else(|| {
            let path = self.path(name);
            let error = ApiError::new(StatusCode::BAD_REQUEST, format!("{path}: is missing"));
            ApiError { param: Some(path), code: Some("missing_required_parameter"), ..error }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_name_the_field() {
        let body = json!({"t": 3.5, "n": -1, "big": 1e300, "huge": u64::MAX, "s": 1, "o": {"x": []}, "null": null, "w": 2.0});
        let fields = Fields::of(&body).unwrap();
        assert_eq!(
            fields.number("t", 0.0, 2.0).unwrap_err().message,
            "t: must be a number from 0 to 2, not 3.5"
        );
        assert_eq!(fields.count("n", 0, 9).unwrap_err().param.as_deref(), Some("n"));
        assert!(fields.count("big", 0, usize::MAX).is_err() && fields.count("huge", 0, usize::MAX).is_err());
        assert_eq!(fields.str("s").unwrap_err().message, "s: must be a string, not 1");
        let inner = fields.object("o").unwrap().unwrap();
        assert_eq!(inner.bool("x").unwrap_err().param.as_deref(), Some("o.x"));
        assert_eq!((fields.str("null").unwrap(), fields.count("w", 1, 4).unwrap()), (None, Some(2)));
        assert!(Fields::of(&json!([])).is_err());
    }

    #[test]
    fn lists_of_strings_are_bounded() {
        let body = json!({"one": "a", "two": ["a", "b"], "bad": ["a", 1], "many": ["a", "b", "c"]});
        let fields = Fields::of(&body).unwrap();
        assert_eq!(fields.strings("one", 2).unwrap(), ["a"]);
        assert_eq!(fields.strings("two", 2).unwrap(), ["a", "b"]);
        assert_eq!(fields.strings("bad", 2).unwrap_err().param.as_deref(), Some("bad[1]"));
        assert!(fields.strings("many", 2).unwrap_err().message.contains("3 entries"));
    }
}
