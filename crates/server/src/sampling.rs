//! How tokens are chosen, from the fields of a request. All APIs use these names, Ollama's `options` too.

use serde_json::Value;
use unicorn_engine::{DryOptions, SamplingOptions};
use unicorn_model::Recommended;
use unicorn_text::{EncodeOptions, Tokenizer};

use crate::error::ApiError;
use crate::fields::{Fields, kind};

/// Stop strings of a request, at most.
const STOPS_MAX: usize = 64;
/// Bytes of a stop string, at most.
const STOP_BYTES_MAX: usize = 1024;
/// Tokens with a bias, at most.
const BIASES_MAX: usize = 4096;

/// Fields over the model's recommendations over the defaults. `seed` is used where no field names one.
pub(crate) fn options(
    fields: &Fields<'_>,
    recommended: &Recommended,
    tokenizer: &Tokenizer,
    seed: u64,
) -> Result<SamplingOptions, ApiError> {
    let default = SamplingOptions::default();
    let of = |name: &str, max: f64| fields.number(name, 0.0, max);
    let temperature = of("temperature", 100.0)?.or(recommended.temperature).unwrap_or(default.temperature);
    let top_k = match fields.integer("top_k", -1, i64::MAX)? {
        Some(k) => usize::try_from(k).unwrap_or(0),
        None => recommended.top_k.unwrap_or(default.top_k),
    };
    let repeat = match of("repeat_penalty", 10.0)? {
        Some(penalty) => Some(penalty),
        None => of("repetition_penalty", 10.0)?,
    };
    let penalty_last_n = match fields.integer("repeat_last_n", -1, i64::MAX)? {
        Some(n) => usize::try_from(n).ok(),
        None => default.penalty_last_n,
    };
    let dry = DryOptions {
        multiplier: of("dry_multiplier", 100.0)?.unwrap_or(0.0),
        base: fields.number("dry_base", 1.0, 100.0)?.unwrap_or(default.dry.base),
        allowed_length: fields.count("dry_allowed_length", 0, 1 << 20)?.unwrap_or(default.dry.allowed_length),
        penalty_last_n: match fields.integer("dry_penalty_last_n", -1, i64::MAX)? {
            Some(n) => usize::try_from(n).ok(),
            None => default.dry.penalty_last_n,
        },
        breakers: breakers(fields, tokenizer)?,
    };
    let seed = fields.integer("seed", i64::MIN, i64::MAX)?.filter(|s| *s != -1).map_or(seed, |s| s as u64);
    let options = SamplingOptions {
        temperature,
        top_k,
        top_p: of("top_p", 1.0)?.or(recommended.top_p).unwrap_or(default.top_p),
        min_p: of("min_p", 1.0)?.or(recommended.min_p).unwrap_or(default.min_p),
        typical_p: of("typical_p", 1.0)?.unwrap_or(default.typical_p),
        repeat_penalty: repeat.or(recommended.repeat_penalty).unwrap_or(default.repeat_penalty),
        presence_penalty: fields.number("presence_penalty", -100.0, 100.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -100.0, 100.0)?.unwrap_or(0.0),
        penalty_last_n,
        dry,
        logit_bias: biases(fields, tokenizer)?,
        seed,
    };
    options.validate().map_err(|error| ApiError::param(error.name, &error))?;
    Ok(options)
}

fn breakers(fields: &Fields<'_>, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
    let strings = fields.strings("dry_sequence_breakers", STOPS_MAX)?;
    if let Some(at) = strings.iter().position(|text| text.len() > STOP_BYTES_MAX) {
        let path = format!("dry_sequence_breakers[{at}]");
        return Err(fields.wrong(&path, format!("has more than {STOP_BYTES_MAX} bytes")));
    }
    let tokens = |text: &String| {
        let options = EncodeOptions { parse_special: false, add_special: false };
        tokenizer.encode(text, options).map_err(|error| fields.wrong("dry_sequence_breakers", error))
    };
    strings.iter().filter(|text| !text.is_empty()).map(tokens).collect()
}

/// `{"token id": bias}`, or llama.cpp's `[[id, bias]]`, where `false` bans the token.
fn biases(fields: &Fields<'_>, tokenizer: &Tokenizer) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(value) = fields.get("logit_bias") else { return Ok(Vec::new()) };
    let wrong = |message: String| fields.wrong("logit_bias", message);
    let pairs: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(id, bias)| (id.clone(), bias)).collect(),
        Value::Array(list) => {
            let pair = |entry: &'_ Value| match entry.as_array().map(Vec::as_slice) {
                Some([id, _]) => Some(id.to_string()),
                _ => None,
            };
            let pairs = list.iter().map(|entry| Some((pair(entry)?, entry.get(1)?)));
            pairs
                .collect::<Option<_>>()
                .ok_or_else(|| wrong("must be pairs of a token id and a bias".into()))?
        }
        other => return Err(wrong(format!("must be an object, not {}", kind(other)))),
    };
    if pairs.len() > BIASES_MAX {
        return Err(wrong(format!("has {} tokens, at most {BIASES_MAX} are taken", pairs.len())));
    }
    let entry = |(id, bias): (String, &Value)| {
        let token = id.parse::<u32>().ok().filter(|id| (*id as usize) < tokenizer.vocab_size());
        let token = token.ok_or_else(|| wrong(format!("{id} is no token id of this model")))?;
        let bias = match bias {
            Value::Bool(false) => Some(f32::NEG_INFINITY),
            // What OpenAI's documentation calls a ban.
            other => other
                .as_f64()
                .filter(|b| (-1e9..=1e9).contains(b))
                .map(|b| if b <= -100.0 { f32::NEG_INFINITY } else { b as f32 }),
        };
        Ok((token, bias.ok_or_else(|| wrong(format!("the bias of {id} must be a number")))?))
    };
    pairs.into_iter().map(entry).collect()
}

/// The stop strings in a field.
pub(crate) fn stops(fields: &Fields<'_>, name: &str) -> Result<Vec<String>, ApiError> {
    let stops = fields.strings(name, STOPS_MAX)?;
    if let Some(at) = stops.iter().position(String::is_empty) {
        return Err(fields.wrong(&format!("{name}[{at}]"), "must not be empty"));
    }
    if let Some(at) = stops.iter().position(|stop| stop.len() > STOP_BYTES_MAX) {
        return Err(fields.wrong(&format!("{name}[{at}]"), format!("has more than {STOP_BYTES_MAX} bytes")));
    }
    Ok(stops)
}

/// A seed that differs from request to request.
pub(crate) fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library's randomly keyed hasher is made anew for each call.
    RandomState::new().hash_one(0u8)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use unicorn_text::GgufVocabulary;

    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_gguf(GgufVocabulary {
            model: "gpt2".to_owned(),
            tokens: ["a", "b", "ab"].map(str::to_owned).to_vec(),
            merges: vec!["a b".to_owned()],
            ..GgufVocabulary::default()
        })
        .unwrap()
    }

    fn read(body: Value) -> Result<SamplingOptions, ApiError> {
        options(&Fields::of(&body).unwrap(), &Recommended::default(), &tokenizer(), 5)
    }

    #[test]
    fn fields_win_over_what_is_recommended() {
        let recommended = Recommended { temperature: Some(0.2), top_k: Some(7), ..Recommended::default() };
        let body = json!({"top_k": -1, "seed": 9, "repetition_penalty": 1.5, "repeat_last_n": -1});
        let read = options(&Fields::of(&body).unwrap(), &recommended, &tokenizer(), 5).unwrap();
        assert_eq!((read.temperature, read.top_k, read.seed), (0.2, 0, 9));
        assert_eq!((read.repeat_penalty, read.penalty_last_n), (1.5, None));
        assert_eq!(
            options(&Fields::of(&json!({"seed": -1})).unwrap(), &recommended, &tokenizer(), 5).unwrap().seed,
            5
        );
    }

    #[test]
    fn every_wrong_value_names_its_field() {
        for (body, param) in [
            (json!({"temperature": -1}), "temperature"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"top_p": 1.1}), "top_p"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"top_k": 0.5}), "top_k"),
            (json!({"seed": 1e30}), "seed"),
            (json!({"repeat_penalty": 0}), "repeat_penalty"),
            (json!({"logit_bias": {"3": 1}}), "logit_bias"),
            (json!({"logit_bias": {"-1": 1}}), "logit_bias"),
            (json!({"logit_bias": {"0": "x"}}), "logit_bias"),
            (json!({"logit_bias": [[0]]}), "logit_bias"),
            (json!({"logit_bias": 7}), "logit_bias"),
            (json!({"dry_sequence_breakers": ["x", "y".repeat(2000)]}), "dry_sequence_breakers[1]"),
        ] {
            assert_eq!(read(body.clone()).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
        let read = read(json!({"logit_bias": [[0, false], [1, 2]]})).unwrap();
        assert_eq!(read.logit_bias, [(0, f32::NEG_INFINITY), (1, 2.0)]);
    }

    #[test]
    fn stop_strings_are_bounded() {
        let read = |body: Value| stops(&Fields::of(&body).unwrap(), "stop");
        assert_eq!(read(json!({"stop": "x"})).unwrap(), ["x"]);
        assert_eq!(read(json!({"stop": null})).unwrap(), [] as [&str; 0]);
        assert_eq!(read(json!({"stop": ["a", ""]})).unwrap_err().param.as_deref(), Some("stop[1]"));
        assert!(
            read(json!({"stop": vec!["x"; 65]})).is_err() && read(json!({"stop": "x".repeat(2000)})).is_err()
        );
    }
}
