//! `unicorn run`.

use std::io::Write;
use std::time::{Duration, Instant};

use unicorn_engine::{FinishReason, Request};

use crate::args::RunArgs;
use crate::chat;
use crate::chats::{self, Begun};
use crate::config::Config;
use crate::conversation::Conversation;
use crate::exit::{self, Exit, usage};
use crate::generate::{figures, generate};
use crate::interrupt::Catch;
use crate::model_name::{is_missing_file, is_model};
use crate::output::{Out, say, say_styled};
use crate::planner::Load;
use crate::prompt::{self, Tokens};
use crate::session::{self, ContextChoice, EngineChoice, Session, no_template, read_template};
use crate::settings::{DraftChoice, fresh_seed, resolve};
use crate::stdin::{self, Piped};
use crate::term;
use crate::trace::Trace;

/// Context where nobody asks for another: enough for a chat, and a KV cache that small machines hold.
const CONTEXT_MAX: usize = 8192;
/// Least time that a silent pipe is given when there is a prompt already.
const STDIN_WAIT: Duration = Duration::from_secs(3);

/// What was typed after `run`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Asked<'a> {
    prompt: Option<&'a str>,
    /// The model that was named in the prompt's place.
    model: Option<&'a str>,
}

/// What there is to answer before stdin is known.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Input {
    /// One answer to this.
    Prompt(String),
    /// One answer to this, which came through a pipe, or part of it.
    Piped(String),
    /// One answer to this and to what a pipe may send yet.
    Waiting(String),
    /// A conversation.
    Chat,
}

/// Answers a prompt, or chats.
pub fn run(args: &RunArgs, config: &Config) -> anyhow::Result<Exit> {
    let start = Instant::now();
    let template = args.chat_template.as_deref().map(read_template).transpose()?;
    let asked = asked(args, |text| is_model(text, &config.hub))?;
    if let Some(model) = asked.model.filter(|_| config.talks()) {
        say!("{model} is taken as the model, as with -m; with a space before it, it is a prompt");
    }
    let input = input(asked.prompt, args, config)?;
    if input == Input::Chat && !term::stdout_is_terminal() {
        return Err(usage(
            "a chat writes to the terminal: give PROMPT, or text on stdin, to write an answer elsewhere",
        ));
    }
    if input == Input::Chat && args.place.trace.is_some() {
        return Err(usage("--trace writes the trace of one answer: give PROMPT"));
    }
    let choice = EngineChoice {
        canary: None,
        kv_tokens: None,
        queue: 0,
        kept: None,
        rows: 0,
        disk_bytes: Some(args.disk.bytes()),
        device: &args.device,
        place: &args.place.of(&args.device),
        kv: args.kv.kv,
        context: args.ctx.unwrap_or(ContextChoice::AtMost(CONTEXT_MAX)),
        memory: args.memory.memory_max.as_ref(),
        scores: false,
        drafts: args.answer.draft.is_some(),
        load: Load::default(),
    };
    let model = asked.model.unwrap_or_else(|| config.model(&args.model));
    let mut session = Session::open(model, &choice, config)?;
    if let (Some(file), Some(source)) = (&args.chat_template, template) {
        session::set_template(&mut session.text, file, &source)?;
    }
    match input {
        Input::Prompt(prompt) => answer(session, args, &prompt, false, config),
        Input::Piped(prompt) => answer(session, args, &prompt, true, config),
        Input::Waiting(prompt) => answer_after_waiting(session, args, prompt, start + STDIN_WAIT, config),
        Input::Chat => chat::run(session, args, config),
    }
}

/// Tells a model's name from a prompt. Other tools take `run MODEL [PROMPT]`, so a name alone, or before the prompt, is one.
fn asked(args: &RunArgs, is_model: impl Fn(&str) -> bool) -> anyhow::Result<Asked<'_>> {
    let (first, second) = (args.prompt.as_deref(), args.second.as_deref());
    let Some(word) = first.filter(|_| args.model.model.is_none()) else {
        return match second {
            Some(second) => Err(usage(format!("unexpected argument `{second}`: put the prompt in quotes"))),
            None => Ok(Asked { prompt: first, model: None }),
        };
    };
    if is_model(word) {
        return Ok(Asked { prompt: second, model: Some(word) });
    }
    if let Some(second) = second {
        return Err(usage(format!(
            "unexpected argument `{second}`: put the prompt in quotes (`{word}` is no model that is known or on this machine)"
        )));
    }
    if is_missing_file(word) {
        return Err(usage(format!(
            "{word}: no such model file; -m MODEL names a model, a space before it makes it a prompt"
        )));
    }
    Ok(Asked { prompt: Some(word), model: None })
}

/// The prompt with what is on stdin; a chat where there is neither and a person can be asked.
fn input(prompt: Option<&str>, args: &RunArgs, config: &Config) -> anyhow::Result<Input> {
    let prompt = prompt.filter(|prompt| *prompt != "-");
    let from_stdin = args.prompt.as_deref() == Some("-") || args.second.as_deref() == Some("-");
    if args.no_stdin || (term::stdin_is_terminal() && !from_stdin) {
        return combine(prompt, None, term::stdin_is_terminal(), config);
    }
    match prompt {
        Some(prompt) if !prompt.is_empty() && !args.stdin && !stdin::is_ready_by(Instant::now()) => {
            Ok(Input::Waiting(prompt.to_owned()))
        }
        _ => combine(prompt, Some(stdin::read()?), false, config),
    }
}

/// The prompt, with what was piped in after it. A person gets a chat where there is neither.
fn combine(
    prompt: Option<&str>,
    piped: Option<Piped>,
    person: bool,
    config: &Config,
) -> anyhow::Result<Input> {
    let piped = piped.filter(|piped| !piped.text.trim().is_empty());
    match (prompt.filter(|p| !p.is_empty()), piped) {
        (Some(prompt), None) => Ok(Input::Prompt(prompt.to_owned())),
        (None, Some(piped)) => Ok(Input::Piped(piped.text)),
        (Some(prompt), Some(piped)) => {
            if config.talks() {
                say!(
                    "{} bytes from stdin appended to the prompt; --no-stdin leaves stdin alone",
                    piped.bytes
                );
            }
            Ok(Input::Piped(format!("{prompt}\n\n{}", piped.text)))
        }
        (None, None) if person && prompt.is_none() => Ok(Input::Chat),
        (None, None) => Err(usage(
            "the prompt is empty: give PROMPT, or text on stdin; for a chat, stdin must be a terminal",
        )),
    }
}

/// Gives a silent pipe until `deadline`. What it sends later is lost to this answer, which is a failure.
fn answer_after_waiting(
    session: Session,
    args: &RunArgs,
    prompt: String,
    deadline: Instant,
    config: &Config,
) -> anyhow::Result<Exit> {
    if stdin::is_ready_by(deadline) {
        return match combine(Some(&prompt), Some(stdin::read()?), false, config)? {
            Input::Piped(prompt) => answer(session, args, &prompt, true, config),
            _ => answer(session, args, &prompt, false, config),
        };
    }
    if config.talks() {
        let seconds = STDIN_WAIT.as_secs();
        say!(
            "nothing came on stdin for {seconds} s: going on without (--stdin waits for it, --no-stdin never looks)"
        );
    }
    let exit = answer(session, args, &prompt, false, config)?;
    if stdin::has_unread() {
        anyhow::bail!(
            "text came on stdin after the wait for it: the answer leaves it out. --stdin waits for it, --no-stdin leaves it to others"
        );
    }
    Ok(exit)
}

fn answer(
    mut session: Session,
    args: &RunArgs,
    text: &str,
    piped: bool,
    config: &Config,
) -> anyhow::Result<Exit> {
    let Begun { mut chats, mut conversation, reminder } = chats::begin(&session, args, piped, config)?;
    if let Some(reminder) = reminder.filter(|_| config.talks()) {
        say_styled(&config.style.dim(&reminder));
    }
    conversation.ask(text.to_owned());
    let settings = resolve(&args.answer, &session.text.recommended, fresh_seed());
    if config.explains() {
        let listed = settings.list(true);
        say!(
            "{}",
            listed.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
        );
    }
    let tokens = tokens(&session, args, &conversation, config)?;
    let request = Request {
        prompt: tokens,
        max_tokens: settings.max_tokens,
        sampling: settings.sampling,
        stop_tokens: session.text.stop_tokens.clone(),
        // What came through a pipe is rarely asked again.
        keep: session.kept.is_some() && (!piped || args.go_on || args.disk.kv_disk.is_some()),
        ..Request::default()
    };
    let detokenizer = session.text.tokenizer.detokenizer_after(request.prompt.last().copied(), true);
    let mut out = Out::exact();
    let catch = Catch::new();
    let trace = Trace::start(&mut session.engine, args.place.trace.as_deref(), config)?;
    let drafter = args.answer.draft.map(DraftChoice::drafter);
    let answer =
        generate(&mut session.engine, detokenizer, request, drafter, &catch, |piece| out.emit(piece))?;
    if !answer.text.ends_with('\n') {
        out.emit("\n")?;
    }
    out.flush()?;
    trace.finish(&mut session.engine)?;
    conversation.answer(answer.text.clone());
    if let Some(Err(error)) = chats.as_mut().map(|chats| chats.keep(&conversation)) {
        exit::show(&error, config.style);
    }
    if config.talks() {
        // On a terminal the figures would run into the answer.
        if term::stdout_is_terminal() && term::stderr_is_terminal() {
            say!("");
        }
        say_styled(&config.style.dim(&figures(&answer)));
    }
    if let Some(grader) = &session.grader {
        let engine = &session.engine;
        grader.tell(engine.spec(), engine.options(), &answer.timings, config)?;
    }
    // From here on Ctrl-C ends the program at once.
    drop(catch);
    session.end();
    Ok(if answer.reason == FinishReason::Cancelled { Exit::Interrupted } else { Exit::Done })
}

fn tokens(
    session: &Session,
    args: &RunArgs,
    conversation: &Conversation,
    config: &Config,
) -> anyhow::Result<Tokens> {
    let text = conversation.last_question().unwrap_or_default();
    if args.raw {
        return prompt::raw(&session.text, text, true);
    }
    if let Some(prompt) = prompt::chat(&session.text, conversation)? {
        prompt.tell(config);
        return Ok(prompt.tokens);
    }
    if config.talks() {
        say!("{}", no_template(args.system.is_some()));
    }
    prompt::raw(&session.text, text, false)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command, GlobalArgs};
    use crate::exit::of_error;

    fn combined(prompt: Option<&str>, piped: Option<&str>, person: bool) -> anyhow::Result<Input> {
        let config = Config::from_environment(&GlobalArgs { verbose: false, quiet: true });
        let piped = piped.map(|text| Piped { text: text.into(), bytes: text.len() });
        combine(prompt, piped, person, &config)
    }

    #[test]
    fn prompts_and_stdin_combine() {
        let prompt = |text: &str| Input::Prompt(text.into());
        let through_a_pipe = |text: &str| Input::Piped(text.into());
        assert_eq!(combined(Some("a"), None, true).unwrap(), prompt("a"));
        assert_eq!(combined(None, Some("b\n"), false).unwrap(), through_a_pipe("b\n"));
        assert_eq!(combined(Some("a"), Some("b"), false).unwrap(), through_a_pipe("a\n\nb"));
        assert_eq!(combined(Some("a"), Some("\n"), false).unwrap(), prompt("a"));
        assert_eq!(combined(None, None, true).unwrap(), Input::Chat);
    }

    #[test]
    fn nothing_to_answer_is_a_usage_error() {
        let nothing =
            [combined(None, Some(" \n"), false), combined(Some(""), None, true), combined(None, None, false)];
        for error in nothing {
            assert_eq!(of_error(&error.unwrap_err()), Exit::Usage);
        }
    }

    #[test]
    fn a_models_name_alone_or_first_names_the_model() {
        let of = |words: &[&str]| -> anyhow::Result<(Option<String>, Option<String>)> {
            let cli = Cli::try_parse_from([&["unicorn", "run"], words].concat())?;
            let Command::Run(args) = &cli.command else { panic!("{words:?}") };
            let asked = asked(args, |text| text == "m")?;
            Ok((asked.model.map(Into::into), asked.prompt.map(Into::into)))
        };
        let (m, p) = (Some("m".to_owned()), Some("p".to_owned()));
        assert_eq!(of(&["m"]).unwrap(), (m.clone(), None));
        assert_eq!(of(&["m", "p"]).unwrap(), (m.clone(), p.clone()));
        assert_eq!(of(&["p"]).unwrap(), (None, p));
        assert_eq!(of(&["-m", "x", "m"]).unwrap(), (None, m));
        assert_eq!(of(&["m p"]).unwrap(), (None, Some("m p".into())));
        for line in [&["p", "q"][..], &["-m", "x", "m", "p"], &["missing.gguf"]] {
            assert_eq!(of_error(&of(line).unwrap_err()), Exit::Usage, "{line:?}");
        }
    }
}
