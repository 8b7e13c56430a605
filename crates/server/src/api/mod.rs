//! The APIs: each turns its requests into jobs and the pieces of answers into its own form.

pub(crate) mod anthropic;
pub(crate) mod models;
pub(crate) mod native;
pub(crate) mod ollama;
pub(crate) mod openai;
pub(crate) mod openapi;
pub(crate) mod responses;
