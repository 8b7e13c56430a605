//! Regular expressions of a schema: translated once, matched against names, and asked whether they match anything.

use std::collections::HashMap;
use std::rc::Rc;

use llguidance::derivre::{JsonQuoteOptions, Regex, RegexAst, RegexBuilder};

use super::pattern;
use super::shape::Text;
use crate::error::GrammarError;

/// Work that is spent on one question.
const FUEL: u64 = 20_000;
/// Bytes of all patterns together at most.
const PATTERN_BYTES_MAX: usize = 100_000;

/// The regular expressions of a schema.
#[derive(Default)]
pub(crate) struct Regexes {
    translated: HashMap<String, Result<Rc<str>, String>>,
    finders: HashMap<Rc<str>, Regex>,
    bytes: usize,
}

impl Regexes {
    pub(crate) fn new() -> Regexes {
        Regexes::default()
    }

    /// A pattern in the library's syntax, or what is wrong with it.
    pub(crate) fn translated(&mut self, text: &str) -> Result<Rc<str>, String> {
        if let Some(known) = self.translated.get(text) {
            return known.clone();
        }
        self.bytes += text.len();
        let result = if self.bytes > PATTERN_BYTES_MAX {
            Err(format!("all patterns together have more than {PATTERN_BYTES_MAX} bytes"))
        } else {
            pattern::translated(text).and_then(|translated| {
                let mut builder = RegexBuilder::new();
                builder.mk_regex_for_serach(&translated).map_err(|error| short(&error.to_string()))?;
                Ok(Rc::from(translated))
            })
        };
        self.translated.insert(text.to_owned(), result.clone());
        result
    }

    /// Whether a translated pattern is found in a text.
    pub(crate) fn finds(&mut self, pattern: &Rc<str>, text: &str) -> Result<bool, GrammarError> {
        if !self.finders.contains_key(pattern) {
            let regex = compiled(&RegexAst::SearchRegex(pattern.to_string()))?;
            self.finders.insert(pattern.clone(), regex);
        }
        let finder = self.finders.get_mut(pattern);
        Ok(finder.is_some_and(|finder| finder.is_match(text)))
    }
}

fn compiled(regex: &RegexAst) -> Result<Regex, GrammarError> {
    let refused = |error: &dyn std::fmt::Display| {
        GrammarError::TooComplex(format!("a pattern: {}", short(&error.to_string())))
    };
    let mut builder = RegexBuilder::new();
    let expression = builder.mk(regex).map_err(|error| refused(&error))?;
    builder.into_regex_limited(expression, FUEL).map_err(|error| refused(&error))
}

fn short(text: &str) -> String {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    line.chars().take(200).collect()
}

/// Whether a regular expression matches nothing, as far as can be found out with little work.
pub(crate) fn is_empty(regex: &RegexAst) -> bool {
    compiled(regex).is_ok_and(|mut regex| regex.always_empty())
}

/// Every text.
pub(crate) fn any_text() -> RegexAst {
    RegexAst::Regex("(?s:.*)".to_owned())
}

/// Those of the texts that a regular expression matches.
pub(crate) fn matching<'t>(
    regex: &RegexAst,
    texts: impl Iterator<Item = &'t str>,
) -> Result<Vec<String>, GrammarError> {
    let mut regex = compiled(regex)?;
    Ok(texts.filter(|text| regex.is_match(text)).map(str::to_owned).collect())
}

/// A string in quotes, as JSON writes it: escapes are read, and those are allowed that are needed.
pub(crate) fn quoted(regex: RegexAst) -> RegexAst {
    RegexAst::JsonQuote(Box::new(regex), JsonQuoteOptions::regular())
}

/// One of these texts.
pub(crate) fn one_of(texts: &[String]) -> RegexAst {
    match texts {
        [one] => RegexAst::Literal(one.clone()),
        _ => RegexAst::Or(texts.iter().map(|text| RegexAst::Literal(text.clone())).collect()),
    }
}

/// All of the texts of a shape, without quotes. `None` where there is none.
pub(crate) fn language(text: &Text) -> Result<Option<RegexAst>, GrammarError> {
    let mut parts = Vec::new();
    for (pattern, found) in &text.patterns {
        let search = RegexAst::SearchRegex(pattern.to_string());
        parts.push(if *found { search } else { RegexAst::Not(Box::new(search)) });
    }
    parts.extend(text.formats.iter().map(|format| RegexAst::Regex((*format).to_owned())));
    if let Some(literals) = &text.literals {
        if parts.is_empty() {
            return Ok(Some(one_of(literals)));
        }
        // Few texts and a pattern: the pattern is asked now, not with every token.
        let kept = matching(&RegexAst::And(parts), literals.iter().map(String::as_str))?;
        return Ok((!kept.is_empty()).then(|| one_of(&kept)));
    }
    parts.extend(text.not_literals.iter().map(|texts| RegexAst::Not(Box::new(one_of(texts)))));
    let bounded = text.min > 0 || text.max.is_some();
    if bounded {
        let limit = |count: usize| u32::try_from(count).unwrap_or(u32::MAX - 1).min(u32::MAX - 1);
        let max = text.max.map_or(u32::MAX, limit);
        let character = RegexAst::Regex("(?s:.)".to_owned());
        parts.push(RegexAst::Repeat(Box::new(character), limit(text.min), max));
    } else if parts.is_empty() || !text.patterns.iter().any(|(_, found)| *found) && text.formats.is_empty() {
        // The opposite of a pattern matches bytes that are no text.
        parts.push(any_text());
    }
    if let [_] = parts[..] {
        return Ok(parts.pop());
    }
    let regex = RegexAst::And(parts);
    Ok((!is_empty(&regex)).then_some(regex))
}
