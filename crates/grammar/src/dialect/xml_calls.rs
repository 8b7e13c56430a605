//! Calls in tags, as Qwen3-Coder writes them: reading them, and telling parameters that are text from those that are JSON.

use serde_json::Value;

use super::answer::{Piece, Tool, call_id};
use super::scan::{Found, find};

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";
pub(super) const FUNCTION: &str = "<function=";
pub(super) const FUNCTION_END: &str = "</function>";
pub(super) const PARAMETER: &str = "<parameter=";
/// Ends the value of a parameter.
pub(super) const PARAMETER_END: &str = "\n</parameter>";

/// How the value of a parameter is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// The text of a string as it is.
    Text,
    /// JSON.
    Json,
}

/// How a parameter with this schema is written: what can only be a string is text.
pub(super) fn written(schema: Option<&Value>) -> Written {
    let is_text = match schema.and_then(|schema| schema.get("type")) {
        Some(Value::String(name)) => name == "string",
        Some(Value::Array(names)) => names.len() == 1 && names[0] == "string",
        _ => {
            let all = schema.and_then(|schema| schema.get("enum").or_else(|| schema.get("const")));
            match all {
                Some(Value::Array(values)) => !values.is_empty() && values.iter().all(Value::is_string),
                Some(value) => value.is_string(),
                None => false,
            }
        }
    };
    if is_text { Written::Text } else { Written::Json }
}

/// Follows calls one after the other.
#[derive(Debug)]
pub(super) struct XmlReader {
    tools: Vec<(String, Value)>,
    at: At,
    index: usize,
    /// The tool that is called.
    name: String,
    /// Whether a parameter came already.
    some: bool,
    written: Written,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum At {
    Between,
    Function,
    Value,
}

impl XmlReader {
    pub(super) fn new(tools: &[Tool]) -> XmlReader {
        let tools = tools.iter().map(|tool| (tool.name.clone(), tool.parameters.clone())).collect();
        XmlReader {
            tools,
            at: At::Between,
            index: 0,
            name: String::new(),
            some: false,
            written: Written::Json,
        }
    }

    /// Returns false where more text is needed.
    pub(super) fn step(&mut self, held: &mut String, seed: u64, out: &mut Vec<Piece>) -> bool {
        match self.at {
            At::Between => {
                let Some(name) = tag(held, FUNCTION) else { return false };
                out.push(Piece::CallStart {
                    index: self.index,
                    id: call_id(seed, self.index),
                    name: name.clone(),
                });
                self.name = name;
                self.some = false;
                self.at = At::Function;
                true
            }
            At::Function => {
                let (found, which) = find(held, &[PARAMETER, FUNCTION_END]);
                let Found::At(_, end) = found else { return false };
                if which == 1 {
                    held.drain(..end);
                    let delta = if self.some { "}" } else { "{}" };
                    self.delta(delta.to_owned(), out);
                    out.push(Piece::CallEnd { index: self.index });
                    self.index += 1;
                    self.at = At::Between;
                    return true;
                }
                // The name, the end of the tag and the line.
                let Some(name) = tag(held, PARAMETER) else { return false };
                let parameters = self.tools.iter().find(|(tool, _)| *tool == self.name).map(|(_, p)| p);
                self.written =
                    written(parameters.and_then(|p| p.get("properties")).and_then(|p| p.get(&name)));
                let comma = if self.some { "," } else { "{" };
                let quote = if self.written == Written::Text { "\"" } else { "" };
                self.delta(format!("{comma}{}:{quote}", Value::String(name)), out);
                self.some = true;
                self.at = At::Value;
                true
            }
            At::Value => match find(held, &[PARAMETER_END]).0 {
                Found::At(at, end) => {
                    let mut delta = self.spelled(&held[..at]);
                    if self.written == Written::Text {
                        delta.push('"');
                    }
                    held.drain(..end);
                    self.delta(delta, out);
                    self.at = At::Function;
                    true
                }
                Found::NotBefore(at) => {
                    let delta = self.spelled(&held[..at]);
                    held.drain(..at);
                    self.delta(delta, out);
                    false
                }
            },
        }
    }

    /// A part of a value as JSON has it.
    fn spelled(&self, text: &str) -> String {
        match self.written {
            Written::Json => text.to_owned(),
            Written::Text => {
                let quoted = Value::String(text.to_owned()).to_string();
                quoted[1..quoted.len() - 1].to_owned()
            }
        }
    }

    fn delta(&self, delta: String, out: &mut Vec<Piece>) {
        if !delta.is_empty() {
            out.push(Piece::CallArguments { index: self.index, delta });
        }
    }
}

/// Takes a tag with its line and returns the name in it.
fn tag(held: &mut String, open: &str) -> Option<String> {
    let at = held.find(open)? + open.len();
    let end = at + held[at..].find(">\n")?;
    let name = held[at..end].to_owned();
    held.drain(..end + 2);
    Some(name)
}
