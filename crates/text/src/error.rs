//! What can go wrong while building or using a tokenizer.

/// An error of a tokenizer, naming the metadata field or file part at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// `tokenizer.ggml.model` names a kind of tokenizer that is not implemented.
    #[error("tokenizer.ggml.model: tokenizer kind `{0}` is not supported")]
    UnsupportedModel(String),
    /// `tokenizer.ggml.pre` names a pre-tokenizer that is not known.
    #[error("tokenizer.ggml.pre: unknown pre-tokenizer `{0}`")]
    UnknownPreTokenizer(String),
    /// A metadata array that this kind of tokenizer needs is missing or empty.
    #[error("{0} is missing or empty")]
    Missing(&'static str),
    /// A metadata array has fewer or more entries than the vocabulary has tokens.
    #[error("{field} has {found} entries, the vocabulary has {expected} tokens")]
    Length {
        /// The metadata key.
        field: &'static str,
        /// Entries found.
        found: usize,
        /// Tokens in `tokenizer.ggml.tokens`.
        expected: usize,
    },
    /// A special token id lies outside of the vocabulary.
    #[error("{field} is {id}, the vocabulary has {tokens} tokens")]
    IdOutOfRange {
        /// The metadata key.
        field: &'static str,
        /// The id found.
        id: u32,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
    /// The vocabulary is larger than ids or text offsets can address.
    #[error("tokenizer.ggml.tokens is too large ({0})")]
    TooLarge(&'static str),
    /// A merge is not two tokens separated by a space.
    #[error("tokenizer.ggml.merges[{0}] is not two tokens separated by a space")]
    BadMerge(usize),
    /// A pre-tokenizer expression did not compile or gave up on a text.
    #[error("pre-tokenizer expression: {0}")]
    Expression(String),
    /// A Hugging Face file cannot be read or used; names the file and the reason.
    #[error("{file}: {reason}")]
    HuggingFace {
        /// `tokenizer.json`.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}
