//! How long a model stays loaded: `keep_alive`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::app::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::registry::InUse;

/// How long a model stays after the request. `None`, where nothing or something negative is said, is until its memory is wanted for another.
pub(super) fn keep_alive(fields: &Fields<'_>) -> Result<Option<Duration>, ApiError> {
    let seconds = match fields.get("keep_alive") {
        None => return Ok(None),
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => seconds(text.trim()),
        Some(_) => None,
    };
    let seconds = seconds.filter(|seconds| seconds.is_finite()).ok_or_else(|| {
        fields.wrong("keep_alive", "must be a number of seconds or a duration such as \"5m\" or \"1h30m\"")
    })?;
    // More than this many years are for ever.
    const SECONDS_MAX: f64 = 1e10;
    Ok((0.0..SECONDS_MAX).contains(&seconds).then(|| Duration::from_secs_f64(seconds)))
}

/// A duration as Go writes it, or seconds.
fn seconds(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Some(seconds);
    }
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    const UNITS: [(&str, f64); 7] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let count: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (name, unit) = UNITS.iter().find(|(name, _)| {
            rest.strip_prefix(name).is_some_and(|after| !after.starts_with(|c: char| c.is_alphabetic()))
        })?;
        rest = &rest[name.len()..];
        sum += count * unit;
    }
    (!text.is_empty()).then_some(sign * sum)
}

/// A model in use for one request; when that ends, however it ends, the model stays for as long as was asked.
pub(super) struct Kept {
    app: Arc<App>,
    model: Option<InUse>,
    stay: Option<Duration>,
}

impl Kept {
    pub fn new(app: &Arc<App>, model: &InUse, stay: Option<Duration>) -> Kept {
        Kept { app: app.clone(), model: Some(model.clone()), stay }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let (Some(model), Some(stay)) = (self.model.take(), self.stay) {
            self.app.registry.let_go(model, stay);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_of_many_forms_are_read() {
        let read = |value: Value| keep_alive(&Fields::of(&json!({"keep_alive": value})).unwrap());
        for (value, expected) in [
            (Value::Null, None),
            (json!(-1), None),
            (json!("-1"), None),
            (json!("-1m"), None),
            (json!(0), Some(0.0)),
            (json!("0"), Some(0.0)),
            (json!("0s"), Some(0.0)),
            (json!("5"), Some(5.0)),
            (json!(2.5), Some(2.5)),
            (json!("5m"), Some(300.0)),
            (json!("1h30m"), Some(5400.0)),
            (json!("1.5s"), Some(1.5)),
            (json!("300ms"), Some(0.3)),
            (json!("10000000h"), None),
        ] {
            assert_eq!(read(value.clone()).unwrap(), expected.map(Duration::from_secs_f64), "{value}");
        }
        for value in
            [json!("soon"), json!(""), json!("5x"), json!("m"), json!([]), json!("5mm"), json!("inf")]
        {
            assert_eq!(read(value.clone()).unwrap_err().param.as_deref(), Some("keep_alive"), "{value}");
        }
    }
}
