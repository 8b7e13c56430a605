//! What is no one else's API: health, metrics, properties, and the text side of a model, under llama.cpp's names.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use unicorn_engine::SequenceState;
use unicorn_text::EncodeOptions;

use crate::api::openai;
use crate::app::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::http::body::JsonBody;
use crate::job;
use crate::page;
use crate::registry::{InUse, Standing};
use crate::shape::Shape;
use crate::worker::Health;

/// Whether requests can be answered: 200, or 503 with the reason. The default model decides.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Response {
    let default = app.registry.entries().into_iter().next().map(|entry| entry.id).unwrap_or_default();
    let waits = |status: &str, more: Value| {
        let mut body = json!({"status": status, "model": default});
        if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
            body.extend(more);
        }
        let mut response = (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        response
    };
    let ready = app.registry.ready();
    // What others do is no reason to send nobody here.
    if let Some(model) = ready.iter().find(|model| model.id == default) {
        let load = model.worker.load();
        match &load.health {
            Health::Works => {}
            Health::Recovers => return waits("a device was lost, the model is opened again", json!({})),
            Health::Stopped(why) => {
                // Nobody may come while this is told: it has to get well by itself.
                app.registry.revive(&default);
                return waits("a device was lost", json!({"reason": why}));
            }
        }
        if let Some(hangs) = load.hangs_for() {
            return waits("a device does not answer", json!({"seconds": hangs.as_secs_f64()}));
        }
    }
    match app.registry.standing(&default) {
        Standing::Loading(share) => waits("loading", json!({"progress": share})),
        Standing::Failed(why) => {
            app.registry.revive(&default);
            waits("the model cannot be loaded", json!({"reason": why}))
        }
        Standing::Ready | Standing::Unloaded => {
            Json(json!({"status": "ok", "model": default, "uptime_seconds": app.started.elapsed().as_secs()}))
                .into_response()
        }
    }
}

/// A file of the chat page.
pub(crate) async fn page(headers: HeaderMap, uri: Uri) -> Result<Response, ApiError> {
    let asset = page::asset(uri.path());
    let asset = asset.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "the page has no such file"))?;
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == asset.etag.as_bytes());
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, asset.content_type)], asset.body).into_response(),
    };
    let out = response.headers_mut();
    let policy = (header::CONTENT_SECURITY_POLICY.as_str(), page::CONTENT_SECURITY_POLICY);
    let cache = (header::CACHE_CONTROL.as_str(), page::CACHE_CONTROL);
    for (name, value) in page::HEADERS.into_iter().chain([policy, cache]) {
        out.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(tag) = HeaderValue::from_str(&asset.etag) {
        out.insert(header::ETAG, tag);
    }
    Ok(response)
}

/// Prometheus' text format.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let counters: Vec<_> = app.registry.running().iter().map(|model| model.worker.load().counters).collect();
    let text = app.metrics.text(&counters);
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// What is known about the model that is named, or about the default one. Where that is not loaded it is the first that is.
pub(crate) async fn props(
    State(app): State<Arc<App>>,
    Query(asked): Query<HashMap<String, String>>,
) -> Result<Json<Value>, ApiError> {
    let ready = app.registry.ready();
    let entry = match asked.get("model").filter(|name| !name.is_empty()) {
        Some(name) => Some(app.registry.find(name)?),
        None => None,
    };
    let id = entry.as_ref().map(|entry| entry.id.clone());
    let id = id.or_else(|| Some(app.registry.entries().into_iter().next()?.id)).unwrap_or_default();
    let loaded = ready.iter().find(|model| model.id == id);
    let Some(model) = loaded.or(ready.first().filter(|_| entry.is_none())) else {
        let mut props = json!({"model": id, "loaded": false});
        if let Some(entry) = entry
            && let Some(outline) = app.registry.outlined(std::slice::from_ref(&entry)).await.get(&entry.id)
        {
            props["context_length"] = outline.context.into();
            props["architecture"] = outline.facts.architecture.as_str().into();
        }
        return Ok(Json(props));
    };
    let facts = model.facts();
    let recommended = &model.text.recommended;
    Ok(Json(json!({
        "model": model.id, "loaded": true, "name": facts.name, "architecture": facts.architecture,
        "parameters": facts.parameters, "quantization": facts.quantization, "weight_bytes": facts.weight_bytes,
        "context_length": model.context, "total_slots": model.sequences_max,
        "device": facts.devices.join(", "), "placement": facts.placement,
        "build_info": concat!("unicorn ", env!("CARGO_PKG_VERSION")),
        "default_generation_settings": {
            "n_ctx": model.context, "temperature": recommended.temperature, "top_k": recommended.top_k,
            "top_p": recommended.top_p, "min_p": recommended.min_p, "repeat_penalty": recommended.repeat_penalty,
            "system": recommended.system,
        },
    })))
}

/// What the engines are doing.
pub(crate) async fn slots(State(app): State<Arc<App>>) -> Json<Value> {
    let mut slots = Vec::new();
    for model in app.registry.running() {
        for sequence in model.worker.load().sequences {
            slots.push(json!({
                "id": sequence.id.0, "model": model.id, "n_ctx": model.context,
                "is_processing": sequence.state != SequenceState::Waiting, "state": state(sequence.state),
                "prompt_tokens": sequence.prompt_tokens, "computed_tokens": sequence.computed_tokens,
                "generated_tokens": sequence.generated_tokens,
            }));
        }
    }
    Json(slots.into())
}

fn state(state: SequenceState) -> &'static str {
    match state {
        SequenceState::Waiting => "waiting",
        SequenceState::Prefill => "prefill",
        SequenceState::Decode => "decode",
    }
}

/// The model of a request; the default one where none is named.
async fn model(app: &App, fields: &Fields<'_>) -> Result<InUse, ApiError> {
    let default = app.registry.entries().into_iter().next().map(|entry| entry.id).unwrap_or_default();
    let name = fields.str("model")?.map_or(default, str::to_owned);
    app.registry.get(&name, true).await
}

/// Text to token ids: `{"content"}` to `{"tokens"}`.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let fields = Fields::of(&body)?;
    let model = model(&app, &fields).await?;
    let content = match fields.str("content")? {
        Some(content) => content,
        None => fields.required("content", fields.str("prompt")?)?,
    }
    .to_owned();
    let options = EncodeOptions {
        parse_special: fields.bool("parse_special")?.unwrap_or(true),
        // llama.cpp's name, then vLLM's.
        add_special: fields.bool("add_special")?.or(fields.bool("add_special_tokens")?).unwrap_or(false),
    };
    let pieces = fields.bool("with_pieces")?.unwrap_or(false);
    job::blocking(move || {
        let tokenizer = &model.text.tokenizer;
        let tokens =
            tokenizer.encode(&content, options).map_err(|error| ApiError::param("content", error))?;
        let count = tokens.len();
        let listed: Value = match pieces {
            false => tokens.into(),
            true => {
                let piece = |id: u32| json!({"id": id, "piece": tokenizer.decode(&[id], false)});
                tokens.into_iter().map(piece).collect()
            }
        };
        Ok(Json(json!({"tokens": listed, "count": count, "max_model_len": model.context})))
    })
    .await
}

/// Token ids to text: `{"tokens"}` to `{"content"}` and `{"prompt"}`.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let fields = Fields::of(&body)?;
    let model = model(&app, &fields).await?;
    let list = fields.required("tokens", fields.list("tokens")?)?;
    let id = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < model.vocab)
    };
    let ids: Option<Vec<u32>> = list.iter().map(id).collect();
    let ids = ids.ok_or_else(|| fields.wrong("tokens", "must be token ids of this model"))?;
    let text = model.text.tokenizer.decode(&ids, false);
    // llama.cpp's name, then vLLM's.
    Ok(Json(json!({"content": text, "prompt": text})))
}

/// What vLLM's clients ask about the tokenizer of the default model.
pub(crate) async fn tokenizer_info(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let model = model(&app, &Fields::of(&json!({}))?).await?;
    let tokenizer = &model.text.tokenizer;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id));
    Ok(Json(json!({
        "bos_token": text(tokenizer.bos()), "eos_token": text(tokenizer.eos()), "model_max_length": model.context,
        "tokenizer_class": null, "chat_template": null,
    })))
}

/// A conversation as the model sees it: `{"messages"}` to `{"prompt"}`.
pub(crate) async fn apply_template(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let fields = Fields::of(&body)?;
    let model = model(&app, &fields).await?;
    let prompt = job::prompt(&model, openai::chat::conversation(&fields)?, &Shape::of_chat(&fields)?).await?;
    Ok(Json(json!({"prompt": prompt.text, "tokens": prompt.tokens.len()})))
}
