//! Pages of state on disk: what the engine computed for a text outlives the memory that it lay in, and the process.
//!
//! Below a root there is one folder for each identity (a model, its layout and what computes it), and in it one file a page, named by the
//! page's key. [`DiskStore`] is one identity's [`unicorn_core::PageStore`]; [`list`] and [`remove`] are for people.
//!
//! Invariants:
//! - A page is written under a temporary name and renamed, so whatever ends the process leaves a whole page or none. Nothing is flushed to
//!   the disk itself: after a loss of power a page may be there with other bytes, which its checksum tells.
//! - Nothing is given back but what was written under the same identity and key. What is damaged is removed and counted.
//! - The root holds no more than its bound, over all identities and all processes. Room is taken under a lock before a byte is written; the
//!   least useful pages make room.
//! - Folders are for their owner alone, and so are files. No link is followed below the root, and nothing is touched there whose name this
//!   crate would not have given.
//! - No call of the engine waits for the disk, and no trouble of the disk reaches it: pages are then not kept, which [`StoreState`] tells.

mod error;
mod files;
mod index;
mod manage;
mod names;
mod reader;
mod record;
mod room;
mod scan;
mod shared;
mod state;
mod store;
mod writer;

pub use error::{StoreError, Trouble};
pub use manage::{Removed, StoredModel, list, remove};
pub use state::{StoreState, Tell};
pub use store::{DiskStore, Identity, StoreOptions};
