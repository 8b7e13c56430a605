//! Text from stdin.

use std::io::{IsTerminal, Read};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::output::say;

/// Most bytes read from stdin: far beyond every context.
const BYTES_MAX: u64 = 256 << 20;
/// After this much silence the wait is explained.
const PATIENCE: Duration = Duration::from_secs(2);

/// True when a person may be asked.
pub fn is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Reads stdin to its end. A wait for it is explained: a pipe that nobody closes looks like a hang otherwise.
pub fn read_to_end() -> anyhow::Result<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().take(BYTES_MAX + 1).read_to_end(&mut bytes);
        // The receiver is gone only when the process is ending.
        let _ = sender.send(read.map(|_| bytes));
    });
    let received = receiver.recv_timeout(PATIENCE).or_else(|error| match error {
        RecvTimeoutError::Timeout => {
            say!("reading the text on stdin until its end ...");
            receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
        }
        RecvTimeoutError::Disconnected => Err(error),
    });
    let bytes = received.context("reading stdin")?.context("reading stdin")?;
    if bytes.len() as u64 > BYTES_MAX {
        bail!("stdin holds more than {BYTES_MAX} bytes");
    }
    String::from_utf8(bytes).context("stdin is not UTF-8 text")
}
