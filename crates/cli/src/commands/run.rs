//! `unicorn run`.

use std::io::{IsTerminal, Write};

use unicorn_engine::{FinishReason, Request};

use crate::args::RunArgs;
use crate::chat::{self, Conversation};
use crate::config::Config;
use crate::exit::{Exit, usage};
use crate::generate::{figures, generate};
use crate::interrupt::Catch;
use crate::output::{Out, say};
use crate::prompt::{self, Tokens};
use crate::session::{ContextChoice, EngineChoice, Session};
use crate::settings::{fresh_seed, resolve};
use crate::stdin;

/// Context where nobody asks for another: enough for a chat, and a KV cache that small machines hold.
const CONTEXT_MAX: usize = 8192;

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Input {
    /// One answer to this.
    Prompt(String),
    /// A conversation.
    Chat,
}

/// Answers a prompt, or chats.
pub fn run(args: &RunArgs, config: &Config) -> anyhow::Result<Exit> {
    let piped = if stdin::is_terminal() { None } else { Some(stdin::read_to_end()?) };
    let input = input(args.prompt.as_deref(), piped)?;
    if input == Input::Chat && !std::io::stdout().is_terminal() {
        return Err(usage(
            "a chat writes to the terminal: give PROMPT, or text on stdin, to write an answer elsewhere",
        ));
    }
    let choice = EngineChoice {
        device: &args.device,
        kv: args.kv.kv,
        context: args.ctx.map_or(ContextChoice::AtMost(CONTEXT_MAX), ContextChoice::Exactly),
    };
    let session = Session::open(config.model(&args.model), &choice, config)?;
    match input {
        Input::Prompt(prompt) => answer(session, args, &prompt, config),
        Input::Chat => chat::run(session, args, config),
    }
}

/// The prompt, with what was piped in after it; a chat where there is neither.
fn input(prompt: Option<&str>, piped: Option<String>) -> anyhow::Result<Input> {
    let piped_text = piped.as_deref().filter(|text| !text.trim().is_empty());
    match (prompt.filter(|p| !p.is_empty()), piped_text) {
        (Some(prompt), None) => Ok(Input::Prompt(prompt.to_owned())),
        (None, Some(text)) => Ok(Input::Prompt(text.to_owned())),
        (Some(prompt), Some(text)) => Ok(Input::Prompt(format!("{prompt}\n\n{text}"))),
        (None, None) if prompt.is_some() || piped.is_some() => Err(usage(
            "the prompt is empty: give PROMPT, or text on stdin; for a chat, stdin must be a terminal",
        )),
        (None, None) => Ok(Input::Chat),
    }
}

fn answer(mut session: Session, args: &RunArgs, text: &str, config: &Config) -> anyhow::Result<Exit> {
    let settings = resolve(&args.answer, &session.text.recommended, fresh_seed());
    if config.explains() {
        let listed = settings.list(true);
        say!(
            "{}",
            listed.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
        );
    }
    let tokens = tokens(&session, args, text, config)?;
    let request = Request {
        prompt: tokens,
        max_tokens: settings.max_tokens,
        sampling: settings.sampling,
        stop_tokens: session.text.stop_tokens.clone(),
        ..Request::default()
    };
    let detokenizer = session.text.tokenizer.detokenizer_after(request.prompt.last().copied(), true);
    let mut out = Out::stdout();
    let catch = Catch::new();
    let answer = generate(&mut session.engine, detokenizer, request, &catch, |piece| out.emit(piece))?;
    if !answer.text.ends_with('\n') {
        out.emit("\n")?;
    }
    out.flush()?;
    if config.talks() {
        // On a terminal the figures would run into the answer.
        if std::io::stdout().is_terminal() && std::io::stderr().is_terminal() {
            say!("");
        }
        say!("{}", config.style.dim(&figures(&answer)));
    }
    Ok(if answer.reason == FinishReason::Cancelled { Exit::Interrupted } else { Exit::Done })
}

fn tokens(session: &Session, args: &RunArgs, text: &str, config: &Config) -> anyhow::Result<Tokens> {
    if args.raw {
        return prompt::raw(&session.text, text, true);
    }
    let mut conversation = Conversation::new(args.system.as_deref().or(session.text.recommended.system));
    conversation.ask(text.to_owned());
    if let Some(prompt) = prompt::chat(&session.text, &conversation)? {
        prompt.tell(config);
        return Ok(prompt.tokens);
    }
    if config.talks() {
        say!("{}", no_template(args.system.is_some()));
    }
    prompt::raw(&session.text, text, false)
}

/// What is said about a model that only continues text.
pub fn no_template(system: bool) -> &'static str {
    if system {
        "this model has no chat template: the prompt is continued as it is, and --system is not used"
    } else {
        "this model has no chat template: the prompt is continued as it is"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::of_error;

    #[test]
    fn prompts_and_stdin_combine() {
        let prompt = |text: &str| Input::Prompt(text.into());
        assert_eq!(input(Some("a"), None).unwrap(), prompt("a"));
        assert_eq!(input(None, Some("b\n".into())).unwrap(), prompt("b\n"));
        assert_eq!(input(Some("a"), Some("b".into())).unwrap(), prompt("a\n\nb"));
        assert_eq!(input(Some("a"), Some("\n".into())).unwrap(), prompt("a"));
        assert_eq!(input(None, None).unwrap(), Input::Chat);
    }

    #[test]
    fn nothing_to_answer_is_a_usage_error() {
        for error in [input(None, Some(" \n".into())), input(Some(""), None)] {
            assert_eq!(of_error(&error.unwrap_err()), Exit::Usage);
        }
    }
}
