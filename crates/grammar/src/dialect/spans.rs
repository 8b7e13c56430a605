//! Where an answer is free, so that no mask is needed: inside of a thought, and in text before a call.

use unicorn_text::Tokenizer;

use super::answer::{AnswerRules, Body, Thinking, ToolChoice};
use super::kind::Dialect;
use super::scan::begun;
use crate::vocabulary::Vocabulary;

/// Follows an answer's bytes through its free spans.
#[derive(Debug, Clone)]
pub(crate) struct Spans {
    span: Span,
    /// What a thought begins and ends with.
    open: String,
    close: String,
    /// What ends free text: the mark of calls.
    trigger: String,
    /// Text that is a call when it comes first.
    bare: bool,
    /// Whether the text behind a thought is free.
    free_text: bool,
    /// Whether some token holds a mark and more: then a mask is always needed.
    crossing: bool,
    tail: String,
}

/// What may come next, as far as it shows without the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freedom {
    /// Everything.
    Free,
    /// Everything but the end.
    Endless,
    /// What the grammar says.
    Bound,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    /// It shows with the next characters what begins.
    Start,
    Thought,
    Text,
    /// The grammar alone says what may come.
    Bound,
}

/// Bytes of the end of the text that are kept.
const TAIL: usize = 64;

impl Spans {
    pub(crate) fn new(dialect: &Dialect, rules: &AnswerRules<'_>, vocabulary: &Vocabulary) -> Spans {
        let reasoning = dialect.reasoning.filter(|_| rules.thinking != Thinking::Over);
        let calls = !rules.tools.is_empty() && rules.choice == ToolChoice::Auto;
        let free_text = calls && rules.body == Body::Text;
        let (trigger, bare) = (dialect.mark(), dialect.is_bare());
        let span = match rules.thinking {
            Thinking::Begun if reasoning.is_some() => Span::Thought,
            _ => Span::Start,
        };
        let text = |mark: Option<&str>| mark.unwrap_or_default().to_owned();
        let mut spans = Spans {
            span,
            open: text(reasoning.filter(|_| rules.thinking == Thinking::Possible).map(|r| r.open)),
            close: text(reasoning.map(|r| r.close)),
            trigger: trigger.to_owned(),
            bare,
            free_text,
            crossing: false,
            tail: String::new(),
        };
        let marks: Vec<&str> = [&spans.close, &spans.trigger]
            .into_iter()
            .map(String::as_str)
            .filter(|m| !m.is_empty())
            .collect();
        spans.crossing = crosses(vocabulary.tokenizer(), vocabulary.size(), &marks);
        spans
    }

    /// What may come next.
    pub(crate) fn freedom(&self) -> Freedom {
        let undecided = |mark: &str| !mark.is_empty() && begun(&self.tail, mark) > 0;
        match self.span {
            _ if self.crossing => Freedom::Bound,
            Span::Thought if !undecided(&self.close) => Freedom::Endless,
            Span::Text if self.bare || !undecided(&self.trigger) => Freedom::Free,
            _ => Freedom::Bound,
        }
    }

    /// More of the answer has come.
    pub(crate) fn advance(&mut self, bytes: &[u8]) {
        if self.span == Span::Bound {
            return;
        }
        self.tail += &String::from_utf8_lossy(bytes);
        while self.step() {}
        if self.span != Span::Start && self.tail.len() > 2 * TAIL {
            let mut cut = self.tail.len() - TAIL;
            while !self.tail.is_char_boundary(cut) {
                cut += 1;
            }
            self.tail.drain(..cut);
        }
    }

    fn step(&mut self) -> bool {
        match self.span {
            Span::Bound => false,
            Span::Start => {
                let text = self.tail.trim_start();
                if text.is_empty() {
                    return false;
                }
                if !self.open.is_empty() && text.starts_with(&self.open) {
                    let end = self.tail.len() - text.len() + self.open.len();
                    self.tail.drain(..end);
                    self.span = Span::Thought;
                    return true;
                }
                if !self.open.is_empty() && self.open.starts_with(text) {
                    return false;
                }
                if self.bare && self.free_text && self.trigger.starts_with(text) && text != self.trigger {
                    return false;
                }
                let calls = self.bare && (text.starts_with('{') || text.starts_with(&self.trigger));
                self.span = if self.free_text && !calls { Span::Text } else { Span::Bound };
                true
            }
            Span::Thought => {
                let Some(at) = self.tail.find(&self.close) else { return false };
                self.tail.drain(..at + self.close.len());
                self.open.clear();
                // Behind a thought a bare call may come first, too.
                self.span = if self.free_text { Span::Start } else { Span::Bound };
                true
            }
            Span::Text => {
                if !self.bare && self.tail.contains(&self.trigger) {
                    self.span = Span::Bound;
                }
                false
            }
        }
    }
}

/// Whether some token holds one of the marks and more than it.
fn crosses(tokenizer: &Tokenizer, size: usize, marks: &[&str]) -> bool {
    (0..size as u32).filter(|id| !tokenizer.is_special(*id)).any(|id| {
        let Some(text) = tokenizer.token_text(id) else { return false };
        marks.iter().any(|mark| text.len() > mark.len() && text.contains(mark))
    })
}
