//! Grammars: what an answer may be, compiled for a vocabulary within bounds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use llguidance::api::{GrammarInit, TopLevelGrammar};
use llguidance::derivre::RegexAst;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Logger, TokenParser};
use serde_json::Value;

use crate::dialect::Spans;
use crate::error::GrammarError;
use crate::gbnf;
use crate::rules::{Class, Rules};
use crate::schema;
use crate::vocabulary::Vocabulary;

/// Time for one grammar.
const COMPILE_TIME: Duration = Duration::from_millis(600);
/// Bytes of a grammar or regular expression at most.
const TEXT_BYTES_MAX: usize = 256 << 10;
/// Groups within groups at most.
const GROUPS_MAX: usize = 100;
/// Groups at most.
const GROUP_COUNT_MAX: usize = 20_000;
/// Stack for the compiler, which recurses as deep as groups nest.
const STACK_BYTES: usize = 32 << 20;

/// What is done with what cannot be honoured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strictness {
    /// It is refused.
    Strict,
    /// It is left out and told as a notice.
    Relaxed,
}

/// What an answer may be. Cheap to clone; clones share what was compiled.
#[derive(Clone)]
pub struct Grammar(Arc<Compiled>);

struct Compiled {
    vocabulary: Vocabulary,
    parser: TokenParser,
    notices: Vec<String>,
    /// Where the answer is free.
    spans: Option<Spans>,
}

impl Grammar {
    /// Any JSON object.
    ///
    /// # Errors
    /// [`GrammarError::System`] where no thread can be started.
    pub fn json_object(vocabulary: &Vocabulary) -> Result<Grammar, GrammarError> {
        Grammar::json_schema(vocabulary, &serde_json::json!({"type": "object"}), Strictness::Strict)
    }

    /// Values that satisfy a JSON Schema, of drafts 4 to 2020-12.
    ///
    /// # Errors
    /// What cannot be honoured, where it is and why; with [`Strictness::Relaxed`] only what is no schema at all.
    pub fn json_schema(
        vocabulary: &Vocabulary,
        schema: &Value,
        strictness: Strictness,
    ) -> Result<Grammar, GrammarError> {
        compile(vocabulary, |rules, deadline, notices| {
            let relaxed;
            let schema = match strictness {
                Strictness::Strict => schema,
                Strictness::Relaxed => {
                    relaxed = schema::Relaxed::new(schema, deadline);
                    notices.extend(relaxed.notices);
                    &relaxed.schema
                }
            };
            let value = schema::strict(rules, schema, deadline)?;
            rules.nested(value)
        })
    }

    /// Texts that match a regular expression as a whole.
    ///
    /// # Errors
    /// What cannot be read, or goes past a limit.
    pub fn regex(vocabulary: &Vocabulary, regex: &str) -> Result<Grammar, GrammarError> {
        check_text(regex)?;
        compile(vocabulary, |rules, _, _| {
            let regex = RegexAst::Regex(regex.to_owned());
            let read = rules.expression(&regex);
            read.map_err(|error| GrammarError::Syntax {
                what: "regular expression",
                reason: error.to_string(),
            })?;
            rules.lexeme(regex)
        })
    }

    /// One of these texts.
    ///
    /// # Errors
    /// Where there is no text, or they go past a limit.
    pub fn choice(vocabulary: &Vocabulary, texts: &[String]) -> Result<Grammar, GrammarError> {
        if texts.is_empty() {
            return Err(GrammarError::Unsatisfiable { what: "choice" });
        }
        if texts.iter().map(String::len).sum::<usize>() > TEXT_BYTES_MAX {
            return Err(GrammarError::TooComplex(format!("more than {TEXT_BYTES_MAX} bytes")));
        }
        compile(vocabulary, |rules, _, _| {
            rules.lexeme(RegexAst::Or(texts.iter().map(|text| RegexAst::Literal(text.clone())).collect()))
        })
    }

    /// A grammar in the syntax of Lark, as the library `llguidance` reads it.
    ///
    /// # Errors
    /// What cannot be read, or goes past a limit.
    pub fn lark(vocabulary: &Vocabulary, grammar: &str) -> Result<Grammar, GrammarError> {
        check_text(grammar)?;
        let grammar = TopLevelGrammar::from_lark(grammar.to_owned());
        bounded(vocabulary, move || Ok((GrammarInit::Serialized(grammar), Vec::new())))
    }

    /// A grammar in the syntax of llama.cpp (GBNF), which begins with the rule `root`.
    ///
    /// # Errors
    /// What cannot be read, or goes past a limit.
    pub fn gbnf(vocabulary: &Vocabulary, grammar: &str) -> Result<Grammar, GrammarError> {
        check_text(grammar)?;
        compile(vocabulary, |rules, _, _| gbnf::compile(rules, grammar))
    }

    /// What was left out of a relaxed schema, and why.
    pub fn notices(&self) -> &[String] {
        &self.0.notices
    }

    /// The vocabulary that it was compiled for.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.0.vocabulary
    }

    /// The same with spans where no mask is needed.
    pub(crate) fn with_spans(self, spans: Spans) -> Grammar {
        let Compiled { vocabulary, parser, notices, .. } = &*self.0;
        Grammar(Arc::new(Compiled {
            vocabulary: vocabulary.clone(),
            parser: parser.clone(),
            notices: notices.clone(),
            spans: Some(spans),
        }))
    }

    pub(crate) fn spans(&self) -> Option<Spans> {
        self.0.spans.clone()
    }

    pub(crate) fn parser(&self) -> TokenParser {
        self.0.parser.deep_clone()
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("notices", &self.0.notices).finish_non_exhaustive()
    }
}

/// Builds rules within bounds and compiles them.
pub(crate) fn compile(
    vocabulary: &Vocabulary,
    build: impl FnOnce(&mut Rules, Instant, &mut Vec<String>) -> Result<crate::rules::Symbol, GrammarError> + Send,
) -> Result<Grammar, GrammarError> {
    bounded(vocabulary, || {
        let mut rules = Rules::new()?;
        let mut notices = Vec::new();
        let deadline = Instant::now() + COMPILE_TIME;
        let start = rules.within(Class::Text, |rules| build(rules, deadline, &mut notices))?;
        Ok((rules.finish(start)?, notices))
    })
}

/// Does the work on a thread of its own, whose stack is large enough for everything that passes the limits.
fn bounded(
    vocabulary: &Vocabulary,
    build: impl FnOnce() -> Result<(GrammarInit, Vec<String>), GrammarError> + Send,
) -> Result<Grammar, GrammarError> {
    let refused = |error: String| {
        let line = error.split("\n<").next().unwrap_or_default().to_owned();
        GrammarError::TooComplex(line)
    };
    let work = || -> Result<Grammar, GrammarError> {
        let (init, notices) = build()?;
        let factory = vocabulary.factory();
        let mut limits = factory.limits().clone();
        // Large regular expressions are not run against all tokens in advance.
        limits.precompute_large_lexemes = false;
        let parser = factory.create_parser_from_init_ext(
            init,
            Logger::new(0, 0),
            InferenceCapabilities::default(),
            limits,
        );
        let mut parser = parser.map_err(|error| refused(error.to_string()))?;
        parser.start_without_prompt();
        Ok(Grammar(Arc::new(Compiled { vocabulary: vocabulary.clone(), parser, notices, spans: None })))
    };
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK_BYTES);
        let thread =
            builder.spawn_scoped(scope, work).map_err(|error| GrammarError::System(error.to_string()))?;
        thread.join().unwrap_or_else(|_| Err(GrammarError::TooComplex("the compiler gave up".to_owned())))
    })
}

/// Limits that hold before anything is read.
pub(crate) fn check_text(text: &str) -> Result<(), GrammarError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(GrammarError::TooComplex(format!("more than {TEXT_BYTES_MAX} bytes")));
    }
    let (mut depth, mut deepest, mut groups) = (0usize, 0, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => {
                depth += 1;
                groups += 1;
                deepest = deepest.max(depth);
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    if deepest > GROUPS_MAX || groups > GROUP_COUNT_MAX {
        return Err(GrammarError::TooComplex(format!(
            "more than {GROUPS_MAX} groups within groups, or {GROUP_COUNT_MAX} in all"
        )));
    }
    Ok(())
}
