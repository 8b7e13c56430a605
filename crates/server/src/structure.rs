//! Structured output: from the shape that is asked for to the grammar that holds the model to it.

use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock, PoisonError};

use unicorn_grammar::{Grammar, GrammarError, Matcher, Strictness, Vocabulary};

use crate::error::ApiError;
use crate::registry::Model;
use crate::shape::{Format, Shape};

/// Compiled grammars that are kept for the next request that wants one like them.
const KEPT_MAX: usize = 32;

/// A model's vocabulary for grammars, made when it is needed first, and the grammars compiled last.
#[derive(Default)]
pub(crate) struct Grammars {
    vocabulary: OnceLock<Result<Vocabulary, GrammarError>>,
    kept: Mutex<VecDeque<(Format, Grammar)>>,
}

impl Grammars {
    fn vocabulary(&self, model: &Model) -> Result<&Vocabulary, GrammarError> {
        let make = || Vocabulary::new(&model.text.tokenizer, model.vocab, &model.text.stop_tokens);
        self.vocabulary.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// The grammar of a format; `None` for free text. Takes its time.
    fn grammar(&self, model: &Model, format: &Format) -> Result<Option<Grammar>, GrammarError> {
        if *format == Format::Text {
            return Ok(None);
        }
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, grammar)) = kept().iter().find(|(known, _)| known == format) {
            return Ok(Some(grammar.clone()));
        }
        let vocabulary = self.vocabulary(model)?;
        let grammar = match format {
            Format::Text => return Ok(None),
            Format::JsonObject => Grammar::json_object(vocabulary),
            // Never relaxed: what is not honoured is refused, also where a client does not insist.
            Format::Schema(schema) => Grammar::json_schema(vocabulary, schema, Strictness::Strict),
            Format::Regex(regex) => Grammar::regex(vocabulary, regex),
            Format::Choice(texts) => Grammar::choice(vocabulary, texts),
            Format::Lark(grammar) => Grammar::lark(vocabulary, grammar),
            Format::Gbnf(grammar) => Grammar::gbnf(vocabulary, grammar),
        }?;
        // One that nothing begins is found out only by asking: better here than in the answer.
        Matcher::new(&grammar).mask().map_err(|_| GrammarError::Unsatisfiable { what: "grammar" })?;
        let mut kept = kept();
        kept.truncate(KEPT_MAX - 1);
        kept.push_front((format.clone(), grammar.clone()));
        Ok(Some(grammar))
    }
}

/// What holds an answer to its shape; `None` where it is free. Takes its time.
///
/// # Errors
/// What of the shape cannot be honoured.
pub(crate) fn grammar(model: &Model, shape: &Shape) -> Result<Option<Grammar>, ApiError> {
    model.grammars.grammar(model, &shape.format).map_err(|error| match error {
        GrammarError::Tokenizer(_) | GrammarError::System(_) => ApiError::internal(error.to_string()),
        _ => ApiError::param(shape.format_field, error),
    })
}
