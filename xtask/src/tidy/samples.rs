//! Small workspaces to try the rules about names on.

use std::fs;

use super::names::Names;
use super::parse;
use crate::metadata::Target;

/// A package of one unit: its name, whether that is a library, and files of which the first is the root.
type Sample<'a> = (&'a str, bool, &'a [(&'a str, &'a str)]);

/// Parses samples of which each may use those before it.
pub fn names(units: &[Sample<'_>]) -> Names {
    let dir = tempfile::tempdir().unwrap();
    let mut parsed = Vec::new();
    for (i, (name, is_library, files)) in units.iter().enumerate() {
        for (path, text) in *files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let kind = vec![if *is_library { "lib" } else { "bin" }.to_string()];
        let target = Target { name: name.to_string(), kind, src_path: dir.path().join(files[0].0) };
        let mut unit = parse::unit(name, &target, dir.path()).unwrap();
        unit.depends_on = units[..i].iter().map(|(name, ..)| name.to_string()).collect();
        parsed.push(unit);
    }
    Names { units: parsed }
}
