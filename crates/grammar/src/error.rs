//! What can go wrong, told so that a client can mend it.

/// Why something cannot be turned into a grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// A keyword whose meaning cannot be enforced while text is written.
    #[error("{keyword:?} at {path:?} cannot be honoured: {reason}")]
    Unsupported {
        /// JSON pointer of the schema that holds the keyword.
        path: String,
        /// The keyword.
        keyword: String,
        /// What is in the way.
        reason: String,
    },
    /// A schema that is no schema.
    #[error("the schema is wrong at {path:?}: {reason}")]
    Invalid {
        /// JSON pointer of what is wrong.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No text satisfies it.
    #[error("nothing can satisfy the {what}")]
    Unsatisfiable {
        /// What it is: a schema, a regular expression.
        what: &'static str,
    },
    /// It goes past a limit of size, depth, work or time.
    #[error("too complex: {0}")]
    TooComplex(String),
    /// A grammar or regular expression that cannot be read.
    #[error("the {what} cannot be read: {reason}")]
    Syntax {
        /// Which language it is written in.
        what: &'static str,
        /// Where and why.
        reason: String,
    },
    /// A tokenizer that grammars cannot be checked with.
    #[error("the tokenizer cannot be used for grammars: {0}")]
    Tokenizer(String),
    /// The system has no thread or no memory to give.
    #[error("cannot compile a grammar: {0}")]
    System(String),
}
