//! Anthropic's API.

mod blocks;
mod events;
mod request;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use self::events::Writer;
use self::request::Prompt;
use crate::app::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::Generation;
use crate::http::body::JsonBody;
use crate::http::client::Client;
use crate::http::sse::{self, Events};
use crate::job;
use crate::registry::InUse;

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    client: Client,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let fields = Fields::of(&body)?;
    let model = app.registry.get(fields.required("model", fields.str("model")?)?, true).await?;
    let Prompt { conversation, shape, thinking, tells_cache } = request::prompt(&fields)?;
    let ask = request::ask(&fields, &model, client)?;
    let stream = fields.bool("stream")?.unwrap_or(false);
    let generations = job::converse(&model, conversation, &shape, ask, 1).await?;
    let generation = generations.into_iter().next();
    let mut generation = generation.ok_or_else(|| ApiError::internal("nothing answers"))?;
    let mut writer = Writer::new(model.id.clone(), thinking, tells_cache, generation.prompt_tokens());
    if stream {
        return Ok(sse::respond(app.options.ping, |events| send(events, generation, writer, model)));
    }
    // What was asked takes memory that others may want meanwhile.
    drop(body);
    while let Some(delta) = generation.next().await {
        writer.push(delta);
    }
    if let Some(error) = writer.failure() {
        return Err(error.clone());
    }
    match writer.ended() {
        true => Ok(Json(writer.message()).into_response()),
        false => Err(ApiError::internal("the answer ended without an end")),
    }
}

/// Sends the answer as it comes.
async fn send(events: Events, mut generation: Generation, mut writer: Writer, model: InUse) -> Option<()> {
    for (name, event) in writer.begin() {
        events.named(name, &event).await?;
    }
    while let Some(delta) = events.next(&mut generation).await {
        for (name, event) in writer.push(delta) {
            events.named(name, &event).await?;
        }
    }
    if !writer.ended() {
        let (name, event) = events::error(&ApiError::internal("the answer ended without an end"));
        events.named(name, &event).await?;
    }
    drop(model);
    Some(())
}

/// Counts the tokens that a conversation would have.
pub(crate) async fn count_tokens(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let fields = Fields::of(&body)?;
    let model = app.registry.get(fields.required("model", fields.str("model")?)?, true).await?;
    let Prompt { conversation, shape, .. } = request::prompt(&fields)?;
    let prompt = job::prompt(&model, conversation, &shape).await?;
    Ok(Json(json!({"input_tokens": prompt.tokens.len()})))
}
