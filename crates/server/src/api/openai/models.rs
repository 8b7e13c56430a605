//! `/v1/models`

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::model::ModelEntry;

fn model(app: &App, entry: &ModelEntry) -> Value {
    let mut model =
        json!({"id": entry.id, "object": "model", "created": entry.created, "owned_by": "unicorn"});
    let ready = app.registry.ready();
    if let Some(ready) = ready.iter().find(|ready| ready.id == entry.id) {
        let facts = &ready.facts;
        // What llama.cpp, vLLM and others tell, under their names.
        model["context_length"] = ready.context.into();
        model["max_model_len"] = ready.context.into();
        model["meta"] = json!({
            "n_ctx": ready.context, "n_ctx_train": facts.context_trained, "n_params": facts.parameters,
            "n_vocab": ready.vocab, "n_embd": facts.width, "size": facts.weight_bytes,
        });
    }
    model
}

/// All models that may be asked for.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let models: Vec<Value> = app.registry.entries().iter().map(|entry| model(&app, entry)).collect();
    // Anthropic's clients ask here too, and want to know whether there is more.
    Json(json!({"object": "list", "data": models, "has_more": false}))
}

/// One of them.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(id) = id.map_err(|error| ApiError::param("model", error.body_text()))?;
    let entry = app.registry.find(&id)?;
    Ok(Json(model(&app, &entry)))
}
