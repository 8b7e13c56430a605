//! The Hugging Face cache layout: `models--owner--repo/{blobs,refs,snapshots/<commit>}`, with snapshots that link to
//! blobs named by their hash. Shared with other programs, so foreign content is expected and left alone.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::names::{check_id, check_relative};
use crate::pull::{Event, Progress};
use crate::{HubConfig, HubError, known, quant};

/// Folders below a snapshot that are searched, and files looked at: a foreign cache may hold anything.
const DEPTH_MAX: usize = 4;
const FILES_MAX: usize = 10_000;

/// A model in the cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CachedModel {
    /// What `--model` takes to use it: a known name, `owner/repo:quant` or `owner/repo`.
    pub name: String,
    /// Quantization, or `safetensors`.
    pub quant: String,
    /// File to open within the snapshot; empty for a directory of safetensors.
    pub file: String,
    /// Bytes on disk, all shards.
    pub bytes: u64,
    /// Path to load.
    pub path: PathBuf,
}

/// One repository's folder in the cache.
pub(crate) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

/// Folder name of a hub repository.
pub(crate) fn folder(owner: &str, repo: &str) -> String {
    format!("models--{owner}--{repo}")
}

impl RepoCache {
    pub fn new(cache_dir: &Path, folder: &str) -> RepoCache {
        RepoCache { root: cache_dir.join(folder), locks: cache_dir.join(".locks").join(folder) }
    }

    /// Where a blob lies once complete. `id` was checked by the caller's source or is a pinned hash.
    pub fn blob(&self, id: &str) -> Result<PathBuf, HubError> {
        check_id(id)?;
        Ok(self.root.join("blobs").join(id))
    }

    /// A new empty folder for temporary files.
    pub fn scratch(&self, name: &str) -> Result<PathBuf, HubError> {
        let path = self.root.join("tmp").join(name);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(HubError::io(&path))?;
        }
        fs::create_dir_all(&path).map_err(HubError::io(&path))?;
        Ok(path)
    }

    /// Locks a blob against other downloads, in this and other processes, until the file is dropped. Waits for as long
    /// as another holds it. The lock file is the one that Python's `huggingface_hub` takes.
    pub fn lock(&self, id: &str, progress: &mut Progress<'_>) -> Result<File, HubError> {
        check_id(id)?;
        fs::create_dir_all(&self.locks).map_err(HubError::io(&self.locks))?;
        let path = self.locks.join(format!("{id}.lock"));
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(HubError::io(&path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                // A file system without locks: the worst that two pulls can do is fetch twice and fail the hash check.
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                    return Ok(file);
                }
                Err(TryLockError::Error(e)) => return Err(HubError::Io { path, source: e }),
                Err(TryLockError::WouldBlock) => {}
            }
            let event = match told {
                false => Event::Message("another process is fetching this file; waiting for it"),
                true => Event::Waiting,
            };
            told = true;
            if let ControlFlow::Break(()) = progress(event) {
                return Err(HubError::Interrupted { path, written: 0, total: None });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Makes `snapshots/<commit>/<file>` lead to a complete blob.
    pub fn link(&self, commit: &str, file: &str, id: &str) -> Result<PathBuf, HubError> {
        check_id(commit)?;
        check_relative(file)?;
        let blob = self.blob(id)?;
        let link = self.root.join("snapshots").join(commit).join(file);
        let parent = link.parent().unwrap_or(&self.root).to_path_buf();
        fs::create_dir_all(&parent).map_err(HubError::io(&parent))?;
        let ups = "../".repeat(file.split('/').count() + 1);
        let target = PathBuf::from(format!("{ups}blobs/{id}"));
        if fs::read_link(&link).is_ok_and(|current| current == target) {
            return Ok(link);
        }
        put_in_place(&link, |fresh| symlink(&target, &blob, fresh)).map_err(HubError::io(&link))?;
        Ok(link)
    }

    /// Makes `refs/main` name the commit. Called once all of its files are there.
    pub fn set_main(&self, commit: &str) -> Result<(), HubError> {
        let refs = self.root.join("refs");
        fs::create_dir_all(&refs).map_err(HubError::io(&refs))?;
        let main = refs.join("main");
        put_in_place(&main, |fresh| File::create_new(fresh)?.write_all(commit.as_bytes()))
            .map_err(|e| HubError::write(&main, 0, Some(commit.len() as u64), e))
    }

    /// Snapshot folders: the one of `refs/main` first, then the others, newest first.
    pub fn snapshots(&self) -> Vec<PathBuf> {
        let folder = self.root.join("snapshots");
        let main = fs::read_to_string(self.root.join("refs/main")).unwrap_or_default();
        let Ok(entries) = fs::read_dir(&folder) else { return Vec::new() };
        let mut found: Vec<(bool, std::time::SystemTime, PathBuf)> = entries
            .flatten()
            .filter(|e| e.path().is_dir())
            .map(|e| {
                let time = e.metadata().and_then(|m| m.modified()).unwrap_or(std::time::UNIX_EPOCH);
                (e.file_name().to_str() == Some(main.trim()), time, e.path())
            })
            .collect();
        found.sort();
        found.into_iter().rev().map(|(_, _, path)| path).collect()
    }

    /// The path to load for a quantization, or for the preferred model, if all its files are in the cache.
    pub fn find(&self, quant: Option<&str>) -> Option<PathBuf> {
        self.snapshots().iter().find_map(|snapshot| {
            let choices = gguf_choices(snapshot);
            match quant::choose(&choices, quant) {
                Some(choice) => Some(snapshot.join(&choice.files[0])),
                None => (quant.is_none() && complete_safetensors(snapshot)).then(|| snapshot.clone()),
            }
        })
    }
}

/// Makes `path` with `make`, under a name nobody else has, and renames it: whoever opens `path` meanwhile sees the old
/// file or the new one, and any number of threads and processes may do this at once.
fn put_in_place(path: &Path, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let made = |fresh: &Path| {
        make(fresh).inspect_err(|error| {
            // A name that somebody else has is tried anew; anything else leaves nothing behind.
            if error.kind() != io::ErrorKind::AlreadyExists {
                let _ = fs::remove_file(fresh);
            }
        })
    };
    let fresh = tempfile::Builder::new().prefix(".fresh-").make_in(folder, made)?;
    fresh.into_temp_path().persist(path).map_err(|failed| failed.error)
}

#[cfg(unix)]
fn symlink(target: &Path, _blob: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Links need a privilege on Windows: without it the blob gets a second name, or is copied.
#[cfg(not(unix))]
fn symlink(_target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(|_| ()))
}

fn gguf_choices(snapshot: &Path) -> Vec<quant::GgufChoice> {
    let files = files_below(snapshot);
    quant::choices(files.iter().map(String::as_str))
}

/// Names of the readable files below a folder, relative to it, with `/` between folders.
fn files_below(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![(root.to_path_buf(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = pending.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path();
            // Follows links: a link to a blob that is gone is no file.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if metadata.is_dir() && depth < DEPTH_MAX && !entry.path().is_symlink() {
                pending.push((path, format!("{prefix}{name}/"), depth + 1));
            } else if metadata.is_file() && !name.starts_with('.') && found.len() < FILES_MAX {
                found.push(format!("{prefix}{name}"));
            }
        }
    }
    found.sort();
    found
}

/// True where a snapshot holds a whole safetensors model: configuration, tokenizer, and every shard of the index.
fn complete_safetensors(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    if !has("config.json") || !["tokenizer.json", "tokenizer.model", "vocab.json"].into_iter().any(has) {
        return false;
    }
    let Ok(index) = fs::read(snapshot.join("model.safetensors.index.json")) else {
        return files_below(snapshot).iter().any(|f| f.ends_with(".safetensors") && !f.contains('/'));
    };
    let Ok(index) = serde_json::from_slice::<serde_json::Value>(&index) else { return false };
    let Some(map) = index.get("weight_map").and_then(|m| m.as_object()) else { return false };
    let shards: HashSet<&str> = map.values().filter_map(|v| v.as_str()).collect();
    !shards.is_empty() && shards.iter().all(|shard| check_relative(shard).is_ok() && has(shard))
}

/// What the cache holds: every complete GGUF or safetensors model, by name. Each model appears once, in its current
/// snapshot. What is no model, is incomplete, or cannot be read is left out; a missing cache folder holds nothing.
pub fn list(config: &HubConfig) -> Result<Vec<CachedModel>, HubError> {
    let entries = match fs::read_dir(&config.cache_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(HubError::Io { path: config.cache_dir.clone(), source: e }),
    };
    let mut models = Vec::new();
    for entry in entries.flatten() {
        let Ok(folder) = entry.file_name().into_string() else { continue };
        let Some(name) = folder.strip_prefix("models--") else { continue };
        let name = name.replacen("--", "/", 1);
        let mut seen = HashSet::new();
        for snapshot in RepoCache::new(&config.cache_dir, &folder).snapshots() {
            for model in models_in(&snapshot, &folder, &name) {
                if seen.insert(model.file.clone()) {
                    models.push(model);
                }
            }
        }
    }
    models.sort_by(|a, b| (&a.name, &a.file).cmp(&(&b.name, &b.file)));
    Ok(models)
}

fn models_in(snapshot: &Path, folder: &str, name: &str) -> Vec<CachedModel> {
    let size = |file: &String| fs::metadata(snapshot.join(file)).map_or(0, |m| m.len());
    let mut models: Vec<CachedModel> = gguf_choices(snapshot)
        .into_iter()
        .map(|choice| CachedModel {
            name: known_name(folder, &choice.quant)
                .map_or_else(|| format!("{name}:{}", choice.quant), str::to_string),
            bytes: choice.files.iter().map(size).sum(),
            path: snapshot.join(&choice.files[0]),
            file: choice.files[0].clone(),
            quant: choice.quant,
        })
        .collect();
    if complete_safetensors(snapshot) {
        models.push(CachedModel {
            name: name.to_string(),
            quant: "safetensors".to_string(),
            file: String::new(),
            bytes: files_below(snapshot).iter().filter(|f| f.ends_with(".safetensors")).map(size).sum(),
            path: snapshot.to_path_buf(),
        });
    }
    models
}

/// The known model that a folder's file is.
fn known_name(folder_name: &str, quant: &str) -> Option<&'static str> {
    let matches = |model: &&known::KnownModel| {
        let on_hub = folder(model.hub.owner, model.hub.repo) == folder_name;
        (on_hub && model.hub.quant == quant) || model.packages.is_some_and(|p| p.folder == folder_name)
    };
    known::KNOWN.iter().find(matches).map(|model| model.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_refs_may_be_set_by_many_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(folder.path(), "models--owner--repo");
        let ids = ["a".repeat(40), "b".repeat(40)];
        for id in &ids {
            let blob = cache.blob(id).unwrap();
            fs::create_dir_all(blob.parent().unwrap()).unwrap();
            fs::write(blob, id).unwrap();
        }
        std::thread::scope(|scope| {
            for start in 0..8 {
                let (cache, ids) = (&cache, &ids);
                scope.spawn(move || {
                    for id in ids.iter().cycle().skip(start).take(100) {
                        cache.link("c0ffee", "model.gguf", id).unwrap();
                        cache.set_main(id).unwrap();
                        let main = fs::read_to_string(cache.root.join("refs/main")).unwrap();
                        assert!(ids.contains(&main), "{main:?}");
                        let linked =
                            fs::read_to_string(cache.root.join("snapshots/c0ffee/model.gguf")).unwrap();
                        assert!(ids.contains(&linked), "{linked:?}");
                    }
                });
            }
        });
        for below in ["refs", "snapshots/c0ffee"] {
            assert_eq!(
                fs::read_dir(cache.root.join(below)).unwrap().count(),
                1,
                "nothing is left behind in {below}"
            );
        }
    }
}
