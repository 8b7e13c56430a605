//! Reading calls whose arguments are JSON.

use serde_json::Value;

use super::answer::{Piece, Tool, call_id};
use super::kind::{JsonCalls, NamedCalls};
use super::scan::JsonScan;

/// Tells calls from other objects by how they begin: as the grammar has it.
#[derive(Debug)]
pub(super) struct Head {
    /// The names of the tools as JSON.
    names: Vec<String>,
}

impl Head {
    pub(super) fn new(tools: &[Tool]) -> Head {
        Head { names: tools.iter().map(|tool| Value::from(tool.name.as_str()).to_string()).collect() }
    }

    /// Whether a text begins `{"name": <a tool>, "parameters": {`; `None` where it is too short to tell.
    pub(super) fn begins(&self, text: &str, calls: JsonCalls) -> Option<bool> {
        let member = format!("\"{}\"", calls.arguments);
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let (one, two) = (["{", "\"name\"", ":"], [",", &member, ":", "{"]);
        let parts = one
            .iter()
            .map(std::slice::from_ref)
            .chain([&names[..]])
            .chain(two.iter().map(std::slice::from_ref));
        let mut rest = text;
        for part in parts {
            rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
            match part.iter().find_map(|option| rest.strip_prefix(option)) {
                Some(after) => rest = after,
                None if part.iter().any(|option| option.starts_with(rest)) => return None,
                None => return Some(false),
            }
        }
        Some(true)
    }
}

/// Follows calls one after the other.
#[derive(Debug, Default)]
pub(super) struct JsonReader {
    at: At,
    index: usize,
    scan: JsonScan,
}

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
enum At {
    /// In front of a call, or behind the last.
    #[default]
    Between,
    /// Behind its name.
    Named,
    Arguments,
    /// Behind its arguments.
    After,
}

impl JsonReader {
    /// Reads `{"name": .., "arguments": ..}`. Returns false where more text is needed.
    pub(super) fn step(
        &mut self,
        held: &mut String,
        calls: JsonCalls,
        seed: u64,
        out: &mut Vec<Piece>,
    ) -> bool {
        match self.at {
            At::Between => {
                let Some((name, end)) = member(held, "name") else { return false };
                let mut scan = JsonScan::default();
                let (length, complete) = scan.take(&held[end..]);
                let _ = name;
                if !complete {
                    return false;
                }
                let name = serde_json::from_str::<String>(held[end..end + length].trim()).unwrap_or_default();
                held.drain(..end + length);
                self.begin(name, call_id(seed, self.index), out);
                true
            }
            At::Named => {
                let Some((_, end)) = member(held, calls.arguments) else { return false };
                held.drain(..end);
                self.at = At::Arguments;
                true
            }
            At::Arguments => self.arguments(held, out),
            At::After => {
                // The brace of the call.
                let Some(end) = held.find('}') else { return false };
                held.drain(..=end);
                self.at = At::Between;
                self.index += 1;
                true
            }
        }
    }

    /// Reads `[TOOL_CALLS]name[ARGS]{..}`. Returns false where more text is needed.
    pub(super) fn step_named(
        &mut self,
        held: &mut String,
        calls: NamedCalls,
        seed: u64,
        out: &mut Vec<Piece>,
    ) -> bool {
        match self.at {
            At::Between => {
                let Some(open) = held.find(calls.open) else { return false };
                let name_at = open + calls.open.len();
                let Some(length) = held[name_at..].find(calls.arguments) else { return false };
                let head = held[name_at..name_at + length].to_owned();
                let (name, id) = match calls.id.and_then(|mark| head.split_once(mark)) {
                    Some((name, id)) => (name, Some(id.trim().to_owned()).filter(|id| !id.is_empty())),
                    None => (head.as_str(), None),
                };
                held.drain(..name_at + length + calls.arguments.len());
                let id = id.unwrap_or_else(|| call_id(seed, self.index));
                self.begin(name.trim().to_owned(), id, out);
                self.at = At::Arguments;
                true
            }
            At::Named | At::Arguments => self.arguments(held, out),
            At::After => {
                self.at = At::Between;
                self.index += 1;
                true
            }
        }
    }

    fn begin(&mut self, name: String, id: String, out: &mut Vec<Piece>) {
        out.push(Piece::CallStart { index: self.index, id, name });
        self.scan = JsonScan::default();
        self.at = At::Named;
    }

    fn arguments(&mut self, held: &mut String, out: &mut Vec<Piece>) -> bool {
        let (length, complete) = self.scan.take(held);
        if length > 0 {
            let delta: String = held.drain(..length).collect();
            out.push(Piece::CallArguments { index: self.index, delta });
        }
        if complete {
            out.push(Piece::CallEnd { index: self.index });
            self.at = At::After;
        }
        complete
    }
}

/// Where the value of a member of an object begins: behind its name and the colon.
fn member<'n>(text: &str, name: &'n str) -> Option<(&'n str, usize)> {
    let quoted = format!("\"{name}\"");
    let mut from = 0;
    loop {
        let at = from + text[from..].find(&quoted)? + quoted.len();
        let rest = text[at..].trim_start();
        if rest.is_empty() {
            return None;
        }
        let colon = text.len() - rest.len();
        if rest.starts_with(':') {
            let value = text[colon + 1..].trim_start();
            return (!value.is_empty()).then(|| (name, text.len() - value.len()));
        }
        from = at;
    }
}
