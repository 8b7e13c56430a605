//! What continuous integration runs.

use anyhow::Result;

use crate::sh::{self, cargo, step};
use crate::{licences, shaders, test, tidy};

/// Cheap checks first, so that a slip is told within a minute or two.
pub fn run() -> Result<()> {
    step("fmt", || sh::run(&mut cargo("fmt --all --check")))?;
    step("tidy", tidy::run)?;
    step("licences", licences::run)?;
    step("clippy", || sh::run(&mut cargo("clippy --locked --workspace --all-targets -- -D warnings")))?;
    step("shaders", shaders::check)?;
    step("test", || test::run(&test::Args::default()))
}
