//! `/v1/models`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use unicorn_text::DateTime;

use crate::app::App;
use crate::error::ApiError;
use crate::model::ModelEntry;

fn model(app: &App, entry: &ModelEntry) -> Value {
    // OpenAI's fields, then Anthropic's, whose clients ask here too.
    let mut model = json!({
        "id": entry.id, "object": "model", "created": entry.created, "owned_by": "unicorn",
        "type": "model", "display_name": entry.id, "created_at": date(entry.created), "lifecycle": "active",
        "max_input_tokens": null, "max_tokens": null, "capabilities": null,
    });
    let ready = app.registry.ready();
    if let Some(ready) = ready.iter().find(|ready| ready.id == entry.id) {
        let facts = ready.facts();
        // What llama.cpp, vLLM and others tell, under their names.
        model["context_length"] = ready.context.into();
        model["max_model_len"] = ready.context.into();
        model["max_input_tokens"] = ready.context.into();
        // As OpenRouter tells what a model is for.
        let brings = if facts.encodes { "embeddings" } else { "text" };
        model["architecture"] = json!({"input_modalities": ["text"], "output_modalities": [brings]});
        if !facts.encodes {
            model["max_tokens"] = ready.context.into();
        }
        model["meta"] = json!({
            "n_ctx": ready.context, "n_ctx_train": facts.context_trained, "n_params": facts.parameters,
            "n_vocab": ready.vocab, "n_embd": facts.width, "size": facts.weight_bytes,
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
    let models: Vec<Value> = app.registry.entries().iter().map(|entry| model(&app, entry)).collect();
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
    Ok(Json(model(&app, &entry)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_out() {
        assert_eq!(date(1_770_163_199), "2026-02-03T23:59:59Z");
    }
}
