//! Structured output: what a schema, a grammar or a set of tools lets a model write, and how that is read back.

mod error;
mod gbnf;
mod grammar;
mod matcher;
mod rules;
mod schema;
mod vocabulary;

pub use error::GrammarError;
pub use grammar::{Grammar, Strictness};
pub use matcher::Matcher;
pub use vocabulary::Vocabulary;
