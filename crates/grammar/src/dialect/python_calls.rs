//! Calls as Python writes them: `[name(city="Bern", days=3)]`. Values are JSON, but for texts in single quotes, `True`, `False` and
//! `None`.

use serde_json::Value;

use super::answer::{Piece, call_id};
use super::scan::JsonScan;

pub(super) const OPEN: &str = "<|tool_call_start|>";
pub(super) const CLOSE: &str = "<|tool_call_end|>";

/// Follows calls one after the other.
#[derive(Debug, Default)]
pub(super) struct PythonReader {
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
    /// In a value that is JSON.
    Json,
}

impl PythonReader {
    /// Returns false where more text is needed.
    pub(super) fn step(&mut self, held: &mut String, seed: u64, out: &mut Vec<Piece>) -> bool {
        match self.at {
            At::Between => {
                // The mark in front may hold no parenthesis.
                let Some(end) = held.find('(') else { return false };
                let name = held[..end].rsplit(['[', ',', '>']).next().unwrap_or_default().trim().to_owned();
                held.drain(..=end);
                out.push(Piece::CallStart { index: self.index, id: call_id(seed, self.index), name });
                self.some = false;
                self.at = At::Arguments;
                true
            }
            At::Arguments => {
                let blank = held.len() - held.trim_start_matches([' ', ',', '\n']).len();
                held.drain(..blank);
                if held.starts_with(')') {
                    held.drain(..1);
                    self.delta(if self.some { "}" } else { "{}" }.to_owned(), out);
                    out.push(Piece::CallEnd { index: self.index });
                    self.index += 1;
                    self.at = At::Between;
                    return true;
                }
                let Some(end) = held.find('=') else { return false };
                let name = held[..end].trim().to_owned();
                held.drain(..=end);
                let comma = if self.some { "," } else { "{" };
                self.delta(format!("{comma}{}:", Value::String(name)), out);
                self.some = true;
                self.scan = JsonScan::default();
                self.at = At::Value;
                true
            }
            At::Value => self.value(held, out),
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

    fn value(&mut self, held: &mut String, out: &mut Vec<Piece>) -> bool {
        match held.chars().next() {
            None => false,
            Some('\'') => {
                let Some(length) = held[1..].find('\'') else { return false };
                let text = Value::String(held[1..1 + length].to_owned()).to_string();
                held.drain(..length + 2);
                self.delta(text, out);
                self.at = At::Arguments;
                true
            }
            Some('"' | '{' | '[') => {
                self.at = At::Json;
                true
            }
            Some(_) => {
                // A number or a word: it ends at a comma or parenthesis.
                let Some(end) = held.find([',', ')', ' ']) else { return false };
                let word: String = held.drain(..end).collect();
                let json = match word.as_str() {
                    "True" => "true",
                    "False" => "false",
                    "None" => "null",
                    other => other,
                };
                self.delta(json.to_owned(), out);
                self.at = At::Arguments;
                true
            }
        }
    }

    fn delta(&self, delta: String, out: &mut Vec<Piece>) {
        if !delta.is_empty() {
            out.push(Piece::CallArguments { index: self.index, delta });
        }
    }
}
