//! The Jinja engine, set up as transformers sets up Jinja2, within bounds.
//!
//! Fuel pays for instructions, for text and for items before they are made. Two things escape it, both with lists
//! that contain each other many times over (`[x, x]` of `[y, y]` of ...):
//!
//! - `==`, `in`, `sort` and `unique` look inside of values, which takes exponential time, though no memory. So
//!   rendering also has a deadline. A thread that misses it cannot be stopped; it is left behind, and while it is at
//!   work its template refuses everything, so that one template costs no more threads than render at once.
//! - `~` and filters other than `join`, `replace`, `string` and `tojson` print such a list before they pay for it.
//!   The deadline returns to the caller, but the thread that is left behind goes on to take memory.

use std::error::Error as _;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use serde_json::{Map, Value as Json};

use super::date::{DateTime, strftime};
use super::error::TemplateError;
use super::specials::{Reach, SpecialTexts};
use super::{json, methods, print};

/// Bounds the nesting of expressions, loops and macro calls, and with it the use of stack.
const RECURSION_MAX: usize = 200;

/// Templates in the wild are below 20 KB.
const SOURCE_BYTES_MAX: usize = 1 << 18;

/// Stack of the thread that compiles and renders; only what is used becomes memory. The engine recurses once
/// per operator of a chain when it compiles, and once per level of a nested list when it frees the list: a
/// source of the size above and fuel of [`RenderOptions::FUEL`] reach about 100,000 levels.
const STACK_BYTES: usize = 1 << 28;

/// What fits the 8 MiB that a main thread has, for systems that give no thread with the stack above
/// (`ulimit -u`, `ulimit -v`): the bytes of a source and the fuel of a render.
const SMALL_STACK_BYTES: usize = 1 << 23;
const SMALL_SOURCE_BYTES: usize = 1 << 13;
const SMALL_FUEL: u64 = 1 << 16;

const NAME: &str = "chat";

/// How long a render may take. Fuel ends ordinary work in well under a second.
const DEADLINE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });

/// What a caller hands to a template, all of it text that somebody typed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arguments {
    pub messages: Json,
    pub tools: Option<Json>,
    pub documents: Option<Json>,
    pub kwargs: Map<String, Json>,
}

impl Arguments {
    /// Calls `each` for every string and every key.
    pub(super) fn for_each_text<'t>(&'t self, each: &mut impl FnMut(&'t str)) {
        fn walk<'t>(value: &'t Json, each: &mut impl FnMut(&'t str)) {
            match value {
                Json::String(text) => each(text),
                Json::Array(items) => items.iter().for_each(|item| walk(item, each)),
                Json::Object(fields) => fields.iter().for_each(|(key, value)| {
                    each(key);
                    walk(value, each);
                }),
                Json::Null | Json::Bool(_) | Json::Number(_) => {}
            }
        }
        let values = [Some(&self.messages), self.tools.as_ref(), self.documents.as_ref()];
        values.into_iter().flatten().chain(self.kwargs.values()).for_each(|value| walk(value, each));
    }

    /// The same with marks in the special tokens.
    pub(super) fn marked(&self, specials: &SpecialTexts, mark: char, reach: Reach) -> Self {
        let json = |value: &Json| specials.mark_json(value, mark, reach);
        Self {
            messages: specials.mark_messages(&self.messages, mark, reach),
            tools: self.tools.as_ref().map(json),
            documents: self.documents.as_ref().map(json),
            kwargs: self.kwargs.iter().map(|(name, value)| (name.clone(), json(value))).collect(),
        }
    }
}

/// What else a render needs.
pub(super) struct Scalars {
    pub add_generation_prompt: bool,
    pub now: Option<DateTime>,
    pub fuel: u64,
    /// The special tokens, and the mark that stands in those that are text.
    pub guard: Option<(Arc<SpecialTexts>, char)>,
}

/// A compiled template.
pub(super) struct Engine {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    /// Threads that missed the deadline and are still at work.
    late: Arc<AtomicUsize>,
}

impl Engine {
    pub(super) fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            let reason =
                format!("the template has {} bytes, at most {SOURCE_BYTES_MAX} are allowed", source.len());
            return Err(TemplateError::Syntax { line: 0, reason });
        }
        let source = source.to_owned();
        let late = Arc::default();
        let environment = on_large_stack(&late, move |stack| match stack {
            Stack::Small(reason) if source.len() > SMALL_SOURCE_BYTES => Err(TemplateError::Thread(reason)),
            _ => compile(&source),
        })?;
        let (bos_token, eos_token) = (bos_token.to_owned(), eos_token.to_owned());
        Ok(Self { environment, bos_token, eos_token, late })
    }

    pub(super) fn render(&self, arguments: Arguments, scalars: Scalars) -> Result<String, TemplateError> {
        if self.late.load(Ordering::Acquire) > 0 {
            return Err(TemplateError::Late);
        }
        let environment = self.environment.clone();
        let (bos, eos) = (self.bos_token.clone(), self.eos_token.clone());
        on_large_stack(&self.late, move |stack| match stack {
            Stack::Small(reason) if scalars.fuel > SMALL_FUEL => {
                let scalars = Scalars { fuel: SMALL_FUEL, ..scalars };
                match render(environment, &bos, &eos, &arguments, scalars) {
                    Err(TemplateError::OutOfFuel) => Err(TemplateError::Thread(reason)),
                    rendered => rendered,
                }
            }
            _ => render(environment, &bos, &eos, &arguments, scalars),
        })
    }
}

fn render(
    mut environment: Environment<'static>,
    bos_token: &str,
    eos_token: &str,
    arguments: &Arguments,
    scalars: Scalars,
) -> Result<String, TemplateError> {
    let mut variables: Vec<(&str, Value)> = vec![
        ("messages", Value::from(Serde(&arguments.messages))),
        ("tools", Value::from(Serde(&arguments.tools))),
        ("documents", Value::from(Serde(&arguments.documents))),
        ("add_generation_prompt", scalars.add_generation_prompt.into()),
        ("bos_token", bos_token.into()),
        ("eos_token", eos_token.into()),
    ];
    if let Some(now) = scalars.now {
        variables.push(("strftime_now", Value::from_function(move |format: &str| strftime(now, format))));
    }
    for (name, value) in &arguments.kwargs {
        variables.push((name, Value::from(Serde(value))));
    }
    if let Some((specials, mark)) = scalars.guard {
        set_guard(&mut environment, specials, mark);
    }
    environment.set_fuel(Some(scalars.fuel));
    let template = environment.get_template(NAME).map_err(render_error)?;
    template.render(Value::from_pairs(variables)).map_err(render_error)
}

/// Replaces what would lose a mark or make a special token of the text around a removed one.
fn set_guard(environment: &mut Environment<'static>, specials: Arc<SpecialTexts>, mark: char) {
    environment.add_filter("tojson", move |state: &State, value: &Value, ascii: Option<bool>, kwargs| {
        json::tojson(state, value, ascii, kwargs, Some(mark))
    });
    let texts = specials.clone();
    environment.add_filter("replace", move |state: &State, text: &Value, old: &Value, new: &Value| {
        let [text, old, new] = [text, old, new].map(|value| print::text(state, value));
        methods::replace(state, &text?, &old?, &new?, None, Some((&texts, mark)))
    });
    environment.set_unknown_method_callback(move |state, value, method, args| {
        methods::call(state, value, method, args, Some((&specials, mark)))
    });
}

fn compile(source: &str) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(syntax_error)?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_unknown_method_callback(|state, value, method, args| {
        methods::call(state, value, method, args, None)
    });
    environment.set_formatter(print::formatter);
    environment.add_filter("tojson", |state: &State, value: &Value, ascii: Option<bool>, kwargs| {
        json::tojson(state, value, ascii, kwargs, None)
    });
    environment.add_filter("string", print::string);
    environment.add_filter("join", print::join);
    environment.add_test("iterable", print::is_iterable);
    environment.add_function("raise_exception", raise_exception);
    environment.remove_global("debug");
    environment.add_template_owned(NAME, plain_generation_blocks(source)).map_err(syntax_error)?;
    Ok(environment)
}

/// Where a template is compiled or rendered.
enum Stack {
    Large,
    /// The system gave no thread with a large stack, for this reason.
    Small(String),
}

/// Runs `work` on a thread of its own, so that deep recursion cannot overflow the caller's stack, and gives it
/// up at the deadline: it counts as `late` then until it ends. Where the system gives no thread at all, the caller's
/// own does the work, without a deadline.
fn on_large_stack<T: Send + 'static>(
    late: &Arc<AtomicUsize>,
    work: impl FnOnce(Stack) -> Result<T, TemplateError> + Send + 'static,
) -> Result<T, TemplateError> {
    let work = Arc::new(Mutex::new(Some(work)));
    let mut stack = Stack::Large;
    for bytes in [STACK_BYTES, SMALL_STACK_BYTES] {
        let (sender, receiver) = sync_channel(1);
        let (work, given) = (work.clone(), std::mem::replace(&mut stack, Stack::Large));
        let time = Time { late: late.clone(), state: Arc::default() };
        let ended = Ended(time.clone());
        let run = move || {
            // Dropped at the end, also where the work panics.
            let _ended = ended;
            // A receiver that has given up needs no answer.
            let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(work.map(|work| sender.send(work(given))));
        };
        let thread = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(bytes);
        match thread.spawn(run) {
            Ok(_) => return answer(&receiver, &time),
            Err(error) => stack = Stack::Small(error.to_string()),
        }
    }
    let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
    work.map_or_else(|| Err(panicked()), |work| work(stack))
}

/// Whether a thread is at work, given up or at its end, and the count of those that are given up and at work.
#[derive(Clone)]
struct Time {
    late: Arc<AtomicUsize>,
    state: Arc<AtomicU8>,
}

impl Time {
    const GIVEN_UP: u8 = 1;
    const ENDED: u8 = 2;

    /// Nobody waits any more.
    fn give_up(&self) {
        self.late.fetch_add(1, Ordering::AcqRel);
        if self.state.swap(Self::GIVEN_UP, Ordering::AcqRel) == Self::ENDED {
            self.late.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Tells when it is dropped that a thread has ended.
struct Ended(Time);

impl Drop for Ended {
    fn drop(&mut self) {
        if self.0.state.swap(Time::ENDED, Ordering::AcqRel) == Time::GIVEN_UP {
            self.0.late.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// What comes before the deadline.
fn answer<T>(receiver: &Receiver<Result<T, TemplateError>>, time: &Time) -> Result<T, TemplateError> {
    receiver.recv_timeout(DEADLINE).unwrap_or_else(|error| {
        Err(match error {
            RecvTimeoutError::Timeout => {
                time.give_up();
                TemplateError::Deadline(DEADLINE.as_secs())
            }
            RecvTimeoutError::Disconnected => panicked(),
        })
    })
}

fn panicked() -> TemplateError {
    TemplateError::Render { line: 0, reason: "the template engine panicked".to_owned() }
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

    #[test]
    fn work_that_fuel_does_not_count_ends_at_the_deadline_and_is_not_tried_beside_itself() {
        let source = "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}\
            {% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}";
        let engine = Engine::new(source, "", "").unwrap();
        let render = || {
            let arguments =
                Arguments { messages: Json::Null, tools: None, documents: None, kwargs: Map::new() };
            let scalars = Scalars { add_generation_prompt: true, now: None, fuel: 1_000_000, guard: None };
            engine.render(arguments, scalars)
        };
        let late = Err(TemplateError::Deadline(DEADLINE.as_secs()));
        assert_eq!(render(), late);
        let again = std::time::Instant::now();
        assert_eq!(render(), Err(TemplateError::Late));
        assert!(again.elapsed() < DEADLINE / 2);
    }

    #[test]
    fn a_late_thread_holds_nothing_up_once_it_has_ended() {
        let late = Arc::default();
        let work = |_: Stack| {
            std::thread::sleep(DEADLINE + Duration::from_millis(500));
            Ok(())
        };
        assert_eq!(on_large_stack(&late, work), Err(TemplateError::Deadline(DEADLINE.as_secs())));
        assert_eq!(late.load(Ordering::Acquire), 1);
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(late.load(Ordering::Acquire), 0);
        assert_eq!(on_large_stack(&late, |_| Ok(7)), Ok(7));
        assert_eq!(late.load(Ordering::Acquire), 0);
    }

    #[test]
    fn what_is_let_onto_a_small_stack_fits_there() {
        let chain = |link: &str, room: usize| link.repeat((SMALL_SOURCE_BYTES - room) / link.len());
        let lists =
            "{% set ns = namespace(a=[]) %}{% for i in range(90000) %}{% set ns.a = [ns.a] %}{% endfor %}";
        let sources = [
            format!("{{{{ 1{} }}}}", chain("+1", 16)),
            format!("{{{{ 1{} }}}}", chain("~1", 16)),
            format!("{{{{ x{} }}}}", chain(".x", 16)),
            format!("{{{{ x{} }}}}", chain("|e", 16)),
            format!("{{% if a %}}{}{{% endif %}}", chain("{%elif a%}", 32)),
            lists.to_owned(),
        ];
        for source in sources {
            let thread = std::thread::Builder::new().stack_size(SMALL_STACK_BYTES / 4 * 3);
            let run = move || {
                let arguments =
                    Arguments { messages: Json::Null, tools: None, documents: None, kwargs: Map::new() };
                let scalars =
                    Scalars { add_generation_prompt: true, now: None, fuel: SMALL_FUEL, guard: None };
                compile(&source).and_then(|environment| render(environment, "", "", &arguments, scalars))
            };
            // Whatever comes of it: an overflow would end the process.
            drop(thread.spawn(run).unwrap().join().unwrap());
        }
    }

    #[test]
    fn generation_blocks_become_scopes() {
        let source = "{%- generation -%}\n a {%+ endgeneration %}\nb{% if generation %}{% endif %}";
        assert_eq!(
            plain_generation_blocks(source),
            "{%- with -%}\n a {%+ endwith %}\nb{% if generation %}{% endif %}"
        );
    }
}
