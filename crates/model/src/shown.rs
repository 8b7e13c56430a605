//! Text from files, made safe to print: a name in a model may hold what moves the cursor of a terminal or reorders a line.

use std::fmt::{self, Display, Write};

/// Displays the value with control characters and invisible format characters escaped as `\u{1b}`.
pub(crate) struct Shown<T>(pub T);

/// Short for [`Shown`], for use in the attributes of error types.
pub(crate) fn shown<T: Display>(value: T) -> Shown<T> {
    Shown(value)
}

impl<T: Display> Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '\n' => self.0.write_str("\\n")?,
                '\r' => self.0.write_str("\\r")?,
                '\t' => self.0.write_str("\\t")?,
                c if is_hidden(c) => write!(self.0, "{}", c.escape_unicode())?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Control characters, line separators, and the characters that change the direction of text.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_is_escaped() {
        let text = "a\u{1b}[2J\u{9b}1m\r\n\u{202e}\u{feff}\u{7f}b ▁é";
        let expected = "a\\u{1b}[2J\\u{9b}1m\\r\\n\\u{202e}\\u{feff}\\u{7f}b ▁é";
        assert_eq!(shown(text).to_string(), expected);
    }
}
