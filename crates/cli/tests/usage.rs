//! Help, usage errors and exit codes: what needs no model.

mod support;

use std::process::Stdio;

use support::{output, stderr, stdout, unicorn};

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn without_arguments_help_is_printed() {
    let home = home();
    let bare = output(&mut unicorn(home.path()));
    assert_eq!(bare.status.code(), Some(2));
    assert!(stderr(&bare).contains("Usage: unicorn"), "{}", stderr(&bare));
    let asked = output(unicorn(home.path()).arg("--help"));
    assert_eq!(asked.status.code(), Some(0));
    for part in ["run", "bench", "Examples:", "Exit codes:", "HF_HOME"] {
        assert!(stdout(&asked).contains(part), "{part} missing in\n{}", stdout(&asked));
    }
}

#[test]
fn every_command_has_help() {
    let home = home();
    let commands = [
        "run",
        "pull",
        "models",
        "bench",
        "plan",
        "perplexity",
        "inspect",
        "tokenize",
        "devices",
        "completions",
    ];
    for command in commands {
        let help = output(unicorn(home.path()).args([command, "--help"]));
        assert_eq!(help.status.code(), Some(0), "{command}");
        assert!(stdout(&help).contains(&format!("Usage: unicorn {command}")), "{}", stdout(&help));
    }
}

#[test]
fn wrong_usage_exits_with_2_and_names_the_flag() {
    let home = home();
    let lines: [(&[&str], &str); 19] = [
        (&["run", "--temp", "hot", "x"], "--temp"),
        (&["run", "--top-p", "2", "x"], "between 0 and 1"),
        (&["run", "--device", "gpu", "x"], "cpu:scalar"),
        (&["run", "--threads", "2000", "x"], "--threads"),
        (&["run", "--seed", "-2", "x"], "-1 takes a new seed"),
        (&["run", "-ngl", "99", "x"], "--device vulkan"),
        (&["serve", "--alias", "a*b*"], "one * at most"),
        (&["smollm2-135m"], "did you mean `unicorn run -m smollm2-135m`?"),
        (&["modles"], "models"),
        (&["bench", "--shape", "135m:q8_0", "-p", "1000000000000", "-n", "0"], "1000000000000"),
        (&["bench", "--shape", "135m:q8_0", "-d", "18446744073709551615"], "18446744073709551615"),
        (&["bench", "ffn", "--tokens", "1000000000000"], "--tokens 1000000000000"),
        (&["bench", "ffn", "--width", "1000000000000", "--dtype", "f32"], "too large"),
        (&["bench", "--shape", "llama-9b:q4_k"], "llama-8b"),
        (&["bench", "--shape", "8b:q4_k", "-p", "0", "-n", "0"], "nothing to measure"),
        (&["bench", "ffn", "--hidden", "300", "--dtype", "q4_k"], "--hidden 300"),
        (&["selftest", "--compile-only", "--seed", "1"], "--compile-only"),
        (&["selftest", "--validate", "--model", "x.gguf"], "--validate"),
        (&["frobnicate"], "frobnicate"),
    ];
    for (line, part) in lines {
        let out = output(unicorn(home.path()).args(line));
        assert_eq!(out.status.code(), Some(2), "{line:?}: {}", stderr(&out));
        assert!(stderr(&out).contains(part), "{line:?}: {}", stderr(&out));
        assert!(out.stdout.is_empty(), "{line:?}");
    }
}

#[test]
fn a_device_without_a_driver_is_not_watched() {
    let home = home();
    for flag in ["--compile-only", "--validate"] {
        let out = output(unicorn(home.path()).args(["selftest", "--device", "cpu", flag]));
        assert_ne!(out.status.code(), Some(0), "{flag}");
        assert!(stderr(&out).contains("no driver to watch"), "{}", stderr(&out));
    }
}

#[test]
fn a_device_without_tiers_is_not_limited() {
    let home = home();
    for command in [&["selftest"][..], &["bench", "ffn"]] {
        let out = output(unicorn(home.path()).args(command).args(["--device", "cpu", "--tier", "plain"]));
        assert_ne!(out.status.code(), Some(0), "{command:?}");
        assert!(stderr(&out).contains("no tiers"), "{}", stderr(&out));
    }
}

#[test]
fn names_of_other_programs_work_where_they_mean_the_same() {
    let home = home();
    for alias in ["list", "ls"] {
        let listed = output(unicorn(home.path()).arg(alias));
        assert_eq!(stdout(&listed), stdout(&output(unicorn(home.path()).arg("models"))));
        assert_eq!(listed.status.code(), Some(0));
    }
    for (alias, command) in [("chat", "run"), ("show", "inspect"), ("download", "pull")] {
        let help = output(unicorn(home.path()).args([alias, "--help"]));
        assert!(stdout(&help).contains(&format!("Usage: unicorn {command}")), "{}", stdout(&help));
    }
}

#[test]
fn an_empty_prompt_is_wrong_usage() {
    let home = home();
    let out = output(unicorn(home.path()).arg("run"));
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("the prompt is empty"), "{}", stderr(&out));
}

#[test]
fn an_unknown_model_is_named_with_the_closest() {
    let home = home();
    let out = output(unicorn(home.path()).args(["run", "-m", "smolm2-135m", "hello"]));
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).starts_with("error: unknown model `smolm2-135m`"), "{}", stderr(&out));
    assert!(stderr(&out).contains("smollm2-135m"), "{}", stderr(&out));
    let missing = output(unicorn(home.path()).args(["run", "-m", "./missing.gguf", "hello"]));
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("./missing.gguf"), "{}", stderr(&missing));
}

#[test]
fn the_environment_names_a_default_model() {
    let home = home();
    let out = output(unicorn(home.path()).env("UNICORN_MODEL", "from-env").args(["run", "hello"]));
    assert!(stderr(&out).contains("from-env"), "{}", stderr(&out));
}

#[test]
fn a_model_that_is_not_here_cannot_be_fetched_offline() {
    let home = home();
    let out = output(unicorn(home.path()).args(["pull", "smollm2-135m"]));
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("offline"), "{}", stderr(&out));
}

#[test]
fn models_lists_the_default() {
    let home = home();
    let out = output(unicorn(home.path()).arg("models"));
    assert_eq!(out.status.code(), Some(0));
    assert!(stdout(&out).contains("smollm2-135m"), "{}", stdout(&out));
    let json = output(unicorn(home.path()).args(["models", "--json"]));
    let value: serde_json::Value = serde_json::from_str(&stdout(&json)).expect("JSON");
    assert_eq!(value.as_array().expect("a list").iter().filter(|m| m["default"] == true).count(), 1);
}

#[test]
fn completions_name_the_commands() {
    let home = home();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let out = output(unicorn(home.path()).args(["completions", shell]));
        assert_eq!(out.status.code(), Some(0), "{shell}");
        assert!(stdout(&out).contains("perplexity"), "{shell}");
    }
}

#[test]
fn closed_outputs_do_no_harm() {
    let home = home();
    // A reader that is gone before anything is written.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut gone = unicorn(home.path());
    gone.args(["completions", "bash"]).stdout(writer.try_clone().expect("a pipe")).stderr(Stdio::piped());
    let out = output(&mut gone);
    assert_eq!(out.status.code(), Some(141));
    assert!(out.stderr.is_empty(), "{}", stderr(&out));
    let mut mute = unicorn(home.path());
    mute.args(["run", "-m", "no-such-model", "x"]).stderr(writer);
    assert_eq!(output(&mut mute).status.code(), Some(1));
}
