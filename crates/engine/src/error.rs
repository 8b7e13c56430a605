//! Typed errors of the engine.

use unicorn_core::{BatchError, Block, DeviceError};

use crate::memory::MemoryShort;
use crate::request::Failure;
use crate::sampling::OptionError;

/// A placement does not fit its model.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum PlacementError {
    /// The assignment has not one entry per block.
    #[error("placement assigns {assigned} blocks, the model has {blocks}")]
    Length {
        /// Entries of the assignment.
        assigned: usize,
        /// Blocks of the model.
        blocks: usize,
    },
    /// A block is assigned to a device that does not exist.
    #[error("placement puts block {block} on device {device}, but there are {devices} devices")]
    Device {
        /// Index of the block.
        block: usize,
        /// Index of the device.
        device: usize,
        /// Number of devices.
        devices: usize,
    },
    /// A split by layers does not add up to the model's layers.
    #[error("placement splits {split} layers, the model has {layers}")]
    Layers {
        /// Sum of the split.
        split: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// The model is not an embedding, then mixers and ffns, then a head.
    #[error("model has no runnable order of blocks: {0}")]
    Order(String),
}

/// The KV page pool has too few free pages.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
#[error("out of KV pages: {asked} more needed, {free} of {pages} free")]
pub struct KvFull {
    /// Pages asked for.
    pub asked: usize,
    /// Pages that were free.
    pub free: usize,
    /// Pages of the pool.
    pub pages: usize,
}

/// Why a request was not admitted. Nothing of it is kept.
#[derive(thiserror::Error, Clone, PartialEq, Debug)]
pub enum AdmissionError {
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The model turns texts into vectors and generates nothing.
    #[error("the model is an encoder, which turns texts into vectors and generates nothing")]
    Encoder,
    /// The prompt does not fit.
    #[error("the prompt has {prompt} tokens, the context holds {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// A token id is outside the vocabulary.
    #[error("{what} token {token} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// Which token: `prompt`, `stop`, `logit_bias` or `dry breaker`.
        what: &'static str,
        /// Token id.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A mask is for another vocabulary or allows no token.
    #[error("a mask of {words} words that allows no token, or not one for each 32 of {vocab} tokens")]
    Mask {
        /// Words of the mask.
        words: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// Too many requests wait already.
    #[error("the queue is full: {queued} requests wait already")]
    QueueFull {
        /// Requests waiting.
        queued: usize,
    },
    /// A sampling option is out of range.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A device was lost; the engine must be built anew.
    #[error("the engine stopped: {reason}")]
    Stopped {
        /// What happened.
        reason: Failure,
    },
}

/// The engine could not be built or could not go on.
#[derive(thiserror::Error, Debug)]
pub enum EngineError {
    /// An engine option is out of range.
    #[error("engine option {name} = {value}: {reason}")]
    Option {
        /// Name of the field.
        name: &'static str,
        /// Its value.
        value: usize,
        /// What is allowed.
        reason: String,
    },
    /// The placement does not fit.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// A block could not be loaded.
    #[error("block {block} ({what}): {source}")]
    Load {
        /// Index of the block.
        block: usize,
        /// Its first tensor's name.
        what: String,
        /// Why.
        source: DeviceError,
    },
    /// Something does not fit into memory; nothing was loaded.
    #[error(transparent)]
    Memory(Box<MemoryShort>),
    /// A device refused something.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device failed during a run that several batch parts shared.
    #[error(transparent)]
    Run(std::sync::Arc<DeviceError>),
    /// No KV pages for a direct evaluation.
    #[error(transparent)]
    Kv(#[from] KvFull),
    /// Logits of a model that has none.
    #[error("the model is an encoder, which turns texts into vectors and has no logits")]
    Encoder,
    /// A direct evaluation leaves the context.
    #[error("{tokens} tokens at position {start} leave the context of {context}")]
    Context {
        /// Tokens to run.
        tokens: usize,
        /// Their first position.
        start: usize,
        /// The context.
        context: usize,
    },
    /// A batch that no device may run: a token outside the vocabulary, say.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A device was lost earlier.
    #[error("the engine stopped: {reason}")]
    Stopped {
        /// What happened.
        reason: Failure,
    },
}

impl EngineError {
    pub(crate) fn load(index: usize, block: &Block, source: DeviceError) -> EngineError {
        let what = block.weights().first().map_or(String::new(), |w| w.name.clone());
        EngineError::Load { block: index, what, source }
    }

    pub(crate) fn option(name: &'static str, value: usize, reason: impl Into<String>) -> EngineError {
        EngineError::Option { name, value, reason: reason.into() }
    }
}
