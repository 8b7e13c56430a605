//! `/v1/chat/completions`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio_stream::StreamMap;

use super::usage::{FINGERPRINT, finish_reason, logprobs, timings, usage};
use crate::app::App;
use crate::chat::{self, Conversation};
use crate::error::{ApiError, Dialect};
use crate::fields::Fields;
use crate::generation::{Answer, Delta, End, Finish, Generation, Part, collect_all};
use crate::http::body::JsonBody;
use crate::http::client::Client;
use crate::http::sse::{self, Events};
use crate::job::{self, Ask, fresh_id, now_seconds};
use crate::registry::InUse;
use crate::sampling;
use crate::shape::Shape;

/// Most likely tokens that may be asked for.
const TOP_LOGPROBS_MAX: usize = 20;

/// How the answer is to be sent.
struct Form {
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
}

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    client: Client,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let fields = Fields::of(&body)?;
    let model = app.registry.get(fields.required("model", fields.str("model")?)?, true).await?;
    let conversation = conversation(&fields)?;
    let choices = fields.count("n", 1, app.options.choices_max)?.unwrap_or(1);
    let stream = fields.bool("stream")?.unwrap_or(false);
    let include_usage = match fields.object("stream_options")? {
        Some(options) => options.bool("include_usage")?.unwrap_or(false),
        None => false,
    };
    let (ask, shape) = (Ask { client, ..ask(&fields, &model)? }, Shape::of_chat(&fields)?);
    let generations = job::converse(&model, conversation, &shape, ask, choices).await?;
    let form =
        Form { id: fresh_id("chatcmpl-"), created: now_seconds(), model: model.id.clone(), include_usage };
    if stream {
        return Ok(sse::respond(app.options.ping, |events| send(events, generations, form, model)));
    }
    // What was asked takes memory that others may want meanwhile.
    drop(body);
    Ok(Json(whole(&form, &collect_all(generations).await?)).into_response())
}

/// The conversation in a request.
pub(crate) fn conversation(fields: &Fields<'_>) -> Result<Conversation, ApiError> {
    let messages = chat::messages(fields)?;
    let kwargs = chat::kwargs(fields, fields.str("reasoning_effort")?)?;
    let continues = fields.bool("continue_final_message")?.unwrap_or(false);
    if continues && messages.last().is_none_or(|message| message["role"] != "assistant") {
        return Err(fields.wrong("continue_final_message", "the last message must be the assistant's"));
    }
    Ok(Conversation { messages, kwargs, continues })
}

/// What is asked for, but for the prompt.
fn ask(fields: &Fields<'_>, model: &InUse) -> Result<Ask, ApiError> {
    let tokenizer = &model.text.tokenizer;
    let sampling = sampling::options(fields, &model.text.recommended, tokenizer, sampling::fresh_seed())?;
    let most = fields.count("max_completion_tokens", 1, usize::MAX >> 12)?;
    let max_tokens = most.or(fields.count("max_tokens", 1, usize::MAX >> 12)?);
    let top = fields.count("top_logprobs", 0, TOP_LOGPROBS_MAX)?;
    let logprobs = match fields.bool("logprobs")?.unwrap_or(false) {
        true => Some(top.unwrap_or(0)),
        false if top.is_some_and(|top| top > 0) => {
            return Err(fields.wrong("top_logprobs", "needs logprobs to be true"));
        }
        false => None,
    };
    Ok(Ask {
        prompt: Vec::new(),
        sampling,
        max_tokens,
        stops: sampling::stops(fields, "stop")?,
        ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
        logprobs,
        prompt_logprobs: None,
        priority: job::priority(fields)?,
        client: Client::default(),
        prompt_field: "messages",
    })
}

fn whole(form: &Form, answers: &[Answer]) -> Value {
    let choice = |(index, answer): (usize, &Answer)| {
        let mut message =
            json!({"role": "assistant", "content": answer.text, "refusal": null, "annotations": []});
        if !answer.reasoning.is_empty() {
            message["reasoning_content"] = answer.reasoning.as_str().into();
        }
        if !answer.calls.is_empty() {
            if answer.text.is_empty() {
                message["content"] = Value::Null;
            }
            let call = |call: &crate::generation::Call| {
                json!({"id": call.id, "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments}})
            };
            message["tool_calls"] = answer.calls.iter().map(call).collect();
        }
        let scores = if answer.tokens.is_empty() { Value::Null } else { logprobs(&answer.tokens) };
        json!({
            "index": index, "message": message, "logprobs": scores,
            "finish_reason": finish_reason(&answer.end.finish),
        })
    };
    let ends: Vec<End> = answers.iter().map(|answer| answer.end.clone()).collect();
    json!({
        "id": form.id, "object": "chat.completion", "created": form.created, "model": form.model,
        "system_fingerprint": FINGERPRINT, "service_tier": "default",
        "choices": answers.iter().enumerate().map(choice).collect::<Vec<_>>(),
        "usage": usage(&ends),
        "timings": timings(&ends[0].timings),
    })
}

impl Form {
    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "system_fingerprint": FINGERPRINT, "service_tier": "default", "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&self, index: usize, delta: Value, scores: Value, finish: Option<&'static str>) -> Value {
        self.chunk(json!([{"index": index, "delta": delta, "logprobs": scores, "finish_reason": finish}]))
    }
}

/// Sends the answers as they come.
async fn send(events: Events, generations: Vec<Generation>, form: Form, model: InUse) -> Option<()> {
    let mut streams: StreamMap<usize, Generation> = generations.into_iter().enumerate().collect();
    for index in 0..streams.len() {
        let first = json!({"role": "assistant", "content": "", "refusal": null});
        events.data(&form.delta(index, first, Value::Null, None)).await?;
    }
    let mut ends: Vec<End> = Vec::new();
    while let Some((index, Delta { parts, tokens, end, .. })) = events.next(&mut streams).await {
        let mut scores = if tokens.is_empty() { Value::Null } else { logprobs(&tokens) };
        for part in parts {
            events.data(&form.delta(index, delta_of(part), scores.take(), None)).await?;
        }
        if !scores.is_null() {
            events.data(&form.delta(index, json!({"content": ""}), scores, None)).await?;
        }
        match end {
            Some(End { finish: Finish::Failed(error), .. }) => {
                events.data(&error.body(Dialect::OpenAi)).await?;
                return events.done().await;
            }
            Some(end) => {
                let mut last = form.delta(index, json!({}), Value::Null, finish_reason(&end.finish));
                last["timings"] = timings(&end.timings);
                events.data(&last).await?;
                ends.push(end);
            }
            None => {}
        }
    }
    if form.include_usage {
        let mut last = form.chunk(json!([]));
        last["usage"] = usage(&ends);
        events.data(&last).await?;
    }
    drop(model);
    events.done().await
}

fn delta_of(part: Part) -> Value {
    match part {
        Part::Text(text) => json!({"content": text}),
        Part::Reasoning(text) => json!({"reasoning_content": text}),
        Part::CallStart { index, id, name } => json!({"tool_calls": [
            {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}]}),
        Part::CallArguments { index, delta } => {
            json!({"tool_calls": [{"index": index, "function": {"arguments": delta}}]})
        }
    }
}
