//! What an answer may be, as rules: thoughts, text or a format, and calls.

use std::time::Instant;

use llguidance::derivre::RegexAst;
use serde_json::{Map, Value, json};
use unicorn_text::Tokenizer;

use super::answer::{AnswerRules, Body, Thinking, Tool, ToolChoice};
use super::gemma_calls;
use super::kind::{Calls, Dialect, JsonCalls, Layout, NamedCalls};
use super::python_calls;
use super::spans::Spans;
use super::xml_calls::{self, Written, written};
use crate::error::GrammarError;
use crate::grammar::{Grammar, check_text, compile};
use crate::rules::{Class, Rules, Symbol};
use crate::vocabulary::Vocabulary;
use crate::{gbnf, schema};

type Result<T> = std::result::Result<T, GrammarError>;

impl Dialect {
    /// The grammar of an answer. `None` where everything is allowed.
    ///
    /// # Errors
    /// What cannot be honoured: of the body, or of the schema of a strict tool, whose name is told.
    pub fn grammar(&self, vocabulary: &Vocabulary, rules: &AnswerRules<'_>) -> Result<Option<Grammar>> {
        let tools = chosen(rules)?;
        if tools.is_empty() && rules.body == Body::Text {
            return Ok(None);
        }
        let thinks = self.reasoning.filter(|_| rules.thinking != Thinking::Over).is_some();
        match rules.body {
            Body::Lark(text) if tools.is_empty() && !thinks => {
                return Grammar::lark(vocabulary, text).map(Some);
            }
            Body::Lark(_) => {
                let reason = "a Lark grammar stands alone: not beside tools, nor behind a thought";
                return Err(GrammarError::TooComplex(reason.to_owned()));
            }
            Body::Regex(text) | Body::Gbnf(text) => check_text(text)?,
            _ => {}
        }
        let grammar = compile(vocabulary, |symbols, deadline, notices| {
            let mut writer = Writer { rules: symbols, tokenizer: vocabulary.tokenizer(), deadline, notices };
            writer.answer(self, rules, &tools)
        })?;
        let spans = Spans::new(self, rules, vocabulary);
        Ok(Some(grammar.with_spans(spans)))
    }
}

/// The tools that may be called.
fn chosen<'a>(rules: &AnswerRules<'a>) -> Result<Vec<&'a Tool>> {
    Ok(match &rules.choice {
        ToolChoice::None => Vec::new(),
        ToolChoice::Auto | ToolChoice::Required => rules.tools.iter().collect(),
        ToolChoice::Named(name) => {
            let found: Vec<&Tool> = rules.tools.iter().filter(|tool| tool.name == *name).collect();
            if found.is_empty() {
                return Err(GrammarError::Invalid {
                    path: String::new(),
                    reason: format!("there is no tool {name:?}"),
                });
            }
            found
        }
    })
}

struct Writer<'r, 't> {
    rules: &'r mut Rules,
    tokenizer: &'t Tokenizer,
    deadline: Instant,
    notices: &'r mut Vec<String>,
}

/// Any bytes, characters or not: what is free is as free as without a grammar.
fn anything() -> RegexAst {
    // All bytes but the one that marks tokens which stand for no text.
    let mut bytes = vec![u32::MAX; 8];
    bytes[7] = u32::MAX >> 1;
    RegexAst::Repeat(Box::new(RegexAst::ByteSet(bytes)), 0, u32::MAX)
}

fn containing(text: &str) -> RegexAst {
    RegexAst::Concat(vec![anything(), RegexAst::Literal(text.to_owned()), anything()])
}

/// Texts that begin with one of these, behind white space maybe.
fn beginning(marks: &[&str]) -> RegexAst {
    let marks = marks.iter().map(|mark| RegexAst::Literal((*mark).to_owned())).collect();
    RegexAst::Concat(vec![RegexAst::Regex(r"[ \t\r\n]*".to_owned()), RegexAst::Or(marks), anything()])
}

fn without(excluded: &[RegexAst]) -> RegexAst {
    let mut parts = vec![anything()];
    parts.extend(excluded.iter().map(|regex| RegexAst::Not(Box::new(regex.clone()))));
    if parts.len() == 1 { anything() } else { RegexAst::And(parts) }
}

impl Writer<'_, '_> {
    fn answer(&mut self, dialect: &Dialect, rules: &AnswerRules<'_>, tools: &[&Tool]) -> Result<Symbol> {
        let reasoning = dialect.reasoning.filter(|_| rules.thinking != Thinking::Over);
        // What begins with a thought is one.
        let may_think = reasoning.filter(|_| rules.thinking == Thinking::Possible);
        let not_first: Vec<&str> = may_think.iter().map(|reasoning| reasoning.open).collect();
        let answer = self.said_or_called(dialect, rules, tools, &not_first)?;
        let Some(reasoning) = reasoning else { return Ok(answer) };
        let thought = match self.control(reasoning.close) {
            Some(close) => {
                let (text, close) = (self.rules.lexeme(anything())?, self.rules.token(close)?);
                self.rules.sequence(&[text, close])?
            }
            None => self.rules.until(anything(), reasoning.close)?,
        };
        let blank = self.blank()?;
        // Free text takes the white space itself.
        let free = rules.body == Body::Text && rules.choice == ToolChoice::Auto;
        let behind = if free { self.said_or_called(dialect, rules, tools, &[])? } else { answer };
        let behind = if free { behind } else { self.rules.sequence(&[blank, behind])? };
        let thought = self.rules.sequence(&[thought, behind])?;
        if rules.thinking == Thinking::Begun {
            return Ok(thought);
        }
        let open = self.mark(reasoning.open)?;
        let thought = self.rules.sequence(&[blank, open, thought])?;
        self.rules.choice(&[thought, answer])
    }

    /// The answer without thoughts. Free text does not begin with any of `not_first`.
    fn said_or_called(
        &mut self,
        dialect: &Dialect,
        rules: &AnswerRules<'_>,
        tools: &[&Tool],
        not_first: &[&str],
    ) -> Result<Symbol> {
        if tools.is_empty() {
            return self.body(rules.body);
        }
        let calls = self.calls(dialect.calls, tools, rules.parallel)?;
        let blank = self.blank()?;
        let first = self.rules.sequence(&[blank, calls.open, calls.rest])?;
        if rules.choice != ToolChoice::Auto {
            return Ok(first);
        }
        if rules.body != Body::Text {
            let body = self.body(rules.body)?;
            return self.rules.choice(&[first, body]);
        }
        let mut not_first = not_first.to_vec();
        let mut excluded = Vec::new();
        if calls.bare {
            not_first.extend(["{", calls.mark]);
        } else {
            excluded.push(containing(calls.mark));
        }
        let leading: Vec<RegexAst> =
            (!not_first.is_empty()).then(|| beginning(&not_first)).into_iter().collect();
        excluded.extend(leading.iter().cloned());
        let text = self.rules.lexeme(without(&excluded))?;
        let called = if calls.bare {
            first
        } else if self.control(calls.mark).is_some() {
            self.rules.sequence(&[text, calls.open, calls.rest])?
        } else {
            let until = self.rules.until(without(&leading), calls.mark)?;
            self.rules.sequence(&[until, calls.rest])?
        };
        self.rules.choice(&[text, called])
    }

    fn body(&mut self, body: Body<'_>) -> Result<Symbol> {
        match body {
            Body::Text | Body::Lark(_) => self.rules.lexeme(anything()),
            Body::JsonObject => self.json(&json!({"type": "object"})),
            Body::Schema(schema) => self.json(schema),
            Body::Regex(regex) => {
                let read = self.rules.lexeme(RegexAst::Regex(regex.to_owned()));
                let what = "regular expression";
                read.map_err(|error| GrammarError::Syntax { what, reason: error.to_string() })
            }
            Body::Choice(texts) => {
                if texts.is_empty() {
                    return Err(GrammarError::Unsatisfiable { what: "choice" });
                }
                let texts = texts.iter().map(|text| RegexAst::Literal(text.clone())).collect();
                self.rules.lexeme(RegexAst::Or(texts))
            }
            Body::Gbnf(text) => gbnf::compile(self.rules, text),
        }
    }

    fn json(&mut self, schema: &Value) -> Result<Symbol> {
        let value = schema::strict(self.rules, schema, self.deadline)?;
        self.rules.nested(value)
    }

    /// A little white space, or none.
    fn blank(&mut self) -> Result<Symbol> {
        let blank = self.rules.lexeme(RegexAst::Regex(r"[ \n]{1,4}".to_owned()))?;
        self.rules.optional(blank)
    }

    /// The id of a mark that is a control token.
    fn control(&self, mark: &str) -> Option<u32> {
        self.tokenizer.token_id(mark).filter(|id| self.tokenizer.is_special(*id))
    }

    /// A mark, as the token or as the text that it is for this model.
    fn mark(&mut self, mark: &str) -> Result<Symbol> {
        match self.control(mark) {
            Some(id) => self.rules.token(id),
            None => self.rules.literal(mark),
        }
    }

    fn calls(&mut self, calls: Calls, tools: &[&Tool], parallel: bool) -> Result<CallRules> {
        match calls {
            Calls::Json(calls) => self.json_calls(calls, tools, parallel),
            Calls::Xml => self.xml_calls(tools, parallel),
            Calls::Named(calls) => self.named_calls(calls, tools, parallel),
            Calls::Python => self.python_calls(tools, parallel),
            Calls::Gemma => self.gemma_calls(tools, parallel),
        }
    }

    fn python_calls(&mut self, tools: &[&Tool], parallel: bool) -> Result<CallRules> {
        let mut options = Vec::new();
        for tool in tools {
            options.push(self.python_call(tool)?);
        }
        let call = self.rules.choice(&options)?;
        let (open, close) = (self.mark(python_calls::OPEN)?, self.mark(python_calls::CLOSE)?);
        let (begin, comma, end) = (self.rules.literal("[")?, self.comma()?, self.rules.literal("]")?);
        let more = self.rules.sequence(&[comma, call])?;
        let more = if parallel { self.rules.repeat(more, 0, None)? } else { self.rules.empty() };
        let rest = self.rules.sequence(&[begin, call, more, end, close])?;
        Ok(CallRules { mark: python_calls::OPEN, open, rest, bare: false })
    }

    fn comma(&mut self) -> Result<Symbol> {
        self.rules.lexeme(RegexAst::Regex(", ?".to_owned()))
    }

    fn python_call(&mut self, tool: &Tool) -> Result<Symbol> {
        let comma = self.comma()?;
        let open = format!("{}(", tool.name);
        self.listed(tool, [&open, "=", ")"], comma, Self::python_value)
    }

    /// A call whose arguments are named one after the other: what stands in front of them, behind each name and at the end.
    fn listed(
        &mut self,
        tool: &Tool,
        [open, is, close]: [&str; 3],
        comma: Symbol,
        value: fn(&mut Self, &Tool, &Value) -> Result<Symbol>,
    ) -> Result<Symbol> {
        let schema = self.parameters(tool)?;
        let none = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let required = schema.get("required").and_then(Value::as_array);
        let empty = self.rules.empty();
        // Backwards: what may follow the first argument, and what may stand in front of it.
        let (mut after, mut start) = (empty, Some(empty));
        for (name, property) in properties.iter().rev() {
            let value = value(self, tool, &with_definitions(property, &schema))?;
            let name_is = self.rules.literal(&format!("{name}{is}"))?;
            let item = self.rules.sequence(&[name_is, value])?;
            let needed = required.is_some_and(|names| names.iter().any(|needed| needed == name));
            let begun = self.rules.sequence(&[item, after])?;
            let options: Vec<Symbol> =
                [Some(begun), start.filter(|_| !needed)].into_iter().flatten().collect();
            start = Some(self.rules.choice(&options)?);
            let with = self.rules.sequence(&[comma, item, after])?;
            after = if needed { with } else { self.rules.choice(&[with, after])? };
        }
        let (open, close) = (self.rules.literal(open)?, self.rules.literal(close)?);
        self.rules.sequence(&[open, start.unwrap_or(empty), close])
    }

    fn gemma_calls(&mut self, tools: &[&Tool], parallel: bool) -> Result<CallRules> {
        let comma = self.rules.literal(",")?;
        let mut options = Vec::new();
        for tool in tools {
            let names = tool.parameters.get("properties").and_then(Value::as_object);
            if let Some(name) = names.and_then(|names| names.keys().find(|name| !gemma_calls::is_name(name)))
            {
                let (path, reason) =
                    ("/properties".to_owned(), "this model cannot write such a name".to_owned());
                let error = GrammarError::Unsupported { path, keyword: name.clone(), reason };
                return Err(of_tool(tool, error));
            }
            let open = format!("{}{}{{", gemma_calls::CALL, tool.name);
            options.push(self.listed(tool, [&open, ":", "}"], comma, Self::gemma_value)?);
        }
        let call = self.rules.choice(&options)?;
        let (open, close) = (self.mark(gemma_calls::OPEN)?, self.mark(gemma_calls::CLOSE)?);
        let one = self.rules.sequence(&[call, close])?;
        let more = self.rules.sequence(&[open, one])?;
        let more = if parallel { self.rules.repeat(more, 0, None)? } else { self.rules.empty() };
        let rest = self.rules.sequence(&[one, more])?;
        Ok(CallRules { mark: gemma_calls::OPEN, open, rest, bare: false })
    }

    fn gemma_value(&mut self, tool: &Tool, property: &Value) -> Result<Symbol> {
        if written(Some(property)) == Written::Json {
            let value =
                schema::strict(self.rules, property, self.deadline).map_err(|error| of_tool(tool, error))?;
            return self.rules.nested(value);
        }
        let text = schema::text(property, self.deadline).map_err(|error| of_tool(tool, error))?;
        let quote = gemma_calls::QUOTE;
        match self.control(quote) {
            Some(id) => {
                let (quote, text) = (self.rules.token(id)?, self.rules.lexeme(text)?);
                self.rules.sequence(&[quote, text, quote])
            }
            None => {
                let body = RegexAst::And(vec![text, RegexAst::Not(Box::new(containing(quote)))]);
                let (open, text) = (self.rules.literal(quote)?, self.rules.until(body, quote)?);
                self.rules.sequence(&[open, text])
            }
        }
    }

    fn python_value(&mut self, tool: &Tool, property: &Value) -> Result<Symbol> {
        let kind = property.get("type").and_then(Value::as_str);
        if kind == Some("boolean") {
            return self.rules.lexeme(RegexAst::Regex("True|False|true|false".to_owned()));
        }
        let value =
            schema::strict(self.rules, property, self.deadline).map_err(|error| of_tool(tool, error))?;
        let json = self.rules.nested(value)?;
        if written(Some(property)) == Written::Json {
            return Ok(json);
        }
        // A text in single quotes, where it holds nothing that would have to be escaped.
        let text = schema::text(property, self.deadline).map_err(|error| of_tool(tool, error))?;
        let plain = RegexAst::And(vec![text, RegexAst::Regex(r"[^'\\\x00-\x1f]*".to_owned())]);
        let quote = || RegexAst::Literal("'".to_owned());
        let quoted = self.rules.lexeme(RegexAst::Concat(vec![quote(), plain, quote()]))?;
        self.rules.choice(&[json, quoted])
    }

    fn json_calls(&mut self, calls: JsonCalls, tools: &[&Tool], parallel: bool) -> Result<CallRules> {
        let list = calls.layout == Layout::List;
        let mut arguments = Vec::new();
        for tool in tools {
            arguments.push(self.arguments(tool)?);
        }
        let value = self.rules.within(Class::Json, |rules| {
            let mut options = Vec::new();
            for (tool, arguments) in tools.iter().zip(&arguments) {
                let mut parts = Vec::new();
                let name = Value::String(tool.name.clone()).to_string();
                let member = format!("\"{}\"", calls.arguments);
                for text in ["{", "\"name\"", ":", &name, ",", &member, ":"] {
                    parts.push(rules.literal(text)?);
                }
                parts.extend([*arguments, rules.literal("}")?]);
                options.push(rules.sequence(&parts)?);
            }
            let call = rules.choice(&options)?;
            if !list {
                return Ok(call);
            }
            let (open, comma, close) = (rules.literal("[")?, rules.literal(",")?, rules.literal("]")?);
            let more = rules.sequence(&[comma, call])?;
            let more = if parallel { rules.repeat(more, 0, None)? } else { rules.empty() };
            rules.sequence(&[open, call, more, close])
        })?;
        let value = self.rules.nested(value)?;
        let blank = self.blank()?;
        let open = self.mark(calls.open)?;
        match calls.layout {
            Layout::List => {
                let rest = self.rules.sequence(&[blank, value])?;
                Ok(CallRules { mark: calls.open, open, rest, bare: false })
            }
            Layout::Each => {
                let close = self.mark(calls.close)?;
                let one = self.rules.sequence(&[blank, value, blank, close])?;
                let more = self.rules.sequence(&[blank, open, one])?;
                let more = if parallel { self.rules.repeat(more, 0, None)? } else { self.rules.empty() };
                let rest = self.rules.sequence(&[one, more])?;
                Ok(CallRules { mark: calls.open, open, rest, bare: false })
            }
            Layout::Bare => {
                let semicolon = self.rules.literal(";")?;
                let more = self.rules.sequence(&[semicolon, blank, value])?;
                let more = if parallel { self.rules.repeat(more, 0, None)? } else { self.rules.empty() };
                let rest = self.rules.sequence(&[value, more])?;
                let open = self.rules.optional(open)?;
                Ok(CallRules { mark: calls.open, open, rest, bare: true })
            }
        }
    }

    fn named_calls(&mut self, calls: NamedCalls, tools: &[&Tool], parallel: bool) -> Result<CallRules> {
        let open = self.mark(calls.open)?;
        let between = self.mark(calls.arguments)?;
        let id = match calls.id {
            Some(mark) => {
                let mark = self.mark(mark)?;
                let id = self.rules.lexeme(RegexAst::Regex("[0-9A-Za-z]{9}".to_owned()))?;
                let id = self.rules.sequence(&[mark, id])?;
                self.rules.optional(id)?
            }
            None => self.rules.empty(),
        };
        let mut options = Vec::new();
        for tool in tools {
            let arguments = self.arguments(tool)?;
            let (name, arguments) = (self.rules.literal(&tool.name)?, self.rules.nested(arguments)?);
            options.push(self.rules.sequence(&[name, id, between, arguments])?);
        }
        let call = self.rules.choice(&options)?;
        let more = self.rules.sequence(&[open, call])?;
        let more = if parallel { self.rules.repeat(more, 0, None)? } else { self.rules.empty() };
        let rest = self.rules.sequence(&[call, more])?;
        Ok(CallRules { mark: calls.open, open, rest, bare: false })
    }

    /// The arguments of a tool as JSON. The symbol is one of the class of JSON.
    fn arguments(&mut self, tool: &Tool) -> Result<Symbol> {
        let schema = self.parameters(tool)?;
        schema::strict(self.rules, &schema, self.deadline).map_err(|error| of_tool(tool, error))
    }

    /// The schema of a tool's arguments, made so that it can be honoured.
    fn parameters(&mut self, tool: &Tool) -> Result<Value> {
        let mut schema = match &tool.parameters {
            Value::Object(map) if !map.is_empty() => tool.parameters.clone(),
            _ => json!({"type": "object", "properties": {}}),
        };
        if let Value::Object(map) = &mut schema {
            map.insert("type".to_owned(), json!("object"));
            // What a tool does not name it does not take.
            if map.contains_key("properties") && !map.contains_key("patternProperties") {
                map.entry("additionalProperties").or_insert(Value::Bool(false));
            }
        }
        if tool.strict {
            return Ok(schema);
        }
        let relaxed = schema::Relaxed::new(&schema, self.deadline);
        self.notices.extend(relaxed.notices.iter().map(|notice| format!("tool {:?}: {notice}", tool.name)));
        Ok(relaxed.schema)
    }

    fn xml_calls(&mut self, tools: &[&Tool], parallel: bool) -> Result<CallRules> {
        let mut options = Vec::new();
        for tool in tools {
            options.push(self.xml_call(tool)?);
        }
        let call = self.rules.choice(&options)?;
        let close = self.mark(xml_calls::CLOSE)?;
        let open = self.mark(xml_calls::OPEN)?;
        let blank = self.blank()?;
        let one = self.rules.sequence(&[blank, call, blank, close])?;
        let more = self.rules.sequence(&[blank, open, one])?;
        let more = if parallel { self.rules.repeat(more, 0, None)? } else { self.rules.empty() };
        let rest = self.rules.sequence(&[one, more])?;
        Ok(CallRules { mark: xml_calls::OPEN, open, rest, bare: false })
    }

    fn xml_call(&mut self, tool: &Tool) -> Result<Symbol> {
        let schema = self.parameters(tool)?;
        let none = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let required = schema.get("required").and_then(Value::as_array);
        let mut parts = vec![self.rules.literal(&format!("{}{}>\n", xml_calls::FUNCTION, tool.name))?];
        for (name, property) in properties {
            let property = with_definitions(property, &schema);
            let value = self.parameter(tool, &property)?;
            let head = self.rules.literal(&format!("{}{name}>\n", xml_calls::PARAMETER))?;
            let line = self.rules.literal("\n")?;
            let parameter = self.rules.sequence(&[head, value, line])?;
            let needed = required.is_some_and(|names| names.iter().any(|needed| needed == name));
            parts.push(if needed { parameter } else { self.rules.optional(parameter)? });
        }
        parts.push(self.rules.literal(xml_calls::FUNCTION_END)?);
        self.rules.sequence(&parts)
    }

    /// The value of a parameter and the tag behind it.
    fn parameter(&mut self, tool: &Tool, property: &Value) -> Result<Symbol> {
        if written(Some(property)) == Written::Text {
            let text = schema::text(property, self.deadline).map_err(|error| of_tool(tool, error))?;
            let end = xml_calls::PARAMETER_END;
            let body = RegexAst::And(vec![text, RegexAst::Not(Box::new(containing(end)))]);
            return self.rules.until(body, end);
        }
        let value =
            schema::strict(self.rules, property, self.deadline).map_err(|error| of_tool(tool, error))?;
        let (value, end) = (self.rules.nested(value)?, self.rules.literal(xml_calls::PARAMETER_END)?);
        self.rules.sequence(&[value, end])
    }
}

/// Calls as rules: the mark in front of the first, and what follows it.
struct CallRules {
    mark: &'static str,
    open: Symbol,
    rest: Symbol,
    /// Whether a call begins without the mark.
    bare: bool,
}

/// A part of a schema as a document of its own, with what it may refer to.
fn with_definitions(part: &Value, whole: &Value) -> Value {
    let mut part = part.clone();
    if let Value::Object(map) = &mut part {
        for key in ["$defs", "definitions", "$schema"] {
            if let Some(definitions) = whole.get(key) {
                map.entry(key).or_insert(definitions.clone());
            }
        }
    }
    part
}

fn of_tool(tool: &Tool, error: GrammarError) -> GrammarError {
    match error {
        GrammarError::Unsupported { path, keyword, reason } => {
            GrammarError::Unsupported { path, keyword, reason: format!("{reason} (tool {:?})", tool.name) }
        }
        GrammarError::Invalid { path, reason } => {
            GrammarError::Invalid { path, reason: format!("{reason} (tool {:?})", tool.name) }
        }
        GrammarError::TooComplex(reason) => {
            GrammarError::TooComplex(format!("{reason} (tool {:?})", tool.name))
        }
        other => other,
    }
}
