//! The part of `cargo metadata` that the checks read.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::sh;

#[derive(Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
}

#[derive(Deserialize)]
pub struct Package {
    pub name: String,
    #[serde(default)]
    pub dependencies: Vec<Dependency>,
    #[serde(default)]
    pub targets: Vec<Target>,
}

#[derive(Deserialize)]
pub struct Dependency {
    pub name: String,
    /// `None` for ordinary ones, else `dev` or `build`.
    pub kind: Option<String>,
    /// Set for crates of the workspace.
    pub path: Option<String>,
}

/// What cargo builds of a package: its library, a program, a test.
#[derive(Deserialize)]
pub struct Target {
    pub name: String,
    /// `lib`, `bin`, `test`, `bench`, `example`, `custom-build`.
    pub kind: Vec<String>,
    pub src_path: PathBuf,
}

/// The packages of a workspace, without what they depend on; by its manifest's path from the root.
pub fn read(manifest: &str) -> Result<Metadata> {
    let mut cargo = sh::cargo("metadata --no-deps --format-version 1 --manifest-path");
    parse(&sh::output(cargo.arg(manifest))?)
}

pub fn parse(json: &str) -> Result<Metadata> {
    serde_json::from_str(json).context("output of cargo metadata")
}
