//! The last chats of each model, for `unicorn run --continue`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::args::RunArgs;
use crate::clean::one_line;
use crate::config::Config;
use crate::conversation::{Conversation, Message, Role};
use crate::devices::cache::ago;
use crate::session::Session;
use crate::table::clip;

/// Chats that are kept of one model.
const KEPT_OF_MODEL: usize = 20;
/// Chats that are kept of all models together.
const KEPT: usize = 200;
/// Characters of the last question that are shown.
const REMINDER: usize = 80;
/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What a run begins with.
pub struct Begun {
    /// Where its chat is kept; `None` where it is not.
    pub chats: Option<Chats>,
    /// What was said so far: the system prompt, or a chat that goes on.
    pub conversation: Conversation,
    /// How far a chat was that goes on.
    pub reminder: Option<String>,
}

/// What `unicorn run` begins with. A text that came through a pipe begins no chat that is kept, but it may go on with one.
///
/// # Errors
/// Where a chat shall go on and there is none, or the model cannot chat.
pub fn begin(session: &Session, args: &RunArgs, piped: bool, config: &Config) -> anyhow::Result<Begun> {
    // A template that is broken is told where it is used.
    let can_chat = !args.raw && matches!(session.text.template(), Ok(Some(_)));
    if args.go_on && !can_chat {
        bail!("--continue goes on with a chat, and this model has no chat template");
    }
    let mut conversation = Conversation::new(args.system.as_deref().or(session.text.recommended.system));
    conversation.begin_at(whole_seconds(SystemTime::now()));
    let mut chats = match (&config.state_dir, &session.fingerprint) {
        (Some(state), Some(fingerprint)) => Some(Chats::new(state, fingerprint, &session.engine.spec().name)),
        _ => None,
    };
    let kept = can_chat && args.disk.bytes() > 0 && (args.go_on || !piped);
    if !args.go_on {
        return Ok(Begun { chats: chats.filter(|_| kept), conversation, reminder: None });
    }
    let Some(found) = &mut chats else { bail!("--continue: there is no folder for chats; HOME is not set") };
    let Last { mut conversation, at } = found.go_on()?;
    if args.system.is_some() {
        conversation.set_system(args.system.as_deref());
    }
    let (turns, last) = (conversation.turns(), conversation.last_question().unwrap_or_default());
    let questions = if turns == 1 { "question" } else { "questions" };
    let reminder =
        format!("continuing after {turns} {questions}, {}: {}", ago(at), clip(&one_line(last), REMINDER));
    Ok(Begun { chats: chats.filter(|_| kept), conversation, reminder: Some(reminder) })
}

/// A chat as it is written. It can be read as a conversation too, by /load.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// The model's own name.
    model: String,
    /// The model's fingerprint in hexadecimal digits.
    fingerprint: String,
    /// Seconds since 1970 when it began.
    began: u64,
    messages: Vec<Message>,
}

/// Where a model's chats are kept, and which of them is the one that goes on.
pub struct Chats {
    folder: PathBuf,
    /// Beginning of the fingerprint, as names have it.
    model: String,
    fingerprint: String,
    name: String,
    /// The file of the chat that goes on; a new one begins where there is none.
    current: Option<PathBuf>,
}

/// A chat that was found.
pub struct Last {
    /// What was said.
    pub conversation: Conversation,
    /// When.
    pub at: SystemTime,
}

impl Chats {
    /// Of a model, below the folder for state that outlives a run.
    pub fn new(state: &Path, fingerprint: &[u8; 32], name: &str) -> Chats {
        let fingerprint: String = fingerprint.iter().map(|b| format!("{b:02x}")).collect();
        Chats {
            folder: state.join("unicorn").join("chats"),
            model: fingerprint[..16].to_owned(),
            fingerprint,
            name: name.to_owned(),
            current: None,
        }
    }

    /// All kept chats, the oldest first: file, time, and the model's part of its name. Nothing else in the folder is looked at.
    fn all(&self) -> Vec<(SystemTime, PathBuf, String)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let chat = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let (model, number) = name.strip_suffix(".json")?.split_once('-')?;
            let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
            // The entry's own data: a link is no chat.
            let told = entry.metadata().ok().filter(|told| told.is_file())?;
            (model.len() == 16 && digits(model) && digits(number))
                .then(|| Some((told.modified().ok()?, entry.path(), model.to_owned())))?
        };
        let mut all: Vec<_> = entries.filter_map(chat).collect();
        all.sort();
        all
    }

    /// The last chat with the model, which goes on from now on.
    ///
    /// # Errors
    /// Where there is none, or its file cannot be read or is none.
    pub fn go_on(&mut self) -> anyhow::Result<Last> {
        let mine = self.all().into_iter().rfind(|(_, _, model)| *model == self.model);
        let Some((at, path, _)) = mine else {
            bail!("there is no chat with this model to continue in {}", self.folder.display());
        };
        let conversation = self.read(&path).with_context(|| format!("cannot continue {}", path.display()))?;
        self.current = Some(path);
        Ok(Last { conversation, at })
    }

    fn read(&self, path: &Path) -> anyhow::Result<Conversation> {
        let mut text = String::new();
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        anyhow::ensure!(text.len() as u64 <= FILE_BYTES_MAX, "too large for a chat");
        let stored: Stored = serde_json::from_str(&text)?;
        anyhow::ensure!(stored.fingerprint == self.fingerprint, "it is a chat with another model");
        let mut conversation = Conversation::of(stored.messages)?;
        let began = UNIX_EPOCH.checked_add(Duration::from_secs(stored.began));
        conversation.begin_at(began.context("it began at no time that there is")?);
        Ok(conversation)
    }

    /// What is said next belongs to another chat; the one before is kept as it is.
    pub fn begin_anew(&mut self) {
        self.current = None;
    }

    /// Keeps a chat that has got an answer, in place of what it was before; the oldest go. The file appears whole or not at all, for its
    /// owner alone.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn keep(&mut self, conversation: &Conversation) -> anyhow::Result<()> {
        let is_answer = |last: &Message| last.role == Role::Assistant && !last.content.is_empty();
        if !conversation.messages().last().is_some_and(is_answer) {
            return Ok(());
        }
        let named = || format!("cannot keep the chat for --continue in {}", self.folder.display());
        let (model, fingerprint) = (self.name.clone(), self.fingerprint.clone());
        let began = conversation.began().unwrap_or_else(SystemTime::now);
        let began = began.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let stored = Stored { model, fingerprint, began, messages: conversation.messages().to_vec() };
        let text = serde_json::to_string(&stored).with_context(named)? + "\n";
        make_private(&self.folder).with_context(named)?;
        let path = self.current.clone().unwrap_or_else(|| self.fresh());
        let mut file = tempfile::NamedTempFile::new_in(&self.folder).with_context(named)?;
        file.write_all(text.as_bytes()).with_context(named)?;
        file.persist(&path).with_context(named)?;
        self.current = Some(path);
        self.forget();
        Ok(())
    }

    /// A file name that no chat has.
    fn fresh(&self) -> PathBuf {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        let name = |n: u128| self.folder.join(format!("{}-{n:x}.json", self.model));
        (micros..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(micros))
    }

    /// Removes the oldest beyond what is kept. One that cannot be removed does no harm.
    fn forget(&self) {
        let all = self.all();
        let of_model = all.iter().filter(|(_, _, model)| *model == self.model).map(|(_, path, _)| path);
        let too_many = of_model.clone().count().saturating_sub(KEPT_OF_MODEL);
        let oldest = all.iter().map(|(_, path, _)| path).take(all.len().saturating_sub(KEPT));
        for path in of_model.take(too_many).chain(oldest) {
            if Some(path) != self.current.as_ref() {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// As a file keeps it.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn make_private(folder: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn chat(question: &str) -> Conversation {
        let mut conversation = Conversation::new(Some("Be brief."));
        conversation.begin_at(UNIX_EPOCH + Duration::from_secs(86_400));
        conversation.ask(question.into());
        conversation.answer("yes".into());
        conversation
    }

    fn of(state: &Path, model: u8) -> Chats {
        Chats::new(state, &[model; 32], "Tiny")
    }

    fn files(state: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(state.join("unicorn/chats")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Makes files older, in steps that every file system tells apart.
    fn age(path: &Path, seconds: u64) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn the_last_chat_of_a_model_goes_on_in_its_file() {
        let state = tempfile::tempdir().unwrap();
        assert!(
            of(state.path(), 1).go_on().is_err_and(|e| e.to_string().contains("no chat with this model"))
        );
        of(state.path(), 1).keep(&chat("first")).unwrap();
        files(state.path()).iter().for_each(|path| age(path, 100));
        of(state.path(), 1).keep(&chat("second")).unwrap();
        files(state.path()).iter().for_each(|path| age(path, 50 + 50 * u64::from(age_of(path) > 60)));
        of(state.path(), 2).keep(&chat("of another model")).unwrap();
        assert_eq!(files(state.path()).len(), 3);

        let mut chats = of(state.path(), 1);
        let mut last = chats.go_on().unwrap();
        assert_eq!(last.conversation, chat("second"));
        assert!(last.at.elapsed().unwrap() >= Duration::from_secs(40));
        // What has no answer yet is not kept.
        last.conversation.ask("third".into());
        chats.keep(&last.conversation).unwrap();
        assert_eq!(of(state.path(), 1).go_on().unwrap().conversation.turns(), 1);
        last.conversation.answer("no".into());
        chats.keep(&last.conversation).unwrap();
        assert_eq!(files(state.path()).len(), 3);
        assert_eq!(of(state.path(), 1).go_on().unwrap().conversation, last.conversation);
        chats.begin_anew();
        chats.keep(&chat("anew")).unwrap();
        assert_eq!(files(state.path()).len(), 4);
    }

    fn age_of(path: &Path) -> u64 {
        fs::metadata(path).unwrap().modified().unwrap().elapsed().unwrap().as_secs()
    }

    #[test]
    fn the_oldest_go_and_other_files_stay() {
        let state = tempfile::tempdir().unwrap();
        of(state.path(), 2).keep(&chat("of another model")).unwrap();
        let folder = state.path().join("unicorn/chats");
        for name in ["notes.json", "0101010101010101-.json", "0101010101010101-12.txt"] {
            fs::write(folder.join(name), "mine").unwrap();
        }
        for n in 0..25 {
            for path in files(state.path()) {
                age(&path, age_of(&path) + 10);
            }
            of(state.path(), 1).keep(&chat(&n.to_string())).unwrap();
        }
        assert_eq!(files(state.path()).len(), 20 + 1 + 3);
        assert_eq!(of(state.path(), 1).go_on().unwrap().conversation, chat("24"));
        let kept = fs::read_dir(&folder).unwrap().flatten();
        let texts = kept.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        assert_eq!(texts.filter(|text| text.contains("\"content\":\"4\"")).count(), 0);
    }

    #[test]
    fn what_is_no_chat_is_an_error_that_names_the_file() {
        let state = tempfile::tempdir().unwrap();
        of(state.path(), 1).keep(&chat("first")).unwrap();
        let path = files(state.path()).remove(0);
        let whole = fs::read_to_string(&path).unwrap();
        let other = whole.replace("0101010101010101", "0101010101010102");
        let never = whole.replace("86400", "18446744073709551615");
        let late = whole.replace("\"assistant\"", "\"system\"");
        for text in [&whole[..50], "[]", "", &other, &never, &late] {
            fs::write(&path, text).unwrap();
            let error = of(state.path(), 1).go_on().map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
        // It can be loaded as a conversation, too.
        fs::write(&path, &whole).unwrap();
        assert_eq!(Conversation::load(&path).unwrap().messages(), chat("first").messages());
    }

    #[cfg(unix)]
    #[test]
    fn chats_are_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        of(state.path(), 1).keep(&chat("first")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&files(state.path())[0]), 0o600);
        assert_eq!(mode(&state.path().join("unicorn/chats")), 0o700);
    }
}
