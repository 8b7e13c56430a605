//! The tests of the chat page: node drives a headless Chromium. Neither is needed to build or to use the page.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::sh;
use crate::tally::{NOT_RUN, Tally};

/// The oldest node that has what the tests use.
const NODE_MAJOR_MIN: u32 = 18;

/// What distributions call a Chromium, and browsers that are one.
const CHROMIUMS: &[&str] =
    &["chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome"];

/// Options of `cargo xtask page`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Test the page of a running server; tests that need known answers are skipped [default: a mock server]
    #[arg(long)]
    url: Option<String>,
    /// The key that this server asks for
    #[arg(long, requires = "url")]
    key: Option<String>,
    /// Leave pictures of the page in this folder: phone and desktop, dark and light
    #[arg(long, value_name = "FOLDER")]
    screenshots: Option<PathBuf>,
    /// Run only tests whose name contains this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// The Chromium to use [default: the first one found]
    #[arg(long, value_name = "PROGRAM")]
    chromium: Option<PathBuf>,
    /// Fail where node or a Chromium is missing
    #[arg(long)]
    pub strict: bool,
}

/// Runs the tests; says that they did not run where node or a Chromium is missing.
pub fn run(args: &Args) -> Result<()> {
    let tally = match programs(args) {
        Ok((node, chromium)) => tests(args, &node, &chromium)?,
        Err(reason) => {
            println!("test page ... {NOT_RUN}: {reason}");
            Tally { not_run: 1, ..Tally::default() }
        }
    };
    println!("{tally}");
    tally.judge(args.strict)
}

fn programs(args: &Args) -> Result<(PathBuf, PathBuf), String> {
    let node = PathBuf::from("node");
    let version = version(&node).ok_or("node is not installed")?;
    let major = major(&version).ok_or_else(|| format!("node calls itself {version:?}"))?;
    if major < NODE_MAJOR_MIN {
        return Err(format!("node is {version}, older than {NODE_MAJOR_MIN}"));
    }
    let named = args.chromium.clone().map(|program| vec![program]);
    let candidates = named.unwrap_or_else(|| CHROMIUMS.iter().map(PathBuf::from).collect());
    let found = candidates.iter().find(|program| self::version(program).is_some());
    let tried = || candidates.iter().map(|c| c.display().to_string()).collect::<Vec<_>>().join(", ");
    let chromium = found.ok_or_else(|| format!("no Chromium found ({})", tried()))?;
    Ok((node, chromium.clone()))
}

/// What a program answers to `--version`, if it is there.
fn version(program: &PathBuf) -> Option<String> {
    let out = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_string())
}

/// The 20 of `v20.11.1`.
fn major(version: &str) -> Option<u32> {
    version.strip_prefix('v')?.split('.').next()?.parse().ok()
}

fn tests(args: &Args, node: &PathBuf, chromium: &PathBuf) -> Result<Tally> {
    let mut command = sh::command(node);
    command.arg("crates/server/page-tests/run.mjs").arg("--chromium").arg(chromium);
    for (name, value) in [("--url", &args.url), ("--key", &args.key), ("--only", &args.only)] {
        if let Some(value) = value {
            command.arg(name).arg(value);
        }
    }
    if let Some(folder) = &args.screenshots {
        // The command runs at the root of the workspace; the folder is meant from here.
        command.arg("--screenshots").arg(std::path::absolute(folder)?);
    }
    // The key is not shown.
    eprintln!("$ node crates/server/page-tests/run.mjs");
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run node")?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            tally += Tally::of_line(&line);
            println!("{line}");
        }
    }
    let status = child.wait()?;
    // Without a result the script itself failed.
    if !status.success() && tally.failed == 0 {
        bail!("the tests of the page ended with {status}");
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_node() {
        assert_eq!(major("v20.11.1"), Some(20));
        assert_eq!(major("v8"), Some(8));
        assert_eq!(major("20.1"), None);
        assert_eq!(major(""), None);
    }

    #[test]
    fn a_chromium_that_is_not_there_is_told() {
        let args = Args { chromium: Some("/nowhere/chromium".into()), ..Args::default() };
        let reason = programs(&args).unwrap_err();
        assert!(reason.contains("/nowhere/chromium") || reason.contains("node"), "{reason}");
        assert!(run(&args).is_ok());
        assert!(run(&Args { strict: true, ..args }).is_err());
    }
}
