//! safetensors: the header parser, and models of one file or of shards with an index.

mod header;
mod shards;

pub use header::{HEADER_BYTES_MAX, Header, SafetensorsError, parse};
pub(crate) use shards::{SafetensorsModel, open_directory, open_file};
