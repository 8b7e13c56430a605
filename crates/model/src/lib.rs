//! Model files: GGUF and Hugging Face directories to specs and weights.
//!
//! [`open`] turns a path into an [`OpenModel`]: the blocks to run, a source that their weights are read from, and the
//! [`Notice`]s of what had to be guessed. [`inspect`] describes a file without needing to understand its architecture.
//! [`check_config`] and [`check_gguf_header`] tell before a download whether a model can run.
//!
//! Invariants: files are untrusted; a malformed one gives an error that names the field, never a panic, and nothing is
//! allocated that the file could not hold. Files are read by position, never memory-mapped. Weights are not read here, save
//! the few bytes of rotary frequency factors. A value that is missing or cannot be used is never replaced in silence.

mod arch;
mod check;
mod embedding;
mod error;
mod files;
mod fingerprint;
mod folder;
mod generation;
pub mod gguf;
mod heads;
mod inspect;
mod json;
mod locate;
mod notice;
mod open;
mod read_at;
mod recommended;
pub mod safetensors;
mod shards;
mod shown;
mod special;
mod tensors;
mod text;
mod text_side;
mod wrong_file;

pub use check::{HeaderVerdict, check_config, check_gguf_header};
pub use embedding::EmbeddingDefaults;
pub use error::ModelError;
pub use generation::GenerationDefaults;
pub use heads::{FileHead, Heads};
pub use inspect::{Inspection, MetadataEntry, TensorEntry, TypeTotal};
pub use notice::Notice;
pub use open::{OpenModel, Source, inspect, open, open_tokenizer};
pub use recommended::Recommended;
pub use text::OpenTokenizer;
pub use text_side::TextSide;
