//! GGUF, versions 2 and 3, little endian (specification: ggml `docs/gguf.md`).

mod cursor;
mod error;
mod parse;
mod types;
mod value;

pub use error::GgufError;
pub use parse::{Gguf, parse};
pub(crate) use types::ValueType;
pub use value::{ArrayValue, Value};

pub(crate) use parse::{GgufTensor, Head, parse_up_to_end};
