//! Structured output: what a schema, a grammar or a set of tools lets a model write, and how that is read back.

mod dialect;
mod error;
mod gbnf;
mod grammar;
mod matcher;
mod rules;
mod schema;
mod vocabulary;

pub use dialect::{AnswerRules, Body, Dialect, Piece, Reader, Thinking, Tool, ToolChoice};
pub use error::GrammarError;
pub use grammar::{Grammar, Strictness};
pub use matcher::Matcher;
pub use vocabulary::Vocabulary;
