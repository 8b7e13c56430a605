//! The text side of a model's files: what the tokenizer is built from, and the chat template.

use std::path::Path;

use serde_json::{Map, Value};
use unicorn_text::{GgufVocabulary, TokenName, Tokenizer};

use crate::error::ModelError;
use crate::files::read_small;
use crate::gguf::{Gguf, Value as GgufValue};
use crate::json::{CONFIG_BYTES_MAX, read_json};
use crate::locate::{HuggingFaceModel, Located};
use crate::notice::{Notice, Notices};
use crate::special;
use crate::wrong_file;

/// Largest `tokenizer.json` that is read; that of a vocabulary of 262k tokens has 33 MB.
const TOKENIZER_BYTES_MAX: u64 = 512 << 20;

const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// A tokenizer, and what only shows once it is built.
#[derive(Debug)]
pub struct OpenTokenizer {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// What was guessed or dropped.
    pub notices: Vec<Notice>,
}

/// Builds the tokenizer of a model with `tokens` rows in its embedding, where that is known. Takes tens of milliseconds.
pub(crate) fn tokenizer(located: &Located, tokens: Option<usize>) -> Result<OpenTokenizer, ModelError> {
    let (tokenizer, mut notices) = match located {
        Located::Gguf(model) => {
            let tokenizer = Tokenizer::from_gguf(gguf_vocabulary(&model.head)?);
            (tokenizer.map_err(ModelError::Tokenizer)?, Vec::new())
        }
        Located::HuggingFace(model) => from_folder(model, tokens)?,
    };
    if tokenizer.end_tokens().is_empty() {
        let file = first_file(located).to_owned();
        let key = match located {
            Located::Gguf(_) => "tokenizer.ggml.eos_token_id",
            Located::HuggingFace(_) => "eos_token_id",
        };
        let instead = "no token ends an answer, which only a limit will stop".to_owned();
        notices.push(Notice::Assumed { file, key: key.to_owned(), instead });
    }
    Ok(OpenTokenizer { tokenizer, notices })
}

fn first_file(located: &Located) -> &Path {
    located.files().paths().next().unwrap_or_else(|| Path::new(""))
}

fn from_folder(
    model: &HuggingFaceModel,
    tokens: Option<usize>,
) -> Result<(Tokenizer, Vec<Notice>), ModelError> {
    let path = model.directory.join("tokenizer.json");
    if !path.is_file() {
        let other = ["tokenizer.model", "vocab.json", "vocab.txt", "tekken.json"];
        let other = other.iter().find(|name| model.directory.join(name).is_file());
        let hint = other.map(|name| format!("; {name} is not read")).unwrap_or_default();
        return Err(ModelError::NoTokenizer { reason: format!("tokenizer.json is missing{hint}") });
    }
    // Damage is an error here: what it says of the tokenizer would be lost without a word.
    read_json(&model.directory.join("tokenizer_config.json"))?;
    let json = read_small(&path, TOKENIZER_BYTES_MAX)?;
    let (special, _) = special::hugging_face(model, tokens);
    let built = Tokenizer::from_hugging_face(&json, &special);
    let tokenizer = built.map_err(|error| match wrong_file::describe(&&json[..], &path) {
        Some(what) if !json.trim_ascii_start().starts_with(b"{") => {
            ModelError::WrongFile { path: path.clone(), what }
        }
        _ => ModelError::Tokenizer(error),
    })?;
    let mut notices = Vec::new();
    for (key, names) in [("bos_token", &special.bos), ("eos_token", &special.ends)] {
        for name in names {
            let TokenName::Text(text) = name else { continue };
            if tokenizer.token_id(text).is_none() {
                let reason = format!("the vocabulary has no token {text:?}");
                let file = model.directory.join("tokenizer_config.json");
                notices.push(Notice::Dropped { file, key: key.to_owned(), reason });
            }
        }
    }
    notices.dedup();
    Ok((tokenizer, notices))
}

/// What was guessed or dropped on the text side, as far as it shows without building the tokenizer.
pub(crate) fn notices(located: &Located, tokens: Option<usize>, model_name: &str) -> Vec<Notice> {
    let mut all = tokens_notices(located, tokens);
    if let Located::HuggingFace(model) = located {
        let file = model.directory.join("tokenizer_config.json");
        if !file.is_file() {
            let effect = "the names of special tokens, and the chat template that it may hold, are not known";
            all.push(Notice::MissingFile { file, effect });
        }
    }
    // A template that cannot be read is an error where it is needed.
    let Ok((template, told)) = find_template(located) else { return all };
    all.extend(told);
    let words = model_name.to_lowercase();
    let mut words = words.split(|c: char| !c.is_alphanumeric());
    if template.is_none() && words.any(|word| ["instruct", "chat", "it"].contains(&word)) {
        let instead =
            format!("{model_name:?} is the name of a model for chat, but prompts are continued as they are");
        let (file, key) = match located {
            Located::Gguf(_) => (first_file(located).to_owned(), TEMPLATE_KEY),
            Located::HuggingFace(model) => (model.directory.join("tokenizer_config.json"), "chat_template"),
        };
        all.push(Notice::Assumed { file, key: key.to_owned(), instead });
    }
    all
}

/// Those of them that bear on which tokens a text becomes, and which end one.
pub(crate) fn tokens_notices(located: &Located, tokens: Option<usize>) -> Vec<Notice> {
    match located {
        Located::Gguf(model) => {
            let notices = Notices::new(first_file(located));
            special::gguf_ids(&model.head, &notices);
            gguf_guesses(&model.head, &notices);
            notices.into_list()
        }
        Located::HuggingFace(model) => special::hugging_face(model, tokens).1,
    }
}

fn gguf_guesses(file: &Gguf, notices: &Notices) {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let text = |name: &str| file.string(&key(name)).ok().flatten().unwrap_or_default();
    let model = text("model");
    if model.is_empty() {
        return;
    }
    if model == "gpt2" && text("pre").trim().is_empty() {
        let instead =
            "the pre-tokenizer \"default\" is assumed, whose tokens may not be those of the training";
        notices.assumed(key("pre"), instead);
    }
    let tokens = file.array(&key("tokens")).ok().flatten().map_or(0, |a| a.len());
    match file.get(&key("token_type")) {
        Some(GgufValue::Array(types)) => {
            let mut unknown = types.iter().filter(|t| !t.as_int().is_some_and(|t| (1..=6).contains(&t)));
            if let Some(first) = unknown.next() {
                let count = 1 + unknown.count();
                let reason = format!(
                    "{count} tokens are of unknown types such as {first}, and taken for ordinary ones"
                );
                notices.dropped(key("token_type"), reason);
            }
        }
        _ => notices.assumed(key("token_type"), "all tokens are taken for ordinary ones"),
    }
    if model == "llama" {
        for (name, id) in [("bos", 1), ("eos", 2)] {
            let key = key(&format!("{name}_token_id"));
            if file.get(&key).is_none() && id < tokens {
                notices.assumed(key, format!("token {id} is assumed, as in Llama"));
            }
        }
    }
}

/// The `tokenizer.ggml.*` metadata as plain data.
fn gguf_vocabulary(file: &Gguf) -> Result<GgufVocabulary, ModelError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(model) = file.string(&key("model"))? else {
        return Err(ModelError::NoTokenizer { reason: "key tokenizer.ggml.model is missing".to_owned() });
    };
    let text = |key: &str| file.string(key).map(|s| s.map(|s| s.into_owned()));
    let ids = special::gguf_ids(file, &Notices::new(Path::new("")));
    Ok(GgufVocabulary {
        model: model.into_owned(),
        pre: text(&key("pre"))?,
        tokens: file.strings(&key("tokens"))?.unwrap_or_default(),
        scores: file.floats(&key("scores"))?.unwrap_or_default(),
        token_types: file.ints32(&key("token_type"))?.unwrap_or_default(),
        merges: file.strings(&key("merges"))?.unwrap_or_default(),
        bos: ids.bos,
        eos: ids.eos,
        eot: ids.eot,
        eom: ids.eom,
        ends: ids.ends,
        unk: ids.unk,
        sep: ids.sep,
        pad: ids.pad,
        mask: ids.mask,
        cls: ids.cls,
        add_bos: file.bool(&key("add_bos_token"))?,
        add_eos: file.bool(&key("add_eos_token"))?,
        add_space_prefix: file.bool(&key("add_space_prefix"))?,
        remove_extra_whitespaces: file.bool(&key("remove_extra_whitespaces"))?,
        name: text("general.name")?,
    })
}

/// The model's chat template in Jinja, if it has one.
pub(crate) fn chat_template(located: &Located) -> Result<Option<String>, ModelError> {
    find_template(located).map(|found| found.0)
}

/// The template, and what was passed over. A template of white space alone is none.
fn find_template(located: &Located) -> Result<(Option<String>, Vec<Notice>), ModelError> {
    let Located::HuggingFace(model) = located else { return gguf_template(located) };
    let mut told = Vec::new();
    let dir = &model.directory;
    let jinja = dir.join("chat_template.jinja");
    if jinja.is_file() {
        let invalid = |_| ModelError::WrongFile { path: jinja.clone(), what: "not valid UTF-8".to_owned() };
        let template = String::from_utf8(read_small(&jinja, CONFIG_BYTES_MAX)?).map_err(invalid)?;
        if !is_blank(&template) {
            return Ok((Some(template), told));
        }
        told.push(Notice::SetAside { file: jinja.clone(), reason: BLANK.to_owned() });
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let path = dir.join(name);
        let Some(config) = read_json(&path)? else { continue };
        let notices = Notices::new(&path);
        let template = template_in(&config, &notices);
        told.extend(notices.into_list());
        if template.is_some() {
            return Ok((template, told));
        }
    }
    Ok((None, told))
}

const BLANK: &str = "it is empty, which is as if there were none";

fn is_blank(template: &str) -> bool {
    template.trim_start_matches('\u{feff}').trim().is_empty()
}

fn gguf_template(located: &Located) -> Result<(Option<String>, Vec<Notice>), ModelError> {
    let Located::Gguf(model) = located else { return Ok((None, Vec::new())) };
    let notices = Notices::new(first_file(located));
    let template = model.head.string(TEMPLATE_KEY)?.map(|t| t.into_owned());
    if template.as_deref().is_some_and(is_blank) {
        notices.dropped(TEMPLATE_KEY, BLANK);
        return Ok((None, notices.into_list()));
    }
    Ok((template, Vec::new()))
}

/// `chat_template` is a template, or a list of named ones of which `default` is meant.
fn template_in(config: &Map<String, Value>, notices: &Notices) -> Option<String> {
    let key = "chat_template";
    let template = match config.get(key)? {
        Value::Null => return None,
        Value::String(template) => template,
        Value::Array(named) => {
            let default = named.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str());
            if default.is_none() {
                notices.dropped(key, "none of its templates is named \"default\"");
            }
            default?
        }
        other => {
            notices.dropped(key, format!("expected a template, found {}", special::brief(other)));
            return None;
        }
    };
    if is_blank(template) {
        notices.dropped(key, BLANK);
        return None;
    }
    Some(template.to_owned())
}
