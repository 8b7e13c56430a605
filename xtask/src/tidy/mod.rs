//! `cargo xtask tidy`: the house rules that a program can check.

mod circles;
mod docs;
mod edges;
mod finding;
mod names;
mod parse;
mod public;
mod rules;
#[cfg(test)]
mod samples;
mod source;
mod threads;

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{metadata, sh};
use finding::Finding;
use names::Names;
use source::Source;

const ARCHITECTURE: &str = "ARCHITECTURE.md";
/// Names what was there at the time.
const CHANGELOG: &str = "CHANGELOG.md";

/// Checks every file that git knows or would add.
pub fn run() -> Result<()> {
    let listed =
        sh::output(sh::command("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let workspaces = [metadata::read("Cargo.toml")?, metadata::read("fuzz/Cargo.toml")?];
    let mut findings = edges::check(&workspaces[0]);
    let names = Names::read(&workspaces, &sh::root())?;
    findings.extend(circles::check(&names));
    findings.extend(public::check(&names));
    findings.extend(threads::check(&names));
    let mut sources = Vec::new();
    for path in listed.lines().filter(|path| rules::is_text(path)) {
        let full = sh::root().join(path);
        // Deleted in the working tree, or not text after all.
        let Ok(bytes) = std::fs::read(&full) else { continue };
        let text = String::from_utf8(bytes).with_context(|| format!("{path} is no UTF-8"))?;
        sources.push((path.to_string(), text));
    }
    let test_files = test_files(&sources);
    for (path, text) in &sources {
        let source = Source::new(path, text, test_files.contains(path));
        findings.extend(rules::check(&source));
    }
    let exists = |path: &str| sh::root().join(path).exists();
    for (path, text) in sources.iter().filter(|(path, _)| path.ends_with(".md") && path != CHANGELOG) {
        findings.extend(docs::check(path, text, |name| {
            let beside = Path::new(path).parent().unwrap_or(Path::new("")).join(name);
            exists(name) || exists(&beside.to_string_lossy())
        }));
        if path == ARCHITECTURE {
            findings.extend(docs::check_crates(path, text, &edges::by_folder()));
        }
    }
    findings.extend(rules::unused_allowances(&sources, &test_files));
    findings.sort();
    for Finding { file, line, message } in &findings {
        println!("{file}:{line}: {message}");
    }
    match findings.len() {
        0 => {
            eprintln!("{} files are tidy", sources.len());
            Ok(())
        }
        n => bail!("{n} findings"),
    }
}

/// Files that are compiled for tests alone: named as such, or declared by a `mod` under `#[cfg(test)]`.
fn test_files(sources: &[(String, String)]) -> HashSet<String> {
    let mut found = HashSet::new();
    for (path, text) in sources.iter().filter(|(path, _)| path.ends_with(".rs")) {
        if rules::is_test_path(path) {
            found.insert(path.clone());
        }
        let folder = Path::new(path).parent().unwrap_or(Path::new(""));
        let stem = Path::new(path).file_stem().unwrap_or_default();
        let source = Source::new(path, text, false);
        for module in source.test_modules() {
            let places = [folder.join(&module), folder.join(stem).join(&module)];
            for place in places {
                let place = place.to_string_lossy().into_owned();
                for (other, _) in sources {
                    if *other == format!("{place}.rs") || other.starts_with(&format!("{place}/")) {
                        found.insert(other.clone());
                    }
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_for_tests_alone_are_recognised() {
        let file = |path: &str, text: &str| (path.to_string(), text.to_string());
        let sources = [
            file("crates/a/src/lib.rs", "mod real;\n#[cfg(test)]\nmod helper;\n"),
            file("crates/a/src/helper.rs", ""),
            file("crates/a/src/real.rs", "#[cfg(all(test, unix))]\nmod deep;\n"),
            file("crates/a/src/real/deep.rs", ""),
            file("crates/a/tests/whole.rs", ""),
        ];
        let mut found: Vec<String> = test_files(&sources).into_iter().collect();
        found.sort();
        assert_eq!(found, ["crates/a/src/helper.rs", "crates/a/src/real/deep.rs", "crates/a/tests/whole.rs"]);
    }
}
