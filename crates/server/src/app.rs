//! What all requests share.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::api::responses::store::Store;
use crate::api::{anthropic, native, openai, responses};
use crate::error::ApiError;
use crate::http::guard::{Keys, guard};
use crate::http::listen::listen;
use crate::metrics::Metrics;
use crate::model::Loader;
use crate::options::ServerOptions;
use crate::registry::Registry;

/// A server's state.
pub(crate) struct App {
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    pub options: ServerOptions,
    pub keys: Keys,
    /// A permit for each byte of the bodies that are being read.
    pub bodies: Arc<Semaphore>,
    pub responses: Store,
    pub started: Instant,
}

/// A server before it listens.
pub struct Server {
    app: Arc<App>,
}

impl Server {
    /// A server of the models that `loader` opens.
    pub fn new(loader: Arc<dyn Loader>, options: ServerOptions) -> Server {
        let metrics = Arc::new(Metrics::new());
        let registry = Registry::new(loader, options.aliases.clone(), options.budget, metrics.clone());
        let keys = Keys::new(&options.keys);
        let bodies = Arc::new(Semaphore::new(options.bodies_bytes_max.min(Semaphore::MAX_PERMITS)));
        let responses = Store::new(options.responses_max, options.responses_bytes_max);
        let (registry, started) = (Arc::new(registry), Instant::now());
        let app = App { registry, metrics, options, keys, bodies, responses, started };
        Server { app: Arc::new(app) }
    }

    /// Loads the model that the server begins with. Requests for it are told to come back until it is there.
    ///
    /// # Errors
    /// A sentence, where it cannot be loaded.
    pub async fn warm(&self, id: &str) -> Result<(), String> {
        self.app.registry.warm(id).await.map_err(|error| error.message)
    }

    /// Answers requests until `ending` turns true and answers under way have finished, or have had their time.
    pub async fn run(&self, listener: TcpListener, ending: watch::Receiver<bool>) {
        let give_up = || self.app.registry.cancel_all();
        listen(listener, router(&self.app), &self.app.options, ending, give_up).await;
    }
}

fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/", get(native::page))
        .route("/page/{file}", get(native::page))
        .route("/health", get(native::health))
        .route("/metrics", get(native::metrics))
        .route("/props", get(native::props))
        .route("/slots", get(native::slots))
        .route("/tokenize", post(native::tokenize))
        .route("/tokenizer_info", get(native::tokenizer_info))
        .route("/detokenize", post(native::detokenize))
        .route("/apply-template", post(native::apply_template))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*id}", get(openai::models::one))
        .route("/v1/chat/completions", post(openai::chat::create))
        .route("/v1/completions", post(openai::completions::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/input_tokens", post(responses::input_tokens))
        .route("/v1/responses/compact", post(responses::compact))
        .route("/v1/responses/{id}", get(responses::get).delete(responses::delete))
        .route("/v1/responses/{id}/input_items", get(responses::input_items))
        .route("/v1/messages", post(anthropic::create))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is no such route") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "the route is there, but not for this method")
        })
        .layer(from_fn_with_state(app.clone(), guard))
        .with_state(app.clone())
}
