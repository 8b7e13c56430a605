//! Ollama's API.
//!
//! Times are in nanoseconds, streams are lines of JSON, and what a model has under `options` has llama.cpp's names.

mod answer;
pub(crate) mod chat;
pub(crate) mod embed;
pub(crate) mod generate;
mod keep;
pub(crate) mod models;
mod request;
pub(crate) mod show;
mod template;
mod time;
