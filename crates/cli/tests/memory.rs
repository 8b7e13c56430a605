//! Models that do not fit: told in a table before anything is loaded, and never by the system's ending the program.
#![cfg(target_os = "linux")]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::{output, stderr, tiny_model, unicorn};

/// One token of an answer on one thread, with these arguments.
fn answer(home: &Path, model: &Path, args: &[&str]) -> Output {
    output(&mut command(unicorn(home), model, args))
}

fn command(mut command: Command, model: &Path, args: &[&str]) -> Command {
    command.args(["run", "--device", "cpu", "--threads", "1", "--raw", "--max-tokens", "1", "--no-stdin"]);
    command.arg("-m").arg(model).args(args).arg("a b");
    command
}

/// As [`answer`], with so many kilobytes of address space.
fn limited(home: &Path, model: &Path, kilobytes: u64, args: &[&str]) -> Output {
    let inner = command(unicorn(home), model, args);
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -v {kilobytes} && exec \"$0\" \"$@\""));
    shell.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(std::process::Stdio::null());
    output(&mut shell)
}

/// Megabytes that the first refusal wants.
fn wanted(told: &str) -> f64 {
    let words: Vec<&str> = told.split_whitespace().collect();
    let at = words.iter().position(|w| *w == "wanted").expect("a refusal");
    let factor = match words[at - 1] {
        "kB" => 1e-3,
        "MB" => 1.0,
        other => panic!("{other}: {told}"),
    };
    words[at - 2].parse::<f64>().unwrap() * factor
}

#[test]
fn a_limit_of_the_address_space_is_told_in_a_table() {
    let home = tempfile::tempdir().unwrap();
    let model = tiny_model(home.path(), None);
    // 128 bytes for each of a million positions.
    let args = ["--kv", "f32", "--ctx", "1048576"];
    let ended = limited(home.path(), &model, 400_000, &args);
    let told = stderr(&ended);
    assert_eq!(ended.status.code(), Some(1), "{told}");
    for part in ["cannot load Tiny: it does not fit into memory", "KV cache", "134 MB", "(ulimit -v"] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    let fits = answer(home.path(), &model, &args);
    assert_eq!(fits.status.code(), Some(0), "{}", stderr(&fits));
}

#[test]
fn the_flag_is_a_limit_like_any_other() {
    let home = tempfile::tempdir().unwrap();
    let model = tiny_model(home.path(), None);
    let refused = |args: &[&str]| {
        let ended = answer(home.path(), &model, args);
        assert_eq!(ended.status.code(), Some(1), "{}", stderr(&ended));
        stderr(&ended)
    };
    let told = refused(&["--memory-max", "cpu=20MB", "--ctx", "1048576"]);
    assert!(told.contains("there (--memory-max)"), "{told}");
    // What is advised does fit.
    let (_, advice) = told.split_once("it would fit with --ctx ").expect("advice");
    let tokens: String = advice.chars().take_while(char::is_ascii_digit).collect();
    let fits = answer(home.path(), &model, &["--memory-max", "cpu=20MB", "--ctx", &tokens]);
    assert!(fits.status.success(), "{told}\n{}", stderr(&fits));
    let told = refused(&["--memory-max", "1kB"]);
    assert!(told.contains("no context is short enough"), "{told}");
    let other = answer(home.path(), &model, &["--memory-max", "reference=1GB"]);
    assert_eq!(other.status.code(), Some(2), "{}", stderr(&other));
}

#[test]
fn a_context_that_nobody_asked_for_gets_shorter_and_that_is_said() {
    let home = tempfile::tempdir().unwrap();
    let model = tiny_model(home.path(), None);
    let run = |max: f64, args: &[&str]| {
        let max = format!("{max:.3}MB");
        answer(home.path(), &model, &[&["--kv", "f32", "--memory-max", &max][..], args].concat())
    };
    let all = wanted(&stderr(&run(0.001, &["--ctx", "8192"])));
    let least = wanted(&stderr(&run(0.001, &["--ctx", "2048"])));
    assert!(all > least + 0.5, "{all} {least}");
    let between = (all + least) / 2.0;
    let shorter = run(between, &[]);
    let told = stderr(&shorter);
    assert!(shorter.status.success() && told.contains("8192 do not fit into memory"), "{told}");
    assert!(!stderr(&run(all + 0.1, &[])).contains("do not fit"));
    // Who names a context means it, and below 2048 nobody is served unasked.
    assert_eq!(run(between, &["--ctx", "8192"]).status.code(), Some(1));
    assert_eq!(run(least - 0.1, &[]).status.code(), Some(1));
}
