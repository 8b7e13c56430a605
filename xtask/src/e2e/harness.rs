//! What every end-to-end test gets, and what it may answer.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::data::TestData;
use crate::sh;

pub const QUESTION: &str = "What is the capital of France?";

/// How a test ended that did not fail.
#[derive(Debug)]
pub enum Outcome {
    /// With a note for the report, which may be empty.
    Passed(String),
    /// Something is missing here, with what that is.
    NotRun(String),
}

pub type Test = fn(&Bench<'_>) -> Result<Outcome>;

pub struct Bench<'a> {
    /// The release build of `unicorn`.
    pub binary: &'a Path,
    pub data: &'a TestData,
}

impl Bench<'_> {
    /// The binary with the test data's cache and without network.
    pub fn unicorn(&self, arguments: &[&str]) -> Command {
        let mut command = self.around(self.binary);
        command.args(arguments);
        command
    }

    /// A program that starts the binary, in the same environment.
    pub fn around(&self, program: impl AsRef<Path>) -> Command {
        let mut command = sh::command(program);
        command.env("HF_HUB_CACHE", &self.data.hub).env("HF_HUB_OFFLINE", "1").env_remove("UNICORN_MODEL");
        // Chats and pages of tests are none of the developer's own.
        command.env("UNICORN_KV_DIR", sh::target("e2e/kv")).env("XDG_STATE_HOME", sh::target("e2e/state"));
        command
    }

    /// What `unicorn run` answers to [`QUESTION`].
    pub fn answer(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["run", "--max-tokens", "48"];
        all.extend(arguments);
        all.push(QUESTION);
        sh::output(&mut self.unicorn(&all))
    }
}

/// Passed, with nothing to add.
pub fn passed() -> Result<Outcome> {
    Ok(Outcome::Passed(String::new()))
}

/// Passed, with a note.
pub fn told(note: impl Into<String>) -> Result<Outcome> {
    Ok(Outcome::Passed(note.into()))
}
