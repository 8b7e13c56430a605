//! Tools as the Responses API has them: functions, alone or in namespaces, among others that only OpenAI's own servers run.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::shape::{Format, Shape, Tool, ToolChoice, allow, check_choice, check_tools, function_tool};

/// What functions of namespaces are called before the model, which knows no namespaces.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Names {
    /// By the name that the model sees: namespace and name.
    nested: HashMap<String, (String, String)>,
}

impl Names {
    /// The name that the model sees.
    pub fn shown(&self, namespace: Option<&str>, name: &str) -> String {
        let Some(namespace) = namespace else { return name.to_owned() };
        let known = self.nested.iter().find(|(_, nested)| nested.0 == namespace && nested.1 == name);
        known.map_or_else(|| format!("{namespace}__{name}"), |(shown, _)| shown.clone())
    }

    /// The namespace, if there is one, and the name of what the model sees as `shown`.
    pub fn called<'a>(&'a self, shown: &'a str) -> (Option<&'a str>, &'a str) {
        match self.nested.get(shown) {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, shown),
        }
    }
}

/// The functions among the tools of a request. Those that the server would have to run are left out, and so are custom tools, whose input
/// is no JSON.
pub(crate) fn tools(fields: &Fields<'_>) -> Result<(Vec<Tool>, Names), ApiError> {
    let mut functions = Vec::new();
    for (i, value) in fields.list("tools")?.unwrap_or_default().iter().enumerate() {
        let tool = Fields::at(value, format!("tools[{i}]"))?;
        match tool.required("type", tool.str("type")?)? {
            "function" => functions.push((None, function_tool(&tool, "parameters")?)),
            "namespace" => {
                let namespace = tool.required("name", tool.str("name")?)?;
                for (j, value) in tool.list("tools")?.unwrap_or_default().iter().enumerate() {
                    let nested = Fields::at(value, tool.path(&format!("tools[{j}]")))?;
                    if nested.required("type", nested.str("type")?)? == "function" {
                        functions.push((Some(namespace), function_tool(&nested, "parameters")?));
                    }
                }
            }
            _ => {}
        }
    }
    let (mut once, mut twice) = (HashSet::new(), HashSet::new());
    for (_, tool) in &functions {
        if !once.insert(tool.name.clone()) {
            twice.insert(tool.name.clone());
        }
    }
    let mut names = Names::default();
    let named = |(namespace, mut tool): (Option<&str>, Tool)| {
        if let Some(namespace) = namespace {
            let name = tool.name.clone();
            if twice.contains(&name) {
                tool.name = format!("{namespace}__{name}");
            }
            names.nested.insert(tool.name.clone(), (namespace.to_owned(), name));
        }
        tool
    };
    let tools: Vec<Tool> = functions.into_iter().map(named).collect();
    check_tools(&tools, "tools")?;
    Ok((tools, names))
}

/// Tools, choice and format of a request.
pub(crate) fn shape(fields: &Fields<'_>) -> Result<(Shape, Names), ApiError> {
    let (mut tools, names) = tools(fields)?;
    let choice = choice(fields, &mut tools, &names)?;
    check_choice(&choice, &tools, "tool_choice")?;
    let shape = Shape {
        format: format(fields)?,
        format_field: "text.format",
        tools,
        choice,
        parallel: fields.bool("parallel_tool_calls")?.unwrap_or(true),
    };
    Ok((shape, names))
}

/// `tools` shrinks to those that are allowed.
fn choice(fields: &Fields<'_>, tools: &mut Vec<Tool>, names: &Names) -> Result<ToolChoice, ApiError> {
    let choice = match fields.get("tool_choice") {
        None => return Ok(ToolChoice::Auto),
        Some(Value::String(_)) => {
            return Ok(match fields.choice("tool_choice", &["auto", "none", "required"])? {
                Some("none") => ToolChoice::None,
                Some("required") => ToolChoice::Required,
                _ => ToolChoice::Auto,
            });
        }
        Some(value) => Fields::at(value, "tool_choice")?,
    };
    let function = |tool: &Fields<'_>| -> Result<String, ApiError> {
        let name = tool.required("name", tool.str("name")?)?;
        Ok(names.shown(tool.str("namespace")?, name))
    };
    match choice.required("type", choice.str("type")?)? {
        "function" => Ok(ToolChoice::Named(function(&choice)?)),
        "allowed_tools" => allow(&choice, tools, function),
        other => Err(choice.wrong("type", format!("`{other}` tools cannot be called here, functions can"))),
    }
}

fn format(fields: &Fields<'_>) -> Result<Format, ApiError> {
    let Some(format) = (match fields.object("text")? {
        Some(text) => text.object("format")?,
        None => None,
    }) else {
        return Ok(Format::Text);
    };
    match format.required("type", format.choice("type", &["text", "json_object", "json_schema"])?)? {
        "json_object" => Ok(Format::JsonObject),
        "json_schema" => Ok(Format::Schema(format.required("schema", format.get("schema"))?.clone())),
        _ => Ok(Format::Text),
    }
}

/// The tools of a request as the answer repeats them, with the fields that functions must have.
pub(crate) fn echo(fields: &Fields<'_>) -> Value {
    let echo = |tool: &Value| {
        let mut tool = tool.clone();
        if let Value::Object(map) = &mut tool
            && map.get("type").is_some_and(|kind| kind == "function")
        {
            for name in ["description", "parameters", "strict"] {
                map.entry(name).or_insert(Value::Null);
            }
        }
        tool
    };
    fields.list("tools").ok().flatten().unwrap_or_default().iter().map(echo).collect()
}

/// The `text` of a request as the answer repeats it.
pub(crate) fn echo_text(fields: &Fields<'_>) -> Value {
    let mut text = match fields.get("text") {
        Some(Value::Object(map)) => map.clone(),
        _ => Map::new(),
    };
    text.retain(|_, value| !value.is_null());
    text.entry("format").or_insert_with(|| json!({"type": "text"}));
    let format = &mut text["format"];
    if format["type"] == "json_schema" {
        for (name, default) in [("name", json!("")), ("description", Value::Null), ("strict", Value::Null)] {
            if format[name].is_null() {
                format[name] = default;
            }
        }
    }
    Value::Object(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<(Shape, Names), ApiError> {
        shape(&Fields::of(&body).unwrap())
    }

    fn function(name: &str) -> Value {
        json!({"type": "function", "name": name, "parameters": {"type": "object"}})
    }

    fn shown(shape: &Shape) -> Vec<&str> {
        shape.tools.iter().map(|tool| tool.name.as_str()).collect()
    }

    #[test]
    fn functions_are_taken_out_of_all_tools() {
        let (shape, names) = read(json!({"tools": [
            {"type": "web_search"}, {"type": "custom", "name": "patch"}, {"type": "local_shell"},
            {"type": "mcp", "server_label": "x"}, function("a"),
            {"type": "namespace", "name": "files", "tools": [function("a"), function("b"), {"type": "custom", "name": "c"}]},
        ]}))
        .unwrap();
        assert_eq!(shown(&shape), ["a", "files__a", "b"]);
        assert_eq!(names.called("files__a"), (Some("files"), "a"));
        assert_eq!((names.called("b"), names.called("a")), ((Some("files"), "b"), (None, "a")));
        assert_eq!(names.shown(Some("files"), "a"), "files__a");
        assert_eq!((names.shown(Some("files"), "b"), names.shown(None, "a")), ("b".into(), "a".into()));
    }

    #[test]
    fn choices_are_read() {
        let tools = json!([function("a"), function("b")]);
        let read = |choice: Value| read(json!({"tools": tools, "tool_choice": choice}));
        assert_eq!(read(json!("required")).unwrap().0.choice, ToolChoice::Required);
        assert_eq!(
            read(json!({"type": "function", "name": "b"})).unwrap().0.choice,
            ToolChoice::Named("b".into())
        );
        let allowed = json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]});
        let (shape, _) = read(allowed).unwrap();
        assert_eq!((shown(&shape), &shape.choice), (vec!["b"], &ToolChoice::Required));
        for (wrong, param) in [
            (json!("any"), "tool_choice"),
            (json!(7), "tool_choice"),
            (json!({"type": "function"}), "tool_choice.name"),
            (json!({"type": "function", "name": "c"}), "tool_choice"),
            (json!({"type": "web_search_preview"}), "tool_choice.type"),
            (json!({"type": "allowed_tools", "mode": "required", "tools": []}), "tool_choice"),
        ] {
            assert_eq!(read(wrong.clone()).unwrap_err().param.as_deref(), Some(param), "{wrong}");
        }
        assert!(super::shape(&Fields::of(&json!({"tool_choice": "required"})).unwrap()).is_err());
    }

    #[test]
    fn formats_are_read_and_repeated() {
        let schema = json!({"type": "object"});
        let body = json!({"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}, "verbosity": "low"}});
        let fields = Fields::of(&body).unwrap();
        assert_eq!(shape(&fields).unwrap().0.format, Format::Schema(schema.clone()));
        assert_eq!(
            echo_text(&fields),
            json!({"format": {"type": "json_schema", "name": "x", "schema": schema, "description": null, "strict": null},
                "verbosity": "low"})
        );
        assert_eq!(
            echo_text(&Fields::of(&json!({"text": {}})).unwrap()),
            json!({"format": {"type": "text"}})
        );
        for (wrong, param) in [
            (json!({"format": {"type": "json_schema", "name": "x"}}), "text.format.schema"),
            (json!({"format": {"type": "xml"}}), "text.format.type"),
            (json!("json"), "text"),
        ] {
            assert_eq!(read(json!({"text": wrong})).unwrap_err().param.as_deref(), Some(param), "{wrong}");
        }
    }
}
