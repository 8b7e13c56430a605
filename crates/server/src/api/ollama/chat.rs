//! `/api/chat`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answer::{Kind, respond};
use super::request::{Begun, ask, begin, no_images, shape, streams, thinking};
use crate::app::App;
use crate::chat::{Conversation, messages};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::http::body::JsonBody;
use crate::http::client::Client;
use crate::job;

/// Answers a conversation. Without messages the model is loaded, or unloaded where it is to be kept for no time.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    client: Client,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let fields = Fields::of(&body)?;
    let stream = streams(&fields)?;
    let list = fields.list("messages")?.unwrap_or_default();
    let (opened, form) = match begin(&app, &fields, Kind::Chat, !list.is_empty()).await? {
        Begun::Opened(opened, form) => (opened, form),
        Begun::Done(answer) => return Ok(Json(answer).into_response()),
    };
    let model = &opened.model;
    let messages = conversation(list)?;
    // An answer that is begun is gone on with, as Ollama does.
    let continues =
        messages.last().is_some_and(|m| m["role"] == "assistant" && m.get("tool_calls").is_none());
    let shape = shape(&fields)?;
    let conversation = Conversation { messages, kwargs: thinking(&fields, model)?, continues };
    let prompt = job::prompt(model, conversation, &shape).await?;
    let ask = ask(&fields, model, client, prompt.tokens, "messages")?;
    let mut generations = job::start(model, &shape, ask, Some(prompt.text), 1).await?;
    let generation = generations.pop().ok_or_else(|| ApiError::internal("no answer was begun"))?;
    // What was asked takes memory that others may want while it is answered.
    drop(body);
    respond(generation, form, opened.kept, stream.then_some(app.options.ping)).await
}

/// Messages in the form that all chats share: contents may be left out, thoughts and tools have other names.
fn conversation(list: &[Value]) -> Result<Vec<Value>, ApiError> {
    let message = |(i, value): (usize, &Value)| {
        let fields = Fields::at(value, format!("messages[{i}]"))?;
        let mut message = value.clone();
        if fields.get("content").is_none() {
            message["content"] = "".into();
        }
        // The name is written with and without underscore by other APIs' clients.
        if let Some(thinking) = fields.str("thinking")? {
            message["reasoning_content"] = thinking.into();
        }
        if let Some(name) = fields.str("tool_name")? {
            message["name"] = name.into();
        }
        match fields.str("role")? {
            Some("tool") if no_images(&fields).is_err() => {
                let content = fields.str("content")?.unwrap_or_default();
                message["content"] = format!("{content}[image left out: this model reads text only]").into();
            }
            _ => no_images(&fields)?,
        }
        Ok(message)
    };
    let list: Vec<Value> = list.iter().enumerate().map(message).collect::<Result<_, _>>()?;
    messages(&Fields::of(&json!({"messages": list}))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_take_the_shared_form() {
        let list = json!([
            {"role": "user"},
            {"role": "assistant", "content": "", "thinking": "hm",
                "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "tool", "tool_name": "f", "content": "2", "images": ["aGk="]},
        ]);
        let call = json!({"id": "", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}});
        assert_eq!(
            Value::Array(conversation(list.as_array().unwrap()).unwrap()),
            json!([
                {"role": "user", "content": ""},
                {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
                {"role": "tool", "name": "f", "content": "2[image left out: this model reads text only]"},
            ])
        );
    }

    #[test]
    fn wrong_messages_are_named() {
        for (message, param) in [
            (json!({"role": "user", "content": "x", "images": ["aGk="]}), "messages[0].images"),
            (json!({"role": "king", "content": "x"}), "messages[0].role"),
            (json!({"role": "assistant", "thinking": 1}), "messages[0].thinking"),
            (json!(5), "messages[0]"),
        ] {
            let error = conversation(std::slice::from_ref(&message)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{message}");
        }
    }
}
