//! The small JSON files of a model's folder.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::files::read_small;
use crate::wrong_file::describe;

/// `config.json` and other small JSON files; real ones have some kilobytes.
pub(crate) const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Reads a small JSON object; `None` when the file is not there.
pub(crate) fn read_json(path: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    if !path.is_file() {
        return Ok(None);
    }
    parse_json(path, &read_small(path, CONFIG_BYTES_MAX)?).map(Some)
}

/// Parses a JSON object. What is no JSON at all is told by what it is.
pub(crate) fn parse_json(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>, ModelError> {
    serde_json::from_slice(bytes).map_err(|source| not_json(path, bytes, source))
}

/// The error for a file that should be JSON and is not.
pub(crate) fn not_json(path: &Path, bytes: &[u8], source: serde_json::Error) -> ModelError {
    let path = path.to_owned();
    let is_json = bytes.trim_ascii_start().first().is_some_and(|b| matches!(b, b'{' | b'['));
    match describe(&bytes, &path).filter(|_| !is_json) {
        Some(what) => ModelError::WrongFile { path, what },
        None => ModelError::Json { path, source },
    }
}
