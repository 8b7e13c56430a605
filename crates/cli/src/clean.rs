//! Text from files, models and servers, made safe to show. What could steer a terminal or reorder what is read is shown as an
//! escape in its place.
//!
//! The escape is JSON's, so that JSON which is cleaned stays JSON with the same values.

use std::borrow::Cow;
use std::fmt::Write;

/// True for characters that are shown as an escape: control characters but for line ends and tabs, and format characters
/// that hide or reorder text. The two joiners stay: scripts and emoji need them, and they only join.
fn is_escaped(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' => true,
        '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => true,
        '\u{feff}' | '\u{fff9}'..='\u{fffb}' => true,
        '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}' => true,
        c => c.is_control(),
    }
}

fn escape(c: char, out: &mut String) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        // Writing to a string does not fail.
        let _ = write!(out, "\\u{unit:04x}");
    }
}

/// A whole text, safe to show. A carriage return before a line feed is part of the line's end.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut cleaner = Cleaner::default();
    cleaner.text(text, &mut out);
    cleaner.end(&mut out);
    Cow::Owned(out)
}

/// As [`clean`], on one line: line ends and tabs become `\n`, `\r` and `\t`.
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_escaped(c) => escape(c, &mut out),
            c => out.push(c),
        }
    }
    out
}

/// As [`clean`], with one symbol for each character: for a line editor, which counts them.
pub fn one_symbol_each(text: &str) -> Cow<'_, str> {
    let symbol = |c: char| match u32::from(c) {
        _ if !is_escaped(c) => c,
        // The pictures of control characters stand in their order.
        code @ 0..0x20 => char::from_u32(0x2400 + code).unwrap_or('\u{fffd}'),
        0x7f => '\u{2421}',
        _ => '\u{fffd}',
    };
    if text.chars().any(is_escaped) { text.chars().map(symbol).collect() } else { Cow::Borrowed(text) }
}

/// Cleans a stream, wherever its chunks are cut.
#[derive(Default, Debug)]
pub struct Cleaner {
    /// The beginning of a character whose end has not come.
    partial: Vec<u8>,
    /// A carriage return came last: what follows decides whether it ends a line.
    carriage_return: bool,
}

impl Cleaner {
    /// Appends to `out` what `bytes` shows; bytes that are no UTF-8 become U+FFFD.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(bytes);
        let mut rest = whole.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, after) = rest.split_at(error.valid_up_to());
            self.text(&String::from_utf8_lossy(valid), out);
            let Some(wrong) = error.error_len() else {
                self.partial = after.to_vec();
                return;
            };
            self.text("\u{fffd}", out);
            rest = after.get(wrong..).unwrap_or_default();
        }
        self.text(&String::from_utf8_lossy(rest), out);
    }

    fn text(&mut self, text: &str, out: &mut String) {
        for c in text.chars() {
            if std::mem::take(&mut self.carriage_return) && c != '\n' {
                escape('\r', out);
            }
            match c {
                '\r' => self.carriage_return = true,
                c if is_escaped(c) => escape(c, out),
                c => out.push(c),
            }
        }
    }

    fn end(&mut self, out: &mut String) {
        if std::mem::take(&mut self.carriage_return) {
            escape('\r', out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_shown() {
        assert_eq!(clean("\x1b[31mred\x07\x7f\u{9b}2J"), "\\u001b[31mred\\u0007\\u007f\\u009b2J");
        assert_eq!(clean("a\u{202e}b\u{2066}c\u{200b}d\u{e0041}"), "a\\u202eb\\u2066c\\u200bd\\udb40\\udc41");
        assert_eq!(clean("over\rwritten"), "over\\u000dwritten");
        assert_eq!(clean("end\r"), "end\\u000d");
        assert_eq!(one_line("a\nb\r\n\tc\x1b"), "a\\nb\\r\\n\\tc\\u001b");
    }

    #[test]
    fn an_editor_gets_as_many_symbols_as_characters() {
        assert_eq!(one_symbol_each("a\x1b[2J\x7f\u{9b}\nb"), "a␛[2J␡\u{fffd}\nb");
        assert!(matches!(one_symbol_each("é日"), Cow::Borrowed("é日")));
    }

    #[test]
    fn text_stays() {
        for text in ["plain\n\ttext", "naïve 日本語", "می\u{200c}خواهم", "👩\u{200d}🚀", "\\u001b"]
        {
            assert!(matches!(clean(text), Cow::Borrowed(same) if same == text), "{text}");
        }
        assert_eq!(clean("dos\r\nlines\r\n\x00"), "dos\nlines\n\\u0000");
    }

    #[test]
    fn no_cut_lets_anything_through() {
        let bytes = "é\x1b[2J\u{9b}31m\r\n\u{202e}日\rx\x1b]0;title\x07".as_bytes();
        let mut whole = String::new();
        Cleaner::default().push(bytes, &mut whole);
        assert_eq!(whole, "é\\u001b[2J\\u009b31m\n\\u202e日\\u000dx\\u001b]0;title\\u0007");
        for cut in 0..=bytes.len() {
            let (mut cleaner, mut out) = (Cleaner::default(), String::new());
            cleaner.push(&bytes[..cut], &mut out);
            cleaner.push(&bytes[cut..], &mut out);
            assert_eq!(out, whole, "cut at {cut}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let (mut cleaner, mut out) = (Cleaner::default(), String::new());
        cleaner.push(b"a\x9b31m\xffb\xe2\x80", &mut out);
        cleaner.push(b"c", &mut out);
        assert_eq!(out, "a\u{fffd}31m\u{fffd}b\u{fffd}c");
    }

    #[test]
    fn json_keeps_its_values() {
        let value = serde_json::json!({"k\u{9b}": "a\u{7f}\u{202e}\u{e0041}\x1b\n"});
        let text = serde_json::to_string_pretty(&value).unwrap();
        let cleaned = clean(&text);
        assert!(!cleaned.chars().any(is_escaped) && cleaned.contains("\\u009b"), "{cleaned}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&cleaned).unwrap(), value);
    }
}
