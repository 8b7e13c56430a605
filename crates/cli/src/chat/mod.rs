//! A conversation at a terminal.

mod command;
mod input;

use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use unicorn_engine::{AdmissionError, Request};
use unicorn_text::TemplateError;

use crate::args::RunArgs;
use crate::chats::{self, Begun, Chats};
use crate::clean::one_line;
use crate::config::Config;
use crate::conversation::Conversation;
use crate::exit::{self, Exit};
use crate::generate::{Answer, figures, generate, is_stopped};
use crate::interrupt::Catch;
use crate::output::{Out, say, say_styled};
use crate::prompt::{self, Tokens};
use crate::session::{Session, no_template};
use crate::settings::{self, AnswerArgs, DraftChoice, fresh_seed};
use crate::units;
use command::{Command, Entry, HELP};
use input::{LineReader, Typed};

/// Presses of Ctrl-C that do not end the process while an answer is written: the first stops the answer, and who presses once more
/// in haste keeps the conversation.
const PRESSES_WHILE_ANSWERING: u32 = 2;
/// The same at the prompt, where the terminal hands Ctrl-C over as a key: only what was pressed just before counts here.
const PRESSES_AT_PROMPT: u32 = 1;

/// Everything that lives as long as the chat.
struct Chat<'a> {
    session: Session,
    conversation: Conversation,
    /// Where it is kept for another day.
    chats: Option<Chats>,
    answer_args: AnswerArgs,
    /// Continue each message as it is: asked for, or no template.
    raw: bool,
    raw_asked: bool,
    config: &'a Config,
    catch: Catch,
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
    let Begun { chats, conversation, reminder } = chats::begin(&session, args, false, config)?;
    let mut chat = Chat {
        raw,
        chats,
        raw_asked: args.raw,
        session,
        conversation,
        answer_args: args.answer.clone(),
        config,
        catch: Catch::new(),
        last: None,
        totals: Totals::default(),
    };
    chat.greet(args);
    if let Some(reminder) = reminder.filter(|_| config.talks()) {
        chat.note(&reminder);
    }
    let exit = chat.talk(&mut reader)?;
    let Chat { session, catch, .. } = chat;
    // From here on Ctrl-C ends the program at once.
    drop(catch);
    session.end();
    Ok(exit)
}

impl Chat<'_> {
    /// Reads and answers until the person leaves.
    fn talk(&mut self, reader: &mut LineReader) -> anyhow::Result<Exit> {
        let mut warned = false;
        loop {
            self.catch.forgive(PRESSES_AT_PROMPT);
            let typed = reader.read()?;
            let interrupted = matches!(typed, Typed::Interrupted);
            match typed {
                Typed::End => return Ok(Exit::Done),
                Typed::Interrupted if warned => return Ok(Exit::Done),
                Typed::Interrupted => self.note("press Ctrl-C again, or Ctrl-D, to leave"),
                Typed::Dropped => {}
                Typed::Unreadable => say!("what was typed is not UTF-8 text"),
                Typed::Line(line) => {
                    if self.handle(&line)? == Next::Leave {
                        return Ok(Exit::Done);
                    }
                }
            }
            warned = interrupted;
        }
    }

    fn greet(&self, args: &RunArgs) {
        if !self.config.talks() {
            return;
        }
        let name = one_line(&self.session.engine.spec().name);
        let device = self.session.engine.devices().first().map_or("", |d| d.profile().name.as_str());
        self.note(&format!("{name} on {device}; /help lists the commands, exit or Ctrl-D leaves"));
        if self.raw && !self.raw_asked {
            self.note(no_template(args.system.is_some()));
        }
    }

    fn note(&self, text: &str) {
        say_styled(&self.config.style.dim(text));
    }

    /// Does what was typed. Errors only where the chat cannot go on.
    fn handle(&mut self, line: &str) -> anyhow::Result<Next> {
        match command::parse(line) {
            Entry::Empty => {}
            Entry::Mistake(why) => say!("{why}"),
            Entry::Message(text) => self.ask(self.conversation.clone(), text)?,
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
                self.begin_anew();
                self.note("the conversation is forgotten");
            }
            Command::System(None) => match self.conversation.system() {
                Some(text) => say!("{text}"),
                None => self.note("no system prompt"),
            },
            Command::System(Some(text)) => {
                self.conversation.set_system(Some(&text));
                self.note(match self.raw {
                    _ if text.is_empty() => "there is no system prompt any more",
                    false => "the system prompt is set; it counts from the next answer on",
                    true => "kept, but not used: messages go to this model as they are, one by one",
                });
            }
            Command::Set(None) => self.show_settings(),
            Command::Set(Some((name, value))) => {
                if let Err(why) = settings::set(&mut self.answer_args, &name, &value) {
                    say!("{why}");
                }
            }
            Command::Retry => {
                let mut before = self.conversation.clone();
                match before.undo() {
                    Some(question) => self.ask(before, question)?,
                    None => self.note("there is no question yet"),
                }
            }
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
                    self.begin_anew();
                }
                Err(error) => exit::show(&error, self.config.style),
            },
            Command::Bye => {}
        }
        Ok(())
    }

    /// Keeps the chat for another day. Where that fails it is said once.
    fn keep(&mut self) {
        if let Some(chats) = &mut self.chats
            && let Err(error) = chats.keep(&self.conversation)
        {
            exit::show(&error, self.config.style);
            self.chats = None;
        }
    }

    /// The conversation is another one from here on; what it was stays kept.
    fn begin_anew(&mut self) {
        self.conversation.begin_at(SystemTime::now());
        if let Some(chats) = &mut self.chats {
            chats.begin_anew();
        }
    }

    fn report(&self, result: anyhow::Result<()>, done: &str) {
        match result {
            Ok(()) => self.note(done),
            Err(error) => exit::show(&error, self.config.style),
        }
    }

    fn show_settings(&self) {
        let settings = settings::resolve(&self.answer_args, &self.session.text.recommended, 0);
        for (name, value) in settings.list(self.answer_args.has_seed()) {
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

    /// Answers `question` after `before`. The conversation changes only once there is an answer: whatever goes wrong with a
    /// question, the chat goes on as if it had not been asked. Errors only where no question can be answered any more.
    fn ask(&mut self, mut before: Conversation, question: String) -> anyhow::Result<()> {
        before.ask(question);
        match self.answer(&before) {
            Ok(answer) => {
                self.totals.answers += 1;
                self.totals.tokens += answer.timings.generated_tokens;
                self.totals.seconds += answer.timings.prefill_seconds + answer.timings.decode_seconds;
                before.answer(answer.text.clone());
                self.conversation = before;
                self.last = Some(answer);
                self.keep();
                self.session.save();
                Ok(())
            }
            Err(error) if exit::is_output_lost(&error) || is_stopped(&mut self.session.engine) => Err(error),
            Err(error) => {
                exit::show(&error, self.config.style);
                self.note(advice(&error, before.system().is_some()));
                Ok(())
            }
        }
    }

    fn answer(&mut self, conversation: &Conversation) -> anyhow::Result<Answer> {
        let settings = settings::resolve(&self.answer_args, &self.session.text.recommended, fresh_seed());
        let request = Request {
            prompt: self.tokens(conversation)?,
            max_tokens: settings.max_tokens,
            sampling: settings.sampling,
            stop_tokens: self.session.text.stop_tokens.clone(),
            keep: true,
            ..Request::default()
        };
        let detokenizer = self.session.text.tokenizer.detokenizer_after(request.prompt.last().copied(), true);
        let mut out = Out::exact();
        let mut line_is_open = false;
        self.catch.forgive(PRESSES_WHILE_ANSWERING);
        let drafter = self.answer_args.draft.map(DraftChoice::drafter);
        let answer =
            generate(&mut self.session.engine, detokenizer, request, drafter, &self.catch, |piece| {
                line_is_open = !piece.ends_with('\n');
                out.emit(piece)
            });
        // What is said next begins a line, be it figures, an error or the prompt.
        if line_is_open || answer.as_ref().is_ok_and(|answer| answer.text.is_empty()) {
            out.emit("\n")?;
        }
        out.flush()?;
        let answer = answer?;
        if self.config.talks() {
            self.note(&figures(&answer));
        }
        Ok(answer)
    }

    fn tokens(&self, conversation: &Conversation) -> anyhow::Result<Tokens> {
        let text = &self.session.text;
        if !self.raw
            && let Some(prompt) = prompt::chat(text, conversation)?
        {
            prompt.tell(self.config);
            return Ok(prompt.tokens);
        }
        let last = conversation.messages().last();
        prompt::raw(text, last.map_or("", |m| m.content.as_str()), self.raw_asked)
    }
}

/// What a person can do about a question that failed.
fn advice(error: &anyhow::Error, has_system: bool) -> &'static str {
    let is_template = error.chain().any(|cause| cause.is::<TemplateError>());
    match error.downcast_ref() {
        Some(AdmissionError::PromptTooLong { .. }) => {
            "a shorter message, /undo, /clear or a larger --ctx make room; the conversation is as before"
        }
        Some(AdmissionError::Option(_)) => {
            "/set shows the settings, /set NAME default takes one back; the conversation is as before"
        }
        _ if is_template && has_system => {
            "/system \"\" takes the system prompt away, /clear forgets what was said; the conversation is as before"
        }
        _ if is_template => "/undo or /clear may help; the conversation is as before",
        _ => {
            "/retry tries the last answered question again, /clear begins anew; the conversation is as before"
        }
    }
}

fn help() -> String {
    let line = |(name, arguments, what): &(&str, &str, &str)| {
        format!("{:<20} {what}", format!("{name} {arguments}"))
    };
    HELP.iter().map(line).collect::<Vec<_>>().join("\n")
}
