//! Architectures: functions from metadata to block specs.
//!
//! An architecture is one entry of [`ARCHITECTURES`] and one small file that adjusts the common plan. The builder then looks
//! the tensors up by role, under the names of the format that the model came in.

mod builder;
mod gemma3;
mod llama;
mod meta;
mod names;
mod plan;
mod qwen;
mod rope;

use serde_json::{Map, Value};
use unicorn_core::{ModelSpec, RopeStyle, WeightSource};

use crate::ModelError;
use crate::gguf::Gguf;
use crate::tensors::TensorTable;
use meta::Meta;
use names::Naming;
use plan::Plan;

/// One architecture.
pub(crate) struct Architecture {
    /// `general.architecture` of GGUF files.
    name: &'static str,
    /// `architectures` of `config.json`.
    hugging_face: &'static [&'static str],
    /// Pairing of the rotary embedding in GGUF files; Hugging Face checkpoints are all in NeoX order.
    gguf_rope: RopeStyle,
    /// What `config.json` leaves out.
    defaults: &'static [(&'static str, f64)],
    /// What the model computes.
    plan: fn(&Context<'_>) -> Result<Plan, ModelError>,
}

static ARCHITECTURES: [Architecture; 4] = [llama::LLAMA, qwen::QWEN2, qwen::QWEN3, gemma3::GEMMA3];

/// What a plan and the builder read from.
struct Context<'a> {
    meta: Meta<'a>,
    tensors: &'a TensorTable,
    /// For the few small tensors that parameters are read from.
    source: &'a dyn WeightSource,
    architecture: &'static Architecture,
    architecture_name: &'a str,
    model_name: String,
    naming: Naming,
}

impl Context<'_> {
    fn build(&self) -> Result<ModelSpec, ModelError> {
        if self.tensors.is_empty() {
            return Err(ModelError::NoTensors);
        }
        builder::build(self, &(self.architecture.plan)(self)?)
    }
}

/// The model in a GGUF file.
pub(crate) fn from_gguf(
    file: &Gguf,
    tensors: &TensorTable,
    source: &dyn WeightSource,
    file_name: &str,
) -> Result<ModelSpec, ModelError> {
    let key = "general.architecture";
    let name = file.string(key)?.ok_or_else(|| ModelError::MissingKey { key: key.to_owned() })?;
    let architecture = ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| {
        let known = ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(", ");
        ModelError::UnknownArchitecture { name: name.to_string(), known }
    })?;
    let model_name = match file.string("general.name")? {
        Some(name) => name.into_owned(),
        None => file_name.to_owned(),
    };
    let meta = Meta::Gguf { file, prefix: &name };
    let naming = Naming::Gguf;
    Context { meta, tensors, source, architecture, architecture_name: &name, model_name, naming }.build()
}

/// The model in a Hugging Face directory. `config` is the whole `config.json`.
pub(crate) fn from_config(
    config: &Map<String, Value>,
    tensors: &TensorTable,
    source: &dyn WeightSource,
    directory_name: &str,
) -> Result<ModelSpec, ModelError> {
    let name = config_architecture(config)?;
    let architecture = ARCHITECTURES.iter().find(|a| a.hugging_face.contains(&name)).ok_or_else(|| {
        let known = ARCHITECTURES.iter().flat_map(|a| a.hugging_face).copied().collect::<Vec<_>>().join(", ");
        ModelError::UnknownArchitecture { name: name.to_owned(), known }
    })?;
    // Multimodal models describe their language model in `text_config`; some keys stay outside.
    let mut text = config.get("text_config").and_then(Value::as_object).cloned();
    if let (Some(text), Some(tied)) = (&mut text, config.get("tie_word_embeddings")) {
        text.entry("tie_word_embeddings").or_insert_with(|| tied.clone());
    }
    let meta = Meta::Json { config: text.as_ref().unwrap_or(config), defaults: architecture.defaults };
    let model_name = config.get("_name_or_path").and_then(Value::as_str).filter(|n| !n.is_empty());
    let model_name = model_name.unwrap_or(directory_name).to_owned();
    let naming = Naming::hugging_face(tensors);
    let architecture_name = architecture.name;
    Context { meta, tensors, source, architecture, architecture_name, model_name, naming }.build()
}

/// The first entry of `architectures`.
pub(crate) fn config_architecture(config: &Map<String, Value>) -> Result<&str, ModelError> {
    let list = config.get("architectures");
    let missing = || ModelError::MissingKey { key: "architectures".to_owned() };
    list.and_then(|l| l.get(0)).and_then(Value::as_str).ok_or_else(missing)
}
