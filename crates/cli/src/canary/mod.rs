//! A canary for kernels that compute wrong: while a model serves, rows of real batches are computed again on the processor, by a thread that
//! gives way to everything else. `book` decides what is looked at and when it is certain, `watcher` is what the engine knows of it,
//! `quarantine` finds the kernels to blame and keeps the verdict.

mod book;
mod quarantine;
#[cfg(test)]
mod tests;
mod watcher;

pub use quarantine::settle;
pub use watcher::{Coop, Wish, start};
