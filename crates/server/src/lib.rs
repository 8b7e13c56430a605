//! The HTTP server over engines: wire types, routes, streaming, the chat page.
//!
//! The server knows the engine and the text side of models, but neither files nor devices: a [`Loader`] opens models. Each loaded model has a
//! worker, a thread that owns its engine; requests become jobs that go there over a bounded channel, and come back as a stream of pieces
//! that each API puts into its own form.

mod api;
mod app;
mod chat;
mod error;
mod fields;
mod generation;
mod http;
mod job;
mod metrics;
mod model;
mod options;
// Routes take it into use; until then its own tests alone do.
mod page;
mod registry;
mod sampling;
mod shape;
mod stops;
mod structure;
mod worker;

pub use app::Server;
pub use model::{LoadedModel, Loader, ModelEntry, ModelFacts};
pub use options::ServerOptions;
pub use registry::Budget;
