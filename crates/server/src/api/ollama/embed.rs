//! `/api/embed`, and `/api/embeddings` as it was before.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;

use super::request::{Opened, open};
use super::time::nanos;
use crate::app::App;
use crate::embedding::{Long, Text, dimensions, embed as vectors, texts};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::http::body::JsonBody;
use crate::http::client::Client;

/// The answer of `/api/embed`.
#[derive(Serialize)]
pub(crate) struct Embeddings {
    model: String,
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
}

/// The answer of `/api/embeddings`.
#[derive(Serialize)]
pub(crate) struct Embedding {
    embedding: Vec<f32>,
}

/// Turns texts into vectors of the length 1. Without texts the model is loaded.
pub(crate) async fn embed(
    State(app): State<Arc<App>>,
    client: Client,
    JsonBody(body): JsonBody,
) -> Result<Json<Embeddings>, ApiError> {
    let fields = Fields::of(&body)?;
    let long = if fields.bool("truncate")?.unwrap_or(true) { Long::Cut } else { Long::Refuse };
    let texts = match fields.get("input") {
        None => Vec::new(),
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(_) => texts(&fields, "input")?,
    };
    let Opened { name, model, kept, started, load } = open(&app, &fields).await?;
    let dimensions = dimensions(&fields, &model)?;
    // The texts are taken out of it, and it may be large.
    drop(body);
    let (embeddings, tokens) = match texts.is_empty() {
        true => (Vec::new(), 0),
        false => {
            let vectors = vectors(&model, client, texts, long, true, dimensions).await?;
            (vectors.vectors, vectors.tokens)
        }
    };
    drop(kept);
    Ok(Json(Embeddings {
        model: name,
        embeddings,
        total_duration: nanos(started.elapsed()),
        load_duration: nanos(load),
        prompt_eval_count: tokens,
    }))
}

/// One text, whose vector is left as long as it is.
pub(crate) async fn embedding(
    State(app): State<Arc<App>>,
    client: Client,
    JsonBody(body): JsonBody,
) -> Result<Json<Embedding>, ApiError> {
    let fields = Fields::of(&body)?;
    let prompt = fields.str("prompt")?.unwrap_or_default();
    let Opened { model, kept, .. } = open(&app, &fields).await?;
    let embedding = match prompt.is_empty() {
        true => Vec::new(),
        false => {
            let text = vec![("prompt".to_owned(), Text::Plain(prompt.to_owned()))];
            let vectors = vectors(&model, client, text, Long::Refuse, false, None).await?;
            vectors.vectors.into_iter().next().unwrap_or_default()
        }
    };
    drop(kept);
    Ok(Json(Embedding { embedding }))
}
