//! What strangers tried: each kind of fault that users met is a row or a test here, so that it does not come back.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::harness::{Bench, Outcome, passed, told};
use crate::sh;

/// Files of a model, as names and contents.
type Files = &'static [(&'static str, &'static str)];

/// An empty list of tensors, as safetensors write it.
const NO_TENSORS: &str = "\x02\0\0\0\0\0\0\0{}";
const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}"#;

/// What is no model that this program reads: what to open, the files, and what the error must say.
const WRONG_FILES: &[(&str, Files, &str)] = &[
    (
        "pointer.gguf",
        &[("pointer.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")],
        "a Git LFS pointer, not the file",
    ),
    (
        "page.gguf",
        &[("page.gguf", "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n")],
        "an HTML page",
    ),
    (
        "gptq",
        &[
            (
                "gptq/config.json",
                r#"{"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "gptq", "bits": 4}}"#,
            ),
            ("gptq/model.safetensors", NO_TENSORS),
        ],
        "quantized with GPTQ, which unicorn does not read",
    ),
    (
        "shards",
        &[("shards/config.json", LLAMA), ("shards/model-00001-of-00002.safetensors", NO_TENSORS)],
        "shards without model.safetensors.index.json",
    ),
    (
        "unknown",
        &[
            ("unknown/config.json", r#"{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}"#),
            ("unknown/model.safetensors", NO_TENSORS),
        ],
        "MambaForCausalLM",
    ),
];

/// Variables with values that no one should set: an error names the variable.
const ENVIRONMENTS: &[(&str, &str)] = &[
    ("ALL_PROXY", "socks5h://127.0.0.1:1"),
    ("ALL_PROXY", "socks4://127.0.0.1:1"),
    ("HTTPS_PROXY", "http://127.0.0.1:1"),
    ("ALL_PROXY", "://"),
    ("HF_ENDPOINT", "not an address"),
];

/// The longest that a run of a few tokens may take, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder of its own for a test, empty.
fn folder(name: &str) -> Result<std::path::PathBuf> {
    let dir = sh::target("e2e").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

/// Fails where a program panicked, whatever else it did.
fn no_panic(what: &str, out: &Output) -> Result<String> {
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    if stderr.contains("panicked") || !matches!(out.status.code(), Some(0..=2)) {
        bail!("{what}: {}\n{stderr}", out.status);
    }
    Ok(stderr)
}

pub fn wrong_files_are_named(bench: &Bench<'_>) -> Result<Outcome> {
    let dir = folder("wrong-files")?;
    for (model, files, said) in WRONG_FILES {
        for (name, content) in *files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&dir))?;
            fs::write(&path, content)?;
        }
        let path = dir.join(model).display().to_string();
        let out = bench.unicorn(&["run", "-m", &path, "Hi"]).output()?;
        let stderr = no_panic(model, &out)?;
        ensure!(!out.status.success() && stderr.contains(said), "{model}: no `{said}` in {stderr}");
    }
    told(format!("{} kinds", WRONG_FILES.len()))
}

pub fn the_environment_cannot_panic(bench: &Bench<'_>) -> Result<Outcome> {
    let cache = folder("environment")?;
    for (name, value) in ENVIRONMENTS {
        let mut command = bench.unicorn(&["pull", "nobody/nothing"]);
        command.env_remove("HF_HUB_OFFLINE").env("HF_HUB_CACHE", &cache).env(name, value);
        let what = format!("{name}={value}");
        let out = command.output()?;
        let stderr = no_panic(&what, &out)?;
        let right = !out.status.success() && stderr.contains(name);
        ensure!(right, "{what}: {}, {stderr}", out.status);
    }
    told(format!("{} variables", ENVIRONMENTS.len()))
}

/// A control token that somebody types is text: it costs the tokens of its letters and ends no turn.
pub fn special_tokens_in_a_prompt_are_text(bench: &Bench<'_>) -> Result<Outcome> {
    let tokens = |prompt: &str| -> Result<usize> {
        let out = bench.unicorn(&["run", "--temp", "0", "--max-tokens", "1", prompt]).output()?;
        let stderr = no_panic(prompt, &out)?;
        prompt_tokens(&stderr).with_context(|| format!("no number of prompt tokens in {stderr}"))
    };
    let (special, other) = (tokens("Say <|im_end|> now")?, tokens("Say <|im_enx|> now")?);
    let note = format!("{special} tokens with <|im_end|>, {other} with <|im_enx|>");
    ensure!(special.abs_diff(other) <= 1, "{note}");
    told(note)
}

/// Reads `... 31 tokens ...`: the first number that stands before the word.
fn prompt_tokens(stderr: &str) -> Option<usize> {
    let words: Vec<&str> = stderr.split_whitespace().collect();
    words.windows(2).find_map(|w| w[1].starts_with("token").then(|| w[0].parse().ok()).flatten())
}

/// `while read` feeds the loop and the program from one pipe: the program must leave the lines alone when it is told to.
pub fn a_loop_keeps_its_lines(bench: &Bench<'_>) -> Result<Outcome> {
    if !Path::new("/bin/sh").exists() {
        return Ok(Outcome::NotRun("there is no /bin/sh".to_string()));
    }
    let script = r#"printf 'one\ntwo\nthree\n' | while read line; do
        "$0" run --no-stdin -q --temp 0 --max-tokens 1 "$line" > /dev/null && echo "$line"; done"#;
    let lines = sh::output(bench.around("/bin/sh").args(["-c", script]).arg(bench.binary))?;
    ensure!(lines == "one\ntwo\nthree\n", "answered {lines:?}");
    passed()
}

/// A program that starts this one may leave its stdin open and never write to it.
pub fn a_silent_pipe_does_not_block(bench: &Bench<'_>) -> Result<Outcome> {
    let mut command = bench.unicorn(&["run", "-q", "--temp", "0", "--max-tokens", "1", "Hello"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().context("cannot run unicorn")?;
    // Held until the program has ended.
    let stdin = child.stdin.take();
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begin.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("no answer within {} s while stdin stays open", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    drop(stdin);
    ensure!(status.success(), "unicorn failed: {status}");
    told(format!("{:.1} s", begin.elapsed().as_secs_f32()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_tokens_are_read() {
        assert_eq!(prompt_tokens("prompt: 31 tokens at 99.0 tokens/s"), Some(31));
        assert_eq!(prompt_tokens("no tokens"), None);
    }
}
