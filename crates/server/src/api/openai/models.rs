//! `/v1/models`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use unicorn_text::DateTime;

use crate::app::App;
use crate::error::ApiError;
use crate::model::{ModelEntry, Outline};

/// `outline` tells of its file, where that could be read.
fn model(app: &App, entry: &ModelEntry, outline: Option<&Outline>) -> Value {
    // OpenAI's fields, then Anthropic's, whose clients ask here too.
    let mut model = json!({
        "id": entry.id, "object": "model", "created": entry.created, "owned_by": "unicorn",
        "type": "model", "display_name": entry.id, "created_at": date(entry.created), "lifecycle": "active",
        "max_input_tokens": null, "max_tokens": null, "capabilities": null,
    });
    let ready = app.registry.ready();
    // One that is loaded may have less context than was asked for.
    let told = match ready.iter().find(|ready| ready.id == entry.id) {
        Some(ready) => Some((ready.context, ready.vocab, (*ready.facts()).clone())),
        None => outline.map(|outline| (outline.context, outline.vocab, outline.facts.clone())),
    };
    if let Some((context, vocab, facts)) = told {
        // What llama.cpp, vLLM and others tell, under their names.
        for name in ["context_length", "max_model_len", "max_input_tokens"] {
            model[name] = context.into();
        }
        // As OpenRouter tells what a model is for.
        let brings = if facts.encodes { "embeddings" } else { "text" };
        model["architecture"] = json!({"input_modalities": ["text"], "output_modalities": [brings]});
        if !facts.encodes {
            model["max_tokens"] = context.into();
        }
        model["meta"] = json!({
            "n_ctx": context, "n_ctx_train": facts.context_trained, "n_params": facts.parameters,
            "n_vocab": vocab, "n_embd": facts.width, "size": facts.weight_bytes,
        });
    }
    model
}

/// Seconds since 1970 as RFC 3339 has them.
fn date(seconds: u64) -> String {
    let DateTime { year, month, day, hour, minute, second } =
        DateTime::from_unix(i64::try_from(seconds).unwrap_or_default());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// All models that may be asked for.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let entries = app.registry.entries();
    let outlines = app.registry.outlined(&entries).await;
    let one = |entry: &ModelEntry| model(&app, entry, outlines.get(&entry.id).map(|outline| &**outline));
    let models: Vec<Value> = entries.iter().map(one).collect();
    let id = |model: Option<&Value>| model.map(|model| model["id"].clone());
    let (first, last) = (id(models.first()), id(models.last()));
    Json(json!({"object": "list", "data": models, "has_more": false, "first_id": first, "last_id": last}))
}

/// One of them.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let entry = app.registry.find(&id)?;
    let outlines = app.registry.outlined(std::slice::from_ref(&entry)).await;
    Ok(Json(model(&app, &entry, outlines.get(&entry.id).map(|outline| &**outline))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_out() {
        assert_eq!(date(1_770_163_199), "2026-02-03T23:59:59Z");
    }
}
