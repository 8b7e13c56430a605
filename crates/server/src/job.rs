//! From what a request asks to a running answer.

use unicorn_engine::{Constraint, Drafter, Guides, NgramDrafter, Request, SamplingOptions};
use unicorn_grammar::Matcher;

use crate::chat::{Conversation, Prompt, render};
use crate::error::ApiError;
use crate::generation::{Generation, Reading};
use crate::http::client::Client;
use crate::registry::InUse;
use crate::shape::{Shape, ToolChoice};
use crate::structure::Structure;
use crate::worker::Job;

/// One answer that is wanted, in terms that all APIs share.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub prompt: Vec<u32>,
    pub sampling: SamplingOptions,
    /// Tokens at most; clamped to the room that the context leaves.
    pub max_tokens: Option<usize>,
    pub stops: Vec<String>,
    pub ignore_eos: bool,
    pub logprobs: Option<usize>,
    /// As [`Request::prompt_logprobs`].
    pub prompt_logprobs: Option<usize>,
    pub client: Client,
    /// The field that the prompt came from, for errors.
    pub prompt_field: &'static str,
}

/// Renders a conversation away from the threads that serve connections.
pub(crate) async fn prompt(
    model: &InUse,
    conversation: Conversation,
    shape: &Shape,
) -> Result<Prompt, ApiError> {
    model.check_writes()?;
    let model = model.clone();
    let tools = if shape.choice == ToolChoice::None { Vec::new() } else { shape.tools.clone() };
    blocking(move || render(&model, &conversation, &tools)).await
}

/// Answers a conversation, `choices` times.
pub(crate) async fn converse(
    model: &InUse,
    conversation: Conversation,
    shape: &Shape,
    ask: Ask,
    choices: usize,
) -> Result<Vec<Generation>, ApiError> {
    let Prompt { text, tokens } = prompt(model, conversation, shape).await?;
    start(model, shape, Ask { prompt: tokens, ..ask }, Some(text), choices).await
}

/// Runs what takes its time on a thread for such things.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the request could not be read: a fault of the server")))
}

/// Errors where a prompt leaves no room for an answer.
pub(crate) fn check_length(model: &InUse, tokens: usize, field: &str) -> Result<(), ApiError> {
    if tokens < model.context {
        return Ok(());
    }
    let message =
        format!("the prompt has {tokens} tokens, the context holds {} with the answer", model.context);
    Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::param(field, message) })
}

/// Starts `choices` answers to one prompt. Seeds count up, so that they differ. `conversation` is the text of a prompt that the model answers; without it the
/// model continues, and neither thoughts nor calls are looked for.
pub(crate) async fn start(
    model: &InUse,
    shape: &Shape,
    ask: Ask,
    conversation: Option<String>,
    choices: usize,
) -> Result<Vec<Generation>, ApiError> {
    model.check_writes()?;
    check_length(model, ask.prompt.len(), ask.prompt_field)?;
    let structure = {
        let (model, shape) = (model.clone(), shape.clone());
        blocking(move || Structure::new(&model, &shape, conversation.as_deref())).await?
    };
    let room = model.context - ask.prompt.len();
    let mut running = Vec::with_capacity(choices);
    for choice in 0..choices {
        let sampling =
            SamplingOptions { seed: ask.sampling.seed.wrapping_add(choice as u64), ..ask.sampling.clone() };
        let last = ask.prompt.last().copied();
        let request = Request {
            prompt: ask.prompt.clone(),
            max_tokens: Some(ask.max_tokens.unwrap_or(room).min(room)),
            sampling,
            mask: None,
            stop_tokens: if ask.ignore_eos { Vec::new() } else { model.text.stop_tokens.clone() },
            logprobs: ask.logprobs,
            prompt_logprobs: ask.prompt_logprobs,
            keep: true,
            group: ask.client.group,
            scope: ask.client.scope,
            ..Request::default()
        };
        let constraint =
            structure.grammar.as_ref().map(|grammar| Box::new(Matcher::new(grammar)) as Box<dyn Constraint>);
        let drafter = model.drafts.then(|| Box::new(NgramDrafter) as Box<dyn Drafter>);
        let guides = Guides { constraint, drafter };
        let submitted = model.worker.submit(Job { request, guides }).await;
        let tokens = submitted
            .map_err(|why| ApiError::unavailable(format!("the engine of this model has stopped: {why}"), 5))?
            .map_err(|error| ApiError::admission(error, ask.prompt_field))?;
        let tokenizer = model.text.tokenizer.clone();
        let scored_prompt = if ask.prompt_logprobs.is_some() { ask.prompt.clone() } else { Vec::new() };
        let detokenizer = tokenizer.detokenizer_after(last, true);
        let (stops, prompt_tokens) = (ask.stops.clone(), ask.prompt.len());
        let (reader, shown) = (structure.reader(model), Structure::shown(model));
        let reading = Reading { scored_prompt, detokenizer, stops, tokenizer, reader, shown, prompt_tokens };
        running.push(Generation::new(tokens, reading));
    }
    Ok(running)
}

/// A name for an answer that is not used again.
pub(crate) fn fresh_id(prefix: &str) -> String {
    use std::hash::{BuildHasher, RandomState};
    let (a, b) = (RandomState::new().hash_one(1u8), RandomState::new().hash_one(2u8));
    format!("{prefix}{a:016x}{:08x}", b as u32)
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
