//! What the documents name is there: paths in the text, and the table of crates beside the one that is checked.

use super::finding::Finding;

/// Endings of names that are files of the repository.
const FILES: [&str; 9] = [".rs", ".md", ".toml", ".txt", ".py", ".comp", ".glsl", ".json", "/"];

/// Folders that only builds and runs make.
const MADE: &str = "target/";

/// Checks one document; `exists` is asked about paths from the root.
pub fn check(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, line) in text.lines().enumerate() {
        for name in named(line) {
            if !exists(name) {
                let message = format!("names {name}, which is not there");
                findings.push(Finding { file: path.to_string(), line: i + 1, message });
            }
        }
    }
    findings
}

/// The paths between backticks (not folders told from the one around), and the targets of links within the repository.
fn named(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split('`').skip(1).step_by(2);
    let links = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    code.filter(|name| name.trim_end_matches('/').contains('/')).chain(links).filter(move |name| {
        name.chars().all(plain) && FILES.iter().any(|end| name.ends_with(end)) && !name.starts_with(MADE)
    })
}

/// Compares the table of crates in ARCHITECTURE.md with the one that is checked, of crates and those that they may use.
pub fn check_crates(path: &str, text: &str, edges: &[(String, Vec<String>)]) -> Vec<Finding> {
    let rows: Vec<(usize, Vec<&str>)> =
        text.lines().enumerate().filter_map(|(i, l)| Some((i + 1, row(l)?))).collect();
    let mut findings = Vec::new();
    for (name, uses) in edges {
        let mut tell =
            |line: usize, message: String| findings.push(Finding { file: path.to_string(), line, message });
        let Some((line, cells)) =
            rows.iter().find(|(_, cells)| cells.len() == 3 && code(cells[0]) == [name.as_str()])
        else {
            tell(0, format!("the code map has no row for `{name}`"));
            continue;
        };
        let mut told = code(cells[2]);
        told.sort();
        let mut expected: Vec<&str> = uses.iter().map(String::as_str).collect();
        expected.sort();
        if told != expected {
            tell(*line, format!("`{name}` may use {expected:?}, and the code map says {told:?}"));
        }
    }
    findings
}

/// The cells of a row of a table.
fn row(line: &str) -> Option<Vec<&str>> {
    Some(line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect())
}

/// What stands between backticks.
fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_must_exist() {
        let text = "see `src/a.rs`, `src/gone.rs`\nand [this](docs/a.md#part), [that](docs/gone.md), <https://x.org/a.md>\n\
            `a/b` `sub/` `x::y.rs` `target/x.json` `cargo run a/b.rs` [web](https://x.org/a.md)\n";
        let there = |path: &str| ["src/a.rs", "docs/a.md"].contains(&path);
        let found: Vec<(usize, String)> =
            check("A.md", text, there).into_iter().map(|f| (f.line, f.message)).collect();
        assert_eq!(
            found,
            [
                (1, "names src/gone.rs, which is not there".to_string()),
                (2, "names docs/gone.md, which is not there".to_string())
            ]
        );
    }

    #[test]
    fn the_code_map_says_what_is_checked() {
        let edges = |uses: &[&str]| [("b".to_string(), uses.iter().map(|u| u.to_string()).collect())];
        let text = "| crate | holds | may use |\n| --- | --- | --- |\n| `b` | x | `core`, `a` |\n";
        assert_eq!(check_crates("A.md", text, &edges(&["a", "core"])), []);
        assert_eq!(check_crates("A.md", text, &edges(&["a"]))[0].line, 3);
        assert!(check_crates("A.md", "", &edges(&[]))[0].message.contains("no row for `b`"));
        let text = "| `b` | x | - |\n";
        assert_eq!(check_crates("A.md", text, &edges(&[])), []);
    }
}
