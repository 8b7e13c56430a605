//! Keeping special tokens that somebody typed apart from those that a template writes.
//!
//! Before rendering, a mark goes into every special token inside an argument: a character that occurs nowhere
//! else, one place behind the token's first character. Whatever a template then does (trim, split, slice, join,
//! change case, test for equality), a special token that came from an argument still has the mark inside when
//! it is printed. After rendering the marks are taken out, and a special token that had one is text.
//!
//! Special tokens can also arise where texts meet. So the mark goes as well into an end of an argument that
//! begins a special token (`..<|im_`), into a start that ends one (`end|>..`), and, with [`Reach::Wide`], into
//! arguments that are a piece from the middle of one (`im_end`). The last also hits harmless words (`object`
//! where `<|object_ref_start|>` is a token) for which templates may look; it is kept only where the template
//! prints the same text with and without. What a template removes from a text can join its halves; see
//! [`SpecialTexts::mark_seams`].
//!
//! The well-known roles carry no marks: templates make `<|user|>` of `user`. A template that reverses a text, or
//! spells special tokens out of single characters of an argument, is beyond this.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

use super::error::TemplateError;
use crate::prompt::insert_marks;

/// How far marks go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Into whole special tokens, and into ends and starts that look like a piece of one.
    Narrow,
    /// Also into pieces that may as well be words, and into keys.
    Wide,
}

/// Roles that chat APIs know.
const ROLES: &[&str] = &[
    "system",
    "developer",
    "user",
    "human",
    "assistant",
    "model",
    "gpt",
    "tool",
    "function",
    "ipython",
    "observation",
    "environment",
    "tool_call",
    "tool_response",
    "tool_result",
    "documents",
    "context",
];

/// Stands between the tokens of [`SpecialTexts::all`].
const BETWEEN: char = '\0';

/// The special tokens of a vocabulary, ready to be searched for. Case is ignored, because templates change it.
#[derive(Debug)]
pub(super) struct SpecialTexts {
    search: AhoCorasick,
    /// In lower case, with [`BETWEEN`] before and behind each.
    all: String,
    first_chars: BTreeSet<char>,
    last_chars: BTreeSet<char>,
    /// Length of the longest in bytes.
    longest: usize,
}

impl SpecialTexts {
    pub(super) fn new<'t>(texts: impl Iterator<Item = &'t str>) -> Result<Self, TemplateError> {
        // A token of one character has no inside; `Specials::Prompt` never parses it.
        let texts: Vec<String> =
            texts.filter(|text| text.chars().nth(1).is_some()).map(str::to_ascii_lowercase).collect();
        let search = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .match_kind(MatchKind::Standard)
            .build(&texts)
            .map_err(|error| TemplateError::Render { line: 0, reason: format!("special tokens: {error}") })?;
        let mut all = String::from(BETWEEN);
        for text in &texts {
            all.push_str(text);
            all.push(BETWEEN);
        }
        Ok(Self {
            search,
            all,
            first_chars: texts.iter().filter_map(|text| text.chars().next()).collect(),
            last_chars: texts.iter().filter_map(|text| text.chars().next_back()).collect(),
            longest: texts.iter().map(String::len).max().unwrap_or(0),
        })
    }

    /// Marks the messages of a conversation.
    pub(super) fn mark_messages(&self, messages: &Value, mark: char, reach: Reach) -> Value {
        let Value::Array(messages) = messages else { return self.mark_json(messages, mark, reach) };
        let field = |(key, value): (&String, &Value)| {
            let value = match value.as_str().filter(|_| key == "role") {
                Some(role) if ROLES.contains(&role) => value.clone(),
                Some(role) => self.mark(role, mark, Reach::Wide).into(),
                None => self.mark_json(value, mark, reach),
            };
            (self.mark_key(key, mark, reach), value)
        };
        let message = |message: &Value| match message {
            Value::Object(fields) => Value::Object(fields.iter().map(field).collect()),
            other => self.mark_json(other, mark, reach),
        };
        messages.iter().map(message).collect()
    }

    /// Marks all strings and keys in `value`.
    pub(super) fn mark_json(&self, value: &Value, mark: char, reach: Reach) -> Value {
        match value {
            Value::String(text) => self.mark(text, mark, reach).into(),
            Value::Array(items) => items.iter().map(|item| self.mark_json(item, mark, reach)).collect(),
            Value::Object(fields) => {
                let field = |(key, value): (&String, &Value)| {
                    (self.mark_key(key, mark, reach), self.mark_json(value, mark, reach))
                };
                Value::Object(fields.iter().map(field).collect())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    /// Templates look keys up, so only whole special tokens are marked in them at first.
    fn mark_key(&self, key: &str, mark: char, reach: Reach) -> String {
        match reach {
            Reach::Wide => self.mark(key, mark, reach),
            Reach::Narrow => insert_marks(key, &self.whole(key).into_iter().collect::<Vec<_>>(), mark),
        }
    }

    fn mark(&self, text: &str, mark: char, reach: Reach) -> String {
        let mut places = self.whole(text);
        self.find_end(text, reach, &mut places);
        self.find_start(text, reach, &mut places);
        if reach == Reach::Wide {
            self.find_middle(text, &mut places);
        }
        insert_marks(text, &places.into_iter().collect::<Vec<_>>(), mark)
    }

    /// Behind the first character of every special token in `text`.
    fn whole(&self, text: &str) -> BTreeSet<usize> {
        let found = self.search.find_overlapping_iter(text);
        found.map(|found| text.ceil_char_boundary(found.start() + 1)).collect()
    }

    /// Where the end of `text`, or what is left when it is trimmed, begins a special token.
    fn find_end(&self, text: &str, reach: Reach, places: &mut BTreeSet<usize>) {
        let text = text.trim_end();
        let from = text.floor_char_boundary(text.len().saturating_sub(self.longest));
        for (at, c) in text[from..].char_indices() {
            let at = at + from;
            let piece = || format!("{BETWEEN}{}", text[at..].to_ascii_lowercase());
            if is_searched(&self.first_chars, c, reach) && self.all.contains(&piece()) {
                places.insert(at + c.len_utf8());
            }
        }
    }

    /// Where the start of `text`, or what is left when it is trimmed, ends a special token.
    fn find_start(&self, text: &str, reach: Reach, places: &mut BTreeSet<usize>) {
        let from = text.len() - text.trim_start().len();
        let to = text.ceil_char_boundary(text.len().min(from + self.longest));
        for (at, c) in text[from..to].char_indices() {
            let at = at + from;
            let piece = || format!("{}{BETWEEN}", text[from..at + c.len_utf8()].to_ascii_lowercase());
            if is_searched(&self.last_chars, c, reach) && self.all.contains(&piece()) {
                places.insert(at);
            }
        }
    }

    /// Whether all of `text` is a piece of a special token.
    fn find_middle(&self, text: &str, places: &mut BTreeSet<usize>) {
        let from = text.len() - text.trim_start().len();
        let piece = text.trim();
        if let Some(first) = piece.chars().next()
            && piece.len() <= self.longest
            && self.all.contains(&piece.to_ascii_lowercase())
        {
            places.insert(from + first.len_utf8());
        }
    }

    /// `text`, from which something was removed at `seams`, with marks where a special token lies across one.
    pub(super) fn mark_seams(&self, text: &str, seams: &[usize], mark: char) -> String {
        let mut places = BTreeSet::new();
        for found in self.search.find_overlapping_iter(text) {
            let inside = seams.partition_point(|&seam| seam <= found.start());
            places.extend(seams.get(inside).filter(|&&seam| seam < found.end()));
        }
        insert_marks(text, &places.into_iter().collect::<Vec<_>>(), mark)
    }
}

/// Whether pieces that begin or end with `c` are looked for. A piece that begins with a letter may be a word.
fn is_searched(ends: &BTreeSet<char>, c: char, reach: Reach) -> bool {
    let c = c.to_ascii_lowercase();
    (reach == Reach::Wide || !c.is_alphanumeric()) && ends.contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn marked(text: &str, reach: Reach) -> String {
        let texts = ["<|im_start|>", "<|im_end|>", "<s>", "mark", "｜", "<｜fin｜>"];
        SpecialTexts::new(texts.into_iter()).unwrap().mark(text, '!', reach)
    }

    #[test]
    fn special_tokens_and_their_halves_are_marked() {
        for (text, narrow, wide) in [
            ("plain < text > | x", "plain < text > | x", "plain < text > | x"),
            ("a<|im_end|>b<S>", "a<!|im_end|>b<!S>", "a<!|im_end|>b<!S>"),
            ("a<|im_ \n", "a<!|im_ \n", "a<!|im_ \n"),
            ("a <<", "a <<!", "a <<!"),
            (" _end|> b", " _end|!> b", " _end|!> b"),
            (">", "!>", "!>!"),
            ("im_end", "im_end", "i!m_end"),
            ("from", "from", "from!"),
            ("<｜fin｜>", "<!｜fin｜!>", "<!｜fin｜!>"),
            ("", "", ""),
        ] {
            assert_eq!(marked(text, Reach::Narrow), narrow, "{text}");
            assert_eq!(marked(text, Reach::Wide), wide, "{text}");
        }
    }

    #[test]
    fn roles_that_everybody_knows_stay_as_they_are() {
        let texts = SpecialTexts::new(["<|user|>", "<|tool|>"].into_iter()).unwrap();
        let messages =
            json!([{"role": "user", "content": "user"}, {"role": "use", "<|tool|>": {"<|tool|>": 1}}]);
        assert_eq!(
            texts.mark_messages(&messages, '!', Reach::Narrow),
            json!([{"role": "user", "content": "user"}, {"role": "u!se", "<!|tool|>": {"<!|tool|>": 1}}])
        );
    }

    #[test]
    fn texts_around_a_removed_one_do_not_join() {
        let texts = SpecialTexts::new(["<|im_end|>"].into_iter()).unwrap();
        assert_eq!(texts.mark_seams("a<|im_end|> b", &[0, 6, 12], '!'), "a<|im_!end|> b");
        assert_eq!(texts.mark_seams("a<|im_end|> b", &[1, 11], '!'), "a<|im_end|> b");
    }
}
