//! Small workspaces to try the rules about names on.

use std::fs;

use super::names::Names;
use super::parse;
use crate::metadata::Target;

/// Parses units of one package each, given as name, whether it is a library, and files of which the first is the root. Each may use
/// those before it.
pub fn names(units: &[(&str, bool, &[(&str, &str)])]) -> Names {
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
