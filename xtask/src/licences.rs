//! Licences and sources of all dependencies, from cargo's own metadata: works without the network.
//!
//! `deny.toml` holds the list of allowed licences; `cargo deny` reads the same file, and is asked for advisories
//! where it is installed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::sh;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// `None` for the workspace's own.
    source: Option<String>,
}

/// Checks every dependency; doubled ones are only mentioned.
pub fn run() -> Result<()> {
    let json = sh::output(&mut sh::cargo("metadata --locked --format-version 1"))?;
    let metadata: Metadata = serde_json::from_str(&json).context("cargo metadata")?;
    let deny = std::fs::read_to_string(sh::root().join("deny.toml")).context("deny.toml")?;
    let allowed = allowed_licences(&deny);
    if allowed.is_empty() {
        bail!("deny.toml allows no licence");
    }
    for (name, versions) in duplicates(&metadata.packages) {
        eprintln!(
            "note: {name} is there {} times: {}",
            versions.len(),
            versions.into_iter().collect::<Vec<_>>().join(", ")
        );
    }
    let complaints: Vec<String> = metadata.packages.iter().filter_map(|p| complaint(p, &allowed)).collect();
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    eprintln!("{} packages, all licences allowed", metadata.packages.len());
    if sh::output(&mut sh::cargo("deny --version")).is_ok() {
        return sh::run(&mut sh::cargo("deny check advisories"));
    }
    eprintln!("note: cargo-deny is not installed; advisories were not looked up");
    Ok(())
}

/// What is wrong with a package, if anything.
fn complaint(package: &Package, allowed: &BTreeSet<String>) -> Option<String> {
    let Package { name, version, license, source } = package;
    if source.as_ref().is_some_and(|s| !s.starts_with("registry+")) {
        return Some(format!(
            "{name} {version}: comes from {}, not from a registry",
            source.as_deref().unwrap_or("?")
        ));
    }
    let Some(license) = license else {
        return Some(format!("{name} {version}: tells no licence"));
    };
    match satisfied(license, allowed) {
        Ok(true) => None,
        Ok(false) => Some(format!("{name} {version}: licence {license} is not allowed by deny.toml")),
        Err(e) => Some(format!("{name} {version}: licence {license:?}: {e}")),
    }
}

/// Names that occur in several versions.
fn duplicates(packages: &[Package]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    versions.retain(|_, v| v.len() > 1);
    versions
}

/// The strings of `allow = [ ... ]` in the `[licenses]` section.
fn allowed_licences(deny: &str) -> BTreeSet<String> {
    let section = deny.split("[licenses]").nth(1).unwrap_or_default();
    let list = section.split("allow = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or_default();
    list.lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .flat_map(|line| {
            line.split(',').map(|word| word.trim().trim_matches('"').to_string()).collect::<Vec<_>>()
        })
        .filter(|word| !word.is_empty())
        .collect()
}

/// Evaluates an SPDX expression: `AND` binds closer than `OR`; the old `/` means `OR`.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, at: 0, allowed };
    let result = parser.any()?;
    match parser.word() {
        None => Ok(result),
        Some(word) => Err(format!("unexpected {word}")),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    at: usize,
    allowed: &'a BTreeSet<String>,
}

impl<'a> Parser<'a> {
    fn word(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.word() == Some(word);
        self.at += usize::from(found);
        found
    }

    fn any(&mut self) -> Result<bool, String> {
        let mut result = self.all()?;
        while self.take("OR") {
            // Both sides are read before they are joined.
            let right = self.all()?;
            result |= right;
        }
        Ok(result)
    }

    fn all(&mut self) -> Result<bool, String> {
        let mut result = self.one()?;
        while self.take("AND") {
            let right = self.one()?;
            result &= right;
        }
        Ok(result)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.take("(") {
            let result = self.any()?;
            return if self.take(")") { Ok(result) } else { Err("a parenthesis is not closed".to_string()) };
        }
        let name =
            self.word().filter(|w| !["AND", "OR", "WITH", ")"].contains(w)).ok_or("a licence is missing")?;
        self.at += 1;
        if !self.take("WITH") {
            return Ok(self.allowed.contains(name));
        }
        let exception = self.word().ok_or("an exception is missing")?;
        self.at += 1;
        Ok(self.allowed.contains(&format!("{name} WITH {exception}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> BTreeSet<String> {
        ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(String::from).into()
    }

    #[test]
    fn expressions() {
        let cases = [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("GPL-3.0-only OR MIT", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("MIT AND GPL-3.0-only", false),
            ("MIT OR GPL-2.0-only AND GPL-3.0-only", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("MIT WITH LLVM-exception", false),
            ("MIT/GPL-2.0", true),
        ];
        for (expression, expected) in cases {
            assert_eq!(satisfied(expression, &allowed()), Ok(expected), "{expression}");
        }
        for broken in ["", "MIT OR", "(MIT", "MIT MIT", "AND MIT"] {
            assert!(satisfied(broken, &allowed()).is_err(), "{broken}");
        }
    }

    #[test]
    fn the_rule_fires() {
        let package = |license: Option<&str>, source: Option<&str>| Package {
            name: "p".into(),
            version: "1.0.0".into(),
            license: license.map(String::from),
            source: source.map(String::from),
        };
        assert_eq!(complaint(&package(Some("MIT"), Some("registry+x")), &allowed()), None);
        assert_eq!(complaint(&package(Some("MIT"), None), &allowed()), None);
        for bad in [
            package(None, Some("registry+x")),
            package(Some("GPL-3.0-only"), Some("registry+x")),
            package(Some("MIT"), Some("git+https://example.org")),
        ] {
            assert!(complaint(&bad, &allowed()).is_some());
        }
        let twice =
            [package(Some("MIT"), None), Package { version: "2.0.0".into(), ..package(Some("MIT"), None) }];
        assert_eq!(duplicates(&twice).len(), 1);
    }

    #[test]
    fn deny_toml_is_read() {
        let text = "[licenses]\nconfidence = 1\nallow = [\n  \"MIT\", # why\n  \"ISC\",\n]\n[bans]\nallow = [\"x\"]\n";
        assert_eq!(allowed_licences(text), ["ISC", "MIT"].map(String::from).into());
        assert!(allowed_licences("").is_empty());
    }
}
