//! What can go wrong when a model is opened. Every message names the file, key or tensor.

use std::path::{Path, PathBuf};

use unicorn_core::WeightError;

use crate::gguf::GgufError;
use crate::safetensors::SafetensorsError;
use crate::shown::shown;

/// A model could not be opened, described or tokenized.
#[derive(thiserror::Error, Debug)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum ModelError {
    #[error("{path}: {source}", path = shown(path.display()), source = shown(source))]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: not a regular file", path = shown(path.display()))]
    NotAFile { path: PathBuf },
    #[error("{path}: {bytes} bytes is more than the limit of {bytes_max} for this file", path = shown(path.display()))]
    FileTooLarge { path: PathBuf, bytes: u64, bytes_max: u64 },
    #[error("{path}: {source}", path = shown(path.display()), source = shown(source))]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path}: {source}", path = shown(path.display()), source = shown(source))]
    Gguf { path: PathBuf, source: Box<GgufError> },
    #[error("{path}: {source}", path = shown(path.display()), source = shown(source))]
    Safetensors { path: PathBuf, source: Box<SafetensorsError> },
    #[error("{path}: not a model: {reason}", path = shown(path.display()), reason = shown(reason))]
    NotAModel { path: PathBuf, reason: String },
    #[error("{path}: {what}", path = shown(path.display()), what = shown(what))]
    WrongFile { path: PathBuf, what: String },
    #[error("quantized with {method}, which unicorn does not read", method = shown(method))]
    Quantized { method: String },
    #[error("{path}: holds several models, name one of them: {found}", path = shown(path.display()), found = shown(found))]
    SeveralModels { path: PathBuf, found: String },
    #[error("{path}: shard {number} of {count} is missing", path = shown(path.display()))]
    MissingShard { path: PathBuf, number: u64, count: u64 },
    #[error("{path}: weight_map names the file {name:?}, which is not a plain file name", path = shown(path.display()))]
    ShardName { path: PathBuf, name: String },
    #[error("{path}: weight_map places tensor {tensor} in {shard}, which does not hold it", path = shown(path.display()), tensor = shown(tensor), shard = shown(shard))]
    IndexMismatch { path: PathBuf, tensor: String, shard: String },
    #[error("unknown architecture {name:?}; known are {known}")]
    UnknownArchitecture { name: String, known: String },
    #[error("key {key} is missing", key = shown(key))]
    MissingKey { key: String },
    #[error("key {key}: expected {expected}, found {found}", key = shown(key), found = shown(found))]
    WrongType { key: String, expected: &'static str, found: String },
    #[error("key {key}: {reason}", key = shown(key), reason = shown(reason))]
    Invalid { key: String, reason: String },
    #[error("{what} is not supported", what = shown(what))]
    Unsupported { what: String },
    #[error("tensor {name} is missing", name = shown(name))]
    MissingTensor { name: String },
    #[error("tensor {name}: expected shape {expected:?}, found {found:?}", name = shown(name))]
    TensorShape { name: String, expected: Vec<u64>, found: Vec<u64> },
    #[error("tensor {name}: element type {ty} is not supported", name = shown(name), ty = shown(ty))]
    TensorType { name: String, ty: String },
    #[error("tensor {tensor} has {rows} rows, but {key} says {tokens} tokens", tensor = shown(tensor), key = shown(key))]
    Vocabulary { tensor: String, rows: u64, key: String, tokens: u64 },
    #[error("tensor {tensor}: {source}", tensor = shown(tensor), source = shown(source))]
    Weight { tensor: String, source: WeightError },
    #[error("no tokenizer: {reason}", reason = shown(reason))]
    NoTokenizer { reason: String },
    #[error("tokenizer: {}", shown(.0))]
    Tokenizer(unicorn_text::TextError),
    #[error("the file holds no tensors, only metadata (a vocabulary)")]
    NoTensors,
}

impl ModelError {
    /// The file that the message names, if it names one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            ModelError::Io { path, .. }
            | ModelError::NotAFile { path }
            | ModelError::FileTooLarge { path, .. }
            | ModelError::Json { path, .. }
            | ModelError::Gguf { path, .. }
            | ModelError::Safetensors { path, .. }
            | ModelError::NotAModel { path, .. }
            | ModelError::WrongFile { path, .. }
            | ModelError::SeveralModels { path, .. }
            | ModelError::MissingShard { path, .. }
            | ModelError::ShardName { path, .. }
            | ModelError::IndexMismatch { path, .. } => Some(path),
            _ => None,
        }
    }

    /// The message without the file in front, for where that is named already.
    pub(crate) fn without_path(&self) -> String {
        let text = self.to_string();
        let path = self.path().map(|path| format!("{}: ", shown(path.display())));
        path.and_then(|path| text.strip_prefix(&path).map(str::to_owned)).unwrap_or(text)
    }
}

impl From<GgufError> for ModelError {
    /// For errors about a key's value, which need no path to be understood.
    fn from(error: GgufError) -> ModelError {
        match error {
            GgufError::MissingKey { key } => ModelError::MissingKey { key },
            GgufError::WrongType { key, expected, found } => ModelError::WrongType { key, expected, found },
            other => ModelError::Invalid { key: "metadata".to_owned(), reason: other.to_string() },
        }
    }
}
