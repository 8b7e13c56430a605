//! What all requests share.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::api::responses::store::Store;
use crate::http::keys::Keys;
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

impl App {
    /// The state of a server of the models that `loader` opens.
    pub fn new(loader: Arc<dyn Loader>, options: ServerOptions) -> App {
        let metrics = Arc::new(Metrics::new());
        let registry = Registry::new(loader, options.aliases.clone(), options.models_max, metrics.clone());
        let keys = Keys::new(&options.keys);
        let bodies = Arc::new(Semaphore::new(options.bodies_bytes_max.min(Semaphore::MAX_PERMITS)));
        let responses =
            Store::new(options.responses_max, options.responses_bytes_max, options.body_bytes_max);
        let (registry, started) = (Arc::new(registry), Instant::now());
        App { registry, metrics, options, keys, bodies, responses, started }
    }
}
