//! How the process ends: exit codes, and errors told to a person.

use std::process::ExitCode;

use unicorn_hub::HubError;

use crate::output::{StdoutClosed, StdoutFailed, say_styled};
use crate::term::Style;

/// How a command that did not fail came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Everything asked for was done.
    Done,
    /// Something failed; the message has been printed.
    Failed,
    /// The command line asks for something impossible.
    Usage,
    /// Ctrl-C ended the work early: what a shell reports for a process that SIGINT ended.
    Interrupted,
    /// The reader of stdout went away: what a shell reports for a process that SIGPIPE ended.
    PipeClosed,
}

impl Exit {
    /// The process exit code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Interrupted => 130,
            Exit::PipeClosed => 141,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// The command line was understood, but what it asks for contradicts itself or the model.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// An `anyhow` error that ends the process with [`Exit::Usage`].
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(UsageError(message.into()))
}

/// The exit that an error stands for.
pub fn of_error(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if cause.is::<UsageError>() {
            return Exit::Usage;
        }
        if matches!(cause.downcast_ref(), Some(HubError::Interrupted { .. })) {
            return Exit::Interrupted;
        }
        let io = cause.downcast_ref::<std::io::Error>();
        if io.and_then(|e| e.get_ref()).is_some_and(|inner| inner.is::<StdoutClosed>()) {
            return Exit::PipeClosed;
        }
    }
    Exit::Failed
}

/// Tells a person what failed.
pub fn show(error: &anyhow::Error, style: Style) {
    say_styled(&style.error("error:").then(&format!(" {}", describe(error))));
}

/// True where nothing more can be written to stdout.
pub fn is_output_lost(error: &anyhow::Error) -> bool {
    let inner =
        |e: &std::io::Error| e.get_ref().is_some_and(|i| i.is::<StdoutClosed>() || i.is::<StdoutFailed>());
    error.chain().any(|cause| cause.downcast_ref().is_some_and(inner))
}

/// The cause chain on one line. Many errors repeat their source in their own text, and many begin with the path that their context
/// has named: what was already said is left out.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let message = cause.to_string();
        if text.is_empty() {
            text = without_echo(&message).to_owned();
            continue;
        }
        let news = unsaid(&text, &message);
        if !news.is_empty() && !text.contains(news) {
            text.push_str(": ");
            text.push_str(news);
        }
    }
    text
}

/// `message` without beginnings such as `PATH: ` that `said` has named.
fn unsaid<'m>(said: &str, mut message: &'m str) -> &'m str {
    while let Some((beginning, rest)) = message.split_once(": ")
        && looks_like_a_path(beginning)
        && said.contains(beginning)
    {
        message = rest;
    }
    message
}

/// `PATH: PATH: reason` without the first path.
fn without_echo(mut message: &str) -> &str {
    while let Some((beginning, rest)) = message.split_once(": ")
        && looks_like_a_path(beginning)
        && rest.strip_prefix(beginning).is_some_and(|after| after.starts_with(": "))
    {
        message = rest;
    }
    message
}

fn looks_like_a_path(text: &str) -> bool {
    text.contains(['/', '\\', '.'])
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[derive(Debug)]
    struct Outer(UsageError);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "outer: {}", self.0)
        }
    }

    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::Error::new(Outer(UsageError("inner".into()))).context("top");
        assert_eq!(describe(&error), "top: outer: inner");
    }

    #[test]
    fn a_path_is_said_once() {
        let error = usage("/m/a b.gguf: the magic is wrong").context("cannot open model /m/a b.gguf");
        assert_eq!(describe(&error), "cannot open model /m/a b.gguf: the magic is wrong");
        assert_eq!(describe(&usage("m.gguf: m.gguf: short")), "m.gguf: short");
        let other = usage("b.gguf: short").context("cannot open model a.gguf");
        assert_eq!(describe(&other), "cannot open model a.gguf: b.gguf: short");
        assert_eq!(describe(&usage("a: b").context("a")), "a: a: b", "no path, no echo");
    }

    #[test]
    fn exits_follow_the_cause() {
        assert_eq!(of_error(&usage("x").context("y")), Exit::Usage);
        let pipe = Err::<(), _>(std::io::Error::new(std::io::ErrorKind::BrokenPipe, StdoutClosed));
        assert_eq!(of_error(&pipe.context("writing").unwrap_err()), Exit::PipeClosed);
        let foreign = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(of_error(&anyhow::Error::new(foreign)), Exit::Failed);
    }
}
