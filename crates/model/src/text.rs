//! The text side of a model's files: what the tokenizer is built from, and the chat template.

use std::path::Path;

use serde_json::{Map, Value};
use unicorn_text::{GgufVocabulary, Tokenizer};

use crate::ModelError;
use crate::files::read_small;
use crate::gguf::{Gguf, GgufError};
use crate::locate::{CONFIG_BYTES_MAX, Located, read_json};

/// Largest `tokenizer.json` that is read; that of a vocabulary of 262k tokens has 33 MB.
const TOKENIZER_BYTES_MAX: u64 = 512 << 20;

/// Builds the tokenizer. Takes tens of milliseconds.
pub(crate) fn tokenizer(located: &Located) -> Result<Tokenizer, ModelError> {
    let built = match located {
        Located::Gguf(model) => Tokenizer::from_gguf(gguf_vocabulary(&model.head)?),
        Located::HuggingFace(model) => {
            let dir = &model.directory;
            let Some(json) = read_optional(&dir.join("tokenizer.json"), TOKENIZER_BYTES_MAX)? else {
                let reason = format!("{} is missing", dir.join("tokenizer.json").display());
                return Err(ModelError::NoTokenizer { reason });
            };
            let config = read_optional(&dir.join("tokenizer_config.json"), CONFIG_BYTES_MAX)?;
            let generation = read_optional(&dir.join("generation_config.json"), CONFIG_BYTES_MAX)?;
            Tokenizer::from_hugging_face(&json, config.as_deref(), generation.as_deref())
        }
    };
    built.map_err(ModelError::Tokenizer)
}

/// The `tokenizer.ggml.*` metadata as plain data.
fn gguf_vocabulary(file: &Gguf) -> Result<GgufVocabulary, ModelError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(model) = file.string(&key("model"))? else {
        return Err(ModelError::NoTokenizer { reason: "key tokenizer.ggml.model is missing".to_owned() });
    };
    // Some writers store an absent token as -1 or as the largest u32.
    let id = |name: &str| -> Result<Option<u32>, GgufError> {
        let key = key(&format!("{name}_token_id"));
        match file.get(&key).map(|v| v.as_int()) {
            Some(None) => file.int(&key).map(|_| None),
            Some(Some(id)) => Ok(u32::try_from(id).ok().filter(|id| *id != u32::MAX)),
            None => Ok(None),
        }
    };
    let text = |key: &str| file.string(key).map(|s| s.map(|s| s.into_owned()));
    Ok(GgufVocabulary {
        model: model.into_owned(),
        pre: text(&key("pre"))?,
        tokens: file.strings(&key("tokens"))?.unwrap_or_default(),
        scores: file.floats(&key("scores"))?.unwrap_or_default(),
        token_types: file.ints32(&key("token_type"))?.unwrap_or_default(),
        merges: file.strings(&key("merges"))?.unwrap_or_default(),
        bos: id("bos")?,
        eos: id("eos")?,
        eot: id("eot")?,
        eom: id("eom")?,
        unk: id("unknown")?,
        sep: id("seperator")?,
        pad: id("padding")?,
        mask: id("mask")?,
        cls: id("cls")?,
        add_bos: file.bool(&key("add_bos_token"))?,
        add_eos: file.bool(&key("add_eos_token"))?,
        add_space_prefix: file.bool(&key("add_space_prefix"))?,
        remove_extra_whitespaces: file.bool(&key("remove_extra_whitespaces"))?,
        name: text("general.name")?,
    })
}

/// The model's chat template in Jinja, if it has one.
pub(crate) fn chat_template(located: &Located) -> Result<Option<String>, ModelError> {
    match located {
        Located::Gguf(model) => Ok(model.head.string("tokenizer.chat_template")?.map(|t| t.into_owned())),
        Located::HuggingFace(model) => {
            let dir = &model.directory;
            let jinja = dir.join("chat_template.jinja");
            if let Some(bytes) = read_optional(&jinja, CONFIG_BYTES_MAX)? {
                let invalid = |_| ModelError::Invalid {
                    key: jinja.display().to_string(),
                    reason: "not valid UTF-8".to_owned(),
                };
                return String::from_utf8(bytes).map(Some).map_err(invalid);
            }
            for name in ["chat_template.json", "tokenizer_config.json"] {
                if let Some(config) = read_json(&dir.join(name))?
                    && let Some(template) = template_in(&config)
                {
                    return Ok(Some(template));
                }
            }
            Ok(None)
        }
    }
}

/// `chat_template` is a template, or a list of named ones of which `default` is meant.
fn template_in(config: &Map<String, Value>) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|t| t["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

fn read_optional(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, ModelError> {
    if path.is_file() { read_small(path, bytes_max).map(Some) } else { Ok(None) }
}
