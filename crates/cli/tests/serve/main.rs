//! The server on trial: what a client or an attacker may do to it, and what must then be true. After each attack the process is up, the next
//! normal request succeeds, nothing runs, no page of the KV cache is held and the memory is bounded.
#![cfg(target_os = "linux")]

mod bodies;
mod canary;
mod completions;
mod departures;
mod embeddings;
mod http;
mod keys;
mod lives;
mod load;
mod losses;
mod models;
mod names;
mod numbers;
mod outlives;
mod records;
mod schemas;
mod support;
mod templates;
mod texts;
#[path = "../support/mod.rs"]
mod tiny;
