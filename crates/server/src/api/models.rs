//! Loading and unloading models on request, in llama.cpp's form.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::http::body::JsonBody;
use crate::registry::Standing;

fn id(app: &App, body: &Value) -> Result<String, ApiError> {
    let fields = Fields::of(body)?;
    Ok(app.registry.find(fields.required("model", fields.str("model")?)?)?.id)
}

/// Loads a model and waits until it is there.
pub(crate) async fn load(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let id = id(&app, &body)?;
    app.registry.fetch(&id).await?;
    Ok(Json(json!({"success": true, "model": id, "loaded": true})))
}

/// Unloads a model and waits until its memory is free. One that answers requests, or is on its way, stays.
pub(crate) async fn unload(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let id = id(&app, &body)?;
    let busy = |what: &str| {
        let error = ApiError::new(StatusCode::CONFLICT, format!("the model {id} {what}"));
        Err(ApiError { code: Some("model_busy"), retry_after_seconds: Some(2), ..error })
    };
    if !app.registry.unload(&id).await {
        match app.registry.standing(&id) {
            Standing::Ready => return busy("is answering requests"),
            Standing::Loading(_) => return busy("is loading"),
            Standing::Unloaded | Standing::Failed(_) => {}
        }
    }
    Ok(Json(json!({"success": true, "model": id, "loaded": false})))
}
