//! How models write calls of tools and what they think, as data.
//!
//! A [`Dialect`] is found from a model's chat template. From it come both the [`Grammar`](crate::Grammar) of what may be
//! written and the [`Reader`] of what was written, so that what the one admits the other understands.

mod answer;
mod gemma_calls;
mod grammar;
mod json_calls;
mod kind;
mod prompt;
mod python_calls;
mod reader;
mod scan;
mod spans;
mod xml_calls;

pub use answer::{AnswerRules, Body, Piece, Thinking, Tool, ToolChoice};
pub use kind::Dialect;
pub use reader::Reader;
pub(crate) use spans::{Freedom, Spans};
