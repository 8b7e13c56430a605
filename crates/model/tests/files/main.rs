//! Model files, well-formed and malformed, through the crate's public functions.

mod architectures;
mod directories;
mod gguf;
mod hostile;
mod hugging_face;
mod safetensors;
mod writer;
