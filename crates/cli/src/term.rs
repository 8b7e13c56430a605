//! What the terminal can show.

use std::io::IsTerminal;

/// Colours and weights, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    on: bool,
}

impl Style {
    /// Styles for stderr: on when it is a terminal and NO_COLOR is unset.
    pub fn stderr(no_color: bool) -> Style {
        Style { on: !no_color && std::io::stderr().is_terminal() }
    }

    /// Less important text.
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// More important text.
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// The word before an error.
    pub fn error(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_colours_text_is_untouched() {
        assert_eq!(Style { on: false }.dim("x"), "x");
        assert_eq!(Style { on: true }.bold("x"), "\x1b[1mx\x1b[0m");
    }
}
