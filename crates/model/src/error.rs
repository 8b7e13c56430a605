//! What can go wrong when a model is opened. Every message names the file, key or tensor.

use std::path::PathBuf;

use unicorn_core::WeightError;

use crate::gguf::GgufError;
use crate::safetensors::SafetensorsError;

/// A model could not be opened, described or tokenized.
#[derive(thiserror::Error, Debug)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum ModelError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: not a regular file", path = path.display())]
    NotAFile { path: PathBuf },
    #[error("{path}: {bytes} bytes is more than the limit of {bytes_max} for this file", path = path.display())]
    FileTooLarge { path: PathBuf, bytes: u64, bytes_max: u64 },
    #[error("{path}: {source}", path = path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path}: {source}", path = path.display())]
    Gguf { path: PathBuf, source: Box<GgufError> },
    #[error("{path}: {source}", path = path.display())]
    Safetensors { path: PathBuf, source: Box<SafetensorsError> },
    #[error("{path}: not a model: {reason}", path = path.display())]
    NotAModel { path: PathBuf, reason: String },
    #[error("{path}: holds several models, name one of them: {found}", path = path.display())]
    SeveralModels { path: PathBuf, found: String },
    #[error("{path}: shard {number} of {count} is missing", path = path.display())]
    MissingShard { path: PathBuf, number: u64, count: u64 },
    #[error("{path}: weight_map names the file {name:?}, which is not a plain file name", path = path.display())]
    ShardName { path: PathBuf, name: String },
    #[error("{path}: weight_map places tensor {tensor} in {shard}, which does not hold it", path = path.display())]
    IndexMismatch { path: PathBuf, tensor: String, shard: String },
    #[error("unknown architecture {name:?}; known are {known}")]
    UnknownArchitecture { name: String, known: String },
    #[error("key {key} is missing")]
    MissingKey { key: String },
    #[error("key {key}: expected {expected}, found {found}")]
    WrongType { key: String, expected: &'static str, found: String },
    #[error("key {key}: {reason}")]
    Invalid { key: String, reason: String },
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error("tensor {name} is missing")]
    MissingTensor { name: String },
    #[error("tensor {name}: expected shape {expected:?}, found {found:?}")]
    TensorShape { name: String, expected: Vec<u64>, found: Vec<u64> },
    #[error("tensor {name}: element type {ty} is not supported")]
    TensorType { name: String, ty: String },
    #[error("tensor {tensor} has {rows} rows, but {key} says {tokens} tokens")]
    Vocabulary { tensor: String, rows: u64, key: String, tokens: u64 },
    #[error("tensor {tensor}: {source}")]
    Weight { tensor: String, source: WeightError },
    #[error("no tokenizer: {reason}")]
    NoTokenizer { reason: String },
    #[error("tokenizer: {0}")]
    Tokenizer(unicorn_text::TextError),
    #[error("the file holds no tensors, only metadata (a vocabulary)")]
    NoTensors,
}
