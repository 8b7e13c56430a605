//! Structured output: from the shape that is asked for to the grammar that holds the model to it, and to the reader of what it wrote.

use std::collections::HashMap;

use unicorn_grammar::{Grammar, GrammarError, Reader, Thinking};

use crate::error::ApiError;
use crate::grammars::rules;
use crate::registry::Model;
use crate::sampling::fresh_seed;
use crate::shape::{Format, Shape, ToolChoice};

/// How an answer is held to its shape, and how it is read.
pub(crate) struct Structure {
    /// `None` where it is free.
    pub grammar: Option<Grammar>,
    shape: Shape,
    thinking: Thinking,
    /// Thoughts and calls are looked for.
    reads: bool,
}

impl Structure {
    /// The structure of an answer to this prompt, or of a text that is only continued where there is none. Takes its time.
    ///
    /// # Errors
    /// What of the shape cannot be honoured.
    pub fn new(model: &Model, shape: &Shape, prompt: Option<&str>) -> Result<Structure, ApiError> {
        let thinking = prompt.map_or(Thinking::Over, |prompt| model.dialect.thinking(prompt));
        let grammar = model.grammars.get(shape, thinking).map_err(|error| match error {
            GrammarError::Tokenizer(_) | GrammarError::System(_) => ApiError::internal(error.to_string()),
            _ if shape.format == Format::Text => ApiError::param("tools", error),
            _ => ApiError::param(shape.format_field, error),
        })?;
        let calls = !shape.tools.is_empty() && shape.choice != ToolChoice::None;
        let reads = prompt.is_some() && (calls || model.dialect.reasons());
        Ok(Structure { grammar, shape: shape.clone(), thinking, reads })
    }

    /// A reader of one answer; `None` where all of it is text.
    pub fn reader(&self, model: &Model) -> Option<Reader> {
        self.reads.then(|| Reader::new(&model.dialect, &rules(&self.shape, self.thinking), fresh_seed()))
    }

    /// Control tokens that the reader must see.
    pub fn shown(model: &Model) -> HashMap<u32, &'static str> {
        let tokenizer = &model.text.tokenizer;
        let id = |mark: &'static str| Some((tokenizer.token_id(mark)?, mark));
        model.dialect.marks().into_iter().filter_map(id).filter(|(id, _)| tokenizer.is_special(*id)).collect()
    }
}
