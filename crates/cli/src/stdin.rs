//! Text from stdin.
//!
//! A pipe that is open and silent says nothing about whether text will come: it may belong to a slow program, or be one that was
//! merely inherited (ssh, a CI runner). Waiting therefore looks at stdin without taking from it, so that what is not used stays
//! for whoever it was meant for.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use crate::output::say;

/// Most MiB read from stdin: far beyond every context.
const MIB_MAX: usize = 256;
/// After this much silence the wait is explained.
const PATIENCE: Duration = Duration::from_secs(2);

/// Text from stdin with its size as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piped {
    /// The text, as UTF-8 without a byte order mark.
    pub text: String,
    /// Bytes read.
    pub bytes: usize,
}

/// Reads stdin to its end. A wait for it is explained: a pipe that nobody closes looks like a hang otherwise.
///
/// Errors where it holds no text, with the offset, and where it holds too much.
pub fn read_to_end() -> anyhow::Result<String> {
    Ok(read()?.text)
}

/// As [`read_to_end`], with the size.
pub fn read() -> anyhow::Result<Piped> {
    let mut stdin = system::open().context("reading stdin")?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    let mut explained = false;
    loop {
        if !explained && !system::wait(PATIENCE) {
            say!("reading the text on stdin until its end ...");
            explained = true;
        }
        match stdin.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // `nohup` leaves a stdin that can only be written: nothing is there to read.
            Err(error) if system::is_write_only(&error) => break,
            Err(error) => return Err(error).context("reading stdin"),
        }
        if bytes.len() > MIB_MAX << 20 {
            bail!("stdin holds more than {MIB_MAX} MiB");
        }
    }
    Ok(Piped { bytes: bytes.len(), text: decode(bytes)? })
}

/// True once stdin has a byte or its end to read; false when neither comes until `deadline`. Nothing is taken from it.
pub fn is_ready_by(deadline: Instant) -> bool {
    system::wait(deadline.saturating_duration_since(Instant::now()))
}

/// True when bytes lie on stdin that nobody has read.
pub fn has_unread() -> bool {
    system::has_unread()
}

/// UTF-8, or UTF-16 that says so with a byte order mark, as Windows programs write it.
fn decode(mut bytes: Vec<u8>) -> anyhow::Result<String> {
    match bytes.as_slice() {
        [0xef, 0xbb, 0xbf, ..] => {
            bytes.drain(..3);
            utf8(bytes, 3)
        }
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => bail!("stdin is UTF-32 text: UTF-8 is wanted"),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        _ => utf8(bytes, 0),
    }
}

fn utf8(bytes: Vec<u8>, skipped: usize) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(at).copied().unwrap_or_default();
        anyhow!("stdin is not UTF-8 text: byte 0x{byte:02x} at offset {}", skipped + at)
    })
}

/// `bytes` follow a byte order mark of two bytes.
fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> anyhow::Result<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        bail!("stdin is UTF-16 text that ends within a character, at offset {}", bytes.len() + 1);
    }
    let mut text = String::with_capacity(bytes.len());
    let mut offset = 2;
    for c in char::decode_utf16(pairs.iter().map(|pair| unit(*pair))) {
        let c = c.map_err(|error| {
            let half = error.unpaired_surrogate();
            anyhow!("stdin is not UTF-16 text: half a character, 0x{half:04x}, at offset {offset}")
        })?;
        offset += 2 * c.len_utf16();
        text.push(c);
    }
    Ok(text)
}

#[cfg(unix)]
mod system {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::{Errno, ioctl_fionread};

    /// Stdin without a buffer, which would hide from `poll` what it holds.
    pub fn open() -> io::Result<File> {
        Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?))
    }

    /// Waits until something can be read. Where the system cannot tell, reading will.
    pub fn wait(timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let stdin = io::stdin();
            let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Ok(ready) => return ready > 0,
                Err(Errno::INTR) => {}
                Err(_) => return true,
            }
        }
    }

    pub fn has_unread() -> bool {
        ioctl_fionread(io::stdin()).is_ok_and(|bytes| bytes > 0)
    }

    pub fn is_write_only(error: &io::Error) -> bool {
        error.raw_os_error() == Some(Errno::BADF.raw_os_error())
    }
}

/// Where waiting without reading is not to be had, reading waits.
#[cfg(not(unix))]
mod system {
    use std::io;
    use std::time::Duration;

    pub fn open() -> io::Result<io::Stdin> {
        Ok(io::stdin())
    }

    pub fn wait(_: Duration) -> bool {
        true
    }

    pub fn has_unread() -> bool {
        false
    }

    pub fn is_write_only(_: &io::Error) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_marks_are_no_text() {
        assert_eq!(decode(b"\xef\xbb\xbfhi\n".to_vec()).unwrap(), "hi\n");
        assert_eq!(decode(b"\xff\xfeh\0\xe9\0".to_vec()).unwrap(), "hé");
        assert_eq!(decode(b"\xfe\xff\0h\xd8\x3d\xde\x00".to_vec()).unwrap(), "h😀");
        assert_eq!(decode(b"h\xef\xbb\xbf".to_vec()).unwrap(), "h\u{feff}", "only at the beginning");
        assert_eq!(decode(Vec::new()).unwrap(), "");
    }

    #[test]
    fn what_is_no_text_is_named_with_its_place() {
        let error = |bytes: &[u8]| decode(bytes.to_vec()).unwrap_err().to_string();
        assert_eq!(error(b"ab\xffc"), "stdin is not UTF-8 text: byte 0xff at offset 2");
        assert_eq!(error(b"\xef\xbb\xbfa\xe9"), "stdin is not UTF-8 text: byte 0xe9 at offset 4");
        assert!(error(b"\xff\xfea").contains("offset 2"));
        assert!(error(b"\xff\xfea\0\0\xd8b\0").contains("0xd800, at offset 4"));
        assert!(error(b"\xff\xfe\0\0a\0\0\0").contains("UTF-32"));
    }
}
