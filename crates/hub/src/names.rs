//! From what the user wrote after `-m` to what it refers to, and which names are safe to use as paths.

use std::path::PathBuf;

use crate::HubError;
use crate::address::{self, HubName};
use crate::known::{self, known_names};

/// What a model name refers to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reference {
    /// An existing file.
    File(PathBuf),
    /// An existing directory.
    Directory(PathBuf),
    /// A repository on the hub, or a part of one.
    Hub(HubName),
    /// A name of the table of known models.
    Known(&'static str),
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reference::File(path) | Reference::Directory(path) => write!(f, "{}", path.display()),
            Reference::Hub(name) => name.fmt(f),
            Reference::Known(name) => f.write_str(name),
        }
    }
}

/// Finds out what `name` refers to: an existing path wins, then the known names, then a name on the hub:
/// `owner/repo[@revision][:quant]`, the same after `hf.co/` or `hf://`, or an address of a repository, folder or file there.
///
/// Errors: [`HubError::UnknownModel`] with the closest known name; [`HubError::BadName`] where a repository name
/// could not be one.
pub fn resolve(name: &str) -> Result<Reference, HubError> {
    check_text(name)?;
    let path = PathBuf::from(name);
    if path.is_file() {
        return Ok(Reference::File(path));
    }
    if path.is_dir() {
        return Ok(Reference::Directory(path));
    }
    if path.exists()
        || is_path(name)
        || (name.to_ascii_lowercase().ends_with(".gguf") && address::rest(name).is_none())
    {
        let what = match path.exists() {
            true => "neither a file nor a folder",
            false if name.starts_with('~') => "no such file or folder (the shell has not expanded the ~)",
            false if !is_path(name) && name.matches('/').count() > 1 => {
                "no such file or folder (a file on the hub is given as hf.co/OWNER/REPO/FILE)"
            }
            false => "no such file or folder",
        };
        return Err(HubError::Io { path, source: std::io::Error::new(std::io::ErrorKind::NotFound, what) });
    }
    resolve_name(name)
}

/// As [`resolve`], but paths are not looked at.
pub(crate) fn resolve_name(name: &str) -> Result<Reference, HubError> {
    check_text(name)?;
    let name = name.trim();
    if let Some(model) = known::find(name) {
        return Ok(Reference::Known(model.name));
    }
    if let Some(found) = address::parse(name)? {
        return Ok(Reference::Hub(found));
    }
    let closest = closest(name, known_names()).map(str::to_string);
    Err(HubError::UnknownModel { name: name.to_string(), closest, known: known_names() })
}

/// True for what can only be meant as a path.
pub(crate) fn is_path(name: &str) -> bool {
    let starts = ["./", "../", "~"].iter().any(|start| name.starts_with(start));
    starts || name == "." || name == ".." || PathBuf::from(name).is_absolute()
}

fn check_text(name: &str) -> Result<(), HubError> {
    let refused = |reason: &str| Err(HubError::bad_name(name, reason));
    if name.trim().is_empty() {
        return refused("it is empty");
    }
    if name.contains('\0') {
        return refused("it contains a NUL character");
    }
    Ok(())
}

/// The name most like `name`, if any is near: fewer edits than half its length, or one holds the other.
pub(crate) fn closest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let name = name.to_ascii_lowercase();
    let plain =
        |s: &str| s.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).collect::<String>();
    let within = |k: &str| {
        plain(&name).len() > 2 && (plain(k).contains(&plain(&name)) || plain(&name).contains(&plain(k)))
    };
    let known: Vec<&str> = known.into_iter().collect();
    let near = known.iter().map(|k| (edits(&name, &k.to_ascii_lowercase()), *k)).min()?;
    if near.0 * 2 < near.1.len() {
        return Some(near.1);
    }
    known.into_iter().find(|k| within(k))
}

/// Levenshtein distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_path_wins() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("smollm2-135m");
        std::fs::write(&file, b"x").unwrap();
        assert_eq!(resolve(file.to_str().unwrap()).unwrap(), Reference::File(file));
        assert_eq!(
            resolve(dir.path().to_str().unwrap()).unwrap(),
            Reference::Directory(dir.path().to_path_buf())
        );
    }

    #[test]
    fn known_names_ignore_case() {
        assert_eq!(resolve("SmolLM2-135M").unwrap(), Reference::Known("smollm2-135m"));
        assert_eq!(resolve("Qwen3:0.6b").unwrap(), Reference::Known("qwen3-0.6b"));
        assert_eq!(resolve(" smollm2-135m\n").unwrap(), Reference::Known("smollm2-135m"));
    }

    #[test]
    fn an_unknown_name_suggests_the_closest() {
        let message = resolve("smolm2-135").unwrap_err().to_string();
        assert!(message.contains("did you mean `smollm2-135m`?"), "{message}");
        assert!(message.contains("gemma3-270m"), "{message}");
        let far = resolve("zzzzzzzzzzzzzzzzzzzz").unwrap_err().to_string();
        assert!(!far.contains("did you mean"), "{far}");
    }

    #[test]
    fn dangerous_names_are_refused() {
        let bad = [
            "",
            " ",
            "a\0b",
            "owner/..",
            "o..o/r",
            "owner/re\\po",
            "owner/repo/extra",
            "owner/repo:../q",
            "a--b/c",
        ];
        for name in bad {
            assert!(matches!(resolve(name), Err(HubError::BadName { .. })), "{name:?}");
        }
        let error = resolve("owner/repo/x.gguf").unwrap_err().to_string();
        assert!(error.contains("hf.co/OWNER/REPO/FILE"), "{error}");
        for name in ["/no/such/file", "../up/x", "./gone", "missing.gguf", "models/missing.gguf"] {
            assert!(matches!(resolve(name), Err(HubError::Io { .. })), "{name:?}");
        }
    }
}
