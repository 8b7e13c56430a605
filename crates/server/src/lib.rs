//! The HTTP server over engines: wire types, routes, streaming, the chat page.
//!
//! The server knows the engine and the text side of models, but neither files nor devices: a [`Loader`] opens models. Each loaded model has a
//! worker, a thread that owns its engine; requests become jobs that go there over a bounded channel, and come back as a stream of pieces
//! that each API puts into its own form.

mod api;
mod app;
mod catalog;
mod chat;
mod embedding;
mod error;
mod fields;
mod generation;
mod grammars;
mod http;
mod job;
mod metrics;
mod model;
mod options;
mod page;
mod record;
mod recovery;
mod registry;
mod routes;
mod sampling;
mod server;
mod shape;
mod stops;
mod structure;
mod turns;
mod warm_up;
mod weight;
mod worker;

pub use model::{Care, Description, LoadError, LoadedModel, Loader, ModelEntry, ModelFacts, Outline};
pub use options::ServerOptions;
pub use server::Server;
