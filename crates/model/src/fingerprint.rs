//! A model told from every other by its content, without reading all of it.

use sha2::{Digest, Sha256};
use unicorn_core::{WeightError, WeightSource, WeightSpan};

use crate::error::ModelError;
use crate::files::ModelFiles;
use crate::locate::Located;

/// Bytes at either end of a tensor that are read.
const SAMPLE: u64 = 4096;
/// Bytes of a file before its first tensor that are read; the headers in use have less than 30 MB.
const HEAD_BYTES_MAX: u64 = 256 << 20;
/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;

/// Changes when what is hashed does.
const VERSION: &[u8] = b"unicorn model 1";

/// Hashes what [`crate::OpenModel::fingerprint`] says.
pub(crate) fn of(located: &Located) -> Result<[u8; 32], ModelError> {
    let mut hash = Sha256::new();
    hash.update(VERSION);
    if let Located::HuggingFace(model) = located {
        let config = serde_json::to_vec(&model.config).unwrap_or_default();
        hash.update((config.len() as u64).to_le_bytes());
        hash.update(config);
    }
    let (files, tensors) = (located.files(), located.tensors());
    for (file, path) in files.paths().enumerate() {
        let file = file as u32;
        let begins = tensors.iter().filter(|t| t.span.file == file).map(|t| t.span.offset).min();
        let head = begins.unwrap_or(0).min(HEAD_BYTES_MAX);
        hash.update(head.to_le_bytes());
        let span = WeightSpan { file, offset: 0, bytes: head };
        update(&mut hash, files, &span, 0, head)
            .map_err(|error| ModelError::Weight { tensor: path.display().to_string(), source: error })?;
    }
    for tensor in tensors.iter() {
        hash.update((tensor.name.len() as u64).to_le_bytes());
        hash.update(&tensor.name);
        hash.update(tensor.span.bytes.to_le_bytes());
        let bytes = tensor.span.bytes;
        let (first, last) = (bytes.min(SAMPLE), bytes.saturating_sub(SAMPLE).max(bytes.min(SAMPLE)));
        for (from, to) in [(0, first), (last, bytes)] {
            update(&mut hash, files, &tensor.span, from, to)
                .map_err(|source| ModelError::Weight { tensor: tensor.name.clone(), source })?;
        }
    }
    Ok(hash.finalize().into())
}

/// Hashes bytes `from..to` of a span.
fn update(
    hash: &mut Sha256,
    files: &ModelFiles,
    span: &WeightSpan,
    from: u64,
    to: u64,
) -> Result<(), WeightError> {
    let mut buffer = vec![0; (to - from).min(CHUNK) as usize];
    let mut at = from;
    while at < to {
        let part = &mut buffer[..(to - at).min(CHUNK) as usize];
        files.read(span, at, part)?;
        hash.update(&part);
        at += part.len() as u64;
    }
    Ok(())
}
