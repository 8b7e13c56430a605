//! The one way to stdout and stderr. What is written is cleaned of terminal control ([`crate::clean`]) unless it is the answer
//! itself and goes to a file or a pipe. A closed pipe is an ordinary way for a program to end, so nothing panics.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, ErrorKind, Write};

use crate::clean::{Cleaner, clean};
use crate::term::{self, Styled};

/// The reader of stdout went away.
#[derive(Debug)]
pub struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout was closed by its reader")
    }
}

impl std::error::Error for StdoutClosed {}

/// Stdout cannot be written for another reason: a full disk, for one.
#[derive(Debug)]
pub struct StdoutFailed(pub io::Error);

impl fmt::Display for StdoutFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to stdout: {}", self.0)
    }
}

impl std::error::Error for StdoutFailed {}

/// Stdout, buffered; a closed pipe comes back as [`StdoutClosed`], so that it is not mistaken for another broken pipe.
pub struct Out<W: Write = io::StdoutLock<'static>> {
    writer: io::BufWriter<W>,
    /// Absent where every byte goes out as it is.
    cleaner: Option<Cleaner>,
}

impl Out {
    /// Stdout for tables, lists and JSON: always cleaned.
    pub fn stdout() -> Out {
        Out::cleaned(io::stdout().lock())
    }

    /// Stdout for what other programs need byte by byte, such as answers and paths: cleaned on a terminal only.
    pub fn exact() -> Out {
        let out = io::stdout().lock();
        if term::stdout_is_terminal() { Out::cleaned(out) } else { Out::as_it_is(out) }
    }
}

impl<W: Write> Out<W> {
    fn cleaned(writer: W) -> Out<W> {
        Out { writer: io::BufWriter::new(writer), cleaner: Some(Cleaner::default()) }
    }

    fn as_it_is(writer: W) -> Out<W> {
        Out { writer: io::BufWriter::new(writer), cleaner: None }
    }

    /// Writes text and hands it to the reader at once, as streamed answers want.
    pub fn emit(&mut self, text: &str) -> io::Result<()> {
        self.write_all(text.as_bytes())?;
        self.flush()
    }
}

fn named(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::Interrupted => error,
        ErrorKind::BrokenPipe => io::Error::new(ErrorKind::BrokenPipe, StdoutClosed),
        kind => io::Error::new(kind, StdoutFailed(error)),
    }
}

impl<W: Write> Write for Out<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.cleaner {
            None => self.writer.write(bytes).map_err(named),
            Some(cleaner) => {
                let mut text = String::new();
                cleaner.push(bytes, &mut text);
                self.writer.write_all(text.as_bytes()).map_err(named)?;
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush().map_err(named)
    }
}

/// Writes a line to stderr, cleaned.
macro_rules! say {
    ($($arg:tt)*) => {
        $crate::output::say_line(format_args!($($arg)*))
    };
}
pub(crate) use say;

/// What [`say!`] does.
pub fn say_line(message: fmt::Arguments<'_>) {
    to_stderr(&clean(&message.to_string()));
}

/// Writes a line with this program's own colours to stderr.
pub fn say_styled(message: &Styled) {
    to_stderr(message.as_str());
}

/// A stderr that cannot be written is nobody's loss, so errors are dropped.
fn to_stderr(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Help and version go to stdout, mistakes to stderr. A mistake repeats what was typed in `line`: where that holds control
/// characters, the colours are given up.
pub fn show_usage(error: &clap::Error, line: &[OsString]) {
    if error.kind() == clap::error::ErrorKind::InvalidUtf8
        && let Some(word) = line.iter().find(|word| word.to_str().is_none())
    {
        return say!("error: the argument {word:?} is not UTF-8");
    }
    let is_clean = |word: &OsString| matches!(clean(&word.to_string_lossy()), Cow::Borrowed(_));
    if !error.use_stderr() || line.iter().all(is_clean) {
        // A reader that went away changes nothing.
        let _ = error.print();
    } else {
        to_stderr(clean(&error.render().to_string()).trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(self.0))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_named_and_told_from_a_full_disk() {
        let error = |kind| Out::as_it_is(Broken(kind)).emit("x").unwrap_err();
        let closed = error(ErrorKind::BrokenPipe);
        assert!(closed.get_ref().is_some_and(|inner| inner.is::<StdoutClosed>()), "{closed:?}");
        let full = error(ErrorKind::StorageFull);
        assert!(full.get_ref().is_some_and(|inner| inner.is::<StdoutFailed>()), "{full:?}");
    }

    #[test]
    fn answers_are_exact_in_a_pipe_and_cleaned_on_a_terminal() {
        let mut bytes = Vec::new();
        Out::as_it_is(&mut bytes).emit("\x1b[2Jé\r").unwrap();
        assert_eq!(bytes, "\x1b[2Jé\r".as_bytes());
        bytes.clear();
        let mut out = Out::cleaned(&mut bytes);
        for piece in ["a\x1b", "[2J", "\r", "\n"] {
            out.emit(piece).unwrap();
        }
        drop(out);
        assert_eq!(String::from_utf8(bytes).unwrap(), "a\\u001b[2J\n");
    }
}
