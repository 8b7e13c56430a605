//! A conversation at a terminal.

mod command;
pub mod conversation;
mod input;

use std::io::Write;
use std::path::Path;

use unicorn_engine::{AdmissionError, Request};

use crate::args::RunArgs;
use crate::commands::run::no_template;
use crate::config::Config;
use crate::exit::{Exit, describe};
use crate::generate::{Answer, figures, generate};
use crate::interrupt::Catch;
use crate::output::{Out, say};
use crate::prompt::{self, Tokens};
use crate::session::Session;
use crate::settings::{self, AnswerArgs, fresh_seed};
use crate::units;
use command::{Command, Entry, HELP};
pub use conversation::Conversation;
use input::{LineReader, Typed};

/// Everything that lives as long as the chat.
struct Chat<'a> {
    session: Session,
    conversation: Conversation,
    answer_args: AnswerArgs,
    /// Continue each message as it is: asked for, or no template.
    raw: bool,
    raw_asked: bool,
    config: &'a Config,
    last: Option<Answer>,
    totals: Totals,
}

#[derive(Default)]
struct Totals {
    answers: usize,
    tokens: usize,
    seconds: f64,
}

/// Whether the chat goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Prompt,
    Leave,
}

/// Chats until the person leaves.
pub fn run(session: Session, args: &RunArgs, config: &Config) -> anyhow::Result<Exit> {
    let mut reader = LineReader::new(input::history_path(config.state_dir.as_deref()), config.style)?;
    let raw = args.raw || session.text.template()?.is_none();
    let conversation = Conversation::new(args.system.as_deref().or(session.text.recommended.system));
    let mut chat = Chat {
        raw,
        raw_asked: args.raw,
        session,
        conversation,
        answer_args: args.answer.clone(),
        config,
        last: None,
        totals: Totals::default(),
    };
    chat.greet(args);
    let mut warned = false;
    loop {
        match reader.read()? {
            Typed::End => return Ok(Exit::Done),
            Typed::Interrupted => {
                if !warned {
                    say!("{}", config.style.dim("Ctrl-D or /bye leaves"));
                }
                warned = true;
            }
            Typed::Line(line) => {
                if chat.handle(&line)? == Next::Leave {
                    return Ok(Exit::Done);
                }
            }
        }
    }
}

impl Chat<'_> {
    fn greet(&self, args: &RunArgs) {
        if !self.config.talks() {
            return;
        }
        let name = &self.session.engine.spec().name;
        let device = self.session.engine.devices().first().map_or("", |d| d.profile().name.as_str());
        self.note(&format!("{name} on {device}; /help lists the commands, Ctrl-D leaves"));
        if self.raw && !self.raw_asked {
            self.note(no_template(args.system.is_some()));
        }
    }

    fn note(&self, text: &str) {
        say!("{}", self.config.style.dim(text));
    }

    fn handle(&mut self, line: &str) -> anyhow::Result<Next> {
        match command::parse(line) {
            Entry::Empty => {}
            Entry::Mistake(why) => say!("{why}"),
            Entry::Message(text) => self.ask(text)?,
            Entry::Command(Command::Bye) => return Ok(Next::Leave),
            Entry::Command(command) => self.obey(command)?,
        }
        Ok(Next::Prompt)
    }

    fn obey(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Help => say!("{}", help()),
            Command::Clear => {
                self.conversation.clear();
                self.note("the conversation is forgotten");
            }
            Command::System(None) => match self.conversation.system() {
                Some(text) => say!("{text}"),
                None => self.note("no system prompt"),
            },
            Command::System(Some(text)) => {
                self.conversation.set_system(Some(&text));
                self.note(match self.templated()? {
                    true => "the system prompt is set; it counts from the next answer on",
                    false => "kept, but not used: messages go to this model as they are, one by one",
                });
            }
            Command::Set(None) => self.show_settings(),
            Command::Set(Some((name, value))) => {
                if let Err(why) = settings::set(&mut self.answer_args, &name, &value) {
                    say!("{why}");
                }
            }
            Command::Retry => match self.conversation.undo() {
                Some(question) => self.ask(question)?,
                None => self.note("there is no question yet"),
            },
            Command::Undo => match self.conversation.undo() {
                Some(question) => self.note(&format!("taken back: {question}")),
                None => self.note("there is nothing to take back"),
            },
            Command::Stats => self.show_stats(),
            Command::Save(file) => self.report(self.conversation.save(Path::new(&file)), "saved"),
            Command::Load(file) => match Conversation::load(Path::new(&file)) {
                Ok(loaded) => {
                    self.note(&format!("{} questions loaded", loaded.turns()));
                    self.conversation = loaded;
                }
                Err(error) => say!("{}", describe(&error)),
            },
            Command::Bye => {}
        }
        Ok(())
    }

    fn report(&self, result: anyhow::Result<()>, done: &str) {
        match result {
            Ok(()) => self.note(done),
            Err(error) => say!("{}", describe(&error)),
        }
    }

    fn show_settings(&self) {
        let settings = settings::resolve(&self.answer_args, &self.session.text.recommended, 0);
        for (name, value) in settings.list(self.answer_args.sampling.seed.is_some()) {
            say!("{name:<18} {value}");
        }
    }

    fn show_stats(&self) {
        let engine = &self.session.engine;
        if let Some(answer) = &self.last {
            say!("last answer   {}", figures(answer));
            let t = &answer.timings;
            // The last token written has not been fed.
            let used = (t.prompt_tokens + t.generated_tokens).min(engine.options().context);
            say!("context       {used} of {} tokens", engine.options().context);
        }
        let t = &self.totals;
        say!("all answers   {}, {} tokens in {}", t.answers, t.tokens, units::seconds(t.seconds));
        for device in engine.report().devices {
            let m = device.memory;
            let (weights, kv, scratch) =
                (units::bytes(m.weights), units::bytes(m.kv), units::bytes(m.scratch));
            say!("{:<13} weights {weights}, KV cache {kv}, scratch {scratch}", device.name);
        }
    }

    fn ask(&mut self, question: String) -> anyhow::Result<()> {
        self.conversation.ask(question);
        match self.answer() {
            Ok(answer) => {
                self.totals.answers += 1;
                self.totals.tokens += answer.timings.generated_tokens;
                self.totals.seconds += answer.timings.prefill_seconds + answer.timings.decode_seconds;
                self.conversation.answer(answer.text.clone());
                self.last = Some(answer);
                Ok(())
            }
            // What one question asked too much of says nothing about the next.
            Err(error) if is_about_the_request(&error) => {
                self.conversation.undo();
                say!("{}; /clear, /undo or a larger --ctx make room", describe(&error));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn answer(&mut self) -> anyhow::Result<Answer> {
        let settings = settings::resolve(&self.answer_args, &self.session.text.recommended, fresh_seed());
        let request = Request {
            prompt: self.tokens()?,
            max_tokens: settings.max_tokens,
            sampling: settings.sampling,
            stop_tokens: self.session.text.stop_tokens.clone(),
            keep: true,
            ..Request::default()
        };
        let detokenizer = self.session.text.tokenizer.detokenizer_after(request.prompt.last().copied(), true);
        let mut out = Out::stdout();
        let catch = Catch::new();
        let answer =
            generate(&mut self.session.engine, detokenizer, request, &catch, |piece| out.emit(piece))?;
        out.emit(if answer.text.ends_with('\n') { "" } else { "\n" })?;
        out.flush()?;
        if self.config.talks() {
            self.note(&figures(&answer));
        }
        Ok(answer)
    }

    /// Whether messages go to the model as a conversation.
    fn templated(&self) -> anyhow::Result<bool> {
        Ok(!self.raw && self.session.text.template()?.is_some())
    }

    fn tokens(&self) -> anyhow::Result<Tokens> {
        let text = &self.session.text;
        if !self.raw
            && let Some(prompt) = prompt::chat(text, &self.conversation)?
        {
            prompt.tell(self.config);
            return Ok(prompt.tokens);
        }
        let last = self.conversation.messages().last();
        prompt::raw(text, last.map_or("", |m| m.content.as_str()), self.raw_asked)
    }
}

fn is_about_the_request(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(AdmissionError::PromptTooLong { .. } | AdmissionError::Option(_)))
}

fn help() -> String {
    let line = |(name, arguments, what): &(&str, &str, &str)| {
        format!("{:<20} {what}", format!("{name} {arguments}"))
    };
    HELP.iter().map(line).collect::<Vec<_>>().join("\n")
}
