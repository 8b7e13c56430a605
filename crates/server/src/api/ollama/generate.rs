//! `/api/generate`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use unicorn_text::EncodeOptions;

use super::answer::{Kind, respond};
use super::request::{Begun, ask, begin, no_images, shape, streams, thinking};
use crate::app::App;
use crate::chat::Conversation;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::http::body::JsonBody;
use crate::http::client::Client;
use crate::job;
use crate::registry::InUse;
use crate::shape::Shape;

/// Answers one prompt. Without one the model is loaded, or unloaded where it is to be kept for no time.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    client: Client,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let fields = Fields::of(&body)?;
    let stream = streams(&fields)?;
    check(&fields)?;
    let text = fields.str("prompt")?.unwrap_or_default();
    let (opened, form) = match begin(&app, &fields, Kind::Generate, !text.is_empty()).await? {
        Begun::Opened(opened, form) => (opened, form),
        Begun::Done(answer) => return Ok(Json(answer).into_response()),
    };
    // Calls have no place in this answer.
    let shape = Shape { tools: Vec::new(), ..shape(&fields)? };
    let (tokens, conversation) = prompt(&fields, &opened.model, text, &shape).await?;
    let ask = ask(&fields, &opened.model, client, tokens, "prompt")?;
    let mut generations = job::start(&opened.model, &shape, ask, conversation, 1).await?;
    let generation = generations.pop().ok_or_else(|| ApiError::internal("no answer was begun"))?;
    // What was asked takes memory that others may want while it is answered.
    drop(body);
    respond(generation, form, opened.kept, stream.then_some(app.options.ping)).await
}

/// What would be lost if it were left aside.
fn check(fields: &Fields<'_>) -> Result<(), ApiError> {
    no_images(fields)?;
    let given = |name: &str| Ok::<bool, ApiError>(fields.str(name)?.is_some_and(|text| !text.is_empty()));
    if given("suffix")? {
        return Err(fields.wrong("suffix", "is not supported: this model only continues"));
    }
    if given("template")? {
        let message = "is not supported: a model's own template is used; `raw` takes a prompt as it is";
        return Err(fields.wrong("template", message));
    }
    if fields.bool("raw")?.unwrap_or(false) && given("system")? {
        return Err(fields.wrong("system", "has no place in a raw prompt"));
    }
    Ok(())
}

/// The prompt in the model's format; as it is where that is asked for and where the model has none.
async fn prompt(
    fields: &Fields<'_>,
    model: &InUse,
    text: &str,
    shape: &Shape,
) -> Result<(Vec<u32>, Option<String>), ApiError> {
    let system = fields.str("system")?.filter(|system| !system.is_empty());
    let plain = matches!(model.text.template(), Ok(None));
    if fields.bool("raw")?.unwrap_or(false) || plain {
        if system.is_some() {
            return Err(fields.wrong("system", "has no place: the model has no chat template"));
        }
        let (model, text) = (model.clone(), text.to_owned());
        return job::blocking(move || {
            model.check_text(&text, "prompt")?;
            let options = EncodeOptions { parse_special: true, add_special: true };
            let encoded = model.text.tokenizer.encode(&text, options);
            encoded.map(|tokens| (tokens, None)).map_err(|error| ApiError::param("prompt", error))
        })
        .await;
    }
    let mut messages = Vec::new();
    messages.extend(system.map(|system| json!({"role": "system", "content": system})));
    messages.push(json!({"role": "user", "content": text}));
    let conversation = Conversation { messages, kwargs: thinking(fields, model)?, continues: false };
    let prompt = job::prompt(model, conversation, shape).await?;
    Ok((prompt.tokens, Some(prompt.text)))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let read = |body: Value| check(&Fields::of(&body).unwrap());
        for (body, param) in [
            (json!({"suffix": "x"}), "suffix"),
            (json!({"template": "{{ .Prompt }}"}), "template"),
            (json!({"images": ["aGk="]}), "images"),
            (json!({"raw": true, "system": "x"}), "system"),
            (json!({"raw": 1}), "raw"),
        ] {
            assert_eq!(read(body.clone()).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
        let empty =
            json!({"suffix": "", "template": "", "images": [], "context": [1, 2], "raw": true, "system": ""});
        assert_eq!(read(empty), Ok(()));
    }
}
