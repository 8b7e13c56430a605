//! What can be wrong with a safetensors file, and the limits that it is held to.

use crate::shown::shown;

/// Longest header that is read, as in the reference implementation.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;
pub(super) const TENSORS_MAX: usize = 1 << 20;

/// A safetensors file is malformed.
#[derive(thiserror::Error, Debug)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum SafetensorsError {
    #[error("{field}: {source}", field = shown(field), source = shown(source))]
    Io { field: &'static str, source: std::io::Error },
    #[error("{field} ends at byte {end}, past the end of the file ({file_bytes} bytes)", field = shown(field))]
    Truncated { field: &'static str, end: u64, file_bytes: u64 },
    #[error("header length {found} is more than the limit of {HEADER_BYTES_MAX} bytes")]
    HeaderTooLong { found: u64 },
    #[error("header: {}", shown(.0))]
    Json(serde_json::Error),
    #[error("header has more than {TENSORS_MAX} tensors")]
    TooMany,
    #[error("tensor {tensor} occurs twice", tensor = shown(tensor))]
    Duplicate { tensor: String },
    #[error("tensor {tensor}: data_offsets [{start}, {end}] are not a range inside the {data_bytes} bytes of data", tensor = shown(tensor))]
    Offsets { tensor: String, start: u64, end: u64, data_bytes: u64 },
    #[error("tensor {tensor}: shape {shape:?} overflows", tensor = shown(tensor))]
    Overflow { tensor: String, shape: Vec<u64> },
    #[error("tensor {tensor}: shape {shape:?} of {dtype} takes {expected} bytes, but data_offsets span {found}", tensor = shown(tensor), dtype = shown(dtype))]
    Size { tensor: String, shape: Vec<u64>, dtype: String, expected: u64, found: u64 },
    #[error("tensors {first} and {second} overlap", first = shown(first), second = shown(second))]
    Overlap { first: String, second: String },
    #[error("bytes {start}..{end} of the data belong to no tensor")]
    Hole { start: u64, end: u64 },
}
