//! The dialects that are known.

use super::answer::Thinking;
use super::{gemma_calls, python_calls, xml_calls};

/// How calls and thoughts are written. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    pub(crate) calls: Calls,
    pub(crate) reasoning: Option<Reasoning>,
    /// Whether the template itself tells the model of tools.
    pub(super) tells_tools: bool,
}

/// Where thoughts begin and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reasoning {
    pub(crate) open: &'static str,
    pub(crate) close: &'static str,
}

/// How calls are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// JSON objects with name and arguments.
    Json(JsonCalls),
    /// `<function=name>` with `<parameter=name>` in tags.
    Xml,
    /// A name, then its arguments as JSON.
    Named(NamedCalls),
    /// A list of calls as Python writes them.
    Python,
    /// Calls with bare names and texts between marks.
    Gemma,
}

/// Calls as JSON objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JsonCalls {
    /// Stands in front of every call, or of the list of all.
    pub(crate) open: &'static str,
    pub(crate) close: &'static str,
    pub(crate) layout: Layout,
    /// The member that holds the arguments.
    pub(crate) arguments: &'static str,
}

/// How several calls stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Each between its own marks.
    Each,
    /// In one JSON list between the marks.
    List,
    /// The answer itself is the call; more follow behind semicolons.
    Bare,
}

/// Calls as `[TOOL_CALLS]name[ARGS]{..}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NamedCalls {
    pub(crate) open: &'static str,
    /// Between the name and an id that the model makes up.
    pub(crate) id: Option<&'static str>,
    pub(crate) arguments: &'static str,
}

const HERMES: Calls = Calls::Json(JsonCalls {
    open: "<tool_call>",
    close: "</tool_call>",
    layout: Layout::Each,
    arguments: "arguments",
});
const LLAMA: Calls = Calls::Json(JsonCalls {
    open: "<|python_tag|>",
    close: "",
    layout: Layout::Bare,
    arguments: "parameters",
});
const MISTRAL_LIST: Calls =
    Calls::Json(JsonCalls { open: "[TOOL_CALLS]", close: "", layout: Layout::List, arguments: "arguments" });

impl Dialect {
    /// What the first call begins with.
    pub(crate) fn mark(&self) -> &'static str {
        match self.calls {
            Calls::Json(calls) => calls.open,
            Calls::Xml => xml_calls::OPEN,
            Calls::Named(calls) => calls.open,
            Calls::Python => python_calls::OPEN,
            Calls::Gemma => gemma_calls::OPEN,
        }
    }

    /// Whether the answer itself is a call, with or without a mark in front.
    pub(crate) fn is_bare(&self) -> bool {
        matches!(self.calls, Calls::Json(JsonCalls { layout: Layout::Bare, .. }))
    }

    /// The dialect of a model by its chat template. Without a template, or with one that knows no tools, calls are written as
    /// Hermes does, and [`tools_text`](Self::tools_text) tells the model how.
    pub fn detect(template: &str) -> Dialect {
        let has = |text: &str| template.contains(text);
        let named = |id| Calls::Named(NamedCalls { open: "[TOOL_CALLS]", id, arguments: "[ARGS]" });
        let (calls, tells_tools) = match () {
            () if has("<function=") && has("<parameter=") => (Calls::Xml, true),
            () if has(python_calls::OPEN) => (Calls::Python, true),
            () if has(gemma_calls::OPEN) && has(gemma_calls::QUOTE) => (Calls::Gemma, true),
            () if has("[TOOL_CALLS]") && has("[CALL_ID]") => (named(Some("[CALL_ID]")), true),
            () if has("[TOOL_CALLS]") && has("[ARGS]") => (named(None), true),
            () if has("[TOOL_CALLS]") => (MISTRAL_LIST, true),
            () if has("<tool_call>") && has("\"arguments\"") => (HERMES, true),
            () if has("\"parameters\"") && (has("python_tag") || has("<|start_header_id|>")) => (LLAMA, true),
            () => (HERMES, false),
        };
        let pairs = [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")];
        let pair = pairs.into_iter().find(|(open, close)| has(open) || has(close));
        let reasoning = pair.map(|(open, close)| Reasoning { open, close });
        Dialect { calls, reasoning, tells_tools }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self.calls {
            Calls::Json(_) if !self.tells_tools => "generic",
            Calls::Json(JsonCalls { layout: Layout::Each, .. }) => "hermes",
            Calls::Json(JsonCalls { layout: Layout::List, .. }) => "mistral",
            Calls::Json(JsonCalls { layout: Layout::Bare, .. }) => "llama3",
            Calls::Xml => "qwen-xml",
            Calls::Python => "lfm2",
            Calls::Gemma => "gemma",
            Calls::Named(NamedCalls { id: Some(_), .. }) => "mistral-id",
            Calls::Named(_) => "mistral-args",
        }
    }

    /// Whether the model's template can show that it thinks.
    pub fn reasons(&self) -> bool {
        self.reasoning.is_some()
    }

    /// What a rendered prompt says about thinking by its end.
    pub fn thinking(&self, prompt: &str) -> Thinking {
        let Some(reasoning) = self.reasoning else { return Thinking::Over };
        let end = prompt.trim_end();
        if end.ends_with(reasoning.open) {
            Thinking::Begun
        } else if end.ends_with(reasoning.close) {
            Thinking::Over
        } else {
            Thinking::Possible
        }
    }

    /// Texts of control tokens that the reader must see, though such tokens are hidden elsewhere.
    pub fn marks(&self) -> Vec<&'static str> {
        let mut marks = match self.calls {
            Calls::Json(calls) => vec![calls.open, calls.close],
            Calls::Xml => vec![xml_calls::OPEN, xml_calls::CLOSE],
            Calls::Python => vec![python_calls::OPEN, python_calls::CLOSE],
            Calls::Gemma => vec![gemma_calls::OPEN, gemma_calls::CLOSE, gemma_calls::QUOTE],
            Calls::Named(calls) => vec![calls.open, calls.id.unwrap_or_default(), calls.arguments],
        };
        if let Some(reasoning) = self.reasoning {
            marks.extend([reasoning.open, reasoning.close]);
        }
        marks.retain(|mark| !mark.is_empty());
        marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialects_are_known_by_their_templates() {
        for (template, name) in [
            ("{{ '<tool_call>\\n{\"name\": \"' + x + '\", \"arguments\": ' }}", "hermes"),
            ("<tool_call>\n<function=f>\n<parameter=a>", "qwen-xml"),
            ("<|tool_call_start|>[", "lfm2"),
            ("<|tool_call>call: <|\"|>", "gemma"),
            ("[TOOL_CALLS][{", "mistral"),
            ("[TOOL_CALLS]x[ARGS]", "mistral-args"),
            ("[TOOL_CALLS]x[CALL_ID]y[ARGS]", "mistral-id"),
            ("<|start_header_id|> {\"name\": f, \"parameters\": d}", "llama3"),
            ("<|im_start|>user", "generic"),
        ] {
            let dialect = Dialect::detect(template);
            assert_eq!(dialect.name(), name, "{template}");
        }
    }

    #[test]
    fn the_end_of_a_prompt_tells_whether_a_thought_is_open() {
        let dialect = Dialect::detect("<think></think>");
        assert_eq!(dialect.thinking("<|im_start|>assistant\n<think>\n"), Thinking::Begun);
        assert_eq!(dialect.thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n"), Thinking::Over);
        assert_eq!(dialect.thinking("<|im_start|>assistant\n"), Thinking::Possible);
        assert_eq!(Dialect::detect("").thinking("<think>"), Thinking::Over);
    }
}
