//! safetensors: the parser of a file's header.

mod error;
mod header;

pub use error::{HEADER_BYTES_MAX, SafetensorsError};
pub use header::{Header, parse};
