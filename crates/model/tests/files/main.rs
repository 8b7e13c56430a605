//! Model files, well-formed and malformed, through the crate's public functions.

mod architectures;
mod checks;
mod defaults;
mod directories;
mod encoders;
mod fingerprint;
mod gguf;
mod heads;
mod hostile;
mod hugging_face;
mod notices;
mod safetensors;
mod writer;
