//! `cargo xtask test`: the data that the tests need, the workspace's tests, then the real models.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::tally::{NOT_RUN, Tally};
use crate::{clients, data, e2e, lavapipe, sh};

/// Tells the tests of the Vulkan device to fail where they find no driver.
const REQUIRE_VULKAN: &str = "UNICORN_REQUIRE_VULKAN";

/// Options of `cargo xtask test`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Leave the end-to-end tests on real models out
    #[arg(long)]
    pub no_models: bool,
    /// Run only the end-to-end tests whose name contains this
    #[arg(long, value_name = "NAME", conflicts_with = "no_models")]
    pub only: Option<String>,
    /// Run the end-to-end tests on this binary, instead of building one
    #[arg(long, value_name = "FILE", conflicts_with = "no_models")]
    pub binary: Option<PathBuf>,
    /// Fail where a test cannot run here, for lack of a Vulkan driver for example
    #[arg(long)]
    pub strict: bool,
}

/// Runs everything, then tells the sum; fails where any test failed, and with `strict` where any did not run.
pub fn run(args: &Args) -> Result<()> {
    let data = sh::step("test data", data::install)?;
    // Tests of the workspace use whatever driver is there: see to it that there is one.
    if let Err(reason) = lavapipe::driver() {
        if args.strict {
            bail!("tests need a Vulkan driver: {reason}");
        }
        println!("tests that need a Vulkan driver are {NOT_RUN}: {reason}");
    }
    let (mut tally, built) = match args.only {
        Some(_) => (Tally::default(), true),
        None => sh::step("workspace tests", || workspace_tests(args.strict))?,
    };
    if !args.no_models {
        let binary = match &args.binary {
            Some(binary) => fs::canonicalize(binary).with_context(|| binary.display().to_string())?,
            None => sh::step("release build", build)?,
        };
        tally += e2e::run(&binary, &data, args.only.as_deref().unwrap_or(""));
        if args.only.is_none() {
            tally += sh::step("clients of the server", || clients::small(&binary, &data))?;
        }
    }
    println!("{tally}");
    if tally.not_run > 0 {
        println!("what did not run is told above, with the reason: look for {NOT_RUN}");
    }
    tally.judge(args.strict)?;
    if !built {
        bail!("cargo test failed");
    }
    Ok(())
}

fn build() -> Result<PathBuf> {
    sh::run(&mut sh::cargo("build --locked --release -p unicorn"))?;
    Ok(sh::target("release/unicorn"))
}

/// Runs `cargo test` with its output passed on; returns the tests counted and whether cargo was content.
fn workspace_tests(strict: bool) -> Result<(Tally, bool)> {
    let mut command = sh::cargo("test --locked --workspace --no-fail-fast");
    if strict {
        command.env(REQUIRE_VULKAN, "1");
    }
    eprintln!("$ {}", sh::show(&command));
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("reading cargo's output")?;
            println!("{line}");
            tally += Tally::of_line(&line);
        }
    }
    let status = child.wait().context("waiting for cargo")?;
    Ok((tally, status.success()))
}
