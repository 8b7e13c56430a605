//! Tokenizers, streaming detokenization, chat templates.
//!
//! [`Tokenizer`] turns text into token ids and back, from the metadata of a GGUF file
//! ([`GgufVocabulary`]) or from a Hugging Face `tokenizer.json`. [`Detokenizer`] turns a stream of
//! generated ids into text without ever emitting half a character. [`ChatTemplate`] renders the
//! Jinja template of a model as Python's Jinja2 does, within a bound on work and on output.
//!
//! Nothing here reads a file, the environment or the clock.

mod bpe;
mod detokenizer;
mod end_tokens;
mod error;
mod gguf;
mod hugging_face;
mod pipeline;
mod pre_tokenizer;
mod prompt;
mod special;
mod spm;
mod template;
mod tokenizer;
mod vocabulary;
mod word_piece;

pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use gguf::GgufVocabulary;
pub use hugging_face::{SpecialTokens, TokenName};
pub use prompt::Prompt;
pub use template::{Adjustment, ChatTemplate, DateTime, RenderOptions, Rendered, TemplateError};
pub use tokenizer::{EncodeOptions, Tokenizer};
