//! Single settings, with the names of what set them.

use std::path::PathBuf;

/// A value with the name of what set it (a variable, a file), which messages name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// The value as it was set; checked where it is used.
    pub value: String,
    /// Name of the variable or path of the file.
    pub origin: String,
}

impl Setting {
    /// A value and where it comes from.
    pub fn new(value: impl Into<String>, origin: impl Into<String>) -> Setting {
        Setting { value: value.into(), origin: origin.into() }
    }

    /// The error that this value cannot be used.
    pub(crate) fn refused(&self, reason: impl Into<String>) -> SettingError {
        SettingError { origin: self.origin.clone(), reason: reason.into() }
    }
}

/// A setting cannot be used.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("{origin}: {reason}")]
pub struct SettingError {
    /// Name of the variable or path of the file.
    pub origin: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Trusted certificates in the place of the system's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificates {
    /// A file in PEM format.
    pub file: Option<PathBuf>,
    /// Folders of files in PEM format.
    pub folders: Vec<PathBuf>,
    /// Names of the variables that say so.
    pub origin: String,
}
