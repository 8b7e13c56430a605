//! Structured output: from the shape that is asked for to the grammar that holds the model to it, and to the reader of what it wrote.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, OnceLock, PoisonError};

use unicorn_grammar::{AnswerRules, Body, Grammar, GrammarError, Matcher, Reader, Thinking, Vocabulary};

use crate::error::ApiError;
use crate::registry::Model;
use crate::sampling::fresh_seed;
use crate::shape::{Format, Shape, ToolChoice};

/// Compiled grammars that are kept for the next request that wants one like them.
const KEPT_MAX: usize = 32;

/// A model's vocabulary for grammars, made when it is needed first, and the grammars compiled last.
#[derive(Default)]
pub(crate) struct Grammars {
    vocabulary: OnceLock<Result<Vocabulary, GrammarError>>,
    kept: Mutex<VecDeque<(Shape, Thinking, Option<Grammar>)>>,
}

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
        let grammar = model.grammars.get(model, shape, thinking).map_err(|error| match error {
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

fn rules(shape: &Shape, thinking: Thinking) -> AnswerRules<'_> {
    let body = match &shape.format {
        Format::Text => Body::Text,
        Format::JsonObject => Body::JsonObject,
        // Never relaxed: what is not honoured is refused, also where a client does not insist.
        Format::Schema(schema) => Body::Schema(schema),
        Format::Regex(regex) => Body::Regex(regex),
        Format::Choice(texts) => Body::Choice(texts),
        Format::Lark(grammar) => Body::Lark(grammar),
        Format::Gbnf(grammar) => Body::Gbnf(grammar),
    };
    AnswerRules {
        body,
        tools: &shape.tools,
        choice: shape.choice.clone(),
        // Who names a tool wants one call of it.
        parallel: shape.parallel && !matches!(shape.choice, ToolChoice::Named(_)),
        thinking,
    }
}

impl Grammars {
    fn vocabulary(&self, model: &Model) -> Result<&Vocabulary, GrammarError> {
        let make = || Vocabulary::new(&model.text.tokenizer, model.vocab, &model.text.stop_tokens);
        self.vocabulary.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// The grammar of an answer; `None` where it is free.
    fn get(&self, model: &Model, shape: &Shape, thinking: Thinking) -> Result<Option<Grammar>, GrammarError> {
        let free = shape.tools.is_empty() || shape.choice == ToolChoice::None;
        if shape.format == Format::Text && free {
            return Ok(None);
        }
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |known: &&(Shape, Thinking, Option<Grammar>)| known.0 == *shape && known.1 == thinking;
        if let Some((.., grammar)) = kept().iter().find(is_known) {
            return Ok(grammar.clone());
        }
        let grammar = model.dialect.grammar(self.vocabulary(model)?, &rules(shape, thinking))?;
        // One that nothing begins is found out only by asking: better here than in the answer.
        if let Some(grammar) = &grammar {
            Matcher::new(grammar).mask().map_err(|_| GrammarError::Unsatisfiable { what: "grammar" })?;
        }
        let mut kept = kept();
        kept.truncate(KEPT_MAX - 1);
        kept.push_front((shape.clone(), thinking, grammar.clone()));
        Ok(grammar)
    }
}
