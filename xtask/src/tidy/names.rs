//! What a path means: names followed through modules, imports and re-exports to where they are defined.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

use super::parse::{self, Definition, Module, Named, Naming, Unit};
use crate::metadata::{Metadata, Package};

/// All code of the workspace.
pub struct Names {
    pub units: Vec<Unit>,
}

/// A place in the workspace: a unit and one of its modules.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    pub unit: usize,
    pub module: usize,
}

/// What a path leads to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Target {
    Module(Place),
    Item(Place, usize),
    /// Something that the module holds but this program does not see: made by a macro, for example.
    Within(Place),
}

/// Imports of imports end here at the latest: there are circles among globs.
const DEPTH_MAX: usize = 12;

impl Names {
    /// Parses everything that cargo would compile of these workspaces; paths are told from `base`.
    pub fn read(workspaces: &[Metadata], base: &Path) -> Result<Names> {
        let packages: Vec<&Package> = workspaces.iter().flat_map(|w| &w.packages).collect();
        let mut units = Vec::new();
        for package in &packages {
            for target in &package.targets {
                let mut unit = parse::unit(&package.name, target, base)?;
                unit.depends_on = dependencies(&packages, &package.name);
                units.push(unit);
            }
        }
        Ok(Names { units })
    }

    pub fn module(&self, place: Place) -> &Module {
        &self.units[place.unit].modules[place.module]
    }

    pub fn item(&self, place: Place, index: usize) -> &Definition {
        &self.module(place).items[index]
    }

    /// All modules.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let modules =
            |(unit, u): (usize, &Unit)| (0..u.modules.len()).map(move |module| Place { unit, module });
        self.units.iter().enumerate().flat_map(modules)
    }

    /// What a path in the code of a module leads to; nothing where that is outside the workspace.
    pub fn resolve(&self, place: Place, naming: &Naming) -> Vec<Target> {
        self.follow(place, &naming.segments, DEPTH_MAX)
    }

    fn follow(&self, place: Place, segments: &[String], depth: usize) -> Vec<Target> {
        let (Some((first, mut rest)), true) = (segments.split_first(), depth > 0) else { return Vec::new() };
        let parent = |place: Place| {
            let module = self.module(place).parent.unwrap_or(0);
            Target::Module(Place { unit: place.unit, module })
        };
        let mut found = match first.as_str() {
            "crate" => vec![Target::Module(Place { unit: place.unit, module: 0 })],
            "self" => vec![Target::Module(place)],
            "super" => vec![parent(place)],
            name => self.lookup(place, name, depth - 1),
        };
        if found.is_empty() {
            let library = self.units.iter().position(|u| u.is_library && u.name == *first);
            found.extend(library.map(|unit| Target::Module(Place { unit, module: 0 })));
        }
        while let Some((next, more)) = rest.split_first() {
            // A module and a function may have one name; only the module holds others.
            if found.iter().any(|t| matches!(t, Target::Module(_))) {
                found.retain(|t| matches!(t, Target::Module(_)));
            }
            let step = |target: &Target| match *target {
                Target::Module(at) if next == "super" => vec![parent(at)],
                Target::Module(at) => {
                    let inside = self.lookup(at, next, depth - 1);
                    if inside.is_empty() { vec![Target::Within(at)] } else { inside }
                }
                // Variants, methods and associated items belong to what is already found.
                other => vec![other],
            };
            found = found.iter().flat_map(step).collect();
            if found.iter().any(|t| !matches!(t, Target::Within(_))) {
                found.retain(|t| !matches!(t, Target::Within(_)));
            }
            rest = more;
        }
        found.sort();
        found.dedup();
        found
    }

    /// What a name means in a module.
    fn lookup(&self, place: Place, name: &str, depth: usize) -> Vec<Target> {
        let module = self.module(place);
        let mut found = Vec::new();
        for named in module.names.get(name).into_iter().flatten() {
            match named {
                Named::Module { index, .. } => {
                    found.push(Target::Module(Place { unit: place.unit, module: *index }));
                }
                Named::Item(index) => found.push(Target::Item(place, *index)),
                // `use a::{self}` and `use a as a` would lead back here.
                Named::Import(naming) if naming.segments.len() == 1 && naming.segments[0] == name => {}
                Named::Import(naming) => found.extend(self.follow(place, &naming.segments, depth)),
            }
        }
        if found.is_empty() && depth > 0 {
            for glob in &module.globs {
                for target in self.follow(place, &glob.segments, depth) {
                    if let Target::Module(at) = target
                        && at != place
                    {
                        found.extend(self.lookup(at, name, depth - 1));
                    }
                }
            }
        }
        found
    }
}

/// Packages with a path that a package depends on, for tests included, at whatever distance.
fn dependencies(packages: &[&Package], of: &str) -> BTreeSet<String> {
    let by_name: BTreeMap<&str, &Package> = packages.iter().map(|p| (p.name.as_str(), *p)).collect();
    let mut found = BTreeSet::new();
    let mut waiting = vec![of.to_string()];
    while let Some(package) = waiting.pop().and_then(|name| by_name.get(name.as_str())) {
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some()) {
            if found.insert(dependency.name.clone()) {
                waiting.push(dependency.name.clone());
            }
        }
    }
    found
}
