//! What was guessed, dropped or found missing while a model was opened. None of it stops the model from running, and all of it
//! may change its answers, so it is told and not kept.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::shown::shown;

/// One thing that a person who runs the model should know. `Display` gives one sentence that names the file and the key.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// A key is missing, and a value had to be chosen for it.
    Assumed {
        /// The file that lacks the key.
        file: PathBuf,
        /// The key.
        key: String,
        /// What is done in its place.
        instead: String,
    },
    /// A key is there, but its value cannot be used; the model runs as if the key were missing.
    Dropped {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with the value.
        reason: String,
    },
    /// Keys are there that the engine does not act on, and that might change what the model computes.
    Ignored {
        /// The file.
        file: PathBuf,
        /// The keys, separated by commas.
        keys: String,
        /// Why they are not acted on.
        reason: String,
    },
    /// A file that usually comes with a model is missing.
    MissingFile {
        /// Where it was looked for.
        file: PathBuf,
        /// What is not known without it.
        effect: &'static str,
    },
    /// A whole file was left out of account.
    SetAside {
        /// The file.
        file: PathBuf,
        /// What it is.
        reason: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Notice::Assumed { file, .. }
        | Notice::Dropped { file, .. }
        | Notice::Ignored { file, .. }
        | Notice::MissingFile { file, .. }
        | Notice::SetAside { file, .. }) = self;
        let file = shown(file.display());
        match self {
            Notice::Assumed { key, instead, .. } => {
                write!(f, "{file}: key {} is missing; {}", shown(key), shown(instead))
            }
            Notice::Dropped { key, reason, .. } => {
                write!(f, "{file}: key {} is not used: {}", shown(key), shown(reason))
            }
            Notice::Ignored { keys, reason, .. } => {
                write!(f, "{file}: {} has no effect: {}", shown(keys), shown(reason))
            }
            Notice::MissingFile { effect, .. } => write!(f, "{file} is missing; {effect}"),
            Notice::SetAside { reason, .. } => write!(f, "{file} is left out of account: {}", shown(reason)),
        }
    }
}

/// Notices of one file, gathered while it is read.
#[derive(Debug)]
pub(crate) struct Notices {
    file: PathBuf,
    list: RefCell<Vec<Notice>>,
}

impl Notices {
    pub fn new(file: &Path) -> Notices {
        Notices { file: file.to_owned(), list: RefCell::default() }
    }

    pub fn assumed(&self, key: impl Into<String>, instead: impl Into<String>) {
        self.push(Notice::Assumed { file: self.file.clone(), key: key.into(), instead: instead.into() });
    }

    pub fn dropped(&self, key: impl Into<String>, reason: impl Into<String>) {
        self.push(Notice::Dropped { file: self.file.clone(), key: key.into(), reason: reason.into() });
    }

    pub fn ignored(&self, keys: impl Into<String>, reason: impl Into<String>) {
        self.push(Notice::Ignored { file: self.file.clone(), keys: keys.into(), reason: reason.into() });
    }

    /// Adds a notice, once.
    pub fn push(&self, notice: Notice) {
        let mut list = self.list.borrow_mut();
        if !list.contains(&notice) {
            list.push(notice);
        }
    }

    pub fn into_list(self) -> Vec<Notice> {
        self.list.into_inner()
    }
}
