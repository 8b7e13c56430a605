//! A conversation: what was said, and its file format.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// Who said something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

/// Messages in order: at most one system message, first, then questions and answers in turn.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Conversation {
    messages: Vec<Message>,
    /// When it began, where that is to be remembered.
    #[serde(skip)]
    began: Option<SystemTime>,
}

/// Largest conversation file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

impl Conversation {
    /// A conversation with this system prompt.
    pub fn new(system: Option<&str>) -> Conversation {
        let mut conversation = Conversation::default();
        conversation.set_system(system);
        conversation
    }

    /// When it began: the date that a template tells. A chat that goes on another day begins with the same tokens that way.
    pub fn began(&self) -> Option<SystemTime> {
        self.began
    }

    /// It began then.
    pub fn begin_at(&mut self, time: SystemTime) {
        self.began = Some(time);
    }

    /// All messages.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The system prompt.
    pub fn system(&self) -> Option<&str> {
        self.messages.first().filter(|m| m.role == Role::System).map(|m| m.content.as_str())
    }

    /// Sets or removes the system prompt; the rest stays.
    pub fn set_system(&mut self, text: Option<&str>) {
        if self.system().is_some() {
            self.messages.remove(0);
        }
        if let Some(text) = text.filter(|t| !t.is_empty()) {
            self.messages.insert(0, Message { role: Role::System, content: text.to_owned() });
        }
    }

    /// Adds a question.
    pub fn ask(&mut self, content: String) {
        self.messages.push(Message { role: Role::User, content });
    }

    /// Adds the answer to the last question.
    pub fn answer(&mut self, content: String) {
        self.messages.push(Message { role: Role::Assistant, content });
    }

    /// Forgets everything but the system prompt.
    pub fn clear(&mut self) {
        self.messages.retain(|m| m.role == Role::System);
    }

    /// Takes back the last question and what followed; returns the question.
    pub fn undo(&mut self) -> Option<String> {
        let last = self.messages.iter().rposition(|m| m.role == Role::User)?;
        self.messages.drain(last..).next().map(|m| m.content)
    }

    /// Questions asked so far.
    pub fn turns(&self) -> usize {
        self.messages.iter().filter(|m| m.role == Role::User).count()
    }

    /// Writes the conversation as JSON; the file appears whole or not at all.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let named = || format!("cannot save the conversation to {}", path.display());
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let text = serde_json::to_string_pretty(self).with_context(named)? + "\n";
        let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
        written.with_context(named)
    }

    /// Reads what [`Conversation::save`] wrote.
    pub fn load(path: &Path) -> anyhow::Result<Conversation> {
        let named = || format!("cannot load a conversation from {}", path.display());
        let size = std::fs::metadata(path).with_context(named)?.len();
        if size > FILE_BYTES_MAX {
            bail!("{} is no conversation: {size} bytes", path.display());
        }
        let text = std::fs::read_to_string(path).with_context(named)?;
        let loaded: Conversation = serde_json::from_str(&text).with_context(named)?;
        Conversation::of(loaded.messages).with_context(|| path.display().to_string())
    }

    /// A conversation of these messages. Errors where a system message is not the first.
    pub fn of(messages: Vec<Message>) -> anyhow::Result<Conversation> {
        if messages.iter().skip(1).any(|m| m.role == Role::System) {
            bail!("a system message stands after the first message");
        }
        Ok(Conversation { messages, began: None })
    }

    /// The question that was asked last.
    pub fn last_question(&self) -> Option<&str> {
        self.messages.iter().rfind(|m| m.role == Role::User).map(|m| m.content.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Conversation {
        let mut c = Conversation::new(Some("Be brief."));
        c.ask("a".into());
        c.answer("b".into());
        c.ask("c".into());
        c.answer("d".into());
        c
    }

    #[test]
    fn undo_takes_question_and_answer() {
        let mut c = sample();
        assert_eq!(c.undo().as_deref(), Some("c"));
        assert_eq!((c.turns(), c.messages().len()), (1, 3));
        assert_eq!(c.undo().as_deref(), Some("a"));
        assert_eq!(c.undo(), None);
        assert_eq!(c.system(), Some("Be brief."));
    }

    #[test]
    fn system_is_replaced_in_place() {
        let mut c = sample();
        c.set_system(Some("Be long."));
        assert_eq!((c.system(), c.messages().len()), (Some("Be long."), 5));
        c.set_system(None);
        assert_eq!((c.system(), c.messages().len()), (None, 4));
        c.clear();
        assert!(c.messages().is_empty());
    }

    #[test]
    fn files_round_trip_and_bad_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.json");
        sample().save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), sample());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

        std::fs::write(
            &path,
            r#"{"messages":[{"role":"user","content":"x"},{"role":"system","content":"y"}]}"#,
        )
        .unwrap();
        assert!(Conversation::load(&path).unwrap_err().root_cause().to_string().contains("system message"));
        std::fs::write(&path, "[]").unwrap();
        assert!(Conversation::load(&path).unwrap_err().to_string().contains("chat.json"));
    }
}
