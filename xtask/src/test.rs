//! `cargo xtask test`: the data that the tests need, the workspace's tests, then the real models.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::tally::{NOT_RUN, Tally};
use crate::{data, e2e, lavapipe, sh};

/// Tells the tests of the Vulkan device to fail where they find no driver.
const REQUIRE_VULKAN: &str = "UNICORN_REQUIRE_VULKAN";

/// Options of `cargo xtask test`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Leave the end-to-end tests on real models out
    #[arg(long)]
    pub no_models: bool,
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
    let (mut tally, built) = sh::step("workspace tests", || workspace_tests(args.strict))?;
    if !args.no_models {
        let binary = sh::step("release build", || {
            sh::run(&mut sh::cargo("build --locked --release -p unicorn"))?;
            Ok(sh::target("release/unicorn"))
        })?;
        tally += e2e::run(&binary, &data);
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
