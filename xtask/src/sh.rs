//! Running programs and finding places in the workspace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Root of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// A path below `target/`.
pub fn target(path: &str) -> PathBuf {
    root().join("target").join(path)
}

/// A command that runs at the root of the workspace, without input.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// `cargo` with arguments separated by spaces.
pub fn cargo(arguments: &str) -> Command {
    let mut command = command("cargo");
    command.args(arguments.split_whitespace());
    command
}

/// Runs a command whose output the user sees; fails where it fails.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", show(command));
    let status = command.status().with_context(|| format!("cannot run {}", show(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", show(command));
    }
    Ok(())
}

/// Runs a command and returns what it wrote to stdout; its stderr is quoted where it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("cannot run {}", show(command)))?;
    if !out.status.success() {
        bail!(
            "{} failed: {}\n{}",
            show(command),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim_end()
        );
    }
    String::from_utf8(out.stdout).with_context(|| format!("{} wrote no UTF-8", show(command)))
}

/// A command as one would type it.
pub fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    let root = format!("{}/", root().display());
    words.join(" ").replace(&root, "")
}

/// Announces a step and tells how long it took.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("== {name}");
    let begin = Instant::now();
    let result = work().with_context(|| format!("step `{name}`"));
    let seconds = begin.elapsed().as_secs_f32();
    eprintln!("== {name}: {} in {seconds:.1} s", if result.is_ok() { "done" } else { "FAILED" });
    result
}
