//! The server as a whole, and its routes.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api::{anthropic, models, native, ollama, openai, openapi, responses};
use crate::app::App;
use crate::error::ApiError;
use crate::http::body::drain;
use crate::http::guard::guard;
use crate::http::listen::listen;
use crate::model::{Loader, ModelFacts};
use crate::options::ServerOptions;
use crate::routes::Routes;

/// How long the end of the server waits for models to save what they keep, beyond what they allow themselves.
const SAVE_MAX: Duration = Duration::from_secs(30);

/// A server before it listens.
pub struct Server {
    app: Arc<App>,
}

impl Server {
    /// A server of the models that `loader` opens.
    pub fn new(loader: Arc<dyn Loader>, options: ServerOptions) -> Server {
        Server { app: Arc::new(App::new(loader, options)) }
    }

    /// Loads the model that the server begins with. Requests for it are told to come back until it is there.
    ///
    /// # Errors
    /// A sentence, where it cannot be loaded.
    pub async fn warm(&self, id: &str) -> Result<(), String> {
        self.app.registry.warm(id).await
    }

    /// What is known of a model that is loaded.
    pub fn facts(&self, id: &str) -> Option<Arc<ModelFacts>> {
        let ready = self.app.registry.ready();
        ready.into_iter().find(|model| model.id == id).map(|model| model.facts())
    }

    /// Answers requests until `ending` turns true and answers under way have finished, or have had their time; then the models are unloaded, and
    /// save what they keep.
    pub async fn run(&self, listener: TcpListener, ending: watch::Receiver<bool>) {
        let give_up = || self.app.registry.cancel_all();
        listen(listener, router(&self.app), &self.app.options, ending, give_up).await;
        self.app.registry.end(SAVE_MAX).await;
    }
}

/// All that the server answers to.
pub(crate) fn routes() -> Routes {
    Routes::default()
        .get("/", native::page)
        .get("/page/{file}", native::page)
        .get("/health", native::health)
        .get("/metrics", native::metrics)
        .get("/openapi.json", openapi::document)
        .get("/props", native::props)
        .get("/slots", native::slots)
        .post("/tokenize", native::tokenize)
        .get("/tokenizer_info", native::tokenizer_info)
        .post("/detokenize", native::detokenize)
        .post("/apply-template", native::apply_template)
        .get("/v1/models", openai::models::list)
        .get("/v1/models/{*id}", openai::models::one)
        .post("/v1/models/load", models::load)
        .post("/v1/models/unload", models::unload)
        .get("/models", openai::models::list)
        .post("/models/load", models::load)
        .post("/models/unload", models::unload)
        .post("/v1/chat/completions", openai::chat::create)
        .post("/v1/completions", openai::completions::create)
        .post("/v1/embeddings", openai::embeddings::create)
        .post("/v1/responses", responses::create)
        .post("/v1/responses/input_tokens", responses::input_tokens)
        .post("/v1/responses/compact", responses::compact)
        .get("/v1/responses/{id}", responses::get)
        .delete("/v1/responses/{id}", responses::delete)
        .get("/v1/responses/{id}/input_items", responses::input_items)
        .post("/v1/messages", anthropic::create)
        .post("/v1/messages/count_tokens", anthropic::count_tokens)
        .post("/api/chat", ollama::chat::create)
        .post("/api/generate", ollama::generate::create)
        .post("/api/embed", ollama::embed::embed)
        .post("/api/embeddings", ollama::embed::embedding)
        .get("/api/tags", ollama::models::tags)
        .get("/api/ps", ollama::models::ps)
        .get("/api/version", ollama::models::version)
        .post("/api/show", ollama::show::show)
        .post("/api/pull", ollama::models::pull)
        .post("/api/push", ollama::models::not_here)
        .post("/api/create", ollama::models::not_here)
        .post("/api/copy", ollama::models::not_here)
        .delete("/api/delete", ollama::models::not_here)
        .get("/api/blobs/{digest}", ollama::models::not_here)
        .post("/api/blobs/{digest}", ollama::models::not_here)
}

fn router(app: &Arc<App>) -> Router {
    routes()
        .into_router()
        .fallback(no_route)
        .method_not_allowed_fallback(|request: Request| async {
            drain(request.into_body()).await;
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "the route is there, but not for this method")
        })
        .layer(from_fn_with_state(app.clone(), guard))
        .with_state(app.clone())
}

async fn no_route(request: Request) -> ApiError {
    drain(request.into_body()).await;
    ApiError::new(StatusCode::NOT_FOUND, "there is no such route")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_document_has_every_route_and_no_other() {
        // OpenAPI does not tell a parameter that takes slashes from others.
        let written = |path: &str| path.replace("{*", "{");
        let routes = routes();
        let routes: BTreeSet<(String, String)> =
            routes.list().iter().map(|(method, path)| ((*method).to_owned(), written(path))).collect();
        let document: Value = serde_json::from_str(openapi::DOCUMENT).unwrap();
        let mut told = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in ["get", "post", "put", "delete", "patch", "head"] {
                if item.get(method).is_some() {
                    told.insert((method.to_owned(), path.clone()));
                }
            }
        }
        assert_eq!(routes, told);
    }
}
