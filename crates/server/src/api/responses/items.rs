//! The items of an input: the messages that templates take of them, and what is kept of them.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::store::Miss;
use super::tools::Names;
use crate::chat::{self, MESSAGES_MAX};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::job::fresh_id;

/// Records of what OpenAI's own servers or other kinds of tools did, which say nothing to this model. There are ever more of them, and most are
/// calls or their outputs.
fn is_foreign(sort: &str) -> bool {
    const OTHERS: [&str; 8] = [
        "compaction",
        "compaction_trigger",
        "context_compaction",
        "ghost_snapshot",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_list_tools",
        "program",
    ];
    sort.ends_with("_call") || sort.ends_with("_output") || OTHERS.contains(&sort)
}

/// An item with the path where it stands, for errors.
pub(crate) type Placed<'a> = (String, Item<'a>);

/// An item of a request, or one that is kept and may stand in several places.
pub(crate) enum Item<'a> {
    Sent(&'a Value),
    Kept(Arc<Value>),
}

impl Deref for Item<'_> {
    type Target = Value;
    fn deref(&self) -> &Value {
        match self {
            Item::Sent(item) => item,
            Item::Kept(item) => item,
        }
    }
}

/// The items of `input`, which may be a text alone. References are replaced by what `find` finds for all their ids, in their order.
pub(crate) fn read<'a>(
    fields: &Fields<'a>,
    find: impl FnOnce(&[&str]) -> Result<Vec<Arc<Value>>, Miss>,
) -> Result<Vec<Placed<'a>>, ApiError> {
    let path = |i: usize| fields.path(&format!("input[{i}]"));
    let list = match fields.get("input") {
        Some(Value::String(text)) => {
            let item = json!({"type": "message", "role": "user", "content": text});
            return Ok(vec![(fields.path("input"), Item::Kept(Arc::new(item)))]);
        }
        Some(Value::Array(list)) => list,
        Some(_) => return Err(fields.wrong("input", "must be a string or a list of items")),
        None => return fields.required("input", None),
    };
    if list.len() > MESSAGES_MAX {
        return Err(fields.wrong("input", format!("has {} items, at most {MESSAGES_MAX}", list.len())));
    }
    let (mut items, mut references) = (Vec::with_capacity(list.len()), Vec::new());
    for (i, value) in list.iter().enumerate() {
        let item = Fields::at(value, path(i))?;
        if sort(&item)? == "item_reference" {
            references.push((i, item.required("id", item.str("id")?)?));
        }
        items.push((path(i), Item::Sent(value)));
    }
    let ids: Vec<&str> = references.iter().map(|(_, id)| *id).collect();
    let found = if ids.is_empty() {
        Vec::new()
    } else {
        find(&ids).map_err(|miss| missed(miss, &references, path))?
    };
    for ((i, _), found) in references.into_iter().zip(found) {
        items[i].1 = Item::Kept(found);
    }
    Ok(items)
}

fn missed(miss: Miss, references: &[(usize, &str)], path: impl Fn(usize) -> String) -> ApiError {
    match miss {
        Miss::Lost(id) => {
            let at = references.iter().find(|(_, of)| *of == id).map_or(0, |(i, _)| *i);
            let message = format!("{}: the item {id} is not kept here; send the item itself", path(at));
            let error = ApiError::new(StatusCode::NOT_FOUND, message);
            ApiError { param: Some(path(at)), code: Some("item_not_found"), ..error }
        }
        Miss::TooMuch(bytes) => too_much("input", bytes),
    }
}

/// What a request refers to is more than it might have sent.
pub(crate) fn too_much(param: &str, bytes: usize) -> ApiError {
    let message = format!("{param}: what is referred to has more than {bytes} bytes, or too many values");
    let error = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message);
    ApiError { param: Some(param.to_owned()), code: Some("too_large"), ..error }
}

/// What an item is. Messages may say it by having a role alone, references by having an id alone.
fn sort<'a>(item: &Fields<'a>) -> Result<&'a str, ApiError> {
    match item.str("type")? {
        Some(sort) => Ok(sort),
        None if item.get("role").is_some() => Ok("message"),
        None if item.get("id").is_some() => Ok("item_reference"),
        None => item.required("type", None),
    }
}

/// The messages that items make.
pub(crate) fn messages(
    instructions: Option<&str>,
    items: &[Placed<'_>],
    names: &Names,
) -> Result<Vec<Value>, ApiError> {
    let mut turns = Turns { messages: Vec::new(), called: HashMap::new(), reasoning: String::new(), names };
    if let Some(instructions) = instructions.filter(|text| !text.is_empty()) {
        turns.messages.push(json!({"role": "system", "content": instructions}));
    }
    for (path, item) in items {
        turns.item(&Fields::at(item, path.as_str())?)?;
    }
    if turns.messages.is_empty() {
        return Err(ApiError::param("input", "is empty"));
    }
    Ok(chat::join_leading_systems(turns.messages))
}

struct Turns<'n> {
    messages: Vec<Value>,
    /// Names of the functions that were called, by the ids of the calls.
    called: HashMap<String, String>,
    /// What was thought before what comes next.
    reasoning: String,
    names: &'n Names,
}

impl Turns<'_> {
    fn item(&mut self, item: &Fields<'_>) -> Result<(), ApiError> {
        match sort(item)? {
            "message" => {
                let roles = ["user", "assistant", "system", "developer"];
                let role = match item.required("role", item.choice("role", &roles)?)? {
                    "developer" => "system",
                    role => role,
                };
                let content = chat::content(item, "content", role)?;
                match role {
                    "assistant" => self.assistant(content),
                    role => self.messages.push(json!({"role": role, "content": content})),
                }
            }
            "reasoning" => self.reasoning += &reasoning(item)?,
            "function_call" => self.call(item, item.get("arguments"))?,
            "custom_tool_call" => {
                let input = json!({"input": item.str("input")?.unwrap_or_default()});
                self.call(item, Some(&input))?;
            }
            "function_call_output" | "custom_tool_call_output" => {
                let id = item.required("call_id", item.str("call_id")?)?;
                item.required("output", item.get("output"))?;
                let content = chat::content(item, "output", "tool")?;
                let mut message = json!({"role": "tool", "content": content, "tool_call_id": id});
                if let Some(name) = self.called.get(id) {
                    message["name"] = name.as_str().into();
                }
                self.messages.push(message);
            }
            foreign if is_foreign(foreign) => {}
            other => return Err(item.wrong("type", format!("`{other}` is no item that can be read here"))),
        }
        Ok(())
    }

    fn assistant(&mut self, content: String) {
        let mut message = json!({"role": "assistant", "content": content});
        let reasoning = std::mem::take(&mut self.reasoning);
        if !reasoning.is_empty() {
            message["reasoning_content"] = reasoning.into();
        }
        self.messages.push(message);
    }

    /// Calls belong to the message of the assistant that they follow.
    fn call(&mut self, item: &Fields<'_>, arguments: Option<&Value>) -> Result<(), ApiError> {
        let name = item.required("name", item.str("name")?)?;
        let name = self.names.shown(item.str("namespace")?, name);
        let id = item.required("call_id", item.str("call_id")?)?;
        self.called.insert(id.to_owned(), name.clone());
        let call = chat::call(id, &name, arguments);
        if self.messages.last().is_none_or(|message| message["role"] != "assistant") {
            self.assistant(String::new());
        }
        if let Some(Value::Object(message)) = self.messages.last_mut()
            && let Value::Array(calls) = message.entry("tool_calls").or_insert_with(|| json!([]))
        {
            calls.push(call);
        }
        Ok(())
    }
}

/// The text of a reasoning item: all of it, or its summary, or nothing where another server keeps it to itself.
fn reasoning(item: &Fields<'_>) -> Result<String, ApiError> {
    let texts = |name: &str| -> Result<String, ApiError> {
        let parts = item.list(name)?.unwrap_or_default().iter();
        Ok(parts.filter_map(|part| part.get("text")?.as_str()).collect())
    };
    let whole = texts("content")?;
    if whole.is_empty() { texts("summary") } else { Ok(whole) }
}

/// An item as it is kept and listed: with an id, a status, and contents as parts.
pub(crate) fn kept(item: &Value) -> Value {
    let mut item = match item {
        Value::Object(map) => map.clone(),
        _ => Map::new(),
    };
    item.retain(|_, value| !value.is_null());
    let sort = item.get("type").and_then(Value::as_str).unwrap_or("message").to_owned();
    let prefix = match sort.as_str() {
        "message" => "msg_",
        "reasoning" => "rs_",
        "function_call" => "fc_",
        "function_call_output" => "fco_",
        "custom_tool_call" => "ctc_",
        "custom_tool_call_output" => "ctco_",
        _ => "item_",
    };
    if sort == "message" {
        let assistant = item.get("role").is_some_and(|role| role == "assistant");
        if let Some(Value::String(text)) = item.get("content") {
            let part = match assistant {
                true => json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []}),
                false => json!({"type": "input_text", "text": text}),
            };
            item.insert("content".into(), json!([part]));
        }
        item.entry("content").or_insert_with(|| json!([]));
    }
    if sort == "reasoning" {
        item.entry("summary").or_insert_with(|| json!([]));
    }
    item.entry("type").or_insert(sort.into());
    item.entry("id").or_insert_with(|| fresh_id(prefix).into());
    item.entry("status").or_insert("completed".into());
    Value::Object(item)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(input: Value) -> Result<Vec<Value>, ApiError> {
        let body = json!({"input": input});
        let find = |ids: &[&str]| {
            let kept = json!({"id": "msg_1", "type": "message", "role": "assistant",
                "content": [{"type": "output_text", "text": "kept"}]});
            let kept = Arc::new(kept);
            let one =
                |id: &&str| if *id == "msg_1" { Ok(kept.clone()) } else { Err(Miss::Lost((*id).into())) };
            ids.iter().map(one).collect()
        };
        let items = read(&Fields::of(&body).unwrap(), find)?;
        messages(Some("be brief"), &items, &Names::default())
    }

    #[test]
    fn every_kind_of_item_becomes_a_message() {
        let input = json!([
            {"role": "developer", "content": "and kind"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "reasoning", "id": "rs_2", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wait"}]},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "shell_call_output", "call_id": "s"}, {"type": "mcp_list_tools", "id": "m"},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"x\":1}"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "raw"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "custom_tool_call_output", "call_id": "c2",
                "output": [{"type": "input_text", "text": "two"}, {"type": "input_image", "image_url": "x"}]},
            {"type": "item_reference", "id": "msg_1"},
            {"id": "msg_1"},
        ]);
        assert_eq!(
            Value::Array(turns(input).unwrap()),
            json!([
                {"role": "system", "content": "be brief\n\nand kind"},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "wait", "reasoning_content": "hm", "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
                    {"id": "c2", "type": "function", "function": {"name": "patch", "arguments": {"input": "raw"}}}]},
                {"role": "tool", "content": "one", "tool_call_id": "c1", "name": "f"},
                {"role": "tool", "content": "two[input_image left out: this model reads text only]",
                    "tool_call_id": "c2", "name": "patch"},
                {"role": "assistant", "content": "kept"},
                {"role": "assistant", "content": "kept"},
            ])
        );
        let text = turns(json!("hello")).unwrap();
        assert_eq!(text[1], json!({"role": "user", "content": "hello"}));
    }

    #[test]
    fn wrong_items_are_named() {
        for (input, param) in [
            (Value::Null, "input"),
            (json!(7), "input"),
            (json!([7]), "input[0]"),
            (json!([{}]), "input[0].type"),
            (json!([{"type": "poem"}]), "input[0].type"),
            (json!([{"type": "message", "content": "x"}]), "input[0].role"),
            (json!([{"role": "tool", "content": "x"}]), "input[0].role"),
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([{"role": "user", "content": [{"type": "input_image"}]}]), "input[0].content[0].type"),
            (json!([{"type": "function_call", "name": "f"}]), "input[0].call_id"),
            (json!([{"type": "function_call", "call_id": "c"}]), "input[0].name"),
            (json!([{"type": "function_call_output", "output": "x"}]), "input[0].call_id"),
            (json!([{"type": "function_call_output", "call_id": "c"}]), "input[0].output"),
            (json!([{"type": "item_reference", "id": "msg_2"}]), "input[0]"),
        ] {
            assert_eq!(turns(input.clone()).unwrap_err().param.as_deref(), Some(param), "{input}");
        }
        let empty = json!({"input": []});
        let items = read(&Fields::of(&empty).unwrap(), |_| Ok(Vec::new())).unwrap();
        assert!(messages(None, &items, &Names::default()).is_err());
    }

    #[test]
    fn kept_items_are_whole() {
        let message = kept(&json!({"role": "user", "content": "x", "phase": null}));
        assert!(message["id"].as_str().unwrap().starts_with("msg_"));
        assert_eq!(message["content"], json!([{"type": "input_text", "text": "x"}]));
        assert_eq!((&message["type"], &message["status"]), (&json!("message"), &json!("completed")));
        let call =
            json!({"type": "function_call", "id": "fc_9", "call_id": "c", "name": "f", "arguments": "{}"});
        assert_eq!(kept(&call)["id"], "fc_9");
    }
}
