//! Calls as Gemma 4 writes them: `call:name{city:<|"|>Bern<|"|>,days:3}` between two marks. Values are JSON, but for texts, which stand between
//! marks of their own with nothing escaped.

use serde_json::Value;

use super::answer::{Piece, call_id};
use super::scan::{Found, JsonScan, find};

pub(super) const OPEN: &str = "<|tool_call>";
pub(super) const CLOSE: &str = "<tool_call|>";
/// Stands in front of a text and behind it.
pub(super) const QUOTE: &str = "<|\"|>";
/// In front of a tool's name.
pub(super) const CALL: &str = "call:";

/// Whether an argument of this name can be told from what is around it.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || ":,{}<\"".contains(c))
}

/// Follows calls one after the other.
#[derive(Debug, Default)]
pub(super) struct GemmaReader {
    at: At,
    index: usize,
    /// Whether an argument came already.
    some: bool,
    scan: JsonScan,
}

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
enum At {
    #[default]
    Between,
    Arguments,
    /// Behind the name of an argument.
    Value,
    /// In a text.
    Text,
    /// In a value that is JSON.
    Json,
}

impl GemmaReader {
    /// Returns false where more text is needed.
    pub(super) fn step(&mut self, held: &mut String, seed: u64, out: &mut Vec<Piece>) -> bool {
        match self.at {
            At::Between => {
                let Some(call) = held.find(CALL).map(|at| at + CALL.len()) else { return false };
                let Some(length) = held[call..].find('{') else { return false };
                let name = held[call..call + length].trim().to_owned();
                held.drain(..=call + length);
                out.push(Piece::CallStart { index: self.index, id: call_id(seed, self.index), name });
                self.some = false;
                self.at = At::Arguments;
                true
            }
            At::Arguments => self.argument(held, out),
            At::Value => self.value(held, out),
            At::Text => match find(held, &[QUOTE]).0 {
                Found::At(at, end) => {
                    self.delta(escaped(&held[..at]) + "\"", out);
                    held.drain(..end);
                    self.at = At::Arguments;
                    true
                }
                Found::NotBefore(at) => {
                    self.delta(escaped(&held[..at]), out);
                    held.drain(..at);
                    false
                }
            },
            At::Json => {
                let (length, complete) = self.scan.take(held);
                let delta: String = held.drain(..length).collect();
                self.delta(delta, out);
                if complete {
                    self.at = At::Arguments;
                }
                complete
            }
        }
    }

    fn argument(&mut self, held: &mut String, out: &mut Vec<Piece>) -> bool {
        let blank = held.len() - held.trim_start_matches([' ', ',', '\n']).len();
        held.drain(..blank);
        if held.starts_with('}') {
            held.drain(..1);
            self.delta(if self.some { "}" } else { "{}" }.to_owned(), out);
            out.push(Piece::CallEnd { index: self.index });
            self.index += 1;
            self.at = At::Between;
            return true;
        }
        let Some(end) = held.find(':') else { return false };
        let name = held[..end].trim().to_owned();
        held.drain(..=end);
        let comma = if self.some { "," } else { "{" };
        self.delta(format!("{comma}{}:", Value::String(name)), out);
        self.some = true;
        self.scan = JsonScan::default();
        self.at = At::Value;
        true
    }

    fn value(&mut self, held: &mut String, out: &mut Vec<Piece>) -> bool {
        if held.starts_with(QUOTE) {
            held.drain(..QUOTE.len());
            self.delta("\"".to_owned(), out);
            self.at = At::Text;
            return true;
        }
        if QUOTE.starts_with(held.as_str()) {
            return false;
        }
        if held.starts_with(['"', '{', '[']) {
            self.at = At::Json;
            return true;
        }
        // A number or a word: it ends at a comma or brace.
        let Some(end) = held.find([',', '}', ' ', '\n']) else { return false };
        let word: String = held.drain(..end).collect();
        self.delta(word, out);
        self.at = At::Arguments;
        true
    }

    fn delta(&self, delta: String, out: &mut Vec<Piece>) {
        if !delta.is_empty() {
            out.push(Piece::CallArguments { index: self.index, delta });
        }
    }
}

/// A part of a text as JSON has it, without the quotes around all of it.
fn escaped(text: &str) -> String {
    let json = Value::from(text).to_string();
    json[1..json.len() - 1].to_owned()
}
