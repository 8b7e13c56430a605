//! Writing to stdout and stderr without panics: a closed pipe is an ordinary way for a program to end.

use std::io::{self, ErrorKind, Write};

/// The reader of stdout went away.
#[derive(Debug)]
pub struct StdoutClosed;

impl std::fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stdout was closed by its reader")
    }
}

impl std::error::Error for StdoutClosed {}

/// Stdout, buffered; a closed pipe comes back as [`StdoutClosed`], so that it is not mistaken for another broken pipe.
pub struct Out<W: Write = io::StdoutLock<'static>>(io::BufWriter<W>);

impl Out {
    /// Locks stdout.
    pub fn stdout() -> Out {
        Out::new(io::stdout().lock())
    }
}

impl<W: Write> Out<W> {
    /// Wraps any writer.
    pub fn new(writer: W) -> Out<W> {
        Out(io::BufWriter::new(writer))
    }

    /// Writes text and hands it to the reader at once, as streamed answers want.
    pub fn emit(&mut self, text: &str) -> io::Result<()> {
        self.write_all(text.as_bytes())?;
        self.flush()
    }
}

fn named(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::BrokenPipe {
        io::Error::new(ErrorKind::BrokenPipe, StdoutClosed)
    } else {
        error
    }
}

impl<W: Write> Write for Out<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

/// Writes a line to stderr. A stderr that cannot be written is nobody's loss, so errors are dropped.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}
pub(crate) use say;

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(ErrorKind::BrokenPipe))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_named() {
        let error = Out::new(Closed).emit("x").unwrap_err();
        assert!(error.get_ref().is_some_and(|inner| inner.is::<StdoutClosed>()), "{error:?}");
    }
}
