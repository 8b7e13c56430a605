//! No circles among the files of a crate: whoever reads one file should not have to read another that reads the first.
//!
//! A file depends on another where its code names something that is defined there. That a module declares its children and
//! re-exports what they hold is no dependency, and neither is anything that tests alone need.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::finding::Finding;
use super::names::{Names, Place, Target};
use super::parse::Role;

/// Where a file names something of another: the line and the path.
type Edges<'a> = BTreeMap<&'a str, BTreeMap<&'a str, (usize, String)>>;

pub fn check(names: &Names) -> Vec<Finding> {
    (0..names.units.len()).flat_map(|unit| circles(&edges(names, unit))).collect()
}

fn edges(names: &Names, unit: usize) -> Edges<'_> {
    let mut edges = Edges::new();
    for module in 0..names.units[unit].modules.len() {
        let place = Place { unit, module };
        for naming in names.module(place).namings.iter().filter(|n| !n.in_test) {
            for target in names.resolve(place, naming) {
                let at = match target {
                    Target::Item(at, _) | Target::Within(at) if at.unit == unit => at,
                    _ => continue,
                };
                let re_export = matches!(naming.role, Role::ReExport { .. });
                let (from, to) = (&*names.module(place).file, &*names.module(at).file);
                if from != to && !(re_export && is_below(names, at, place)) {
                    let named = (naming.line, naming.segments.join("::"));
                    edges.entry(from).or_default().entry(to).or_insert(named);
                }
            }
        }
    }
    edges
}

/// True where a module lies in another, at any depth.
fn is_below(names: &Names, mut at: Place, above: Place) -> bool {
    while let Some(parent) = names.module(at).parent {
        if parent == above.module {
            return true;
        }
        at.module = parent;
    }
    false
}

/// Short circles first, and each dependency in one circle at most: what is left shows when they are gone.
fn circles(edges: &Edges<'_>) -> Vec<Finding> {
    let mut all = BTreeSet::new();
    for (from, targets) in edges {
        for mut circle in targets.keys().filter_map(|to| way(edges, to, from)) {
            // The same circle is found from each of its files.
            let least = (0..circle.len()).min_by_key(|i| circle[*i]).unwrap_or(0);
            circle.rotate_left(least);
            all.insert((circle.len(), circle));
        }
    }
    let mut told = BTreeSet::new();
    let mut findings = Vec::new();
    for (_, circle) in all {
        let next = circle.iter().cycle().skip(1);
        let steps: Vec<(&str, &str)> = circle.iter().copied().zip(next.copied()).collect();
        if steps.iter().any(|step| told.contains(step)) {
            continue;
        }
        let show = |(from, to): &(&str, &str)| {
            let (line, path) = &edges[from][to];
            format!("line {line} of {from} names {path} of {to}")
        };
        findings.push(Finding {
            file: steps[0].0.to_string(),
            line: edges[steps[0].0][steps[0].1].0,
            message: format!(
                "files use each other in a circle: {}",
                steps.iter().map(show).collect::<Vec<_>>().join("; ")
            ),
        });
        told.extend(steps);
    }
    findings
}

/// The files of the shortest way from one to another, both included.
fn way<'a>(edges: &Edges<'a>, from: &'a str, to: &'a str) -> Option<Vec<&'a str>> {
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(file) = queue.pop_front() {
        if file == to {
            let mut way = vec![to];
            while *way.last()? != from {
                way.push(before[way.last()?]);
            }
            way.reverse();
            return Some(way);
        }
        for next in edges.get(file).into_iter().flat_map(|targets| targets.keys()) {
            if *next != from && !before.contains_key(next) {
                before.insert(next, file);
                queue.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::samples::names;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        check(&names(&[("a", true, files)]))
            .into_iter()
            .map(|f| format!("{}:{} {}", f.file, f.line, f.message))
            .collect()
    }

    #[test]
    fn the_rule_fires() {
        let lib = ("a/src/lib.rs", "mod one;\nmod two;\npub use one::One;\n");
        let one = ("a/src/one.rs", "use crate::two::two;\npub struct One;\nfn f() { two() }\n");
        let fine = ("a/src/two.rs", "pub fn two() {}\n");
        assert_eq!(found(&[lib, one, fine]), [""; 0]);
        for user in [
            "pub fn two() { crate::one::f(); }\n",
            "use super::one;\npub fn two() -> one::One { todo() }\n",
            "use crate::One;\npub fn two() {}\n",
            "pub fn two() { println!(\"{:?}\", super::One); }\n",
            "use super::*;\npub fn two(_: &One) {}\n",
            "pub fn two() { use crate::One as Other; }\n",
        ] {
            let found = found(&[lib, one, ("a/src/two.rs", user)]);
            assert_eq!(found.len(), 1, "{user}: {found:?}");
            assert!(found[0].starts_with("a/src/one.rs:1 files use each other in a circle: line 1 of a/src/one.rs names crate::two::two"));
        }
        let three = "use crate::three::g;\npub fn two() { g() }\n";
        let lib = ("a/src/lib.rs", "mod one;\nmod two;\nmod three;\n");
        let back = ("a/src/three.rs", "pub fn g() { crate::one::f() }\n");
        assert_eq!(found(&[lib, one, ("a/src/two.rs", three), back]).len(), 1);
    }

    #[test]
    fn a_parent_may_re_export_but_not_use_its_child() {
        let child = ("a/src/child.rs", "use crate::Shared;\npub fn make(_: Shared) {}\n");
        assert_eq!(
            found(&[("a/src/lib.rs", "mod child;\npub use child::make;\npub struct Shared;\n"), child]),
            [""; 0]
        );
        assert_eq!(
            found(&[
                ("a/src/lib.rs", "mod child;\npub struct Shared;\nfn f() { child::make(Shared) }\n"),
                child
            ])
            .len(),
            1
        );
    }

    #[test]
    fn a_module_and_a_function_may_have_one_name() {
        let lib = ("a/src/lib.rs", "mod one;\nmod two;\nfn two() { one::f() }\n");
        let one = ("a/src/one.rs", "use super::two::Two;\npub fn f() {}\n");
        assert_eq!(found(&[lib, one, ("a/src/two.rs", "pub struct Two;\n")]), [""; 0]);
    }

    #[test]
    fn tests_may_use_what_they_like() {
        let one = ("a/src/one.rs", "pub fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::two::two;\n}\n");
        let two = ("a/src/two.rs", "pub fn two() { crate::one::f() }\n");
        assert_eq!(found(&[("a/src/lib.rs", "mod one;\nmod two;\n"), one, two]), [""; 0]);
    }
}
