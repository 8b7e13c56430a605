//! What continuous integration runs.

use anyhow::Result;

use crate::sh::{self, cargo, step};
use crate::{deny, shaders, test, tidy};

/// Cheap checks first, so that a slip is told within a minute or two. Nothing is left out for lack of a program or a driver.
pub fn run() -> Result<()> {
    step("fmt", || sh::run(&mut cargo("fmt --all --check")))?;
    step("tidy", tidy::run)?;
    step("licences", || deny::run(&deny::Args::default()))?;
    step("clippy", || sh::run(&mut cargo("clippy --locked --workspace --all-targets -- -D warnings")))?;
    step("fuzz targets", fuzz)?;
    step("shaders", shaders::check)?;
    step("test", || test::run(&test::Args { strict: true, ..test::Args::default() }))
}

/// The targets are type-checked; cargo-fuzz and a nightly compiler run them.
fn fuzz() -> Result<()> {
    let mut command = cargo("check --no-default-features --manifest-path fuzz/Cargo.toml --target-dir");
    sh::run(command.arg(sh::target("fuzz")))
}
