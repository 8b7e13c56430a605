//! Reading lines at a terminal: history across runs, several lines, completion of /commands.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{ColorMode, Config, Context, Editor, Helper};

use super::command::{HELP, is_complete};
use crate::clean::one_symbol_each;
use crate::term::Style;

/// Lines of history kept between runs.
const HISTORY_MAX: usize = 1000;

/// What the person did at the prompt.
pub enum Typed {
    /// A whole entry.
    Line(String),
    /// Ctrl-C on an empty line.
    Interrupted,
    /// Ctrl-C on a line with text, which is dropped.
    Dropped,
    /// Bytes that are no text.
    Unreadable,
    /// Ctrl-D.
    End,
}

/// A line editor.
pub struct LineReader {
    editor: Editor<ChatHelper, FileHistory>,
    history: Option<PathBuf>,
}

impl LineReader {
    /// An editor whose history lives in `history`; a history that cannot be read is an empty one.
    pub fn new(history: Option<PathBuf>, style: Style) -> anyhow::Result<LineReader> {
        let config = Config::builder()
            .max_history_size(HISTORY_MAX)?
            .history_ignore_space(true)
            .auto_add_history(false)
            .bracketed_paste(true)
            // Without colours, too, lines are drawn by the helper, which cleans them; whether there are colours is its style's matter.
            .color_mode(ColorMode::Forced)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(ChatHelper { style, empty: Cell::new(true) }));
        if let Some(path) = &history {
            let _ = editor.load_history(path);
        }
        Ok(LineReader { editor, history })
    }

    /// Shows the prompt and reads one entry.
    pub fn read(&mut self) -> anyhow::Result<Typed> {
        self.note_empty(true);
        match self.editor.readline(PROMPT) {
            Ok(line) => {
                if !line.trim().is_empty() {
                    self.remember(&line);
                }
                Ok(Typed::Line(line))
            }
            Err(ReadlineError::Interrupted) if self.was_empty() => Ok(Typed::Interrupted),
            Err(ReadlineError::Interrupted) => Ok(Typed::Dropped),
            Err(ReadlineError::Eof) => Ok(Typed::End),
            Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => Ok(Typed::Unreadable),
            Err(error) => Err(anyhow::Error::new(error).context("reading from the terminal")),
        }
    }

    fn note_empty(&self, empty: bool) {
        self.editor.helper().iter().for_each(|helper| helper.empty.set(empty));
    }

    fn was_empty(&self) -> bool {
        self.editor.helper().is_none_or(|helper| helper.empty.get())
    }

    /// Losing a line of history is no reason to end a chat, so failures pass.
    fn remember(&mut self, line: &str) {
        let _ = self.editor.add_history_entry(line);
        if let Some(path) = &self.history {
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = self.editor.append_history(path);
        }
    }
}

const PROMPT: &str = ">>> ";

struct ChatHelper {
    style: Style,
    /// Whether the line was empty when it was last drawn: an interrupt does not tell.
    empty: Cell<bool>,
}

impl Helper for ChatHelper {}

impl Validator for ChatHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let whole = is_complete(context.input());
        Ok(if whole { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Highlighter for ChatHelper {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        self.style.bold(prompt).as_str().to_owned().into()
    }

    /// What is pasted may hold control characters, which the editor would draw as they are.
    fn highlight<'l>(&self, line: &'l str, _position: usize) -> Cow<'l, str> {
        one_symbol_each(line)
    }

    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        self.style.dim(hint).as_str().to_owned().into()
    }
}

impl Hinter for ChatHelper {
    type Hint = String;

    fn hint(&self, line: &str, _position: usize, _context: &Context<'_>) -> Option<String> {
        self.empty.set(line.is_empty());
        line.is_empty().then(|| "a message, or /help".to_owned())
    }
}

impl Completer for ChatHelper {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = line.get(..position).unwrap_or(line);
        Ok((
            0,
            commands_from(typed).map(|c| Pair { display: c.into(), replacement: format!("{c} ") }).collect(),
        ))
    }
}

fn commands_from(typed: &str) -> impl Iterator<Item = &'static str> {
    let typed = typed.to_owned();
    let is_command = typed.starts_with('/') && !typed.contains(char::is_whitespace);
    HELP.iter().map(|h| h.0).filter(move |name| is_command && name.starts_with(&typed))
}

/// Where the history lives: the state folder that the XDG base directory specification names, or its equivalent.
pub fn history_path(state: Option<&Path>) -> Option<PathBuf> {
    state.map(|folder| folder.join("unicorn").join("history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_complete_at_the_start_only() {
        assert_eq!(commands_from("/s").collect::<Vec<_>>(), ["/system", "/set", "/stats", "/save"]);
        assert_eq!(commands_from("/set t").count(), 0);
        assert_eq!(commands_from("s").count(), 0);
    }
}
