//! `cargo xtask test`: the data that the tests need, the workspace's tests, then the real models.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{data, e2e, lavapipe, sh};

/// Options of `cargo xtask test`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Leave the end-to-end tests on real models out
    #[arg(long)]
    no_models: bool,
}

/// Passed and failed tests.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs everything, then tells the sum; fails where any test failed.
pub fn run(args: &Args) -> Result<()> {
    let data = sh::step("test data", data::install)?;
    // Tests of the workspace use whatever driver is there: see to it that there is one.
    if let Err(reason) = lavapipe::driver() {
        println!("tests that need a Vulkan driver may be NOT RUN: {reason}");
    }
    let (mut tally, built) = sh::step("workspace tests", workspace_tests)?;
    if !args.no_models {
        let binary = sh::step("release build", || {
            sh::run(&mut sh::cargo("build --locked --release -p unicorn"))?;
            Ok(sh::target("release/unicorn"))
        })?;
        tally += e2e::run(&binary, &data);
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 || !built {
        bail!("tests failed");
    }
    Ok(())
}

/// Runs `cargo test` with its output passed on; returns the tests counted and whether cargo was content.
fn workspace_tests() -> Result<(Tally, bool)> {
    let mut command = sh::cargo("test --locked --workspace --no-fail-fast");
    eprintln!("$ {}", sh::show(&command));
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("reading cargo's output")?;
            println!("{line}");
            tally += tally_of(&line).unwrap_or_default();
        }
    }
    let status = child.wait().context("waiting for cargo")?;
    Ok((tally, status.success()))
}

/// Reads `test result: ok. 3 passed; 0 failed; ...`.
fn tally_of(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?;
    let count = |name: &str| {
        let before = counts.split(name).next().filter(|before| before.len() < counts.len())?;
        before.rsplit([' ', ';']).find(|word| !word.is_empty())?.parse().ok()
    };
    Some(Tally { passed: count(" passed")?, failed: count(" failed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.1s";
        assert_eq!(tally_of(line), Some(Tally { passed: 12, failed: 3 }));
        assert_eq!(tally_of("test result: nonsense"), None);
        assert_eq!(tally_of("test a::b ... ok"), None);
    }
}
