//! Conversations in the form that a template takes.
//!
//! Some templates refuse a system message, or two messages of one role in a row; some read contents only as
//! lists of parts (`content[0]['text']`) and print nothing for a string. What a template does is found out by
//! rendering the conversation with marker words in the place of its contents.

use serde_json::{Value, json};

/// What had to be changed in a conversation, or is lost, because of the model's template.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Adjustment {
    /// The system message stands in front of the first user message.
    SystemMerged,
    /// Neighbouring messages of one role are one message.
    TurnsMerged,
    /// Messages of this role do not reach the model.
    Dropped {
        /// The role, as the conversation names it.
        role: String,
    },
}

impl std::fmt::Display for Adjustment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SystemMerged => f.write_str(
                "the model's chat template takes no system prompt: it stands in front of the first message",
            ),
            Self::TurnsMerged => f.write_str(
                "the model's chat template wants roles in turn: neighbouring messages of one role are joined",
            ),
            Self::Dropped { role } => {
                write!(f, "the model's chat template leaves out messages of the role `{role}`")
            }
        }
    }
}

/// A form of the conversation, and the messages that the template loses.
pub(super) struct Fit {
    pub messages: Vec<Value>,
    /// Indices of messages, ascending.
    pub lost: Vec<usize>,
}

impl Fit {
    /// The role of the message to be answered, if that one is lost: the last that is not the assistant's.
    pub(super) fn lost_question(&self) -> Option<String> {
        let last = self.messages.iter().rposition(|message| message["role"] != "assistant")?;
        self.lost.contains(&last).then(|| role(&self.messages[last]))
    }

    /// The roles of the lost messages, each once.
    pub(super) fn lost_roles(&self) -> Vec<String> {
        let mut roles: Vec<String> = self.lost.iter().map(|&at| role(&self.messages[at])).collect();
        roles.sort();
        roles.dedup();
        roles
    }
}

fn role(message: &Value) -> String {
    message["role"].as_str().unwrap_or_default().to_owned()
}

/// The conversation as it is, then in forms that more templates accept.
pub(super) fn shapes(messages: &[Value]) -> Vec<(Vec<Value>, Vec<Adjustment>)> {
    let mut shapes = vec![(messages.to_vec(), Vec::new())];
    let turns = turns_merged(messages);
    let system = system_merged(messages);
    let both = system.as_deref().and_then(turns_merged);
    shapes.extend(turns.map(|turns| (turns, vec![Adjustment::TurnsMerged])));
    shapes.extend(system.map(|system| (system, vec![Adjustment::SystemMerged])));
    shapes.extend(both.map(|both| (both, vec![Adjustment::SystemMerged, Adjustment::TurnsMerged])));
    shapes
}

/// The leading system message in front of the first user message; `None` where there is none to move.
fn system_merged(messages: &[Value]) -> Option<Vec<Value>> {
    let (first, rest) = messages.split_first()?;
    if !matches!(first["role"].as_str(), Some("system" | "developer")) {
        return None;
    }
    let system = text_of(&first["content"])?;
    let mut rest = rest.to_vec();
    match rest.iter_mut().find(|message| message["role"] == "user") {
        Some(user) => match &mut user["content"] {
            Value::Array(parts) => parts.insert(0, json!({"type": "text", "text": system + "\n\n"})),
            content => *content = join(&system, content.as_str().unwrap_or_default()).into(),
        },
        None => rest.insert(0, json!({"role": "user", "content": system})),
    }
    Some(rest)
}

fn join(one: &str, other: &str) -> String {
    if other.is_empty() { one.to_owned() } else { format!("{one}\n\n{other}") }
}

/// Neighbours of one role joined; `None` where no two can be.
fn turns_merged(messages: &[Value]) -> Option<Vec<Value>> {
    // Nothing beside role and content, so that nothing is lost.
    let plain = |message: &Value| message.as_object().is_some_and(|fields| fields.len() == 2);
    let mut merged: Vec<Value> = Vec::with_capacity(messages.len());
    for message in messages {
        if let Some(last) = merged.last_mut()
            && plain(last)
            && plain(message)
            && last["role"] == message["role"]
            && let (Some(one), Some(other)) = (text_of(&last["content"]), text_of(&message["content"]))
        {
            last["content"] = join(&one, &other).into();
        } else {
            merged.push(message.clone());
        }
    }
    (merged.len() < messages.len()).then_some(merged)
}

/// The text of a string or of a list of nothing but text parts.
fn text_of(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| part["text"].as_str().filter(|_| part["type"] == "text"))
            .collect::<Option<Vec<_>>>()
            .map(|texts| texts.concat()),
        _ => None,
    }
}

/// The messages `which` with their contents as lists of parts; `None` where that changes nothing.
pub(super) fn as_parts(messages: &[Value], which: &[usize]) -> Option<Vec<Value>> {
    changed(messages, which, |content| content.as_str().map(|text| json!([{"type": "text", "text": text}])))
}

/// The messages `which` with their contents as strings; `None` where that changes nothing.
pub(super) fn as_strings(messages: &[Value], which: &[usize]) -> Option<Vec<Value>> {
    changed(messages, which, |content| content.as_array().and_then(|_| text_of(content)).map(Value::from))
}

fn changed(
    messages: &[Value],
    which: &[usize],
    change: impl Fn(&Value) -> Option<Value>,
) -> Option<Vec<Value>> {
    let mut messages = messages.to_vec();
    let mut any = false;
    for &at in which {
        if let Some(content) = change(&messages[at]["content"]) {
            messages[at]["content"] = content;
            any = true;
        }
    }
    any.then_some(messages)
}

/// A word that stands for the content of message `at`.
fn marker(at: usize) -> String {
    format!("zqmessage{at}qz")
}

/// The messages with marker words in the place of their texts.
pub(super) fn with_markers(messages: &[Value]) -> Value {
    let mut messages = messages.to_vec();
    for (at, message) in messages.iter_mut().enumerate() {
        match message.get_mut("content") {
            Some(Value::String(text)) if !text.trim().is_empty() => *text = marker(at),
            Some(Value::Array(parts)) => {
                for part in parts.iter_mut().filter(|part| has_text(part)) {
                    part["text"] = marker(at).into();
                }
            }
            _ => {}
        }
    }
    messages.into()
}

fn has_text(part: &Value) -> bool {
    part["text"].as_str().is_some_and(|text| !text.trim().is_empty())
}

/// Which of `messages` do not show in what [`with_markers`] rendered to. A list of parts that is printed as a
/// list was not understood.
pub(super) fn lost(messages: &[Value], output: &str) -> Vec<usize> {
    let output = output.to_ascii_lowercase();
    let is_lost = |&at: &usize| match &messages[at]["content"] {
        Value::String(text) => !text.trim().is_empty() && !output.contains(&marker(at)),
        Value::Array(parts) if parts.iter().any(has_text) => {
            !output.contains(&marker(at)) || output.contains(&format!("'text': '{}", marker(at)))
        }
        _ => false,
    };
    (0..messages.len()).filter(is_lost).collect()
}

/// Whether the text of the last message stands in `output`.
pub(super) fn holds_last(messages: &[Value], output: &str) -> bool {
    let last = messages.last().and_then(|message| text_of(&message["content"]));
    last.is_none_or(|text| output.contains(text.trim()))
}
