//! Whether a model can run, told from the few bytes that can be looked at before gigabytes are fetched.

use std::path::Path;

use crate::arch;
use crate::files::ModelFiles;
use crate::gguf;
use crate::tensors::TensorTable;
use crate::{ModelError, WeightSource};

/// Most keys looked at in search of the architecture, which is the first one by custom.
const KEYS_MAX: u64 = 64;

/// Whether a model with this `config.json` can run.
///
/// # Errors
/// The reason why not: an architecture that is not known, or weights quantized in a way that is not read.
pub fn check_config(config: &str) -> Result<(), ModelError> {
    let path = Path::new("config.json");
    let config: serde_json::Map<_, _> =
        serde_json::from_str(config).map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
    if let Some(method) = config.get("quantization_config") {
        let method = method.get("quant_method").and_then(|m| m.as_str()).unwrap_or("an unnamed method");
        return Err(ModelError::Unsupported { what: format!("config.json: quantization with {method}") });
    }
    without_tensors(|tensors, source| arch::from_config(&config, tensors, source, ""))
}

/// Whether a GGUF file that begins with these bytes can run, as far as they tell.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`].
pub fn check_gguf_header(bytes: &[u8]) -> Result<(), ModelError> {
    let Some(entry) = architecture_entry(bytes) else { return Ok(()) };
    // A file of this one entry.
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(0u64.to_le_bytes());
    file.extend(1u64.to_le_bytes());
    file.extend(entry);
    let head = gguf::parse(&file[..])
        .map_err(|source| ModelError::Gguf { path: "the file".into(), source: Box::new(source) })?;
    without_tensors(|tensors, source| arch::from_gguf(&head, tensors, source, ""))
}

/// Runs what builds a model on no tensors at all: that there are none is the last thing to be found out.
fn without_tensors<T>(
    build: impl FnOnce(&TensorTable, &dyn WeightSource) -> Result<T, ModelError>,
) -> Result<(), ModelError> {
    let tensors = TensorTable::new(Vec::new())
        .map_err(|name| ModelError::Invalid { key: name, reason: "twice".to_owned() })?;
    match build(&tensors, &ModelFiles::new(Vec::new())) {
        Err(ModelError::NoTensors) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The bytes of the key `general.architecture` with its value, where it is among the first keys.
fn architecture_entry(bytes: &[u8]) -> Option<&[u8]> {
    let take = |at: usize, count: usize| bytes.get(at..at.checked_add(count)?);
    let u32_at = |at: usize| Some(u32::from_le_bytes(take(at, 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(take(at, 8)?.try_into().ok()?));
    let text_at = |at: usize| take(at.checked_add(8)?, usize::try_from(u64_at(at)?).ok()?);
    if take(0, 4)? != b"GGUF" {
        return None;
    }
    let keys = u64_at(16)?;
    let mut at = 24;
    for _ in 0..keys.min(KEYS_MAX) {
        let key = text_at(at)?;
        let value = at + 8 + key.len() + 4;
        let end = match u32_at(value - 4)? {
            0 | 1 | 7 => value + 1,
            2 | 3 => value + 2,
            4..=6 => value + 4,
            10..=12 => value + 8,
            8 => value + 8 + text_at(value)?.len(),
            _ => return None,
        };
        if key == b"general.architecture" {
            return bytes.get(at..end);
        }
        at = end;
    }
    None
}
