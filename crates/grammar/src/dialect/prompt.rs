//! What a model is told of tools where its template does not.

use serde_json::{Value, json};

use super::answer::Tool;
use super::kind::Dialect;

impl Dialect {
    /// What the system message must say of the tools, where the template does not tell of them itself.
    pub fn tools_text(&self, tools: &[Tool]) -> Option<String> {
        if self.tells_tools || tools.is_empty() {
            return None;
        }
        let mut text =
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are \
                        provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
                .to_owned();
        for tool in tools {
            let description = tool.description.clone().map(Value::String).unwrap_or(Value::Null);
            let function =
                json!({"name": tool.name, "description": description, "parameters": tool.parameters});
            text += &json!({"type": "function", "function": function}).to_string();
            text.push('\n');
        }
        text += "</tools>\n\nFor each function call, return a json object with function name and arguments within \
                 <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": \
                 <args-json-object>}\n</tool_call>";
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_told_only_where_the_template_does_not() {
        let tool = Tool {
            name: "f".into(),
            description: None,
            parameters: json!({"type": "object"}),
            strict: false,
        };
        let generic = Dialect::detect("");
        let text = generic.tools_text(std::slice::from_ref(&tool)).unwrap();
        assert!(text.contains(r#"{"type":"function","function":{"name":"f","description":null,"#), "{text}");
        assert_eq!(generic.tools_text(&[]), None);
        assert_eq!(Dialect::detect("[TOOL_CALLS]").tools_text(&[tool]), None);
    }
}
