//! Threads are started where the system may have none to give: `std::thread::Builder` tells, `thread::spawn` and `Scope::spawn` panic.

use super::finding::Finding;
use super::names::Names;

pub fn check(names: &Names) -> Vec<Finding> {
    let mut findings = Vec::new();
    for place in names.places() {
        let module = names.module(place);
        findings.extend(module.bare_spawns.iter().map(|line| Finding {
            file: module.file.clone(),
            line: *line,
            message: "panics where no thread can be started: use thread::Builder and its error".into(),
        }));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::samples::names;

    #[test]
    fn the_rule_fires() {
        let lines = |text: &str| -> Vec<usize> {
            check(&names(&[("a", true, &[("a/src/lib.rs", text)])])).into_iter().map(|f| f.line).collect()
        };
        assert_eq!(lines("fn f() {\n    std::thread::spawn(|| {});\n}"), [2]);
        assert_eq!(lines("use std::thread;\nfn f() { thread::spawn(g); }"), [2]);
        assert_eq!(lines("fn f() {\n    std::thread::scope(|s| {\n        s.spawn(|| {});\n    });\n}"), [3]);
        assert_eq!(lines("fn f() { std::thread::Builder::new().spawn(g)?; }"), [0; 0]);
        assert_eq!(lines("fn f(mut command: Command) { command.spawn()?; }"), [0; 0]);
        assert_eq!(lines("#[cfg(test)]\nmod tests { fn f() { std::thread::spawn(g); } }"), [0; 0]);
    }
}
