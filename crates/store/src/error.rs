//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// A store could not be opened, listed or removed.
#[derive(thiserror::Error, Debug)]
pub enum StoreError {
    /// The system refused something.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else lies where a folder of the store would.
    #[error("{path}: not a folder of its own (a link or a file); pages of state are not kept through it")]
    NotAFolder {
        /// Where.
        path: PathBuf,
    },
    /// The system has no thread left.
    #[error("no thread can be started to keep pages of state: {source}")]
    Thread {
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing by this name.
    #[error("{folder} names no pages of state below {root}")]
    Unknown {
        /// The name.
        folder: String,
        /// Root of the store.
        root: PathBuf,
    },
}

impl StoreError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.into();
        move |source| StoreError::Io { path, source }
    }
}

/// Trouble that costs pages and nothing else. Each kind is told once.
#[derive(thiserror::Error, Debug)]
pub enum Trouble {
    /// A page was not what was written; it was removed.
    #[error("a saved page of state was {why} and was removed: {file}")]
    Damaged {
        /// The file that held it.
        file: PathBuf,
        /// What was found.
        why: &'static str,
    },
    /// Pages cannot be written for now.
    #[error("pages of state cannot be saved in {folder} for now: {source}")]
    NotWritten {
        /// Where.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A page is larger than all that the store may take.
    #[error("a page of state of {bytes} bytes has no room in {root}, where {limit} bytes may be taken")]
    NoRoom {
        /// The store's root.
        root: PathBuf,
        /// Size of the page's file.
        bytes: u64,
        /// What may be taken.
        limit: u64,
    },
}
