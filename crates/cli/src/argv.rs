//! Prompts that begin with a dash, which a command line takes for flags.

use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::{Arg, Command, CommandFactory, Parser};

use crate::args::Cli;

/// Parses the command line. A prompt may begin with a dash where it cannot be a flag.
pub fn parse(line: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line).or_else(|error| {
        let is_flag = matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidValue);
        let again = with_dashed_prompt(line, &Cli::command()).filter(|_| is_flag);
        // What is wrong with the line as it was typed is what a person understands.
        again.and_then(|line| Cli::try_parse_from(line).ok()).ok_or(error)
    })
}

/// The command line with the prompt that begins with a dash moved behind `--`; `None` where there is no such prompt. Meant for
/// lines that cannot be parsed as they are.
///
/// `- an item` and `-5 + 3?` are prompts: no flag holds a space before its `=` or begins with a digit. A value that
/// belongs to a flag stays with it: `--system "- be brief"` becomes `--system=- be brief`.
fn with_dashed_prompt(line: &[OsString], command: &Command) -> Option<Vec<OsString>> {
    let subcommand = |word: &OsString| command.find_subcommand(word);
    let (at, run) = line.iter().enumerate().skip(1).find_map(|(at, word)| Some((at, subcommand(word)?)))?;
    if run.get_name() != "run" || line.iter().any(|word| word == "--") {
        return None;
    }
    let mut out = line.get(..=at)?.to_vec();
    let mut prompts = Vec::new();
    for word in line.get(at + 1..)? {
        let dashed = word.to_str().is_some_and(is_dashed_text);
        match out.last_mut() {
            Some(flag) if dashed && wants_value(flag, run) => {
                // Long flags take `=VALUE`; so do short ones.
                flag.push("=");
                flag.push(word);
            }
            _ if dashed => prompts.push(word.clone()),
            _ => out.push(word.clone()),
        }
    }
    let changed = out.len() < line.len();
    if !prompts.is_empty() {
        out.push("--".into());
        out.append(&mut prompts);
    }
    changed.then_some(out)
}

fn is_dashed_text(word: &str) -> bool {
    let Some(rest) = word.strip_prefix('-') else { return false };
    let name = rest.split('=').next().unwrap_or_default();
    name.contains(char::is_whitespace) || name.starts_with(|c: char| c.is_ascii_digit())
}

/// True for a flag by itself that is followed by its value.
fn wants_value(word: &OsStr, run: &Command) -> bool {
    let Some(word) = word.to_str() else { return false };
    let takes = |arg: &Arg| arg.get_action().takes_values() && !arg.is_positional();
    let mut args = run.get_arguments().filter(|arg| takes(arg));
    match (word.strip_prefix("--"), word.strip_prefix('-').map(|s| s.chars().collect::<Vec<_>>())) {
        (Some(long), _) => {
            let alias = |arg: &Arg| arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&long));
            args.any(|arg| arg.get_long() == Some(long) || alias(arg))
        }
        (None, Some(letters)) if letters.len() == 1 => {
            args.any(|arg| arg.get_short() == letters.first().copied())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(line: &[&str]) -> Option<Vec<String>> {
        let line: Vec<OsString> = line.iter().map(OsString::from).collect();
        let words = with_dashed_prompt(&line, &Cli::command())?;
        Some(words.into_iter().map(|w| w.into_string().unwrap()).collect())
    }

    #[test]
    fn prompts_move_and_values_stay() {
        assert_eq!(moved(&["u", "run", "- item"]).unwrap(), ["u", "run", "--", "- item"]);
        let line = ["u", "-q", "run", "-5 + 3?", "-n", "4"];
        assert_eq!(moved(&line).unwrap(), ["u", "-q", "run", "-n", "4", "--", "-5 + 3?"]);
        let line = ["u", "run", "--system", "- be brief", "--- a\n+++ b"];
        assert_eq!(moved(&line).unwrap(), ["u", "run", "--system=- be brief", "--", "--- a\n+++ b"]);
        let line = ["u", "run", "-m", "-5 x"];
        assert_eq!(moved(&line).unwrap(), ["u", "run", "-m=-5 x"]);
    }

    #[test]
    fn mistakes_stay_mistakes() {
        for line in [
            &["u", "run", "--temprature", "hot"][..],
            &["u", "run", "--", "- item"],
            &["u", "run", "-x"],
            &["u", "bench", "- item"],
            &["u", "bench", "run", "- item"],
            &["u", "run", "--sytem=be brief"],
        ] {
            assert_eq!(moved(line), None, "{line:?}");
        }
    }
}
