//! From what a request asks to a running answer.

use std::num::NonZero;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use unicorn_engine::{Constraint, Drafter, Guides, NgramDrafter, Request, SamplingOptions};
use unicorn_grammar::{Grammar, Matcher};

use crate::chat::{Conversation, Prompt, render};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{Generation, Reading};
use crate::http::client::Client;
use crate::registry::InUse;
use crate::shape::{Shape, ToolChoice};
use crate::structure::Structure;
use crate::worker::Job;

/// One answer that is wanted, in terms that all APIs share.
#[derive(Clone)]
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
    /// Higher ones go first; see [`priority`].
    pub priority: i32,
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

/// Threads that read requests at once: each may take hundreds of megabytes for a long one, and more than there are processors gain nothing.
static READERS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(2, NonZero::get);
    Arc::new(Semaphore::new(2 * processors))
});
/// Longest wait for such a thread.
const READER_WAIT: Duration = Duration::from_secs(30);

/// Runs what takes its time on a thread for such things.
///
/// # Errors
/// Those of the work; 503 where too many others are at it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let turn = tokio::time::timeout(READER_WAIT, READERS.clone().acquire_owned()).await;
    let turn = turn.map_err(|_| ApiError::unavailable("too many requests are being read", 2))?;
    let work = move || {
        // Held to the end, also where the client is gone and nobody waits.
        let _turn = turn;
        work()
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the request could not be read: a fault of the server")))
}

/// Furthest that a request may be set before or behind others.
const PRIORITY_MAX: i64 = 1000;

/// The `priority` of a request, as vLLM has it: 0 where nothing is said, and lower ones go first. The engine counts the other way.
///
/// # Errors
/// Where it is no whole number from -1000 to 1000.
pub(crate) fn priority(fields: &Fields<'_>) -> Result<i32, ApiError> {
    let priority = fields.integer("priority", -PRIORITY_MAX, PRIORITY_MAX)?.unwrap_or(0);
    Ok(-(priority as i32))
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
    let record = ask.client.record.as_ref();
    if let Some(record) = record {
        record.model(&model.id);
        record.notices(structure.grammar.as_ref().map_or(&[], Grammar::notices));
    }
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
            priority: ask.priority,
        };
        let constraint =
            structure.grammar.as_ref().map(|grammar| Box::new(Matcher::new(grammar)) as Box<dyn Constraint>);
        let drafter = model.drafts.then(|| Box::new(NgramDrafter) as Box<dyn Drafter>);
        let guides = Guides { constraint, drafter };
        let submitted = model.worker.submit(Job { request, guides }).await;
        let tokens = submitted
            .map_err(|why| {
                ApiError::unavailable(format!("the engine of this model does not answer: {why}"), 5)
            })?
            .map_err(|error| ApiError::admission(error, ask.prompt_field))?;
        let tokenizer = model.text.tokenizer.clone();
        let scored_prompt = if ask.prompt_logprobs.is_some() { ask.prompt.clone() } else { Vec::new() };
        let detokenizer = tokenizer.detokenizer_after(last, true);
        let (stops, prompt_tokens) = (ask.stops.clone(), ask.prompt.len());
        let (reader, shown) = (structure.reader(model), Structure::shown(model));
        let record = record.cloned();
        let reading =
            Reading { scored_prompt, detokenizer, stops, tokenizer, reader, shown, prompt_tokens, record };
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn low_priorities_go_first() {
        let read = |value| priority(&Fields::of(&json!({"priority": value})).unwrap());
        assert_eq!((read(json!(null)), read(json!(-7)), read(json!(1000))), (Ok(0), Ok(7), Ok(-1000)));
        for wrong in [json!(-1001), json!(0.5), json!("high")] {
            assert_eq!(read(wrong).unwrap_err().param.as_deref(), Some("priority"));
        }
    }
}
