//! Compiled grammars of a model.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Mutex, OnceLock, PoisonError};

use sha2::{Digest, Sha256};
use unicorn_grammar::{AnswerRules, Body, Dialect, Grammar, GrammarError, Matcher, Thinking, Vocabulary};
use unicorn_text::Tokenizer;

use crate::shape::{Format, Shape, ToolChoice};

/// Compiled grammars that are kept for the next request that wants one like them.
const KEPT_MAX: usize = 32;
/// Bytes of what they were compiled from, in all: what is compiled takes some times as many.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// What a grammar was compiled from: a hash of it, for schemas may be long. The order of properties counts, as it does in the grammar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    hash: [u8; 32],
    bytes: usize,
}

impl Key {
    fn of(shape: &Shape, thinking: Thinking) -> Key {
        struct Writer(Sha256, usize);
        impl Write for Writer {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                self.0.update(text);
                self.1 += text.len();
                Ok(())
            }
        }
        let mut writer = Writer(Sha256::new(), 0);
        // A hash takes everything.
        let _ = write!(writer, "{thinking:?} {shape:?}");
        Key { hash: writer.0.finalize().into(), bytes: writer.1 }
    }
}

/// A model's vocabulary for grammars, made when it is needed first, and the grammars compiled last.
pub(crate) struct Grammars {
    tokenizer: Tokenizer,
    /// Logits of the model.
    vocab: usize,
    /// Tokens that end an answer.
    ends: Vec<u32>,
    dialect: Dialect,
    vocabulary: OnceLock<Result<Vocabulary, GrammarError>>,
    kept: Mutex<VecDeque<(Key, Option<Grammar>)>>,
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
        let key = Key::of(shape, thinking);
        if let Some((_, grammar)) = kept().iter().find(|known| known.0 == key) {
            return Ok(grammar.clone());
        }
        let grammar = self.dialect.grammar(self.vocabulary()?, &rules(shape, thinking))?;
        // One that nothing begins is found out only by asking: better here than in the answer.
        if let Some(grammar) = &grammar {
            Matcher::new(grammar).mask().map_err(|_| GrammarError::Unsatisfiable { what: "grammar" })?;
        }
        keep(&mut kept(), key, grammar.clone());
        Ok(grammar)
    }
}

/// Keeps one more, and lets those go that were compiled first.
fn keep<T>(kept: &mut VecDeque<(Key, T)>, key: Key, grammar: T) {
    if key.bytes > KEPT_BYTES_MAX {
        return;
    }
    kept.push_front((key, grammar));
    while kept.len() > KEPT_MAX || kept.iter().map(|(key, _)| key.bytes).sum::<usize>() > KEPT_BYTES_MAX {
        kept.pop_back();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_kept_is_bounded() {
        let key = |bytes| Key { hash: [0; 32], bytes };
        let mut kept = VecDeque::new();
        for i in 0..100 {
            keep(&mut kept, key(10), i);
        }
        assert_eq!((kept.len(), kept[0].1), (KEPT_MAX, 99));
        keep(&mut kept, key(KEPT_BYTES_MAX - 15), 100);
        assert_eq!(kept.iter().map(|(_, i)| *i).collect::<Vec<_>>(), [100, 99]);
        keep(&mut kept, key(KEPT_BYTES_MAX + 1), 101);
        assert_eq!(kept[0].1, 100);
    }

    #[test]
    fn other_shapes_have_other_keys() {
        let shape = |schema| Shape { format: Format::Schema(schema), ..Shape::default() };
        let of = |schema| Key::of(&shape(schema), Thinking::Over);
        let schema = json!({"properties": {"a": {}, "b": {}}});
        assert_eq!(of(schema.clone()), of(schema.clone()));
        assert_ne!(of(schema.clone()), of(json!({"properties": {"b": {}, "a": {}}})));
        assert_ne!(of(schema.clone()), Key::of(&shape(schema), Thinking::Possible));
    }
}
