//! Compiled grammars of a model.

use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock, PoisonError};

use unicorn_grammar::{AnswerRules, Body, Dialect, Grammar, GrammarError, Matcher, Thinking, Vocabulary};
use unicorn_text::Tokenizer;

use crate::shape::{Format, Shape, ToolChoice};

/// Compiled grammars that are kept for the next request that wants one like them.
const KEPT_MAX: usize = 32;

/// A model's vocabulary for grammars, made when it is needed first, and the grammars compiled last.
pub(crate) struct Grammars {
    tokenizer: Tokenizer,
    /// Logits of the model.
    vocab: usize,
    /// Tokens that end an answer.
    ends: Vec<u32>,
    dialect: Dialect,
    vocabulary: OnceLock<Result<Vocabulary, GrammarError>>,
    kept: Mutex<VecDeque<(Shape, Thinking, Option<Grammar>)>>,
}

/// The rules of an answer of this shape.
pub(crate) fn rules(shape: &Shape, thinking: Thinking) -> AnswerRules<'_> {
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
    /// Of a model with as many logits as `vocab` and these end tokens.
    pub fn new(tokenizer: Tokenizer, vocab: usize, ends: Vec<u32>, dialect: Dialect) -> Grammars {
        Grammars { tokenizer, vocab, ends, dialect, vocabulary: OnceLock::new(), kept: Mutex::default() }
    }

    fn vocabulary(&self) -> Result<&Vocabulary, GrammarError> {
        let make = || Vocabulary::new(&self.tokenizer, self.vocab, &self.ends);
        self.vocabulary.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// The grammar of an answer; `None` where it is free.
    pub fn get(&self, shape: &Shape, thinking: Thinking) -> Result<Option<Grammar>, GrammarError> {
        let free = shape.tools.is_empty() || shape.choice == ToolChoice::None;
        if shape.format == Format::Text && free {
            return Ok(None);
        }
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |known: &&(Shape, Thinking, Option<Grammar>)| known.0 == *shape && known.1 == thinking;
        if let Some((.., grammar)) = kept().iter().find(is_known) {
            return Ok(grammar.clone());
        }
        let grammar = self.dialect.grammar(self.vocabulary()?, &rules(shape, thinking))?;
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
