//! From Anthropic's messages, whose contents are blocks, to the messages that templates take.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::chat;
use crate::error::ApiError;
use crate::fields::{Fields, kind};

/// What Claude Code writes in front of its system prompt for its bills. It differs from request to request, and no cached prefix would fit.
const BILLING: &str = "x-anthropic-billing-header:";

/// All messages of a request, the system prompt first.
pub(crate) fn messages(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let list = chat::list(fields)?;
    let mut turns = Turns { messages: Vec::new(), called: HashMap::new() };
    turns.system(texts(fields, "system", Place::System)?);
    for (i, value) in list.iter().enumerate() {
        turns.message(&Fields::at(value, format!("messages[{i}]"))?)?;
    }
    Ok(chat::join_leading_systems(turns.messages))
}

/// Where a block stands, which decides what may be left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    System,
    User,
    /// What a tool brought, which the client cannot help.
    Result,
}

/// The texts of a field that is a text or a list of blocks, one for each block.
fn texts(fields: &Fields<'_>, name: &str, place: Place) -> Result<Vec<String>, ApiError> {
    match fields.get(name) {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(blocks)) => {
            let block = |(i, value)| text(&Fields::at(value, fields.path(&format!("{name}[{i}]")))?, place);
            blocks.iter().enumerate().map(block).collect()
        }
        Some(other) => {
            Err(fields.wrong(name, format!("must be a string or a list of blocks, not {}", kind(other))))
        }
    }
}

/// The text of a block.
fn text(block: &Fields<'_>, place: Place) -> Result<String, ApiError> {
    let string =
        |name: &str| -> Result<String, ApiError> { Ok(block.required(name, block.str(name)?)?.to_owned()) };
    match (block.required("type", block.str("type")?)?, place) {
        ("text", _) => string("text"),
        ("document", Place::User | Place::Result) => document(block, place),
        ("search_result", Place::User | Place::Result) => {
            let content = texts(block, "content", place)?.concat();
            Ok(format!("{}\n{}\n{content}", string("title")?, string("source")?))
        }
        ("tool_reference", Place::Result) => string("tool_name"),
        (other, Place::Result) => Ok(chat::left_out(other)),
        (other, _) => {
            Err(block.wrong("type", format!("`{other}` cannot be read: this model reads text only")))
        }
    }
}

/// A document that comes as text. Others would have to be fetched or taken apart.
fn document(block: &Fields<'_>, place: Place) -> Result<String, ApiError> {
    let source = block.required("source", block.object("source")?)?;
    let text = match source.required("type", source.str("type")?)? {
        "text" => source.required("data", source.str("data")?)?.to_owned(),
        "content" => texts(&source, "content", place)?.concat(),
        _ if place == Place::Result => return Ok(chat::left_out("document")),
        other => {
            let message = format!("`{other}` documents cannot be read: this model reads text only");
            return Err(source.wrong("type", message));
        }
    };
    let head = [block.str("title")?, block.str("context")?];
    let head: Vec<&str> = head.into_iter().flatten().collect();
    Ok(if head.is_empty() { text } else { format!("{}\n{text}", head.join("\n")) })
}

struct Turns {
    messages: Vec<Value>,
    /// Names of the tools that were used, by the ids of the uses.
    called: HashMap<String, String>,
}

impl Turns {
    fn system(&mut self, texts: Vec<String>) {
        let text = |text: String| match text.starts_with(BILLING) {
            // A system prompt in one text has it as its first line.
            true => text.split_once('\n').map_or(String::new(), |(_, rest)| rest.trim_start().to_owned()),
            false => text,
        };
        let texts: Vec<String> = texts.into_iter().map(text).filter(|text| !text.is_empty()).collect();
        if !texts.is_empty() {
            self.messages.push(json!({"role": "system", "content": texts.join("\n\n")}));
        }
    }

    fn message(&mut self, message: &Fields<'_>) -> Result<(), ApiError> {
        let role = message.required("role", message.choice("role", &["user", "assistant", "system"])?)?;
        message.required("content", message.get("content"))?;
        match role {
            "system" => self.system(texts(message, "content", Place::System)?),
            "assistant" => self.assistant(message)?,
            _ => self.user(message)?,
        }
        Ok(())
    }

    /// Results of tools are messages of their own, in front of what the user says with them.
    fn user(&mut self, message: &Fields<'_>) -> Result<(), ApiError> {
        let Some(Value::Array(blocks)) = message.get("content") else {
            self.say(texts(message, "content", Place::User)?);
            return Ok(());
        };
        let mut said = Vec::new();
        for (i, value) in blocks.iter().enumerate() {
            let block = Fields::at(value, message.path(&format!("content[{i}]")))?;
            match block.required("type", block.str("type")?)? {
                "tool_result" => {
                    self.say(std::mem::take(&mut said));
                    self.result(&block)?;
                }
                "mid_conv_system" => {
                    self.say(std::mem::take(&mut said));
                    self.system(texts(&block, "content", Place::System)?);
                }
                _ => said.push(text(&block, Place::User)?),
            }
        }
        if said.is_empty() && blocks.is_empty() {
            return Err(message.wrong("content", "is empty"));
        }
        self.say(said);
        Ok(())
    }

    fn say(&mut self, texts: Vec<String>) {
        if !texts.is_empty() {
            self.messages.push(json!({"role": "user", "content": texts.join("\n\n")}));
        }
    }

    fn result(&mut self, block: &Fields<'_>) -> Result<(), ApiError> {
        let id = block.required("tool_use_id", block.str("tool_use_id")?)?;
        let mut content = texts(block, "content", Place::Result)?.join("\n");
        let starts_so = content.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("error"));
        if block.bool("is_error")?.unwrap_or(false) && !starts_so {
            content = format!("Error: {content}");
        }
        let mut message = json!({"role": "tool", "content": content, "tool_call_id": id});
        if let Some(name) = self.called.get(id) {
            message["name"] = name.as_str().into();
        }
        self.messages.push(message);
        Ok(())
    }

    fn assistant(&mut self, message: &Fields<'_>) -> Result<(), ApiError> {
        let Some(Value::Array(blocks)) = message.get("content") else {
            let content = texts(message, "content", Place::User)?.concat();
            self.messages.push(json!({"role": "assistant", "content": content}));
            return Ok(());
        };
        let (mut said, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
        for (i, value) in blocks.iter().enumerate() {
            let block = Fields::at(value, message.path(&format!("content[{i}]")))?;
            match block.required("type", block.str("type")?)? {
                "text" => said += block.required("text", block.str("text")?)?,
                // Whoever signed it: it is what was thought here.
                "thinking" => thought += block.str("thinking")?.unwrap_or_default(),
                "tool_use" => {
                    let id = block.required("id", block.str("id")?)?;
                    let name = block.required("name", block.str("name")?)?;
                    self.called.insert(id.to_owned(), name.to_owned());
                    calls.push(chat::call(id, name, block.get("input")));
                }
                // What cannot be read by others, and what Anthropic's servers did themselves.
                "redacted_thinking" | "server_tool_use" | "mcp_tool_use" | "container_upload"
                | "compaction" => {}
                other if other.ends_with("_tool_result") => {}
                other => {
                    let message = format!("`{other}` cannot be read in a message of the assistant");
                    return Err(block.wrong("type", message));
                }
            }
        }
        let mut message = json!({"role": "assistant", "content": said});
        if !thought.is_empty() {
            message["reasoning_content"] = thought.into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        self.messages.push(message);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Vec<Value>, ApiError> {
        messages(&Fields::of(&body).unwrap())
    }

    #[test]
    fn blocks_become_messages() {
        let read = read(json!({
            "system": [{"type": "text", "text": "x-anthropic-billing-header: v=1; cch=ab12"},
                {"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "and kind"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "EqQBCg=="},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "wait"},
                    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                    {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                    {"type": "tool_use", "id": "t2", "name": "g", "input": {}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
                    {"type": "tool_result", "tool_use_id": "t2", "is_error": true, "content": [
                        {"type": "text", "text": "two"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}]},
                    {"type": "tool_result", "tool_use_id": "t3"},
                    {"type": "text", "text": "go on"}]},
                {"role": "system", "content": "late"},
                {"role": "user", "content": [{"type": "document", "title": "T",
                    "source": {"type": "text", "media_type": "text/plain", "data": "words"}}]},
            ],
        }));
        assert_eq!(
            Value::Array(read.unwrap()),
            json!([
                {"role": "system", "content": "be brief\n\nand kind"},
                {"role": "user", "content": "a\n\nb"},
                {"role": "assistant", "content": "wait", "reasoning_content": "hm", "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
                    {"id": "t2", "type": "function", "function": {"name": "g", "arguments": {}}}]},
                {"role": "tool", "content": "one", "tool_call_id": "t1", "name": "f"},
                {"role": "tool", "content": "Error: two\n[image left out: this model reads text only]",
                    "tool_call_id": "t2", "name": "g"},
                {"role": "tool", "content": "", "tool_call_id": "t3"},
                {"role": "user", "content": "go on"},
                {"role": "system", "content": "late"},
                {"role": "user", "content": "T\nwords"},
            ])
        );
    }

    #[test]
    fn the_bill_is_dropped_wherever_it_stands() {
        for system in [
            json!("x-anthropic-billing-header: v=1\nbe brief"),
            json!([{"type": "text", "text": "x-anthropic-billing-header: v=1"}, {"type": "text", "text": "be brief"}]),
        ] {
            let read =
                read(json!({"system": system, "messages": [{"role": "user", "content": "x"}]})).unwrap();
            assert_eq!(read[0], json!({"role": "system", "content": "be brief"}));
        }
        let only = json!("x-anthropic-billing-header: v=1");
        let read = read(json!({"system": only, "messages": [{"role": "user", "content": "x"}]})).unwrap();
        assert_eq!(read, [json!({"role": "user", "content": "x"})]);
    }

    #[test]
    fn wrong_blocks_are_named() {
        let image = json!({"type": "image", "source": {"type": "url", "url": "http://x"}});
        let pdf = json!({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": ""}});
        for (list, param) in [
            (json!([]), "messages"),
            (json!("hi"), "messages"),
            (json!([7]), "messages[0]"),
            (json!([{"content": "x"}]), "messages[0].role"),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": []}]), "messages[0].content"),
            (json!([{"role": "user", "content": 7}]), "messages[0].content"),
            (json!([{"role": "user", "content": [{"text": "x"}]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (json!([{"role": "user", "content": [image]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [pdf]}]), "messages[0].content[0].source.type"),
            (
                json!([{"role": "user", "content": [{"type": "tool_result"}]}]),
                "messages[0].content[0].tool_use_id",
            ),
            (
                json!([{"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}]),
                "messages[0].content[0].name",
            ),
            (json!([{"role": "assistant", "content": [image]}]), "messages[0].content[0].type"),
        ] {
            assert_eq!(read(json!({"messages": list})).unwrap_err().param.as_deref(), Some(param), "{list}");
        }
        let wrong = read(json!({"system": 7, "messages": [{"role": "user", "content": "x"}]})).unwrap_err();
        assert_eq!(wrong.param.as_deref(), Some("system"));
    }
}
