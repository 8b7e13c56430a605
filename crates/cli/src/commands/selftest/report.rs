//! What `--report` writes beside what is shown.

use std::fs::File;
use std::io::Write;

use anyhow::Context;

use crate::args::SelftestArgs;

/// The file of `--report`, if one was asked for.
pub struct Report(Option<File>);

impl Report {
    /// Errors where the file cannot be written.
    pub fn create(args: &SelftestArgs) -> anyhow::Result<Report> {
        let create = |path: &std::path::PathBuf| {
            File::create(path).with_context(|| format!("cannot write {}", path.display()))
        };
        Ok(Report(args.report.as_ref().map(create).transpose()?))
    }

    /// Adds a line.
    pub fn line(&mut self, line: &str) -> anyhow::Result<()> {
        match &mut self.0 {
            Some(file) => writeln!(file, "{line}").context("cannot write the report"),
            None => Ok(()),
        }
    }
}
