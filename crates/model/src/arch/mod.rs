//! Architectures: functions from metadata to block specs.
//!
//! An architecture is one entry of [`ARCHITECTURES`] and one small file that adjusts the common plan. The builder then looks
//! the tensors up by role, under the names of the format that the model came in. `keys.rs` lists every hyperparameter.

mod bert;
mod builder;
mod common;
mod context;
mod gemma3;
mod keys;
mod lfm2;
mod llama;
mod meta;
mod names;
mod plan;
mod quantized;
mod qwen;
mod rope;

use std::borrow::Cow;

use serde_json::{Map, Value};
use unicorn_core::{ModelSpec, WeightSource};

use crate::error::ModelError;
use crate::gguf::Gguf;
use crate::notice::Notices;
use crate::tensors::TensorTable;
use context::{Architecture, Context};
use keys::Class;
use meta::Meta;
use names::{Family, Naming};
use plan::Plan;

static ARCHITECTURES: [Architecture; 6] =
    [llama::LLAMA, qwen::QWEN2, qwen::QWEN3, gemma3::GEMMA3, lfm2::LFM2, bert::BERT];

/// The tensors of a model, and where their bytes are read from.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub tensors: &'a TensorTable,
    pub source: &'a dyn WeightSource,
}

/// The model in a GGUF file; `file_name` is its name where the file has none.
pub(crate) fn from_gguf(
    file: &Gguf,
    weights: Weights<'_>,
    file_name: &str,
    notices: &Notices,
) -> Result<ModelSpec, ModelError> {
    build(&gguf_context(file, Some(weights), file_name, notices)?)
}

/// The model in a Hugging Face directory. `config` is the whole `config.json`.
pub(crate) fn from_config(
    config: &Map<String, Value>,
    weights: Weights<'_>,
    directory_name: &str,
    notices: &Notices,
) -> Result<ModelSpec, ModelError> {
    let text = text_config(config);
    build(&config_context(config, &text, Some(weights), directory_name, notices)?)
}

/// Whether a GGUF model can run, as far as its hyperparameters tell, and its tensors where they are known.
pub(crate) fn check_gguf(
    file: &Gguf,
    tensors: Option<&TensorTable>,
    notices: &Notices,
) -> Result<(), ModelError> {
    let cx = Context { tensors, ..gguf_context(file, None, "", notices)? };
    match tensors {
        Some(_) => build(&cx).map(|_| ()),
        None => check(&cx),
    }
}

/// Whether a GGUF model of this architecture cannot run, whatever else the file says.
pub(crate) fn check_architecture(file: &Gguf, notices: &Notices) -> Result<(), ModelError> {
    refuse(&gguf_context(file, None, "", notices)?)
}

/// Whether a `config.json` alone tells that the model cannot run.
pub(crate) fn check_config(config: &Map<String, Value>, notices: &Notices) -> Result<(), ModelError> {
    let text = text_config(config);
    check(&config_context(config, &text, None, "", notices)?)
}

fn gguf_context<'a>(
    file: &'a Gguf,
    weights: Option<Weights<'a>>,
    file_name: &str,
    notices: &'a Notices,
) -> Result<Context<'a>, ModelError> {
    check_type(file)?;
    let key = "general.architecture";
    let name = file.string(key)?.ok_or_else(|| ModelError::MissingKey { key: key.to_owned() })?;
    let architecture = ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| unknown_gguf(&name))?;
    let model_name = file.string("general.name")?.unwrap_or(Cow::Borrowed(file_name)).into_owned();
    Ok(Context {
        meta: Meta::gguf(file, architecture.name, notices),
        tensors: weights.map(|w| w.tensors),
        source: weights.map(|w| w.source),
        architecture,
        model_name,
        naming: Naming::Gguf(Family::of(architecture.name)),
    })
}

/// `general.type` tells what goes with a model apart from models, even where it has their architecture.
fn check_type(file: &Gguf) -> Result<(), ModelError> {
    let what = match file.string("general.type")?.as_deref() {
        Some("adapter") => "an adapter (LoRA), which has to be merged into its base model first,",
        Some("imatrix") => "an importance matrix, which is no model,",
        Some("mmproj") => "a vision projector, which is no language model,",
        _ => return Ok(()),
    };
    Err(ModelError::Unsupported { what: what.to_owned() })
}

fn unknown_gguf(name: &str) -> ModelError {
    if name == "clip" {
        let what = "a vision projector (general.architecture is \"clip\"), which is no language model,";
        return ModelError::Unsupported { what: what.to_owned() };
    }
    let known = ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(", ");
    ModelError::UnknownArchitecture { name: name.to_owned(), known }
}

fn config_context<'a>(
    config: &Map<String, Value>,
    text: &'a Map<String, Value>,
    weights: Option<Weights<'a>>,
    directory_name: &str,
    notices: &'a Notices,
) -> Result<Context<'a>, ModelError> {
    let tensors = weights.map(|w| w.tensors);
    if let Some(method) = quantized::method(config, text, tensors) {
        return Err(ModelError::Quantized { method });
    }
    let (architecture, class) = find_class(config)?;
    if config.get("vision_config").is_some_and(|v| !v.is_null()) {
        notices.ignored("vision_config", "the model is run for text alone");
    }
    let model_name = config.get("_name_or_path").and_then(Value::as_str).filter(|n| !n.is_empty());
    Ok(Context {
        meta: Meta::json(text, class, notices),
        tensors,
        source: weights.map(|w| w.source),
        architecture,
        model_name: model_name.unwrap_or(directory_name).to_owned(),
        naming: Naming::hugging_face(tensors, Family::of(architecture.name)),
    })
}

/// The class by the first entry of `architectures`, else by `model_type`.
fn find_class(config: &Map<String, Value>) -> Result<(&'static Architecture, Class), ModelError> {
    let name = config_architecture(config)?;
    let find = |of: fn(&Architecture) -> &'static [(&'static str, Class)]| {
        let mut all = ARCHITECTURES.iter().flat_map(|a| of(a).iter().map(move |c| (a, c)));
        all.find(|(_, c)| c.0 == name).map(|(a, c)| (a, c.1))
    };
    let found = if names_class(config) { find(|a| a.classes) } else { find(|a| a.model_types) };
    found.ok_or_else(|| {
        let known = ARCHITECTURES.iter().flat_map(|a| a.classes).map(|c| c.0).collect::<Vec<_>>();
        ModelError::UnknownArchitecture { name: name.to_owned(), known: known.join(", ") }
    })
}

fn names_class(config: &Map<String, Value>) -> bool {
    config.get("architectures").and_then(|list| list.get(0)).is_some_and(Value::is_string)
}

/// The name that decides what the model is: the first entry of `architectures`, else `model_type`.
pub(crate) fn config_architecture(config: &Map<String, Value>) -> Result<&str, ModelError> {
    let class = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let name = class.or_else(|| config.get("model_type").and_then(Value::as_str));
    name.ok_or_else(|| ModelError::MissingKey { key: "architectures".to_owned() })
}

/// Multimodal models describe their language model in `text_config`; some keys stay outside.
fn text_config(config: &Map<String, Value>) -> Cow<'_, Map<String, Value>> {
    let Some(text) = config.get("text_config").and_then(Value::as_object) else {
        return Cow::Borrowed(config);
    };
    let mut text = text.clone();
    if let Some(tied) = config.get("tie_word_embeddings") {
        text.entry("tie_word_embeddings").or_insert_with(|| tied.clone());
    }
    Cow::Owned(text)
}

/// Refuses what the hyperparameters ask for and nothing here does.
fn refuse(cx: &Context<'_>) -> Result<(), ModelError> {
    let table = if cx.meta.is_gguf() { &keys::GGUF_REFUSED[..] } else { &keys::CONFIG_REFUSED };
    // Of an encoder that is wanted.
    let kept = |(name, _): &&(&str, _)| !(bert::is_bert(cx) && *name == "attention.causal");
    cx.meta.refuse(&table.iter().filter(kept).copied().collect::<Vec<_>>())
}

/// Whether the hyperparameters alone tell that the model cannot run.
fn check(cx: &Context<'_>) -> Result<(), ModelError> {
    if bert::is_bert(cx) {
        refuse(cx)?;
        return bert::check(cx);
    }
    plan(cx).map(|_| ())
}

fn plan(cx: &Context<'_>) -> Result<Plan, ModelError> {
    refuse(cx)?;
    cx.meta.note_ignored()?;
    (cx.architecture.plan)(cx)
}

fn build(cx: &Context<'_>) -> Result<ModelSpec, ModelError> {
    let Some(tensors) = cx.tensors.filter(|tensors| !tensors.is_empty()) else {
        return Err(ModelError::NoTensors);
    };
    if bert::is_bert(cx) {
        refuse(cx)?;
        cx.meta.note_ignored()?;
        return bert::build(cx, tensors);
    }
    builder::build(cx, tensors, &plan(cx)?)
}
