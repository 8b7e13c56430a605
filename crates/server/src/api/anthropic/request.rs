//! What a request to Anthropic's API asks for.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::blocks;
use crate::chat::{self, Conversation};
use crate::error::{ApiError, THREAD_UNSUPPORTED};
use crate::fields::Fields;
use crate::http::client::Client;
use crate::job::Ask;
use crate::registry::Model;
use crate::sampling;
use crate::shape::{Format, Shape, Tool, ToolChoice, check_choice, check_tools, function_tool};

/// What becomes of what the model thinks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Thinking {
    /// Nobody asked for it, and clients take the first block for the answer.
    Unasked,
    Shown,
    /// A block tells that there was something, and no more.
    Omitted,
}

/// What decides how long a prompt is, and a little more.
pub(crate) struct Prompt {
    pub conversation: Conversation,
    pub shape: Shape,
    pub thinking: Thinking,
    /// Tokens that come from a cache are told apart, as for a client that marked what is to be cached.
    pub tells_cache: bool,
}

/// Reads what both counting and answering need.
pub(crate) fn prompt(fields: &Fields<'_>) -> Result<Prompt, ApiError> {
    if fields.get("thread").is_some() {
        let message = "thread: conversations are not kept here; send all messages each time";
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        return Err(ApiError { param: Some("thread".into()), code: Some(THREAD_UNSUPPORTED), ..error });
    }
    let messages = blocks::messages(fields)?;
    let (thinking, thinks) = thinking(fields)?;
    let mut kwargs = chat::kwargs(fields, None)?;
    kwargs.entry("enable_thinking").or_insert(thinks.into());
    // An answer that the client has begun is continued.
    let continues = messages.last().is_some_and(|last| {
        last["role"] == "assistant" && last.get("tool_calls").is_none() && last["content"] != ""
    });
    let (tools, (choice, parallel)) = (tools(fields)?, choice(fields)?);
    check_choice(&choice, &tools, "tool_choice")?;
    let (format, format_field) = format(fields)?;
    Ok(Prompt {
        conversation: Conversation { messages, kwargs, continues },
        shape: Shape { format, format_field, tools, choice, parallel },
        thinking,
        tells_cache: marks_cache(fields),
    })
}

/// What is asked for, but for the prompt.
pub(crate) fn ask(fields: &Fields<'_>, model: &Model, client: Client) -> Result<Ask, ApiError> {
    let tokenizer = &model.text.tokenizer;
    let sampling = sampling::options(fields, &model.text.recommended, tokenizer, sampling::fresh_seed())?;
    let max_tokens = fields.count("max_tokens", 1, usize::MAX >> 12)?;
    Ok(Ask {
        prompt: Vec::new(),
        sampling,
        max_tokens: Some(fields.required("max_tokens", max_tokens)?),
        stops: sampling::stops(fields, "stop_sequences")?,
        ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
        logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        client,
        prompt_field: "messages",
    })
}

/// What becomes of thoughts, and whether the template is to ask for them.
fn thinking(fields: &Fields<'_>) -> Result<(Thinking, bool), ApiError> {
    let Some(thinking) = fields.object("thinking")? else { return Ok((Thinking::Unasked, false)) };
    let kinds = ["enabled", "adaptive", "disabled"];
    match thinking.required("type", thinking.choice("type", &kinds)?)? {
        "disabled" => Ok((Thinking::Unasked, false)),
        _ if thinking.str("display")? == Some("omitted") => Ok((Thinking::Omitted, true)),
        _ => Ok((Thinking::Shown, true)),
    }
}

/// Tools that the client runs by a schema. Those with a type are Anthropic's own, whose use a model has to be trained for.
fn tools(fields: &Fields<'_>) -> Result<Vec<Tool>, ApiError> {
    let mut tools = Vec::new();
    for (i, value) in fields.list("tools")?.unwrap_or_default().iter().enumerate() {
        let tool = Fields::at(value, format!("tools[{i}]"))?;
        if !matches!(tool.str("type")?, None | Some("custom")) {
            continue;
        }
        tool.required("input_schema", tool.get("input_schema"))?;
        tools.push(function_tool(&tool, "input_schema")?);
    }
    check_tools(&tools, "tools")?;
    Ok(tools)
}

/// The choice, and whether several calls may come at once.
fn choice(fields: &Fields<'_>) -> Result<(ToolChoice, bool), ApiError> {
    let Some(choice) = fields.object("tool_choice")? else { return Ok((ToolChoice::Auto, true)) };
    let parallel = !choice.bool("disable_parallel_tool_use")?.unwrap_or(false);
    let kinds = ["auto", "any", "tool", "none"];
    let chosen = match choice.required("type", choice.choice("type", &kinds)?)? {
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => ToolChoice::Named(choice.required("name", choice.str("name")?)?.to_owned()),
        _ => ToolChoice::Auto,
    };
    Ok((chosen, parallel))
}

/// `output_config.format`, or `output_format` as it was called first.
fn format(fields: &Fields<'_>) -> Result<(Format, &'static str), ApiError> {
    let config = fields.object("output_config")?;
    let format = match &config {
        Some(config) => config.object("format")?,
        None => None,
    };
    let (format, field) = match format {
        Some(format) => (Some(format), "output_config.format"),
        None => (fields.object("output_format")?, "output_format"),
    };
    let Some(format) = format else { return Ok((Format::Text, field)) };
    format.required("type", format.choice("type", &["json_schema"])?)?;
    Ok((Format::Schema(format.required("schema", format.get("schema"))?.clone()), field))
}

/// Whether anything in a request is marked with `cache_control`.
fn marks_cache(fields: &Fields<'_>) -> bool {
    fn marked(value: &Value, depth: usize) -> bool {
        match value {
            Value::Object(map) => {
                map.get("cache_control").is_some_and(|mark| !mark.is_null())
                    || map.get("content").is_some_and(|content| depth > 0 && marked(content, depth - 1))
            }
            Value::Array(list) => list.iter().any(|value| depth > 0 && marked(value, depth - 1)),
            _ => false,
        }
    }
    let parts = ["system", "tools", "messages"].into_iter().filter_map(|name| fields.get(name));
    fields.get("cache_control").is_some() || parts.into_iter().any(|value| marked(value, 6))
}

/// An empty call, as a block that has just begun.
pub(crate) fn use_block(id: &str, name: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": {}, "caller": {"type": "direct"}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut body: Value) -> Result<Prompt, ApiError> {
        if body.get("messages").is_none() {
            body["messages"] = json!([{"role": "user", "content": "x"}]);
        }
        prompt(&Fields::of(&body).unwrap())
    }

    fn tool(name: &str) -> Value {
        json!({"name": name, "input_schema": {"type": "object"}})
    }

    #[test]
    fn only_tools_with_a_schema_are_taken() {
        let tools = json!([tool("a"), {"type": "custom", "name": "b", "input_schema": {}},
            {"type": "web_search_20250305", "name": "web_search"}, {"type": "bash_20250124", "name": "bash"}]);
        let names = |read: &Prompt| read.shape.tools.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        let any =
            read(json!({"tools": tools, "tool_choice": {"type": "any", "disable_parallel_tool_use": true}}));
        let any = any.unwrap();
        assert_eq!(names(&any), ["a", "b"]);
        assert_eq!((&any.shape.choice, any.shape.parallel), (&ToolChoice::Required, false));
        let named = read(json!({"tools": tools, "tool_choice": {"type": "tool", "name": "b"}})).unwrap();
        assert_eq!((named.shape.choice, named.shape.parallel), (ToolChoice::Named("b".into()), true));
        for (body, param) in [
            (json!({"tools": [{"name": "a"}]}), "tools[0].input_schema"),
            (json!({"tools": [{"input_schema": {}}]}), "tools[0].name"),
            (json!({"tools": [tool("a"), tool("a")]}), "tools"),
            (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
            (json!({"tool_choice": "auto"}), "tool_choice"),
            (json!({"tools": tools, "tool_choice": {"type": "tool", "name": "bash"}}), "tool_choice"),
            (json!({"thinking": {"type": "maybe"}}), "thinking.type"),
            (json!({"output_config": {"format": {"type": "xml"}}}), "output_config.format.type"),
            (json!({"output_config": {"format": {"type": "json_schema"}}}), "output_config.format.schema"),
        ] {
            assert_eq!(read(body.clone()).err().unwrap().param.as_deref(), Some(param), "{body}");
        }
    }

    #[test]
    fn thoughts_are_shown_to_who_asks() {
        for (given, shown, thinks) in [
            (Value::Null, Thinking::Unasked, false),
            (json!({"type": "disabled"}), Thinking::Unasked, false),
            (json!({"type": "enabled", "budget_tokens": 2000}), Thinking::Shown, true),
            (json!({"type": "adaptive"}), Thinking::Shown, true),
            (json!({"type": "adaptive", "display": "omitted"}), Thinking::Omitted, true),
        ] {
            let read = read(json!({"thinking": given})).unwrap();
            assert_eq!(
                (read.thinking, &read.conversation.kwargs["enable_thinking"]),
                (shown, &json!(thinks))
            );
        }
    }

    #[test]
    fn a_begun_answer_is_continued() {
        let read = |content: Value| {
            let messages =
                json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]);
            read(json!({"messages": messages})).unwrap().conversation.continues
        };
        assert!(read(json!("The answer is")) && !read(json!("")));
        assert!(!read(json!([{"type": "tool_use", "id": "t", "name": "f", "input": {}}])));
    }

    #[test]
    fn threads_and_formats_and_marks() {
        let refused = read(json!({"thread": {"type": "create"}})).err().unwrap();
        assert_eq!((refused.status, refused.code), (StatusCode::BAD_REQUEST, Some(THREAD_UNSUPPORTED)));
        let body = refused.body(crate::error::Dialect::Anthropic);
        assert_eq!(
            body["error"]["details"],
            json!({"error_code": THREAD_UNSUPPORTED, "unsupported": ["thread"]})
        );
        let format = json!({"type": "json_schema", "schema": {"type": "object"}});
        for (body, field) in [
            (json!({"output_config": {"format": format, "effort": "low"}}), "output_config.format"),
            (json!({"output_format": format}), "output_format"),
        ] {
            let shape = read(body).unwrap().shape;
            assert_eq!(
                (shape.format, shape.format_field),
                (Format::Schema(json!({"type": "object"})), field)
            );
        }
        assert!(!read(json!({})).unwrap().tells_cache);
        let marked = json!([{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}]);
        assert!(read(json!({"messages": marked})).unwrap().tells_cache);
    }
}
