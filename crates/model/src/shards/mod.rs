//! Models of one file or of several: which files belong together, opened with all their headers.

pub(crate) mod gguf;
pub(crate) mod safetensors;
