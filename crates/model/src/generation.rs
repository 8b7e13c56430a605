//! Sampling defaults that a model's authors recommend.

use serde_json::{Map, Value};

use crate::gguf::Gguf;
use crate::json::read_json;
use crate::locate::{HuggingFaceModel, Located};
use crate::notice::{Notice, Notices};
use crate::special::{brief, ids};

/// From `generation_config.json`, or `general.sampling.*` of a GGUF. Absent means: not recommended.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct GenerationDefaults {
    /// Softmax temperature; 0 is greedy.
    pub temperature: Option<f32>,
    /// Largest logits kept; 0 keeps all.
    pub top_k: Option<u32>,
    /// Probability mass kept.
    pub top_p: Option<f32>,
    /// Least probability kept, relative to the largest.
    pub min_p: Option<f32>,
    /// Divisor of the logits of repeated tokens.
    pub repeat_penalty: Option<f32>,
    /// Tokens that end an answer; the tokenizer names these too, and those of other files.
    pub stop_tokens: Vec<u32>,
}

/// Recommendations of `generation_config.json` that nothing here follows.
const NOT_FOLLOWED: [&str; 8] = [
    "stop_strings",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "no_repeat_ngram_size",
    "guidance_scale",
];

/// Reads the defaults of a model with `tokens` tokens. What cannot be used is left out, and told.
pub(crate) fn defaults(located: &Located, tokens: usize) -> (GenerationDefaults, Vec<Notice>) {
    match located {
        Located::Gguf(model) => {
            let path = located.files().paths().next().unwrap_or_else(|| "".as_ref());
            let notices = Notices::new(path);
            (from_gguf(&model.head, &notices), notices.into_list())
        }
        Located::HuggingFace(model) => from_config(model, tokens),
    }
}

fn from_gguf(file: &Gguf, notices: &Notices) -> GenerationDefaults {
    let number = |name: &str| {
        let key = format!("general.sampling.{name}");
        let value = file.get(&key)?;
        if value.as_float().is_none() {
            notices.dropped(&key, format!("expected a number, found {}", value.type_name()));
        }
        Some((key, value.as_float()?))
    };
    let float = |name: &str, range: Range| range.check(number(name), notices);
    GenerationDefaults {
        temperature: float("temp", Range::FromZero),
        top_k: top_k(number("top_k"), notices),
        top_p: float("top_p", Range::Share),
        min_p: float("min_p", Range::Share),
        repeat_penalty: float("penalty_repeat", Range::AboveZero),
        stop_tokens: Vec::new(),
    }
}

fn from_config(model: &HuggingFaceModel, tokens: usize) -> (GenerationDefaults, Vec<Notice>) {
    let path = model.directory.join("generation_config.json");
    let config: Map<String, Value> = match read_json(&path) {
        Ok(Some(config)) => config,
        Ok(None) => {
            let effect =
                "what it recommends for sampling, and tokens that it has end an answer, are not known";
            return (GenerationDefaults::default(), vec![Notice::MissingFile { file: path, effect }]);
        }
        Err(error) => {
            let reason = error.without_path();
            return (GenerationDefaults::default(), vec![Notice::SetAside { file: path, reason }]);
        }
    };
    let notices = Notices::new(&path);
    let get = |key: &str| config.get(key).filter(|v| !v.is_null());
    let number = |key: &str| {
        let value = get(key)?;
        if !value.is_number() {
            notices.dropped(key, format!("expected a number, found {}", brief(value)));
        }
        Some((key.to_owned(), value.as_f64()?))
    };
    let float = |key: &str, range: Range| range.check(number(key), &notices);
    let temperature = float("temperature", Range::FromZero);
    let greedy = match get("do_sample") {
        Some(Value::Bool(sample)) => !sample,
        Some(other) => {
            notices.dropped("do_sample", format!("expected true or false, found {}", brief(other)));
            false
        }
        None => false,
    };
    let defaults = GenerationDefaults {
        temperature: if greedy { Some(0.0) } else { temperature },
        top_k: top_k(number("top_k"), &notices),
        top_p: float("top_p", Range::Share),
        min_p: float("min_p", Range::Share),
        repeat_penalty: float("repetition_penalty", Range::AboveZero),
        // What is wrong with them is told with the tokenizer's own.
        stop_tokens: ids(get("eos_token_id"), "eos_token_id", Some(tokens), &Notices::new(&path)),
    };
    let set = |key: &&&str| match get(key) {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(value) => value.as_f64() != Some(0.0),
    };
    for key in NOT_FOLLOWED.iter().filter(set) {
        notices.ignored(*key, "unicorn does not follow this recommendation");
    }
    (defaults, notices.into_list())
}

/// What values a recommendation may have.
#[derive(Clone, Copy)]
enum Range {
    FromZero,
    AboveZero,
    Share,
}

impl Range {
    fn check(self, number: Option<(String, f64)>, notices: &Notices) -> Option<f32> {
        let (key, value) = number?;
        let (ok, expected) = match self {
            Range::FromZero => (value >= 0.0, "at least 0"),
            Range::AboveZero => (value > 0.0, "above 0"),
            Range::Share => ((0.0..=1.0).contains(&value), "from 0 to 1"),
        };
        if ok && (value as f32).is_finite() {
            return Some(value as f32);
        }
        notices.dropped(key, format!("{value} is out of range ({expected})"));
        None
    }
}

/// 0 stands for all tokens, for which writers also use -1.
fn top_k(number: Option<(String, f64)>, notices: &Notices) -> Option<u32> {
    let (key, value) = number?;
    if value == 0.0 || value == -1.0 {
        return Some(0);
    }
    if value.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(&value) {
        return Some(value as u32);
    }
    notices.dropped(key, format!("{value} is not a number of tokens"));
    None
}
