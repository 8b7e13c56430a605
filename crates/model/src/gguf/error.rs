//! What can be wrong with a GGUF file. Every message names the field.

use crate::shown::shown;

/// A GGUF file is malformed, or holds something else than was asked for.
#[derive(thiserror::Error, Debug)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum GgufError {
    #[error("{field}: {source}", field = shown(field), source = shown(source))]
    Io { field: String, source: std::io::Error },
    #[error("magic is {found:?}, not \"GGUF\"")]
    BadMagic { found: String },
    #[error("version: the file is big-endian; only little-endian GGUF is supported")]
    BigEndian,
    #[error("version {found} is not supported (only 2 and 3 are)")]
    Version { found: u32 },
    #[error("{field} ends at byte {end}, past the end of the file ({file_bytes} bytes)", field = shown(field))]
    Truncated { field: String, end: u64, file_bytes: u64 },
    #[error("{field}: {count} entries need at least {bytes_min} bytes, but the file has {remaining} left", field = shown(field))]
    Count { field: &'static str, count: u64, bytes_min: u128, remaining: u64 },
    #[error("{field}: {count} is more than the limit of {limit}", field = shown(field))]
    Limit { field: &'static str, count: u64, limit: u64 },
    #[error("{field}: out of memory for {bytes} bytes", field = shown(field))]
    OutOfMemory { field: String, bytes: u64 },
    #[error("{field} is not valid UTF-8", field = shown(field))]
    Utf8 { field: String },
    #[error("key {key}: unknown value type {id}", key = shown(key))]
    ValueType { key: String, id: u32 },
    #[error("key {key}: arrays of arrays are not supported", key = shown(key))]
    NestedArray { key: String },
    #[error("key {key}: {found} is not a bool (0 or 1)", key = shown(key))]
    BadBool { key: String, found: u8 },
    #[error("key {key} occurs twice", key = shown(key))]
    DuplicateKey { key: String },
    #[error("key {key} is missing", key = shown(key))]
    MissingKey { key: String },
    #[error("key {key}: expected {expected}, found {found}", key = shown(key), found = shown(found))]
    WrongType { key: String, expected: &'static str, found: String },
    #[error("key {key}: {found} is out of range for {expected}", key = shown(key), found = shown(found))]
    OutOfRange { key: String, expected: &'static str, found: String },
    #[error("general.alignment: {found} is not a power of two")]
    Alignment { found: u64 },
    #[error("tensor {tensor} occurs twice", tensor = shown(tensor))]
    DuplicateTensor { tensor: String },
    #[error("tensor {tensor}: n_dims is {found}, more than 4", tensor = shown(tensor))]
    Dims { tensor: String, found: u32 },
    #[error("tensor {tensor}: dimension {dim} is zero", tensor = shown(tensor))]
    ZeroDim { tensor: String, dim: u32 },
    #[error("tensor {tensor}: dimensions {shape:?} overflow", tensor = shown(tensor))]
    Overflow { tensor: String, shape: Vec<u64> },
    #[error("tensor {tensor}: unknown tensor type id {id}", tensor = shown(tensor))]
    TensorType { tensor: String, id: u32 },
    #[error("tensor {tensor}: rows of {cols} elements are no multiple of the {block_len} elements of a {ty} block", tensor = shown(tensor), ty = shown(ty))]
    PartialBlock { tensor: String, cols: u64, ty: String, block_len: u64 },
    #[error("tensor {tensor}: offset {offset} is no multiple of the alignment {alignment}", tensor = shown(tensor))]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
    #[error("tensor {tensor}: offset {offset} overflows", tensor = shown(tensor))]
    OffsetOverflow { tensor: String, offset: u64 },
    #[error("tensor {tensor}: bytes {start}..{end} reach past the end of the file ({file_bytes} bytes), which is incomplete", tensor = shown(tensor))]
    PastEnd { tensor: String, start: u64, end: u64, file_bytes: u64 },
    #[error("tensors {first} and {second} overlap", first = shown(first), second = shown(second))]
    Overlap { first: String, second: String },
    #[error("{key} is {found}, expected {expected}")]
    Split { key: &'static str, found: u64, expected: u64 },
    #[error(
        "split.count is {count}, but the file is not named like NAME-00001-of-{count:05}.gguf; \
         its siblings cannot be found"
    )]
    SplitName { count: u64 },
}
