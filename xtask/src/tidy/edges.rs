//! Which crate may use which of ours.

use super::finding::Finding;
use crate::metadata::Metadata;

/// Every crate of the workspace with those of ours that it may use. Tests may use more: a device is tested with the
/// engine, an engine with a device.
const EDGES: &[(&str, &[&str])] = &[
    ("unicorn-core", &[]),
    ("unicorn-cpu", &["unicorn-core"]),
    ("unicorn-vulkan", &["unicorn-core"]),
    ("unicorn-model", &["unicorn-core", "unicorn-text"]),
    ("unicorn-text", &[]),
    ("unicorn-hub", &[]),
    ("unicorn-engine", &["unicorn-core"]),
    ("unicorn-store", &["unicorn-core"]),
    ("unicorn-cases", &["unicorn-core"]),
    ("unicorn-grammar", &["unicorn-core", "unicorn-text", "unicorn-engine"]),
    (
        "unicorn-server",
        &["unicorn-core", "unicorn-text", "unicorn-model", "unicorn-engine", "unicorn-grammar"],
    ),
    (
        "unicorn",
        &[
            "unicorn-core",
            "unicorn-cpu",
            "unicorn-vulkan",
            "unicorn-model",
            "unicorn-text",
            "unicorn-hub",
            "unicorn-engine",
            "unicorn-store",
            "unicorn-cases",
            "unicorn-grammar",
            "unicorn-server",
        ],
    ),
    (
        "xtask",
        &["unicorn-core", "unicorn-cases", "unicorn-hub", "unicorn-model", "unicorn-text", "unicorn-grammar"],
    ),
];

/// The table with the folders' names in place of the packages', as the documents have it.
pub fn by_folder() -> Vec<(String, Vec<String>)> {
    let folder = |package: &str| match package {
        "unicorn" => "cli".to_string(),
        other => other.strip_prefix("unicorn-").unwrap_or(other).to_string(),
    };
    EDGES.iter().map(|(package, uses)| (folder(package), uses.iter().map(|u| folder(u)).collect())).collect()
}

/// Checks the packages of the workspace against the table.
pub fn check(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let mut complain = |message: String| {
            findings.push(Finding { file: format!("crate {}", package.name), line: 0, message });
        };
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == package.name) else {
            complain("is not in the table of crate edges (xtask/src/tidy/edges.rs)".to_string());
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some()) {
            let tests_only = dependency.kind.as_deref() == Some("dev");
            if !tests_only && !allowed.contains(&dependency.name.as_str()) {
                complain(format!("may not use {}", dependency.name));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata;

    fn found(package: &str, dependency: &str, kind: &str) -> Vec<String> {
        let json = format!(
            r#"{{"packages": [{{"name": "{package}", "dependencies":
                [{{"name": "{dependency}", "kind": {kind}, "path": "/x"}}, {{"name": "serde", "kind": null}}]}}]}}"#
        );
        check(&metadata::parse(&json).unwrap()).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn the_rule_fires() {
        assert_eq!(found("unicorn-engine", "unicorn-core", "null"), [""; 0]);
        assert_eq!(found("unicorn-engine", "unicorn-cpu", "\"dev\""), [""; 0]);
        assert_eq!(found("unicorn-engine", "unicorn-cpu", "null"), ["may not use unicorn-cpu"]);
        assert_eq!(found("unicorn-core", "unicorn-cpu", "\"build\""), ["may not use unicorn-cpu"]);
        assert!(found("unicorn-new", "unicorn-core", "null")[0].contains("not in the table"));
    }
}
