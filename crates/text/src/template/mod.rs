//! Chat templates: Jinja as Python's Jinja2 renders it under the transformers library.
//!
//! Templates come from model files and are untrusted. A template can reach nothing but its arguments: no
//! file, no clock, no other template. All that it does and produces is paid for with fuel.
//!
//! One thing escapes the fuel: `~` and filters other than `join`, `string` and `tojson` print a list that
//! contains itself many times over (`[x, x]` of `[y, y]` of ...) before they pay for it.

mod date;
mod json;
mod methods;
mod print;

use std::error::Error as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde_json::Map;

pub use date::DateTime;

/// Arguments of a render beside the messages.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// Ends the prompt with the header of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Tool definitions as the API receives them, a list; `None` in templates where absent.
    pub tools: Option<serde_json::Value>,
    /// Documents for retrieval-augmented answers, a list; `None` in templates where absent.
    pub documents: Option<serde_json::Value>,
    /// Further variables (`enable_thinking`, ...). They cannot replace those that are set here.
    pub kwargs: Map<String, serde_json::Value>,
    /// What `strftime_now` tells; without it the function is not defined.
    pub now: Option<DateTime>,
    /// Upper bound on work: one unit pays for one instruction or for 64 bytes of produced text.
    pub fuel: u64,
}

impl RenderOptions {
    /// Enough for prompts of a few million characters, used up in well under a second.
    pub const FUEL: u64 = 1_000_000;
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            tools: None,
            documents: None,
            kwargs: Map::new(),
            now: None,
            fuel: Self::FUEL,
        }
    }
}

/// Why a template cannot be compiled or rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The source is not a template.
    #[error("chat template, line {line}: {reason}")]
    Syntax {
        /// Line of the source, from 1; 0 if unknown.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The template refused the conversation with `raise_exception`; this is its message.
    #[error("{0}")]
    Raised(String),
    /// The template did not end within its fuel, or would have produced too much text.
    #[error("the chat template exceeds its limit on work and output")]
    OutOfFuel,
    /// An extra argument has the name of a variable that cannot be replaced.
    #[error("chat template argument `{0}` is reserved")]
    Reserved(String),
    /// Rendering failed.
    #[error("chat template, line {line}: {reason}")]
    Render {
        /// Line of the source, from 1; 0 if unknown.
        line: usize,
        /// What went wrong there.
        reason: String,
    },
}

/// Variables and functions that extra arguments cannot replace.
const RESERVED: &[&str] = &[
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
];

/// Bounds the nesting of expressions, loops and macro calls, and with it the use of stack.
const RECURSION_MAX: usize = 200;

/// Templates in the wild are below 20 KB.
const SOURCE_BYTES_MAX: usize = 1 << 18;

/// Stack of the thread that compiles and renders; only what is used becomes memory. The engine recurses once
/// per operator of a chain when it compiles, and once per level of a nested list when it frees the list: a
/// source of the size above and fuel of [`RenderOptions::FUEL`] reach about 100,000 levels.
const STACK_BYTES: usize = 1 << 28;

const NAME: &str = "chat";

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles `source`. The tokens are what `bos_token` and `eos_token` stand for in the template.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] with the line of the fault.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            let reason =
                format!("the template has {} bytes, at most {SOURCE_BYTES_MAX} are allowed", source.len());
            return Err(TemplateError::Syntax { line: 0, reason });
        }
        let environment = on_large_stack(|| compile(source))?;
        Ok(Self { environment, bos_token: bos_token.to_owned(), eos_token: eos_token.to_owned() })
    }

    /// Renders a conversation: `messages` is the list that the chat API receives.
    ///
    /// # Errors
    /// What the template raises, what it does wrong, and running out of fuel.
    pub fn render(
        &self,
        messages: &serde_json::Value,
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        if let Some(name) = options.kwargs.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(TemplateError::Reserved(name.clone()));
        }
        on_large_stack(|| self.render_here(messages, options))
    }

    fn render_here(
        &self,
        messages: &serde_json::Value,
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        let mut variables: Vec<(&str, Value)> = vec![
            ("messages", Value::from(Serde(messages))),
            ("tools", Value::from(Serde(&options.tools))),
            ("documents", Value::from(Serde(&options.documents))),
            ("add_generation_prompt", options.add_generation_prompt.into()),
            ("bos_token", self.bos_token.as_str().into()),
            ("eos_token", self.eos_token.as_str().into()),
        ];
        if let Some(now) = options.now {
            let strftime_now = move |format: &str| date::strftime(now, format);
            variables.push(("strftime_now", Value::from_function(strftime_now)));
        }
        for (name, value) in &options.kwargs {
            variables.push((name, Value::from(Serde(value))));
        }
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(options.fuel));
        let template = environment.get_template(NAME).map_err(render_error)?;
        template.render(Value::from_pairs(variables)).map_err(render_error)
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("bos_token", &self.bos_token)
            .field("eos_token", &self.eos_token)
            .finish_non_exhaustive()
    }
}

fn compile(source: &str) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(syntax_error)?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(print::formatter);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", print::string);
    environment.add_filter("join", print::join);
    environment.add_test("iterable", print::is_iterable);
    environment.add_function("raise_exception", raise_exception);
    environment.remove_global("debug");
    environment.add_template_owned(NAME, plain_generation_blocks(source)).map_err(syntax_error)?;
    Ok(environment)
}

/// Runs `work` on a thread of its own, so that deep recursion cannot overflow the caller's stack.
fn on_large_stack<T: Send>(
    work: impl FnOnce() -> Result<T, TemplateError> + Send,
) -> Result<T, TemplateError> {
    let failed = |reason: String| TemplateError::Render { line: 0, reason };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(STACK_BYTES);
        let thread =
            thread.spawn_scoped(scope, work).map_err(|error| failed(format!("no thread: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(failed("the template engine panicked".to_owned())))
    })
}

/// Marks an error as raised by the template itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn reason(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

fn syntax_error(error: Error) -> TemplateError {
    TemplateError::Syntax { line: error.line().unwrap_or(0), reason: reason(&error) }
}

fn render_error(error: Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    let mut out_of_fuel = error.kind() == ErrorKind::OutOfFuel;
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return TemplateError::Raised(message.clone());
        }
        out_of_fuel |= inner.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel);
        cause = inner.source();
    }
    if out_of_fuel {
        return TemplateError::OutOfFuel;
    }
    TemplateError::Render { line: error.line().unwrap_or(0), reason: reason(&error) }
}

/// Writes `{% generation %}` blocks, which only matter in training, as blocks that do nothing but scope.
fn plain_generation_blocks(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        output.push_str(before);
        let inner = tag.trim_start_matches(['-', '+']).trim_start();
        let replaced = [("endgeneration", "endwith"), ("generation", "with")]
            .into_iter()
            .find(|(name, _)| inner.strip_prefix(name).is_some_and(|rest| closes(rest.trim_start())));
        rest = match replaced {
            Some((name, plain)) => {
                output.push_str(&tag[..tag.len() - inner.len()]);
                output.push_str(plain);
                &inner[name.len()..]
            }
            None => tag,
        };
    }
    output + rest
}

fn closes(text: &str) -> bool {
    text.trim_start_matches(['-', '+']).starts_with("%}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str) -> Result<String, TemplateError> {
        let now = DateTime::from_unix(1_773_065_107);
        let options = RenderOptions { now: Some(now), ..RenderOptions::default() };
        ChatTemplate::new(source, "<s>", "</s>")?
            .render(&json!([{"role": "user", "content": "hi"}]), &options)
    }

    #[test]
    fn generation_blocks_keep_their_content() {
        let source = "{%- generation -%}\n a {%+ endgeneration %}\nb{% if generation %}{% endif %}";
        assert_eq!(
            plain_generation_blocks(source),
            "{%- with -%}\n a {%+ endwith %}\nb{% if generation %}{% endif %}"
        );
        assert_eq!(render("{% generation %}x{% endgeneration %}").unwrap(), "x");
    }

    #[test]
    fn errors_say_what_happened() {
        assert_eq!(render("{{ raise_exception('No ' ~ 1) }}"), Err(TemplateError::Raised("No 1".into())));
        assert_eq!(
            render("{% macro m() %}{{ raise_exception('in') }}{% endmacro %}{{ m() }}"),
            Err(TemplateError::Raised("in".into()))
        );
        assert!(matches!(render("\n{% if %}"), Err(TemplateError::Syntax { line: 2, .. })));
        assert!(matches!(render("\n\n{{ a.b.c }}"), Err(TemplateError::Render { line: 3, .. })));
    }

    #[test]
    fn arguments_cannot_replace_messages() {
        let template = ChatTemplate::new("{{ messages }}{{ x }}", "", "").unwrap();
        let mut options = RenderOptions::default();
        options.kwargs.insert("x".into(), json!(1));
        assert_eq!(template.render(&json!([]), &options).unwrap(), "[]1");
        options.kwargs.insert("messages".into(), json!(["other"]));
        assert_eq!(template.render(&json!([]), &options), Err(TemplateError::Reserved("messages".into())));
    }

    #[test]
    fn prints_as_python_does() {
        for (source, expected) in [
            ("{{ [1, 'a', none, true, 1.0, {'k': [2.5]}] }}", "[1, 'a', None, True, 1.0, {'k': [2.5]}]"),
            ("{{ 'x' ~ none ~ true }}", "xNoneTrue"),
            ("{{ 7 // 2 }} {{ 7 / 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ 2 ** 3 }}", "3 3.5 -4 1 8"),
            ("{{ 'abcdef'[-3:] }}{{ [1, 2, 3][::-1] }}{{ 'abc'[:-1] }}", "def[3, 2, 1]ab"),
            ("{{ '%s-%d' | format('a', 3) }}{{ '%05.1f' | format(2.25) }}", "a-3002.2"),
            ("{{ \"it's\" }}{{ [\"it's\"] }}{{ ['a\\n'] }}", "it's[\"it's\"]['a\\n']"),
            (
                "{{ 'a' in 'abc' }}{{ 'k' in {'k': 1} }}{{ 1 is number }}{{ 'a' is string }}",
                "TrueTrueTrueTrue",
            ),
            ("{{ {'b': 1, 'a': 2}.items() | list }}", "[('b', 1), ('a', 2)]"),
            ("{{ ' a b '.strip().split(' ') }}", "['a', 'b']"),
            ("{{ 'a-b-c'.rsplit('-', 1) }}{{ 'a=b'.partition('=') }}", "['a-b', 'c']('a', '=', 'b')"),
            ("{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.y'.removesuffix('.y') }}", "xx"),
            ("{{ strftime_now('%d %b %Y %A %H:%M:%S %j %-d') }}", "09 Mar 2026 Monday 14:05:07 068 9"),
            ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
            (
                "{% set ns = namespace(x=0) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
                "3",
            ),
        ] {
            assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
        }
    }
}
