//! A terminal with the binary at its other end.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

const PATIENCE: Duration = Duration::from_secs(60);
/// What the chat shows when it is ready for a line.
const PROMPT: &str = ">>> ";

pub struct Terminal {
    keys: File,
    child: Child,
    screen: Receiver<Vec<u8>>,
    /// All that was written.
    pub seen: String,
    bytes: Vec<u8>,
    /// Where in `seen` the search for the next text begins.
    from: usize,
}

impl Terminal {
    /// Starts `command` with the terminal as stdin, stdout and stderr, without colours.
    pub fn start(mut command: Command) -> Terminal {
        // Not inherited: a child that held its own terminal's other end would never see it go away.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let keys = openpt(flags).expect("a terminal");
        grantpt(&keys).expect("a terminal");
        unlockpt(&keys).expect("a terminal");
        let end = ioctl_tiocgptpeer(&keys, flags).expect("a terminal");
        let copy = || end.try_clone().expect("a terminal");
        command.env("TERM", "xterm").env("NO_COLOR", "1");
        let child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().expect("the binary starts");
        drop((command, end));
        let keys = File::from(keys);
        let mut out = keys.try_clone().expect("a terminal");
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            // The read fails when the other end is closed.
            while let Ok(n @ 1..) = out.read(&mut chunk) {
                if sender.send(chunk[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal { keys, child, screen, seen: String::new(), bytes: Vec::new(), from: 0 }
    }

    /// Waits until `text` was written after what was waited for before.
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.get(self.from..).and_then(|rest| rest.find(text)) {
                self.from += at + text.len();
                return;
            }
            assert!(self.receive(deadline), "{text:?} did not come; the screen:\n{}", self.seen);
        }
    }

    /// Waits until an answer is being written: until the editor has let go of the terminal and this many bytes came after.
    pub fn wait_for_answer(&mut self, bytes: usize) {
        self.wait_for("\x1b[?2004l");
        let deadline = Instant::now() + PATIENCE;
        while self.seen.len() < self.from + bytes {
            assert!(self.receive(deadline), "no answer; the screen:\n{}", self.seen);
        }
    }

    fn receive(&mut self, deadline: Instant) -> bool {
        match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => {
                self.bytes.extend(bytes);
                self.seen = String::from_utf8_lossy(&self.bytes).into_owned();
                true
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.press_bytes(keys.as_bytes());
    }

    /// Sends bytes that no key sends.
    pub fn press_bytes(&mut self, bytes: &[u8]) {
        self.keys.write_all(bytes).expect("the terminal takes keys");
    }

    /// At the next prompt, types a line.
    pub fn line(&mut self, line: &str) {
        self.wait_for(PROMPT);
        // Keys pressed before the editor reads them would be echoed twice.
        self.wait_for("/help");
        self.press(line);
        self.press("\r");
    }

    /// The child's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Closes the terminal's window; the exit code of the child.
    pub fn hang_up(self) -> Option<i32> {
        let Terminal { keys, child, screen, .. } = self;
        drop((keys, screen));
        wait(child)
    }

    /// Waits for the end; the exit code and all that was written.
    pub fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        while self.receive(deadline) {}
        (wait(self.child), self.seen)
    }
}

fn wait(mut child: Child) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait().expect("the child can be waited for") {
            Some(status) => return status.code(),
            None if Instant::now() > deadline => {
                child.kill().expect("the child can be killed");
                panic!("the child is still running");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
