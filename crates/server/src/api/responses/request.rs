//! What a request to the Responses API asks for.

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::events::Frame;
use super::items::{self, Item, Placed};
use super::store::{Miss, Store};
use super::tools;
use crate::chat::{self, Conversation};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::http::client::Client;
use crate::job::{Ask, fresh_id, now_seconds};
use crate::registry::Model;
use crate::sampling;
use crate::shape::Shape;

/// Most likely tokens that may be asked for.
const TOP_LOGPROBS_MAX: usize = 20;
/// Entries of `metadata`, as OpenAI bounds them.
const METADATA_MAX: usize = 16;

/// A request, read.
pub(crate) struct Request {
    pub conversation: Conversation,
    pub shape: Shape,
    pub ask: Ask,
    pub frame: Frame,
    pub stream: bool,
    /// What is kept with the response, if it is kept.
    pub keep: Option<Keep>,
}

/// What is kept with a response.
pub(crate) struct Keep {
    /// The scope of the client.
    pub owner: u64,
    pub previous: Option<String>,
    pub input: Vec<Value>,
}

/// Errors about a field by which the server would have to do what it does not.
fn refuse_foreign(fields: &Fields<'_>) -> Result<(), ApiError> {
    if fields.bool("background")?.unwrap_or(false) {
        return Err(fields.wrong("background", "responses are not run in the background here"));
    }
    for name in ["conversation", "prompt"] {
        if fields.get(name).is_some() {
            return Err(fields.wrong(name, "is nothing that this server keeps"));
        }
    }
    Ok(())
}

/// Why a request cannot go on from the response that it names.
fn not_there(miss: Miss) -> ApiError {
    const PARAM: &str = "previous_response_id";
    match miss {
        Miss::TooMuch(bytes) => items::too_much(PARAM, bytes),
        Miss::Lost(lost) => {
            let message =
                format!("{PARAM}: the response {lost} is not kept here; send the whole conversation");
            let error = ApiError::new(StatusCode::BAD_REQUEST, message);
            ApiError { param: Some(PARAM.to_owned()), code: Some("previous_response_not_found"), ..error }
        }
    }
}

/// The conversation that a request adds to, and what it adds.
fn conversation(
    fields: &Fields<'_>,
    store: &Store,
    owner: u64,
    names: &tools::Names,
) -> Result<(Conversation, Vec<Value>), ApiError> {
    let before = match fields.str("previous_response_id")? {
        Some(id) => store.conversation(owner, id).map_err(not_there)?,
        None => Vec::new(),
    };
    let added = items::read(fields, |ids| store.items(owner, ids))?;
    let input = added.iter().map(|(_, item)| items::kept(item)).collect();
    let place = |item| ("previous_response_id".to_owned(), Item::Kept(Arc::new(item)));
    let mut all: Vec<Placed<'_>> = before.into_iter().map(place).collect();
    all.extend(added);
    let messages = items::messages(fields.str("instructions")?, &all, names)?;
    let effort = match fields.object("reasoning")? {
        Some(reasoning) => reasoning.str("effort")?,
        None => None,
    };
    Ok((Conversation { messages, kwargs: chat::kwargs(fields, effort)?, continues: false }, input))
}

/// The conversation of a request and what the answer has to be, which is all that decides how long the prompt is.
pub(crate) fn prompt(
    fields: &Fields<'_>,
    store: &Store,
    owner: u64,
) -> Result<(Conversation, Shape), ApiError> {
    refuse_foreign(fields)?;
    let (shape, names) = tools::shape(fields)?;
    Ok((conversation(fields, store, owner, &names)?.0, shape))
}

/// Reads a request.
pub(crate) fn read(
    fields: &Fields<'_>,
    model: &Model,
    store: &Store,
    client: Client,
) -> Result<Request, ApiError> {
    refuse_foreign(fields)?;
    let (shape, names) = tools::shape(fields)?;
    let (conversation, input) = conversation(fields, store, client.scope, &names)?;
    let tokenizer = &model.text.tokenizer;
    let sampling = sampling::options(fields, &model.text.recommended, tokenizer, sampling::fresh_seed())?;
    let top = fields.count("top_logprobs", 0, TOP_LOGPROBS_MAX)?.unwrap_or(0);
    let include = fields.strings("include", 64)?;
    let scores = top > 0 || include.iter().any(|name| name == "message.output_text.logprobs");
    let owner = client.scope;
    let ask = Ask {
        prompt: Vec::new(),
        sampling,
        max_tokens: fields.count("max_output_tokens", 1, usize::MAX >> 12)?,
        stops: sampling::stops(fields, "stop")?,
        ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
        logprobs: scores.then_some(top),
        prompt_logprobs: None,
        priority: 0,
        client,
        prompt_field: "input",
    };
    let store = fields.bool("store")?.unwrap_or(true);
    let previous = fields.str("previous_response_id")?.map(str::to_owned);
    let summary = match fields.object("reasoning")? {
        Some(reasoning) => reasoning.str("summary")?.or(reasoning.str("generate_summary")?).is_some(),
        None => false,
    };
    let frame = Frame { fields: echo(fields, &ask, &model.id, &shape)?, names, summary };
    let keep = store.then_some(Keep { owner, previous, input });
    let stream = fields.bool("stream")?.unwrap_or(false);
    Ok(Request { conversation, shape, ask, frame, stream, keep })
}

/// A number as it was written, not as the nearest f32 is.
fn written(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn metadata(fields: &Fields<'_>) -> Result<Value, ApiError> {
    let Some(value) = fields.get("metadata") else { return Ok(json!({})) };
    let Value::Object(map) = value else {
        return Err(fields.wrong("metadata", "must be an object of strings"));
    };
    if map.len() > METADATA_MAX {
        return Err(fields.wrong("metadata", format!("has {} entries, at most {METADATA_MAX}", map.len())));
    }
    match map.iter().find(|(_, value)| !value.is_string()) {
        Some((name, _)) => Err(fields.wrong(&format!("metadata.{name}"), "must be a string")),
        None => Ok(value.clone()),
    }
}

/// All fields of the response, those of the request as they were given or with their defaults.
fn echo(fields: &Fields<'_>, ask: &Ask, model: &str, shape: &Shape) -> Result<Map<String, Value>, ApiError> {
    let text = |name: &str| fields.str(name).map(|text| text.unwrap_or_default().to_owned());
    let reasoning = fields.object("reasoning")?;
    let reasoning = |name: &str| reasoning.as_ref().and_then(|fields| fields.get(name)).cloned();
    let first = json!({
        "id": fresh_id("resp_"), "object": "response", "created_at": now_seconds(), "status": "in_progress",
        "completed_at": null, "background": false, "error": null, "incomplete_details": null,
        "instructions": fields.str("instructions")?, "max_output_tokens": ask.max_tokens,
        "max_tool_calls": fields.integer("max_tool_calls", 1, i64::MAX)?, "model": model, "output": [],
        "parallel_tool_calls": shape.parallel, "previous_response_id": fields.str("previous_response_id")?,
        "conversation": null, "prompt_cache_key": text("prompt_cache_key")?, "prompt_cache_retention": null,
    });
    let then = json!({
        "reasoning": {"effort": reasoning("effort"), "summary": reasoning("summary")},
        "safety_identifier": text("safety_identifier")?, "service_tier": "default",
        "store": fields.bool("store")?.unwrap_or(true),
        "temperature": written(ask.sampling.temperature), "text": tools::echo_text(fields),
        "tool_choice": fields.get("tool_choice").cloned().unwrap_or_else(|| "auto".into()),
        "tools": tools::echo(fields), "top_logprobs": ask.logprobs.unwrap_or(0),
        "top_p": written(ask.sampling.top_p), "presence_penalty": written(ask.sampling.presence_penalty),
        "frequency_penalty": written(ask.sampling.frequency_penalty),
        "truncation": fields.choice("truncation", &["auto", "disabled"])?.unwrap_or("disabled"),
        "usage": null, "metadata": metadata(fields)?,
    });
    let mut echo = Map::new();
    for part in [first, then] {
        if let Value::Object(part) = part {
            echo.extend(part);
        }
    }
    // The specification has it as a string or not at all.
    if let Some(user) = fields.str("user")? {
        echo.insert("user".into(), user.into());
    }
    Ok(echo)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: u64 = 1;

    fn conversation_of(body: &Value, store: &Store) -> Result<(Conversation, Vec<Value>), ApiError> {
        conversation(&Fields::of(body).unwrap(), store, ME, &tools::Names::default())
    }

    #[test]
    fn a_request_goes_on_from_what_is_kept() {
        let store = Store::new(10, 1 << 20, 1 << 20);
        let said = json!({"id": "resp_1", "output": [{"id": "msg_1", "type": "message", "role": "assistant",
            "content": [{"type": "output_text", "text": "hello"}]}]});
        let asked = [items::kept(&json!({"role": "user", "content": "hi"}))];
        store.put(ME, None, &asked, &said);
        let body = json!({"previous_response_id": "resp_1", "input": "and?", "instructions": "be kind",
            "reasoning": {"effort": "none"}});
        let (all, added) = conversation_of(&body, &store).unwrap();
        assert_eq!(
            Value::Array(all.messages),
            json!([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"}, {"role": "user", "content": "and?"}])
        );
        assert_eq!(all.kwargs["enable_thinking"], false);
        assert_eq!((added.len(), &added[0]["content"][0]["text"]), (1, &json!("and?")));
        let lost =
            conversation_of(&json!({"previous_response_id": "resp_2", "input": "x"}), &store).unwrap_err();
        assert_eq!(lost.code, Some("previous_response_not_found"));
        assert_eq!(lost.status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn what_is_not_done_here_is_refused() {
        let read =
            |body: Value| prompt(&Fields::of(&body).unwrap(), &Store::new(1, 1, 1), ME).unwrap_err().param;
        for name in ["conversation", "prompt", "background"] {
            let mut body = json!({"input": "x"});
            body[name] = if name == "background" { true.into() } else { json!({"id": "x"}) };
            assert_eq!(read(body).as_deref(), Some(name));
        }
        let metadata = |value: Value| metadata(&Fields::of(&json!({"metadata": value})).unwrap());
        assert_eq!(metadata(json!({"a": 1})).unwrap_err().param.as_deref(), Some("metadata.a"));
        assert!(metadata(json!([])).is_err() && metadata(json!({"a": "b"})).is_ok());
        assert_eq!((written(0.7), written(1.0)), (json!(0.7), json!(1.0)));
    }
}
