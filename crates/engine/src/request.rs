//! What goes into the engine and what comes out.

use std::sync::Arc;

use unicorn_core::{DeviceError, SequenceId, TokenMask};

use crate::sampling::{SamplingOptions, TokenLogprobs};

/// A prompt to continue.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Request {
    /// Token ids, with the beginning-of-sequence token if the model wants one.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; `None` goes on to the end of the context. With 0 the prompt is run (and kept, if
    /// asked) and nothing is generated.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Tokens that may be chosen, for the model's vocabulary; `None` allows all.
    pub mask: Option<Arc<TokenMask>>,
    /// Tokens that end the text; the token itself is not reported as an event.
    pub stop_tokens: Vec<u32>,
    /// Report the log probability of each token and of this many most likely ones (0: of the token alone).
    pub logprobs: Option<usize>,
    /// Report the log probability of each token of the prompt but the first, and of this many most likely ones
    /// ([`Event::PromptLogprobs`]). What is scored is computed anew even where its beginning is known. As many rows are read in a batch as
    /// [`crate::EngineOptions::outputs_max`] tells.
    pub prompt_logprobs: Option<usize>,
    /// Keep the KV pages afterwards, so that a later prompt with the same beginning starts from them.
    pub keep: bool,
    /// Higher ones leave the queue first, and are the last to be sent back to it where pages are short.
    pub priority: i32,
    /// Whose request this is: among equal priority, waiting requests of different groups are taken in turn.
    pub group: u64,
    /// Computed prefixes are shared only among requests of one scope.
    pub scope: u64,
}

/// Why a sequence ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FinishReason {
    /// A stop token was chosen, or the constraint says that the text is complete.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The context is full.
    Context,
    /// [`crate::Engine::cancel`] was called.
    Cancelled,
    /// The KV pool is too small for this sequence alone.
    OutOfKvPages,
    /// The vector of a text was reported.
    Embedded,
    /// Every token was banned.
    NoCandidate,
    /// A logit, or a number of a vector, is NaN or infinite: the file, a kernel or a driver is wrong, and whatever were chosen would be wrong too.
    NotFinite,
    /// The request's constraint failed, for this reason: nothing that it did not allow was reported.
    Constraint(String),
    /// A device failed.
    Device(Failure),
}

/// A device's error as it reaches a request. Two are equal when they say the same.
#[derive(Clone, Debug)]
pub struct Failure(pub Arc<DeviceError>);

impl PartialEq for Failure {
    fn eq(&self, other: &Failure) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.to_string() == other.0.to_string()
    }
}

impl Eq for Failure {}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Where the time of a request went.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them were in the KV cache already.
    pub reused_tokens: usize,
    /// How many of these came from a store, where another engine or this one had saved them.
    pub restored_tokens: usize,
    /// Seconds in the queue.
    pub queue_seconds: f64,
    /// Seconds from leaving the queue until the first token was chosen.
    pub prefill_seconds: f64,
    /// Tokens chosen, the stop token included.
    pub generated_tokens: usize,
    /// Seconds from the first token to the last.
    pub decode_seconds: f64,
    /// Tokens that a drafter guessed and the model verified.
    pub drafted_tokens: usize,
    /// How many of them were what the model chose.
    pub accepted_tokens: usize,
}

impl Timings {
    /// Prompt tokens per second that were really run, reused ones not counted.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        (self.prompt_tokens - self.reused_tokens) as f64 / self.prefill_seconds.max(1e-9)
    }

    /// Tokens per second after the first one; 0 when there is none.
    pub fn decode_tokens_per_second(&self) -> f64 {
        self.generated_tokens.saturating_sub(1) as f64 / self.decode_seconds.max(1e-9)
    }
}

/// What one [`crate::Engine::step`] brought about.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A token was chosen.
    Token {
        /// Whose.
        sequence: SequenceId,
        /// Token id.
        token: u32,
        /// Log probabilities, if the request asked for them.
        logprobs: Option<TokenLogprobs>,
    },
    /// A text became a vector.
    Embedding {
        /// Whose.
        sequence: SequenceId,
        /// `[width]`.
        vector: Vec<f32>,
    },
    /// The prompt has been scored ([`Request::prompt_logprobs`]); comes before the first token.
    PromptLogprobs {
        /// Whose.
        sequence: SequenceId,
        /// Entry `i` is of token `i + 1` of the prompt: what the model expects after those before it.
        logprobs: Vec<TokenLogprobs>,
    },
    /// The last event of a sequence.
    Finished {
        /// Whose.
        sequence: SequenceId,
        /// Why.
        reason: FinishReason,
        /// Where the time went.
        timings: Timings,
    },
}

impl Event {
    /// The sequence that this is about.
    pub fn sequence(&self) -> SequenceId {
        match self {
            Event::Token { sequence, .. }
            | Event::Embedding { sequence, .. }
            | Event::PromptLogprobs { sequence, .. }
            | Event::Finished { sequence, .. } => *sequence,
        }
    }
}
