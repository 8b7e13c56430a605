//! Texts that a command reads whole, from a file or from stdin.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow, bail};

use crate::stdin;

/// What a byte order mark is in UTF-8.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The text of a file, or of stdin for `-`, without a byte order mark.
///
/// Errors name the file where it cannot be read, is longer than `bytes_max`, is not UTF-8 or holds no text.
pub fn read_text(path: &Path, bytes_max: u64) -> anyhow::Result<String> {
    let from_stdin = path.as_os_str() == "-";
    let name = if from_stdin { "stdin".to_owned() } else { path.display().to_string() };
    let mut text = if from_stdin { stdin::read_to_end()? } else { read_file(path, &name, bytes_max)? };
    if text.len() as u64 > bytes_max {
        bail!("{name}: {} bytes are more than the limit of {bytes_max}", text.len());
    }
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    if text.trim().is_empty() {
        bail!("{name}: there is no text in it");
    }
    Ok(text)
}

fn read_file(path: &Path, name: &str, bytes_max: u64) -> anyhow::Result<String> {
    let named = || name.to_owned();
    let mut bytes = Vec::new();
    // A pipe has no length of its own: the limit holds while reading.
    let file = File::open(path).with_context(named)?;
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).with_context(named)?;
    if bytes.len() as u64 > bytes_max {
        bail!("{name}: more than the limit of {bytes_max} bytes");
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        bail!("{name}: UTF-16 text; UTF-8 is wanted");
    }
    String::from_utf8(bytes)
        .map_err(|error| anyhow!("{name}: not UTF-8 text, at byte {}", error.utf8_error().valid_up_to()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_without_mark_and_mistakes_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.txt");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_text(&path, 16)
        };
        assert_eq!(read(b"\xef\xbb\xbfhello").unwrap(), "hello");
        assert_eq!(read("é\n".as_bytes()).unwrap(), "é\n");
        assert_eq!(read(&[b'a'; 16]).unwrap().len(), 16);
        for (bytes, part) in [
            (&b""[..], "no text"),
            (b"\xef\xbb\xbf \n", "no text"),
            (&[b'a'; 17], "16"),
            (b"ab\xff", "at byte 2"),
            (b"\xff\xfeh\0i\0", "UTF-16"),
        ] {
            let error = format!("{:#}", read(bytes).unwrap_err());
            assert!(error.contains("t.txt") && error.contains(part), "{error}");
        }
        assert!(format!("{:#}", read_text(&folder.path().join("none"), 16).unwrap_err()).contains("none"));
        assert!(read_text(folder.path(), 16).is_err(), "a folder");
    }
}
