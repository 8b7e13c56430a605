//! What the terminal can show.

use std::io::IsTerminal;

use crate::clean::clean;

/// True when a person may be asked.
pub fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// True when a person reads the results.
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// True when a person reads the messages.
pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Colours and weights, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    on: bool,
}

impl Style {
    /// Styles for stderr: on when it is a terminal and NO_COLOR is unset.
    pub fn stderr(no_color: bool) -> Style {
        Style { on: !no_color && stderr_is_terminal() }
    }

    /// Less important text.
    pub fn dim(self, text: &str) -> Styled {
        self.styled("2", text)
    }

    /// More important text.
    pub fn bold(self, text: &str) -> Styled {
        self.styled("1", text)
    }

    /// The word before an error.
    pub fn error(self, text: &str) -> Styled {
        self.styled("1;31", text)
    }

    fn styled(self, code: &str, text: &str) -> Styled {
        let text = clean(text);
        Styled(if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into_owned() })
    }
}

/// Cleaned text with this program's own escape sequences. It is not `Display`: formatted into a message, its sequences would
/// be cleaned away like any others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Styled(String);

impl Styled {
    /// Adds text without a style.
    pub fn then(mut self, text: &str) -> Styled {
        self.0.push_str(&clean(text));
        self
    }

    /// What is written to a terminal.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_colours_text_is_untouched() {
        assert_eq!(Style { on: false }.dim("x").as_str(), "x");
        assert_eq!(Style { on: true }.bold("x").as_str(), "\x1b[1mx\x1b[0m");
    }

    #[test]
    fn styles_are_ours_alone() {
        let styled = Style { on: true }.error("error:").then(" \x1b[2Jx");
        assert_eq!(styled.as_str(), "\x1b[1;31merror:\x1b[0m \\u001b[2Jx");
        assert_eq!(Style { on: true }.dim("\x1b").as_str(), "\x1b[2m\\u001b\x1b[0m");
    }
}
