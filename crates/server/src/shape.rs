//! What an answer has to look like: free text, a format, calls of tools.

use serde_json::{Value, json};
pub(crate) use unicorn_grammar::{Tool, ToolChoice};

use crate::error::ApiError;
use crate::fields::{Fields, kind};

/// Tools of one request, at most.
const TOOLS_MAX: usize = 512;
/// Characters of a tool's name, at most.
const NAME_MAX: usize = 128;

/// What the text of an answer has to be.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) enum Format {
    /// Anything.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON by a schema; a keyword that cannot be honoured is an error.
    Schema(Value),
    /// A text that a regular expression matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in Lark's or llguidance's form.
    Lark(String),
    /// A grammar in llama.cpp's form.
    Gbnf(String),
}

/// A tool as templates take it.
pub(crate) fn definition(tool: &Tool) -> Value {
    let description = tool.description.as_deref().unwrap_or_default();
    json!({"type": "function", "function": {
        "name": tool.name, "description": description, "parameters": tool.parameters,
    }})
}

/// All of it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Shape {
    pub format: Format,
    /// The field that the format came from, for errors.
    pub format_field: &'static str,
    pub tools: Vec<Tool>,
    pub choice: ToolChoice,
    /// Several calls in one answer.
    pub parallel: bool,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            format: Format::Text,
            format_field: "response_format",
            tools: Vec::new(),
            choice: ToolChoice::Auto,
            parallel: true,
        }
    }
}

impl Shape {
    /// From the fields of OpenAI's chat API and vLLM's and llama.cpp's beside it.
    pub fn of_chat(fields: &Fields<'_>) -> Result<Shape, ApiError> {
        let (format, format_field) = format(fields)?;
        refuse_legacy(fields)?;
        let mut tools = tools(fields)?;
        let choice = choice(fields, &mut tools)?;
        let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        Ok(Shape { format, format_field, tools, choice, parallel })
    }
}

/// `response_format`, `structured_outputs`, `guided_json` and their like, `grammar`, `json_schema`: the first that is there.
fn format(fields: &Fields<'_>) -> Result<(Format, &'static str), ApiError> {
    if let Some(format) = fields.object("response_format")? {
        let kinds = ["text", "json_object", "json_schema", "grammar", "regex"];
        let format = match format.required("type", format.choice("type", &kinds)?)? {
            "json_object" => match format.get("schema") {
                // llama.cpp's form.
                Some(schema) => Format::Schema(schema.clone()),
                None => Format::JsonObject,
            },
            "json_schema" => {
                let inner = format.required("json_schema", format.object("json_schema")?)?;
                Format::Schema(inner.required("schema", inner.get("schema"))?.clone())
            }
            "grammar" => Format::Lark(format.required("grammar", format.str("grammar")?)?.to_owned()),
            "regex" => Format::Regex(format.required("pattern", format.str("pattern")?)?.to_owned()),
            _ => Format::Text,
        };
        return Ok((format, "response_format"));
    }
    if let Some(outputs) = fields.object("structured_outputs")? {
        return Ok((
            structured(&outputs, ["json", "regex", "choice", "grammar", "json_object"])?,
            "structured_outputs",
        ));
    }
    let guided = ["guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_json_object"];
    match structured(fields, guided)? {
        Format::Text => {}
        format => return Ok((format, "guided_json")),
    }
    if let Some(schema) = fields.get("json_schema") {
        return Ok((Format::Schema(schema.clone()), "json_schema"));
    }
    let grammar = fields.str("grammar")?.filter(|grammar| !grammar.trim().is_empty());
    Ok((grammar.map_or(Format::Text, |grammar| Format::Gbnf(grammar.to_owned())), "grammar"))
}

/// vLLM's names, which differ by a prefix.
fn structured(fields: &Fields<'_>, names: [&str; 5]) -> Result<Format, ApiError> {
    let [json, regex, choice, grammar, json_object] = names;
    if let Some(schema) = fields.get(json) {
        let schema = match schema {
            Value::String(text) => serde_json::from_str(text).map_err(|error| fields.wrong(json, error))?,
            other => other.clone(),
        };
        return Ok(Format::Schema(schema));
    }
    if let Some(regex) = fields.str(regex)? {
        return Ok(Format::Regex(regex.to_owned()));
    }
    let texts = fields.strings(choice, 4096)?;
    if !texts.is_empty() {
        return Ok(Format::Choice(texts));
    }
    if let Some(grammar) = fields.str(grammar)? {
        // Lark writes `name: ...`, GBNF `name ::= ...`.
        let gbnf = grammar.contains("::=");
        return Ok(if gbnf { Format::Gbnf(grammar.to_owned()) } else { Format::Lark(grammar.to_owned()) });
    }
    Ok(if fields.bool(json_object)?.unwrap_or(false) { Format::JsonObject } else { Format::Text })
}

/// Checks a tool's name.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    match (1..=NAME_MAX).contains(&name.len()) && name.chars().all(fits) {
        true => Ok(()),
        false => Err(format!("must have 1 to {NAME_MAX} letters, digits, `_`, `-`, `.`, `:` or `/`")),
    }
}

/// Checks the number of tools and that each has a name of its own. `path` is where they stand.
pub(crate) fn check_tools(tools: &[Tool], path: &str) -> Result<(), ApiError> {
    if tools.len() > TOOLS_MAX {
        return Err(ApiError::param(
            path,
            format!("has {} tools, at most {TOOLS_MAX} are taken", tools.len()),
        ));
    }
    let mut seen = std::collections::HashSet::new();
    match tools.iter().find(|tool| !seen.insert(&tool.name)) {
        Some(tool) => Err(ApiError::param(path, format!("has two tools named {}", tool.name))),
        None => Ok(()),
    }
}

fn tools(fields: &Fields<'_>) -> Result<Vec<Tool>, ApiError> {
    let list = fields.list("tools")?.unwrap_or_default();
    let tool = |(i, value): (usize, &Value)| {
        let tool = Fields::at(value, fields.path(&format!("tools[{i}]")))?;
        tool.required("type", tool.choice("type", &["function"])?)?;
        let function = tool.required("function", tool.object("function")?)?;
        function_tool(&function, "parameters")
    };
    let tools: Vec<Tool> = list.iter().enumerate().map(tool).collect::<Result<_, _>>()?;
    check_tools(&tools, "tools")?;
    Ok(tools)
}

/// A tool of fields that stand at one level; `schema` names that of its parameters.
pub(crate) fn function_tool(fields: &Fields<'_>, schema: &str) -> Result<Tool, ApiError> {
    let name = fields.required("name", fields.str("name")?)?;
    check_name(name).map_err(|error| fields.wrong("name", error))?;
    let parameters = match fields.get(schema) {
        None => json!({"type": "object", "properties": {}}),
        Some(Value::Object(map)) if map.is_empty() => json!({"type": "object", "properties": {}}),
        Some(map @ Value::Object(_)) => map.clone(),
        Some(other) => return Err(fields.wrong(schema, format!("must be an object, not {}", kind(other)))),
    };
    Ok(Tool {
        name: name.to_owned(),
        description: fields.str("description")?.map(str::to_owned),
        parameters,
        strict: fields.bool("strict")?.unwrap_or(false),
    })
}

/// What OpenAI had before tools. Left aside, it would change what a client gets without a word.
fn refuse_legacy(fields: &Fields<'_>) -> Result<(), ApiError> {
    if fields.list("functions")?.is_some_and(|functions| !functions.is_empty()) {
        return Err(fields.wrong("functions", "is not taken any more: use tools and tool_choice"));
    }
    match fields.get("function_call") {
        Some(Value::Object(_)) => {
            Err(fields.wrong("function_call", "is not taken any more: use tool_choice"))
        }
        _ => Ok(()),
    }
}

/// `allowed_tools`: `tools` shrinks to those that `name` finds in it.
pub(crate) fn allow(
    allowed: &Fields<'_>,
    tools: &mut Vec<Tool>,
    name: impl Fn(&Fields<'_>) -> Result<String, ApiError>,
) -> Result<ToolChoice, ApiError> {
    let mut names = std::collections::HashSet::new();
    for (i, value) in allowed.list("tools")?.unwrap_or_default().iter().enumerate() {
        let tool = Fields::at(value, allowed.path(&format!("tools[{i}]")))?;
        if tool.str("type")? == Some("function") {
            names.insert(name(&tool)?);
        }
    }
    tools.retain(|tool| names.contains(&tool.name));
    Ok(match allowed.choice("mode", &["auto", "required"])? {
        Some("required") => ToolChoice::Required,
        _ => ToolChoice::Auto,
    })
}

fn choice(fields: &Fields<'_>, tools: &mut Vec<Tool>) -> Result<ToolChoice, ApiError> {
    let choice = match fields.get("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" | "any" => ToolChoice::Required,
            _ => return Err(fields.wrong("tool_choice", "must be auto, none, required, or name a function")),
        },
        Some(value) => {
            let choice = Fields::at(value, "tool_choice")?;
            let name = |tool: &Fields<'_>| -> Result<String, ApiError> {
                let function = tool.object("function")?;
                let function = function.as_ref().unwrap_or(tool);
                Ok(function.required("name", function.str("name")?)?.to_owned())
            };
            match choice.str("type")? {
                Some("allowed_tools") => {
                    let allowed = choice.required("allowed_tools", choice.object("allowed_tools")?)?;
                    allow(&allowed, tools, name)?
                }
                _ => ToolChoice::Named(name(&choice)?),
            }
        }
    };
    check_choice(&choice, tools, "tool_choice")?;
    Ok(choice)
}

/// Errors where a choice asks for tools that are not there.
pub(crate) fn check_choice(choice: &ToolChoice, tools: &[Tool], path: &str) -> Result<(), ApiError> {
    match choice {
        ToolChoice::Required if tools.is_empty() => {
            Err(ApiError::param(path, "asks for a call, but there are no tools"))
        }
        ToolChoice::Named(name) if tools.iter().all(|tool| tool.name != *name) => {
            Err(ApiError::param(path, format!("there is no tool named {name}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Shape, ApiError> {
        Shape::of_chat(&Fields::of(&body).unwrap())
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
    }

    #[test]
    fn formats_of_several_programs_are_read() {
        let schema = json!({"type": "integer"});
        let strict = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        for (body, expected) in [
            (json!({"response_format": {"type": "text"}}), Format::Text),
            (json!({"response_format": {"type": "json_object"}}), Format::JsonObject),
            (json!({"response_format": strict}), Format::Schema(schema.clone())),
            (json!({"structured_outputs": {"regex": "a+"}}), Format::Regex("a+".into())),
            (json!({"guided_choice": ["a", "b"]}), Format::Choice(vec!["a".into(), "b".into()])),
            (json!({"guided_json": "{\"type\": \"integer\"}"}), Format::Schema(schema.clone())),
            (json!({"grammar": "root ::= \"a\""}), Format::Gbnf("root ::= \"a\"".into())),
            (json!({"structured_outputs": {"grammar": "start: \"a\""}}), Format::Lark("start: \"a\"".into())),
        ] {
            assert_eq!(read(body.clone()).unwrap().format, expected, "{body}");
        }
    }

    #[test]
    fn wrong_shapes_are_named() {
        for (body, param) in [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function.name"),
            (json!({"tools": [tool("a b")]}), "tools[0].function.name"),
            (json!({"tools": [tool("a"), tool("a")]}), "tools"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"functions": [{"name": "f"}]}), "functions"),
            (json!({"function_call": {"name": "f"}}), "function_call"),
            (json!({"tool_choice": {"type": "allowed_tools"}}), "tool_choice.allowed_tools"),
            (json!({"tools": [tool("a")], "tool_choice": "maybe"}), "tool_choice"),
            (
                json!({"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}}),
                "tool_choice",
            ),
        ] {
            assert_eq!(read(body.clone()).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
        let named =
            json!({"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "a"}}});
        assert_eq!(read(named).unwrap().choice, ToolChoice::Named("a".into()));
        let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required",
            "tools": [{"type": "function", "function": {"name": "b"}}]}});
        let shape = read(json!({"tools": [tool("a"), tool("b")], "tool_choice": allowed})).unwrap();
        assert_eq!((shape.tools.len(), shape.tools[0].name.as_str()), (1, "b"));
        assert_eq!(shape.choice, ToolChoice::Required);
        assert!(read(json!({"functions": [], "function_call": "auto"})).is_ok());
    }
}
