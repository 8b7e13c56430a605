//! What an architecture is, and what it reads a model's plan from.

use unicorn_core::{Activation, RopeStyle, WeightSource};

use super::keys::Class;
use super::meta::Meta;
use super::names::Naming;
use super::plan::Plan;
use crate::error::ModelError;
use crate::tensors::TensorTable;

/// One architecture.
pub(super) struct Architecture {
    /// `general.architecture` of GGUF files.
    pub name: &'static str,
    /// `architectures` of `config.json`.
    pub classes: &'static [(&'static str, Class)],
    /// `model_type` of `config.json`, which decides where `architectures` is missing.
    pub model_types: &'static [(&'static str, Class)],
    /// Pairing of the rotary embedding in GGUF files; Hugging Face checkpoints are all in NeoX order.
    pub gguf_rope: RopeStyle,
    /// The activation of the ffn, unless the file names another.
    pub activation: Activation,
    /// What the model computes.
    pub plan: fn(&Context<'_>) -> Result<Plan, ModelError>,
}

/// What a plan and the builder read from.
pub(super) struct Context<'a> {
    pub meta: Meta<'a>,
    /// Absent where only the hyperparameters are known, before a model is fetched.
    pub tensors: Option<&'a TensorTable>,
    /// For the few small tensors that parameters are read from.
    pub source: Option<&'a dyn WeightSource>,
    pub architecture: &'static Architecture,
    pub model_name: String,
    pub naming: Naming,
}
