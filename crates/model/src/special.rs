//! Which tokens begin and end a text, gathered from every file of a model that says so.
//!
//! A recommendation that cannot be followed is dropped with a notice: the others still end an answer.

use std::path::Path;

use serde_json::{Map, Value};
use unicorn_text::{SpecialTokens, TokenName};

use crate::gguf::{Gguf, Value as GgufValue};
use crate::json::read_json;
use crate::locate::HuggingFaceModel;
use crate::notice::{Notice, Notices};

/// Ids that a GGUF file names.
#[derive(Default)]
pub(crate) struct GgufIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unk: Option<u32>,
    pub sep: Option<u32>,
    pub pad: Option<u32>,
    pub mask: Option<u32>,
    pub cls: Option<u32>,
    /// Of `eos_token_ids`, which lists all that end an answer.
    pub ends: Vec<u32>,
}

/// Reads the `tokenizer.ggml.*_token_id` keys.
pub(crate) fn gguf_ids(file: &Gguf, notices: &Notices) -> GgufIds {
    let tokens = match file.get("tokenizer.ggml.tokens") {
        Some(GgufValue::Array(array)) => array.len(),
        _ => return GgufIds::default(),
    };
    let id = |name: &str| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let value = file.get(&key)?;
        one_gguf_id(&key, &value, tokens, notices)
    };
    GgufIds {
        bos: id("bos"),
        eos: id("eos"),
        eot: id("eot"),
        eom: id("eom"),
        unk: id("unknown"),
        // Spelt so in files.
        sep: id("seperator"),
        pad: id("padding"),
        mask: id("mask"),
        cls: id("cls"),
        ends: many_gguf_ids(file, tokens, notices),
    }
}

fn one_gguf_id(key: &str, value: &GgufValue<'_>, tokens: usize, notices: &Notices) -> Option<u32> {
    let Some(id) = value.as_int() else {
        notices.dropped(key, format!("expected an id, found {}", value.type_name()));
        return None;
    };
    // Some writers store an absent token as -1 or as the largest u32.
    if id == -1 || id == u32::MAX.into() {
        return None;
    }
    checked(id, key, Some(tokens), notices)
}

fn many_gguf_ids(file: &Gguf, tokens: usize, notices: &Notices) -> Vec<u32> {
    let key = "tokenizer.ggml.eos_token_ids";
    match file.get(key) {
        None => Vec::new(),
        Some(GgufValue::Array(array)) => {
            array.iter().filter_map(|value| one_gguf_id(key, &value, tokens, notices)).collect()
        }
        Some(value) => one_gguf_id(key, &value, tokens, notices).into_iter().collect(),
    }
}

/// The id, unless it is no token's. Without `tokens` only what no vocabulary reaches is refused.
fn checked(id: i128, key: &str, tokens: Option<usize>, notices: &Notices) -> Option<u32> {
    let reason = match (u32::try_from(id), tokens) {
        (Ok(id), None) => return Some(id),
        (Ok(small), Some(tokens)) if (small as usize) < tokens => return Some(small),
        (_, Some(tokens)) if id >= 0 => format!("token {id} is past the vocabulary of {tokens} tokens"),
        _ => format!("{id} is no token"),
    };
    notices.dropped(key, reason);
    None
}

/// All that the files beside `tokenizer.json` say. `tokens` is the size of the vocabulary, where it is known.
pub(crate) fn hugging_face(model: &HuggingFaceModel, tokens: Option<usize>) -> (SpecialTokens, Vec<Notice>) {
    let mut special = SpecialTokens::default();
    let mut told = Vec::new();
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = model.directory.join(name);
        let config = match read_json(&path) {
            Ok(Some(config)) => config,
            Ok(None) => continue,
            // Building a tokenizer without this file is an error, told there.
            Err(_) if name == "tokenizer_config.json" => continue,
            Err(error) => {
                told.push(Notice::SetAside { reason: error.without_path(), file: path });
                continue;
            }
        };
        let notices = Notices::new(&path);
        special.bos.extend(names(config.get("bos_token"), "bos_token", &notices));
        special.ends.extend(names(config.get("eos_token"), "eos_token", &notices));
        told.extend(notices.into_list());
    }
    let path = model.directory.join("generation_config.json");
    // That this file is damaged is told with the sampling defaults.
    let generation = read_json(&path).ok().flatten().unwrap_or_default();
    let text = model.config.get("text_config").and_then(Value::as_object);
    let config_path = model.directory.join("config.json");
    let mut read = |path: &Path, prefix: &str, config: &Map<String, Value>| {
        let notices = Notices::new(path);
        let ids = |key: &str| ids(config.get(key), &format!("{prefix}{key}"), tokens, &notices);
        special.bos.extend(ids("bos_token_id").into_iter().map(TokenName::Id));
        special.ends.extend(ids("eos_token_id").into_iter().map(TokenName::Id));
        told.extend(notices.into_list());
    };
    read(&path, "", &generation);
    read(&config_path, "", &model.config);
    if let Some(text) = text {
        read(&config_path, "text_config.", text);
    }
    (special, told)
}

/// A token's text, as a string or as an added token, or a list of them.
fn names(value: Option<&Value>, key: &str, notices: &Notices) -> Vec<TokenName> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(Value::String(text)) => vec![TokenName::Text(text.clone())],
        Some(Value::Object(token)) if token.get("content").is_some_and(Value::is_string) => {
            names(token.get("content"), key, notices)
        }
        Some(Value::Array(list)) => list.iter().flat_map(|v| names(Some(v), key, notices)).collect(),
        Some(other) => {
            notices.dropped(key, format!("expected a token's text, found {}", brief(other)));
            Vec::new()
        }
    }
}

/// An id or a list of ids.
pub(crate) fn ids(value: Option<&Value>, key: &str, tokens: Option<usize>, notices: &Notices) -> Vec<u32> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list.iter().flat_map(|v| ids(Some(v), key, tokens, notices)).collect(),
        Some(value) => match value.as_i64().map(i128::from).or(value.as_u64().map(i128::from)) {
            Some(id) => checked(id, key, tokens, notices).into_iter().collect(),
            None => {
                notices.dropped(key, format!("expected an id, found {}", brief(value)));
                Vec::new()
            }
        },
    }
}

/// A value for a message: short, or its type.
pub(crate) fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the string {:?}", text.chars().take(40).collect::<String>()),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    }
}
