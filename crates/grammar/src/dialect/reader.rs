//! From the text of an answer to what is said, thought and called.

use super::answer::{AnswerRules, Body, Piece, Thinking, ToolChoice};
use super::gemma_calls::GemmaReader;
use super::json_calls::{Head, JsonReader};
use super::kind::{Calls, Dialect, Reasoning};
use super::python_calls::PythonReader;
use super::scan::{Found, find};
use super::xml_calls::XmlReader;

/// Reads an answer as it comes, and holds back only what may still become a mark.
#[derive(Debug)]
pub struct Reader {
    dialect: Dialect,
    /// Absent where the model does not think.
    reasoning: Option<Reasoning>,
    state: State,
    held: String,
    /// Whether calls are looked for.
    calls: bool,
    /// The text has a form of its own, in which what looks like a call is none: calls come in its place, or not at all.
    body: bool,
    head: Head,
    seed: u64,
    json: JsonReader,
    xml: XmlReader,
    python: PythonReader,
    gemma: GemmaReader,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space came: a thought or a bare call may begin.
    Start,
    Thinking,
    /// Behind a thought: white space is dropped.
    AfterThought,
    Saying,
    /// Inside of calls, to the end.
    Calling,
}

impl Reader {
    /// A reader of an answer that follows these rules. Ids of calls are made from `seed`, which should differ from answer to
    /// answer.
    pub fn new(dialect: &Dialect, rules: &AnswerRules<'_>, seed: u64) -> Reader {
        let reasoning = dialect.reasoning.filter(|_| rules.thinking != Thinking::Over);
        let state = match rules.thinking {
            Thinking::Begun if reasoning.is_some() => State::Thinking,
            _ => State::Start,
        };
        Reader {
            dialect: dialect.clone(),
            reasoning,
            state,
            held: String::new(),
            calls: !rules.tools.is_empty() && rules.choice != ToolChoice::None,
            body: rules.body != Body::Text && rules.choice == ToolChoice::Auto,
            head: Head::new(rules.tools),
            seed,
            json: JsonReader::default(),
            xml: XmlReader::new(rules.tools),
            python: PythonReader::default(),
            gemma: GemmaReader::default(),
        }
    }

    /// Takes more text and returns what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces, false) {}
        pieces
    }

    /// The answer has ended: returns the rest.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while self.step(&mut pieces, true) {}
        pieces
    }

    /// Whether any call has begun.
    pub fn has_calls(&self) -> bool {
        self.state == State::Calling
    }

    /// Makes progress, or returns false where more text is needed.
    fn step(&mut self, out: &mut Vec<Piece>, last: bool) -> bool {
        match self.state {
            State::Start => self.start(last),
            State::Thinking => {
                let close = self.reasoning.map_or("", |reasoning| reasoning.close);
                match find(&self.held, &[close]).0 {
                    Found::At(at, end) => {
                        emit(out, Piece::Reasoning, &self.held[..at]);
                        self.held.drain(..end);
                        self.state = State::AfterThought;
                        true
                    }
                    Found::NotBefore(at) => self.say(out, Piece::Reasoning, at, last),
                }
            }
            State::AfterThought => {
                let blank = self.held.len() - self.held.trim_start().len();
                self.held.drain(..blank);
                if self.held.is_empty() {
                    return false;
                }
                self.begin(last)
            }
            State::Saying => {
                let open = self.dialect.mark();
                if !self.calls || self.body || self.dialect.is_bare() {
                    let all = self.held.len();
                    return self.say(out, Piece::Text, all, last);
                }
                match find(&self.held, &[open]).0 {
                    Found::At(at, _) => {
                        emit(out, Piece::Text, self.held[..at].trim_end_matches(['\n', ' ']));
                        self.held.drain(..at);
                        self.call()
                    }
                    Found::NotBefore(at) => {
                        // Blank space in front of a call is not said.
                        let solid = self.held[..at].trim_end_matches(['\n', ' ']).len();
                        self.say(out, Piece::Text, solid, last)
                    }
                }
            }
            State::Calling => match self.dialect.calls {
                Calls::Json(calls) => self.json.step(&mut self.held, calls, self.seed, out),
                Calls::Xml => self.xml.step(&mut self.held, self.seed, out),
                Calls::Python => self.python.step(&mut self.held, self.seed, out),
                Calls::Gemma => self.gemma.step(&mut self.held, self.seed, out),
                Calls::Named(calls) => self.json.step_named(&mut self.held, calls, self.seed, out),
            },
        }
    }

    fn start(&mut self, last: bool) -> bool {
        let trimmed = self.held.trim_start();
        if trimmed.is_empty() && !last {
            return false;
        }
        if let Some(reasoning) = self.reasoning {
            if trimmed.starts_with(reasoning.open) {
                let end = self.held.len() - trimmed.len() + reasoning.open.len();
                self.held.drain(..end);
                self.state = State::Thinking;
                return true;
            }
            if !last && reasoning.open.starts_with(trimmed) {
                return false;
            }
        }
        self.begin(last)
    }

    /// Begins with a call or with text, or waits for more of it.
    fn begin(&mut self, last: bool) -> bool {
        match self.is_call() {
            Some(true) => self.call(),
            None if !last => false,
            Some(false) | None => {
                self.state = State::Saying;
                true
            }
        }
    }

    /// Whether what comes first is a call; `None` where it does not show yet. Where the text is free, calls with a mark may come later too,
    /// and are not looked for here.
    fn is_call(&self) -> Option<bool> {
        if !self.calls || !(self.body || self.dialect.is_bare()) {
            return Some(false);
        }
        let (text, mark) = (self.held.trim_start(), self.dialect.mark());
        if text.starts_with(mark) {
            return Some(true);
        }
        if mark.starts_with(text) {
            return None;
        }
        match self.dialect.calls {
            // The grammar lets no free text begin with a brace; a form of its own may be an object like any other.
            Calls::Json(calls) if self.dialect.is_bare() && self.body => self.head.begins(text, calls),
            _ => Some(self.dialect.is_bare() && text.starts_with('{')),
        }
    }

    fn call(&mut self) -> bool {
        self.state = State::Calling;
        true
    }

    /// Passes on what is certain, or all at the end.
    fn say(&mut self, out: &mut Vec<Piece>, piece: fn(String) -> Piece, certain: usize, last: bool) -> bool {
        let certain = if last { self.held.len() } else { certain };
        emit(out, piece, &self.held[..certain]);
        self.held.drain(..certain);
        false
    }
}

fn emit(out: &mut Vec<Piece>, piece: fn(String) -> Piece, text: &str) {
    if !text.is_empty() {
        out.push(piece(text.to_owned()));
    }
}
