//! What other programs call things: commands and flags that this one lacks, each with what does the same here.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

/// Commands of other programs, and what to say about them.
const COMMANDS: [(&[&str], &str); 12] = [
    (&["generate", "ask", "complete", "prompt"], "did you mean `unicorn run PROMPT`?"),
    (&["start", "api"], "`unicorn serve` is the server"),
    (&["ps", "stop"], "a model lives as long as the `unicorn run` or `unicorn serve` that uses it"),
    (&["delete", "uninstall", "erase"], "did you mean `unicorn rm MODEL`?"),
    (&["install", "get", "fetch", "add"], "did you mean `unicorn pull MODEL`?"),
    (&["info", "metadata", "dump"], "did you mean `unicorn inspect MODEL`?"),
    (&["benchmark", "speed"], "did you mean `unicorn bench`?"),
    (&["ppl", "eval"], "did you mean `unicorn perplexity`?"),
    (&["gpus", "gpu", "device", "doctor"], "did you mean `unicorn devices`?"),
    (&["test", "check", "self-test"], "did you mean `unicorn selftest`?"),
    (&["create", "convert", "quantize", "push", "cp", "copy"], "not built yet"),
    (&["version", "update", "upgrade"], "`unicorn --version` tells the version"),
];

/// Flags of other programs, and what to say about them. A command that has such a flag itself is not asked.
const FLAGS: [(&[&str], &str); 35] = [
    (
        &[
            "-ngl",
            "--n-gpu-layers",
            "--gpu-layers",
            "--num-gpu",
            "--ngl",
            "--gpu",
            "--cuda",
            "--metal",
            "-dev",
        ],
        "`--device vulkan` runs the whole model on a GPU, `--device cpu` none of it; `unicorn devices` lists them",
    ),
    (&["-mg", "--main-gpu"], "`--device vulkan:N` takes the GPU of number N"),
    (
        &[
            "-sm",
            "--split-mode",
            "-ts",
            "--tensor-split",
            "-ot",
            "--override-tensor",
            "--tensor-parallel-size",
        ],
        "a model runs on one --device",
    ),
    (&["--cpu", "--cpu-only", "--no-gpu"], "`--device cpu` runs the model on the CPU"),
    (&["--list-devices"], "`unicorn devices` lists them"),
    (&["--random-seed"], "`--seed N` sets the seed"),
    (&["--chat-template-file"], "`--chat-template FILE` takes a template from a file"),
    (
        &[
            "--stop",
            "-r",
            "--reverse-prompt",
            "--ignore-eos",
            "--think",
            "--reasoning-budget",
            "--hidethinking",
        ],
        "not built yet: an answer ends where the model ends it, or at --max-tokens",
    ),
    (&["--keep", "--context-shift", "--no-context-shift"], "an answer ends where the context is full"),
    (&["--nowordwrap", "--verbose-prompt", "--numa"], "leave it out: it does not apply here"),
    (&["-p", "--prompt"], "the prompt needs no flag: `unicorn run PROMPT`"),
    (&["-f", "--file"], "`unicorn run < FILE` takes the prompt from a file"),
    (&["-sys"], "`--system TEXT` sets the system prompt"),
    (&["-s"], "`--seed N` sets the seed"),
    (
        &["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-mu", "--model-url"],
        "`-m owner/repo:quant` takes a model from Hugging Face",
    ),
    (
        &["-cnv", "--conversation", "-i", "--interactive", "-if", "--interactive-first", "-it"],
        "without a prompt `unicorn run` chats",
    ),
    (
        &["-no-cnv", "--no-conversation", "-st", "--single-turn"],
        "with a prompt `unicorn run` answers once; --raw leaves out the chat template",
    ),
    (&["-tb", "--threads-batch"], "`--threads N` counts for prompts and answers alike"),
    (
        &["-b", "--batch-size", "-ub", "--ubatch-size"],
        "there is nothing to set: prompts are read in chunks that suit the device",
    ),
    (
        &["-fa", "--flash-attn", "--flash-attention"],
        "there is nothing to set: attention always works that way",
    ),
    (
        &["-ctk", "-ctv", "--cache-type-k", "--cache-type-v", "--kv-type"],
        "`--kv TYPE` sets the type of the KV cache",
    ),
    (
        &["--prompt-cache", "--prompt-cache-all", "--prompt-cache-ro", "--slot-save-path", "--cache-reuse"],
        "there is nothing to set: what was computed for a prompt is kept on disk; --kv-disk SIZE sets how much, `unicorn kv` lists it",
    ),
    (&["-nkvo", "--no-kv-offload"], "the KV cache lies where the model runs"),
    (
        &["--mlock", "--no-mmap", "--mmap", "--use-mmap", "--direct-io"],
        "there is nothing to set: weights are read into memory once and no file is mapped",
    ),
    (
        &["--jinja", "--no-jinja"],
        "there is nothing to set: the model's own chat template is used; --raw leaves it out",
    ),
    (
        &[
            "--temperature-last",
            "--samplers",
            "--sampling-seq",
            "--mirostat",
            "--xtc-probability",
            "--top-n-sigma",
            "--repeat-last-n",
            "--dynatemp-range",
        ],
        "this way of sampling is not built yet; `unicorn run --help` lists those that are",
    ),
    (
        &["--grammar", "--grammar-file", "--json-schema", "-j", "--format"],
        "answers of a given form are not built yet",
    ),
    (&["--lora", "--lora-scaled", "--control-vector"], "adapters are not built yet"),
    (&["--mmproj", "--image", "--audio", "-mm"], "images and sound are not built yet"),
    (&["-md", "--model-draft", "--draft-max", "--spec-type"], "drafts by a second model are not built yet"),
    (
        &[
            "--host",
            "--port",
            "--parallel",
            "-np",
            "--slots",
            "-cb",
            "--cont-batching",
            "--keepalive",
            "--api-key",
        ],
        "`unicorn serve` has it, or has no need of it",
    ),
    (
        &["--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale", "--yarn-orig-ctx"],
        "there is nothing to set: the model's file says how positions are encoded",
    ),
    (
        &["--quant", "--quantization", "--dtype"],
        "the model's name says it: `-m owner/repo:Q4_K_M`, or a file of that type",
    ),
    (&["--log-disable", "--silent-prompt"], "`--quiet` leaves out everything but errors"),
    (
        &[
            "--no-display-prompt",
            "--color",
            "--simple-io",
            "--no-warmup",
            "-e",
            "--escape",
            "--trust-remote-code",
        ],
        "leave it out: it is so already, or does not apply here",
    ),
];

/// Flags that clap would take for `-m` with a name written onto it, or for `-h`, and go on.
const SWALLOWED: [&str; 7] = ["-mg", "-mu", "-md", "-mm", "-hf", "-hfr", "-hff"];

/// A mistake that clap would not see: a flag of another program that reads as `-m` or `-h`.
pub fn swallowed_flag(line: &[OsString]) -> Option<clap::Error> {
    let word = words(line).find(|word| SWALLOWED.contains(word))?;
    Some(refusal(ErrorKind::UnknownArgument, &flag_hint(word)?))
}

/// The error for a refused command line: what it should be, where other programs have what it asks for; else the error as it is.
/// `is_model` tells the names of models.
pub fn explain(
    error: clap::Error,
    line: &[OsString],
    root: &Command,
    is_model: impl Fn(&str) -> bool,
) -> clap::Error {
    let hint = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let word = context(&error, ContextKind::InvalidSubcommand);
            word.and_then(|word| command_hint(word, is_model))
        }
        ErrorKind::UnknownArgument | ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let commands = named_commands(line, root);
            if commands.is_empty() {
                context(&error, ContextKind::InvalidArg).and_then(|flag| without_command(flag, root))
            } else {
                let has =
                    |flag: &str| commands.iter().any(|c| c.get_arguments().any(|arg| is_called(arg, flag)));
                let foreign = |word: &&str| flag_text(word).is_some() && !has(name_of(word));
                words(line).find(foreign).and_then(flag_hint)
            }
        }
        _ => None,
    };
    hint.map_or(error, |hint| refusal(ErrorKind::UnknownArgument, &hint))
}

/// The command that a line names, and the one within it, if any.
fn named_commands<'c>(line: &[OsString], root: &'c Command) -> Vec<&'c Command> {
    let mut commands: Vec<&Command> = Vec::new();
    for word in words(line) {
        commands.extend(commands.last().copied().unwrap_or(root).find_subcommand(word));
    }
    commands
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    }
}

fn refusal(kind: ErrorKind, hint: &str) -> clap::Error {
    clap::Error::raw(kind, format!("{hint}\n"))
}

/// The words before `--`, behind which everything is a prompt.
fn words(line: &[OsString]) -> impl Iterator<Item = &str> {
    line.iter().skip(1).map_while(|word| word.to_str().filter(|word| *word != "--"))
}

fn command_hint(word: &str, is_model: impl Fn(&str) -> bool) -> Option<String> {
    let known = COMMANDS.iter().find(|(names, _)| names.contains(&word.to_ascii_lowercase().as_str()));
    let text = match known {
        Some((_, text)) => (*text).to_owned(),
        None if is_model(word) => format!("did you mean `unicorn run -m {word}`?"),
        None if word.contains(char::is_whitespace) => format!("did you mean `unicorn run {word:?}`?"),
        None => return None,
    };
    Some(format!("there is no command `{word}`: {text}"))
}

/// `unicorn -m MODEL`, as programs without commands have it.
fn without_command(flag: &str, root: &Command) -> Option<String> {
    let run = root.find_subcommand("run")?;
    let of_run = run.get_arguments().any(|arg| is_called(arg, name_of(flag)));
    of_run.then(|| format!("`{flag}` belongs to a command: `unicorn run {flag} ...`"))
}

/// `--flag=value` without its value.
fn name_of(word: &str) -> &str {
    word.split('=').next().unwrap_or(word)
}

fn flag_text(word: &str) -> Option<&'static str> {
    let known = FLAGS.iter().find(|(names, _)| names.contains(&name_of(word)));
    known.map(|(_, text)| *text)
}

fn flag_hint(word: &str) -> Option<String> {
    Some(format!("there is no flag `{}`: {}", name_of(word), flag_text(word)?))
}

fn is_called(arg: &Arg, flag: &str) -> bool {
    match flag.strip_prefix("--") {
        Some(long) => {
            arg.get_long() == Some(long) || arg.get_all_aliases().is_some_and(|a| a.contains(&long))
        }
        None => flag.len() == 2 && flag.chars().nth(1) == arg.get_short(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::args::Cli;

    /// What is said about a line that is refused, by us or else by clap.
    fn said(line: &[&str]) -> String {
        let line: Vec<OsString> = ["unicorn"].iter().chain(line).map(OsString::from).collect();
        let swallowed = swallowed_flag(&line);
        let error = swallowed.unwrap_or_else(|| {
            let error = Cli::try_parse_from(&line).expect_err("refused");
            explain(error, &line, &Cli::command(), |name| name == "gemma3-270m")
        });
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn flags_of_other_programs_name_ours() {
        for (line, part) in [
            (&["run", "-ngl", "99", "hi"][..], "--device vulkan"),
            (&["run", "--n-gpu-layers=99", "hi"], "--device vulkan"),
            (&["bench", "-ngl", "99"], "--device vulkan"),
            (&["run", "-m", "x", "-p", "hi"], "unicorn run PROMPT"),
            (&["chat", "-mg", "1"], "vulkan:N"),
            (&["run", "-ctk", "q8_0", "hi"], "--kv"),
            (&["run", "-fa", "hi"], "nothing to set"),
            (&["run", "-tb", "4", "hi"], "--threads"),
            (&["run", "--no-mmap", "hi"], "no file is mapped"),
            (&["run", "-cnv"], "chats"),
            (&["run", "--grammar", "x", "hi"], "not built yet"),
            (&["run", "--dtype", "f16", "hi"], "the model's name says it"),
            (&["bench", "ffn", "--flash-attn"], "nothing to set"),
            (&["run", "-hf", "a/b", "hi"], "-m owner/repo"),
            (&["perplexity", "-m", "x", "-f", "t", "-b", "512"], "chunks that suit"),
        ] {
            let text = said(line);
            assert!(text.contains("there is no flag") && text.contains(part), "{line:?}: {text}");
        }
        // What the command has, and what follows `--`, is no foreign flag.
        assert!(!said(&["bench", "-p", "x"]).contains("there is no flag"));
        assert!(!said(&["bench", "ffn", "--dtype", "q9"]).contains("there is no flag"));
        assert!(!said(&["run", "--temp", "hot", "--", "-ngl"]).contains("there is no flag"));
        assert!(Cli::try_parse_from(["unicorn", "run", "--", "-ngl"]).is_ok());
    }

    #[test]
    fn commands_of_other_programs_name_ours() {
        for (line, part) in [
            (&["start"][..], "unicorn serve"),
            (&["ps"], "as long as"),
            (&["generate", "hi"], "unicorn run PROMPT"),
            (&["install", "x"], "unicorn pull"),
            (&["gemma3-270m"], "unicorn run -m gemma3-270m"),
            (&["What is this?"], "unicorn run \"What is this?\""),
            (&["-m", "x", "hi"], "unicorn run -m"),
            (&["modles"], "models"),
            (&["frobnicate"], "frobnicate"),
        ] {
            let text = said(line);
            assert!(text.contains(part), "{line:?}: {text}");
        }
    }

    #[test]
    fn nothing_of_ours_is_called_foreign() {
        let root = Cli::command();
        for (names, text) in COMMANDS {
            assert!(names.iter().all(|name| root.find_subcommand(name).is_none()), "{names:?} {text}");
        }
        for flag in SWALLOWED {
            assert!(flag_text(flag).is_some(), "{flag}");
        }
    }
}
