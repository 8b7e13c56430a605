//! From messages to a prompt: what clients send, in the form that chat templates take.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use unicorn_text::{Adjustment, DateTime, RenderOptions, TemplateError};

use crate::error::ApiError;
use crate::fields::{Fields, kind};
use crate::registry::Model;
use crate::shape::{Tool, definition};

/// Messages of a conversation, at most.
pub(crate) const MESSAGES_MAX: usize = 16 * 1024;

/// A conversation as templates take it.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Conversation {
    /// Objects with `role`, a `content` string, and what belongs to the role.
    pub messages: Vec<Value>,
    /// Further variables of the template.
    pub kwargs: Map<String, Value>,
    /// The last message is the assistant's and is to be continued.
    pub continues: bool,
}

/// A conversation rendered by a template.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Prompt {
    pub text: String,
    pub tokens: Vec<u32>,
}

/// The messages of OpenAI's chat API, checked.
///
/// # Errors
/// With the path of the field that is wrong.
pub(crate) fn messages(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let list = list(fields)?;
    let message = |(i, value): (usize, &Value)| message(&Fields::at(value, format!("messages[{i}]"))?);
    Ok(join_leading_systems(list.iter().enumerate().map(message).collect::<Result<_, _>>()?))
}

/// The list of messages as it is: there is one, with something in it, and not too much.
pub(crate) fn list<'a>(fields: &Fields<'a>) -> Result<&'a [Value], ApiError> {
    let list = fields.required("messages", fields.list("messages")?)?;
    if list.is_empty() {
        return Err(fields.wrong("messages", "is empty"));
    }
    if list.len() > MESSAGES_MAX {
        return Err(fields.wrong("messages", format!("has {} messages, at most {MESSAGES_MAX}", list.len())));
    }
    Ok(list)
}

fn message(fields: &Fields<'_>) -> Result<Value, ApiError> {
    let roles = ["system", "developer", "user", "assistant", "tool", "function"];
    let role = fields.required("role", fields.choice("role", &roles)?)?;
    let role = match role {
        "developer" => "system",
        "function" => "tool",
        role => role,
    };
    let mut message = json!({"role": role, "content": content(fields, "content", role)?});
    if role == "assistant" {
        if let Some(calls) = fields.list("tool_calls")?.filter(|calls| !calls.is_empty()) {
            let call = |(i, call)| tool_call(&Fields::at(call, fields.path(&format!("tool_calls[{i}]")))?);
            message["tool_calls"] = calls.iter().enumerate().map(call).collect::<Result<Vec<_>, _>>()?.into();
        }
        // As calls were written before there were tools.
        if let Some(function) = fields.object("function_call")? {
            let name = function.required("name", function.str("name")?)?;
            message["tool_calls"] = json!([call("", name, function.get("arguments"))]);
        }
        let reasoning = fields.str("reasoning_content")?;
        if let Some(reasoning) = reasoning.or(fields.str("reasoning").ok().flatten()) {
            message["reasoning_content"] = reasoning.into();
        }
    }
    for name in ["tool_call_id", "name"] {
        if let Some(text) = fields.str(name)? {
            message[name] = text.into();
        }
    }
    Ok(message)
}

/// The contents in a field as one string. Absent, null and "" are the same.
pub(crate) fn content(fields: &Fields<'_>, name: &str, role: &str) -> Result<String, ApiError> {
    match fields.get(name) {
        None if role == "user" || role == "system" => {
            Err(fields.wrong(name, "is missing: a text or a list of parts"))
        }
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let part = |(i, value)| part(&Fields::at(value, fields.path(&format!("{name}[{i}]")))?, role);
            let texts: Vec<String> = parts.iter().enumerate().map(part).collect::<Result<_, _>>()?;
            Ok(texts.concat())
        }
        Some(other) => {
            Err(fields.wrong(name, format!("must be a string or a list of parts, not {}", kind(other))))
        }
    }
}

/// The text of one part. A text model reads no others; those that a tool brought are replaced by a note, since the client cannot help it.
fn part(fields: &Fields<'_>, role: &str) -> Result<String, ApiError> {
    let sort = fields.required("type", fields.str("type")?)?;
    match sort {
        "text" | "input_text" | "output_text" => Ok(fields.required("text", fields.str("text")?)?.to_owned()),
        "refusal" => Ok(fields.required("refusal", fields.str("refusal")?)?.to_owned()),
        // Reasoning of other models, which is theirs.
        "thinking" | "redacted_thinking" | "reasoning" => Ok(String::new()),
        other if role == "tool" => Ok(left_out(other)),
        other => Err(fields.wrong("type", format!("`{other}` cannot be read: this model reads text only"))),
    }
}

/// What stands in place of something that a tool brought and that is no text.
pub(crate) fn left_out(sort: &str) -> String {
    format!("[{sort} left out: this model reads text only]")
}

/// A call as templates want it: arguments as an object, where they are one.
fn tool_call(fields: &Fields<'_>) -> Result<Value, ApiError> {
    let function = fields.required("function", fields.object("function")?)?;
    let name = function.required("name", function.str("name")?)?;
    Ok(call(fields.str("id")?.unwrap_or_default(), name, function.get("arguments")))
}

/// A call as templates want it, from arguments as JSON or as a text of JSON.
pub(crate) fn call(id: &str, name: &str, arguments: Option<&Value>) -> Value {
    let arguments = match arguments {
        None => json!({}),
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        Some(Value::String(text)) => {
            serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str()))
        }
        Some(other) => other.clone(),
    };
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// `chat_template_kwargs`, with what an effort means for templates of models that think.
pub(crate) fn kwargs(fields: &Fields<'_>, effort: Option<&str>) -> Result<Map<String, Value>, ApiError> {
    let mut kwargs = match fields.get("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(map)) => map.clone(),
        Some(_) => return Err(fields.wrong("chat_template_kwargs", "must be an object")),
    };
    if let Some(effort) = effort {
        kwargs.entry("reasoning_effort").or_insert(effort.into());
        kwargs.entry("enable_thinking").or_insert((effort != "none").into());
    }
    Ok(kwargs)
}

/// Many clients send several system messages in front; templates want one.
pub(crate) fn join_leading_systems(messages: Vec<Value>) -> Vec<Value> {
    let leading = messages.iter().take_while(|message| message["role"] == "system").count();
    if leading < 2 {
        return messages;
    }
    join_systems(messages, leading)
}

/// The first `count` messages, or the systems among them, as one in front.
fn join_systems(messages: Vec<Value>, count: usize) -> Vec<Value> {
    let (mut texts, mut rest) = (Vec::new(), Vec::new());
    for (i, message) in messages.into_iter().enumerate() {
        match message["content"].as_str() {
            Some(text) if i < count && message["role"] == "system" => texts.push(text.to_owned()),
            _ => rest.push(message),
        }
    }
    texts.retain(|text| !text.is_empty());
    rest.insert(0, json!({"role": "system", "content": texts.join("\n\n")}));
    rest
}

/// For templates that know no tools: what the model has to know of them stands in the system message, and calls and results are text in the form
/// that it is told to use.
fn with_tools_told(messages: Vec<Value>, told: &str) -> Vec<Value> {
    let text = |message: &Value| message["content"].as_str().unwrap_or_default().to_owned();
    let mut out: Vec<Value> = Vec::with_capacity(messages.len() + 1);
    for message in messages {
        match message["role"].as_str() {
            Some("assistant") => {
                let call = |call: &Value| {
                    let function = &call["function"];
                    let call = json!({"name": function["name"], "arguments": function["arguments"]});
                    format!("<tool_call>\n{call}\n</tool_call>")
                };
                let calls = message["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
                let said = Some(text(&message)).filter(|said| !said.is_empty());
                let parts: Vec<String> = said.into_iter().chain(calls.iter().map(call)).collect();
                out.push(json!({"role": "assistant", "content": parts.join("\n")}));
            }
            Some("tool") => {
                let result = format!("<tool_response>\n{}\n</tool_response>", text(&message));
                match out.last_mut().filter(|last| last["tool_results"] == true) {
                    Some(last) => last["content"] = format!("{}\n{result}", text(last)).into(),
                    None => out.push(json!({"role": "user", "content": result, "tool_results": true})),
                }
            }
            _ => out.push(message),
        }
    }
    for message in &mut out {
        if let Some(message) = message.as_object_mut() {
            message.remove("tool_results");
        }
    }
    match out.first_mut().filter(|first| first["role"] == "system") {
        Some(system) => system["content"] = format!("{}\n\n{told}", text(system)).into(),
        None => out.insert(0, json!({"role": "system", "content": told})),
    }
    out
}

/// The conversation in the model's own format. Takes its time: call it where that may be.
///
/// # Errors
/// What the template refuses, and what it would lose.
pub(crate) fn render(model: &Model, conversation: &Conversation, tools: &[Tool]) -> Result<Prompt, ApiError> {
    let template = model.text.template().map_err(|error| ApiError::internal(error.to_string()))?;
    let Some(template) = template else {
        let message = "this model has no chat template: /v1/completions continues text";
        return Err(ApiError { code: Some("no_chat_template"), ..ApiError::bad_request(message) });
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|d| i64::try_from(d.as_secs()).ok());
    let told = model.dialect.tools_text(tools);
    let options = RenderOptions {
        now: now.map(DateTime::from_unix),
        tools: (!tools.is_empty() && told.is_none()).then(|| tools.iter().map(definition).collect()),
        kwargs: conversation.kwargs.clone(),
        ..RenderOptions::default()
    };
    let mut messages = conversation.messages.clone();
    // As `unicorn run` does: some templates put in a system prompt of their own that hurts.
    if let Some(system) =
        model.text.recommended.system.filter(|_| messages.iter().all(|m| m["role"] != "system"))
    {
        messages.insert(0, json!({"role": "system", "content": system}));
    }
    if let Some(told) = told {
        messages = with_tools_told(messages, &told);
    }
    // What is to be continued comes behind the header of the assistant's turn, which the template writes.
    let begun = match conversation.continues {
        true => messages.pop().and_then(|m| m["content"].as_str().map(str::to_owned)),
        false => None,
    };
    let rendered = template.render(&Value::Array(messages.clone()), &options);
    let lost = |adjustments: &[Adjustment]| {
        adjustments.iter().find(|a| matches!(a, Adjustment::Dropped { .. })).map(ToString::to_string)
    };
    let fits = matches!(&rendered, Ok(rendered) if lost(&rendered.adjustments).is_none());
    let systems = messages.iter().filter(|m| m["role"] == "system").count();
    let late = messages.iter().skip(1).any(|m| m["role"] == "system");
    let rendered = match fits || !late || systems == 0 {
        true => rendered,
        // System messages in the middle: the template wants one in front.
        false => {
            let count = messages.len();
            template.render(&Value::Array(join_systems(messages, count)), &options)
        }
    };
    let rendered = rendered.map_err(refused)?;
    if let Some(lost) = lost(&rendered.adjustments) {
        return Err(ApiError::param("messages", lost));
    }
    model.check_text(rendered.prompt.plain_text(), "messages")?;
    if let Some(begun) = &begun {
        model.check_text(begun, "messages")?;
    }
    let tokenizer = &model.text.tokenizer;
    let mut tokens =
        tokenizer.encode_prompt(&rendered.prompt).map_err(|error| ApiError::internal(error.to_string()))?;
    let mut text = rendered.prompt.plain_text().to_owned();
    if let Some(begun) = begun {
        let options = unicorn_text::EncodeOptions { parse_special: false, add_special: false };
        tokens.extend(
            tokenizer.encode(&begun, options).map_err(|error| ApiError::internal(error.to_string()))?,
        );
        text += &begun;
    }
    Ok(Prompt { text, tokens })
}

fn refused(error: TemplateError) -> ApiError {
    match error {
        TemplateError::Reserved(name) => ApiError::param(
            format!("chat_template_kwargs.{name}"),
            "the template's own variables cannot be replaced",
        ),
        late @ TemplateError::Late => ApiError::unavailable(late.to_string(), 5),
        other => ApiError::param("messages", format!("the chat template of the model refuses them: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: Value) -> Result<Vec<Value>, ApiError> {
        messages(&Fields::of(&json!({"messages": list})).unwrap())
    }

    #[test]
    fn contents_become_strings() {
        let list = json!([
            {"role": "developer", "content": [{"type": "text", "text": "a"}]},
            {"role": "system", "content": "b"},
            {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "input_text", "text": "d"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "image_url", "image_url": {}}]},
        ]);
        assert_eq!(
            Value::Array(read(list).unwrap()),
            json!([
                {"role": "system", "content": "a\n\nb"},
                {"role": "user", "content": "cd"},
                {"role": "assistant", "content": "", "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
                {"role": "tool", "content": "[image_url left out: this model reads text only]", "tool_call_id": "1"},
            ])
        );
        let old = read(json!([
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
        ]));
        assert_eq!(
            Value::Array(old.unwrap()),
            json!([
                {"role": "assistant", "content": "", "tool_calls": [
                    {"id": "", "type": "function", "function": {"name": "f", "arguments": {}}}]},
                {"role": "tool", "content": "1", "name": "f"},
            ])
        );
    }

    #[test]
    fn a_template_without_tools_has_them_as_text() {
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}});
        let messages = vec![
            json!({"role": "user", "content": "a"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call]}),
            json!({"role": "tool", "tool_call_id": "1", "content": "r"}),
            json!({"role": "tool", "tool_call_id": "2", "content": "s"}),
        ];
        assert_eq!(
            Value::Array(with_tools_told(messages, "TOOLS")),
            json!([
                {"role": "system", "content": "TOOLS"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "<tool_call>\n{\"name\":\"f\",\"arguments\":{\"x\":1}}\n</tool_call>"},
                {"role": "user", "content": "<tool_response>\nr\n</tool_response>\n<tool_response>\ns\n</tool_response>"},
            ])
        );
    }

    #[test]
    fn wrong_messages_are_named() {
        for (list, param) in [
            (json!([]), "messages"),
            (json!("hi"), "messages"),
            (json!([1]), "messages[0]"),
            (json!([{"content": "x"}]), "messages[0].role"),
            (json!([{"role": "king", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 7}]), "messages[0].content"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"text": "x"}]}]), "messages[0].content[0].type"),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0].function"),
        ] {
            assert_eq!(read(list.clone()).unwrap_err().param.as_deref(), Some(param), "{list}");
        }
    }
}
