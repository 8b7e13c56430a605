//! Models as Ollama lists them, and what this server does not do with them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::request::{find, name, streams};
use super::show::details;
use super::time::{of_seconds, rfc3339};
use crate::app::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::http::body::{JsonBody, drain};
use crate::http::sse::respond_lines;
use crate::model::ModelEntry;

/// The version of Ollama whose API this is. Programs compare it: some refuse what is below 0.13.4.
const VERSION: &str = "0.30.0";

/// The version of the API, and this server's own beside it.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": VERSION, "server": concat!("unicorn ", env!("CARGO_PKG_VERSION"))}))
}

/// What tells one state of a model's files from another. Hashing the files themselves would take minutes.
fn digest(entry: &ModelEntry) -> String {
    let ModelEntry { id, bytes, created } = entry;
    let hash = Sha256::digest(format!("{id}\n{bytes}\n{created}"));
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All models that may be asked for.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Json<Value> {
    let entries = app.registry.entries();
    let outlines = app.registry.outlined(&entries).await;
    let tag = |entry: &ModelEntry| {
        let facts = outlines.get(&entry.id).map(|outline| &outline.facts);
        json!({
            "name": entry.id, "model": entry.id, "modified_at": of_seconds(entry.created),
            "size": entry.bytes, "digest": digest(entry), "details": details(facts),
        })
    };
    Json(json!({"models": entries.iter().map(tag).collect::<Vec<_>>()}))
}

/// The models that are loaded.
pub(crate) async fn ps(State(app): State<Arc<App>>) -> Json<Value> {
    let entries = app.registry.entries();
    // Ollama's way to say "for ever": it counts 292 years.
    let for_ever = || SystemTime::now() + Duration::from_secs(292 * 365 * 86_400);
    let mut models = Vec::new();
    for model in app.registry.ready() {
        let facts = model.facts();
        let entry = entries.iter().find(|entry| entry.id == model.id);
        models.push(json!({
            "name": model.id, "model": model.id, "size": facts.weight_bytes.max(facts.gpu_bytes),
            "digest": entry.map(digest).unwrap_or_default(), "details": details(Some(&facts)),
            "expires_at": rfc3339(model.leaves_at().unwrap_or_else(for_ever)),
            "size_vram": facts.gpu_bytes, "context_length": model.context,
        }));
    }
    Json(json!({"models": models}))
}

/// A model that is here is there; no other is fetched for a client.
pub(crate) async fn pull(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let fields = Fields::of(&body)?;
    let (name, stream) = (name(&fields)?, streams(&fields)?);
    find(&app, name).map_err(|error| match error.status {
        StatusCode::NOT_FOUND => {
            let message =
                format!("{}; this server fetches models where it is started with `-m {name}`", error.message);
            ApiError { message, ..error }
        }
        _ => error,
    })?;
    let success = json!({"status": "success"});
    if !stream {
        return Ok(Json(success).into_response());
    }
    Ok(respond_lines(|lines| async move {
        lines.line(&json!({"status": "pulling manifest"})).await?;
        lines.line(&success).await
    }))
}

/// What would change the models on the disk.
pub(crate) async fn not_here(request: Request) -> ApiError {
    drain(request.into_body()).await;
    let message =
        "this server does not change models: they are files on its disk, named with `-m` or `--models-dir`";
    ApiError { code: Some("not_supported"), ..ApiError::new(StatusCode::NOT_IMPLEMENTED, message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_states_of_files_apart() {
        let entry = ModelEntry { id: "m".into(), bytes: 5, created: 7 };
        let other = ModelEntry { created: 8, ..entry.clone() };
        assert_eq!(digest(&entry).len(), 64);
        assert_eq!(digest(&entry), digest(&entry.clone()));
        assert_ne!(digest(&entry), digest(&other));
    }
}
