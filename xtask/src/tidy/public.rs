//! What is public has a user in another crate; everything else is `pub(crate)`.
//!
//! Users are other packages and the package's own tests and benchmarks, which are crates of their own. A type counts as used
//! where something used mentions it in its signature. Methods are told apart by name alone, fields not at all, and what a
//! trait asks for is free.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::Finding;
use super::names::{Names, Place, Target};
use super::parse::{Definition, Impl, Named, Naming, Role, Unit};

/// Names that may stay public without a user, and why. Empty is best.
const ALLOWED: &[(&str, &str)] = &[];

type ItemId = (Place, usize);

pub fn check(names: &Names) -> Vec<Finding> {
    let index = Index::new(names);
    let used = index.used(names);
    let mut findings = Vec::new();
    for (unit, library) in names.units.iter().enumerate().filter(|(_, u)| u.is_library) {
        let words = &index.words[unit];
        for id in reachable(names, Place { unit, module: 0 }) {
            let item = names.item(id.0, id.1);
            if item.in_test {
                continue;
            }
            let mut tell = |at: Place, definition: &Definition, name: String| {
                if ALLOWED.iter().any(|(allowed, _)| *allowed == name) {
                    return;
                }
                findings.push(Finding {
                    file: names.module(at).file.clone(),
                    line: definition.line,
                    message: format!("pub {name} has no user outside {}", library.package),
                });
            };
            if !used.contains(&id) {
                tell(id.0, item, item.name.clone());
                continue;
            }
            for (at, block) in index.impls(id) {
                for member in block.members.iter().filter(|m| !m.in_test && !words.contains(m.name.as_str()))
                {
                    tell(*at, member, format!("{}::{}", item.name, member.name));
                }
            }
        }
    }
    findings
}

/// Items that another crate can name, from a library's root.
fn reachable(names: &Names, root: Place) -> BTreeSet<ItemId> {
    let mut items = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut modules = vec![root];
    while let Some(place) = modules.pop() {
        if !seen.insert(place) {
            continue;
        }
        let module = names.module(place);
        let mut add = |target: Target| match target {
            Target::Item(at, index) if at.unit == root.unit => {
                items.insert((at, index));
            }
            Target::Module(at) if at.unit == root.unit => modules.push(at),
            _ => {}
        };
        let re_exports = |naming: &Naming| naming.role == Role::ReExport { is_public: true };
        for named in module.names.values().flatten() {
            match named {
                Named::Module { index, is_public: true } => {
                    add(Target::Module(Place { unit: root.unit, module: *index }));
                }
                Named::Item(index) if module.items[*index].is_public => add(Target::Item(place, *index)),
                Named::Import(naming) if re_exports(naming) => {
                    names.resolve(place, naming).into_iter().for_each(&mut add);
                }
                _ => {}
            }
        }
        for glob in module.globs.iter().filter(|g| re_exports(g)) {
            names.resolve(place, glob).into_iter().for_each(&mut add);
        }
    }
    items
}

/// What is asked for again and again.
struct Index<'a> {
    /// By unit: the identifiers in the code of all units that may use it.
    words: Vec<BTreeSet<&'a str>>,
    /// By type: its `impl` blocks, each with its module.
    impls: BTreeMap<ItemId, Vec<(Place, &'a Impl)>>,
}

impl<'a> Index<'a> {
    fn new(names: &'a Names) -> Index<'a> {
        let mut impls: BTreeMap<ItemId, Vec<(Place, &Impl)>> = BTreeMap::new();
        for place in names.places() {
            for block in &names.module(place).impls {
                for target in names.resolve(place, &block.type_name) {
                    if let Target::Item(at, index) = target
                        && at.unit == place.unit
                    {
                        impls.entry((at, index)).or_default().push((place, block));
                    }
                }
            }
        }
        let words = (0..names.units.len()).map(|unit| words_of_users(names, unit)).collect();
        Index { words, impls }
    }

    fn impls(&self, id: ItemId) -> &[(Place, &'a Impl)] {
        self.impls.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Items that another unit names, and what their signatures lead to.
    fn used(&self, names: &Names) -> BTreeSet<ItemId> {
        let mut used = BTreeSet::new();
        let mut waiting = named_from_outside(names);
        while let Some(id) = waiting.pop() {
            if !used.insert(id) {
                continue;
            }
            let mut mentions = |at: Place, signature: &[Naming]| {
                for target in signature.iter().flat_map(|naming| names.resolve(at, naming)) {
                    if let Target::Item(place, index) = target {
                        waiting.push((place, index));
                    }
                }
            };
            mentions(id.0, &names.item(id.0, id.1).signature);
            for (at, block) in self.impls(id) {
                mentions(*at, &block.signature);
                let words = &self.words[id.0.unit];
                for member in block.members.iter().filter(|m| words.contains(m.name.as_str())) {
                    mentions(*at, &member.signature);
                }
            }
        }
        used
    }
}

fn named_from_outside(names: &Names) -> Vec<ItemId> {
    let mut found = Vec::new();
    for place in names.places() {
        for naming in &names.module(place).namings {
            for target in names.resolve(place, naming) {
                if let Target::Item(at, index) = target
                    && at.unit != place.unit
                {
                    found.push((at, index));
                }
            }
        }
    }
    found
}

/// Every identifier in the code of units that may use this one: of packages that depend on it, at whatever distance, and of its own
/// package's tests.
fn words_of_users(names: &Names, unit: usize) -> BTreeSet<&str> {
    let package = &names.units[unit].package;
    let may = |u: &Unit| u.package == *package || u.depends_on.contains(package);
    let others = names.units.iter().enumerate().filter(|(other, u)| *other != unit && may(u));
    others.flat_map(|(_, u)| u.words.iter().map(String::as_str)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::samples::names;

    /// What is unused of library `a`, whose user is the program `b`.
    fn unused(library: &str, user: &str) -> Vec<String> {
        let names =
            names(&[("a", true, &[("a/src/lib.rs", library)]), ("b", false, &[("b/src/main.rs", user)])]);
        let name = |f: Finding| f.message.split(' ').nth(1).unwrap_or_default().to_string();
        check(&names).into_iter().map(name).collect()
    }

    #[test]
    fn the_rule_fires() {
        let library = "pub fn used() {}\npub fn unused() {}\npub struct Both;\nimpl Both {\n    pub fn one(&self) {}\n    \
            pub fn other(&self) {}\n}\npub(crate) fn own() {}\nmod inner { pub fn hidden() {} pub fn shown() {} }\npub use inner::shown;\n";
        assert_eq!(
            unused(library, "use a::{Both, used};\nfn main() { used(); Both.one() }\n"),
            ["unused", "Both::other", "shown"]
        );
        assert_eq!(unused("pub fn f() {}", "fn main() { let f = 1; }"), ["f"]);
    }

    #[test]
    fn every_way_to_name_an_item_counts() {
        for user in [
            "use a::f; fn main() {}",
            "fn main() { a::f() }",
            "use a as x; fn main() { x::f() }",
            "use a::*; fn main() { f() }",
            "fn main() { println!(\"{}\", a::f()) }",
            "pub use a::f;",
            "#[test]\nfn t() { a::f() }",
        ] {
            assert_eq!(unused("pub fn f() {}", user), [""; 0], "{user}");
        }
    }

    #[test]
    fn what_a_signature_shows_is_used() {
        let library = "pub struct Error { pub kind: Kind }\npub enum Kind { A(Payload) }\npub struct Payload;\n\
            pub struct Iter;\nimpl Iterator for Iter { type Item = Payload; }\npub struct Lost;\n\
            pub fn f() -> Result<Iter, Error> { let _: Lost; }";
        assert_eq!(unused(library, "fn main() { a::f() }"), ["Lost"]);
    }

    #[test]
    fn allowances_have_reasons() {
        assert!(ALLOWED.iter().all(|(_, reason)| !reason.is_empty()));
    }
}
