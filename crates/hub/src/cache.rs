//! The Hugging Face cache layout: `models--owner--repo/{blobs,refs,snapshots/<commit>}`, with snapshots that link to
//! blobs named by their hash. Shared with other programs, so foreign content is expected and left alone.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::HubError;
use crate::progress::{Event, Progress};
use crate::quant::{self, Pick};
use crate::safe_name::{check_id, check_relative};
use crate::snapshot;

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

    /// Makes links of files that hold the text of one: what remains of a snapshot that was copied by a tool, or through a
    /// file system, that knows no links. A cache that cannot be written stays as it is, and opening the model tells.
    pub fn mend_links(&self, snapshot: &Path) {
        let Some(commit) = snapshot.file_name().and_then(|name| name.to_str()) else { return };
        for file in snapshot::files_below(snapshot) {
            if let Some(id) = link_text(&snapshot.join(&file))
                && self.blob(&id).is_ok_and(|blob| blob.is_file())
            {
                let _ = self.link(commit, &file, &id);
            }
        }
    }

    /// Makes the name of a revision (`main`, a tag) lead to a commit. Called once all of its files are there.
    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        check_relative(revision)?;
        let path = self.root.join("refs").join(revision);
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        put_in_place(&path, |fresh| File::create_new(fresh)?.write_all(commit.as_bytes()))
            .map_err(|e| HubError::write(&path, 0, Some(commit.len() as u64), e))
    }

    /// Where the cache notes that a commit has no such file, as Hugging Face's own tools do.
    fn absence(&self, commit: &str, file: &str) -> PathBuf {
        self.root.join(".no_exist").join(commit).join(file)
    }

    /// True where it is known that the commit has no such file.
    pub fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.absence(commit, file).exists()
    }

    /// Notes that the commit has no such file. A cache that cannot be written asks again, which does no harm.
    pub fn note_absent(&self, commit: &str, file: &str) {
        if check_id(commit).is_err() || check_relative(file).is_err() {
            return;
        }
        let path = self.absence(commit, file);
        if let Some(folder) = path.parent()
            && fs::create_dir_all(folder).is_ok()
        {
            let _ = File::create(path);
        }
    }

    /// Folder of all files of this repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of its lock files.
    pub fn locks(&self) -> &Path {
        &self.locks
    }

    /// Names of revisions with the commits that they lead to.
    pub fn refs(&self) -> Vec<(String, String)> {
        let folder = self.root.join("refs");
        let read = |name: String| {
            let commit = fs::read_to_string(folder.join(&name)).ok()?;
            Some((name, commit.trim().to_string()))
        };
        snapshot::files_below(&folder).into_iter().filter_map(read).collect()
    }

    /// Snapshot folders of a revision, by its name or its commit. Without one: that of `main` first, then the others,
    /// newest first, but none that was fetched under another name: what is called by no revision is never an older one.
    pub fn snapshots(&self, revision: Option<&str>) -> Vec<PathBuf> {
        let folder = self.root.join("snapshots");
        let refs = self.refs();
        let commit_of = |name: &str| refs.iter().find(|(n, _)| n == name).map(|(_, commit)| commit.as_str());
        if let Some(revision) = revision {
            let commit = commit_of(revision).unwrap_or(revision);
            let snapshot = folder.join(commit);
            return if check_id(commit).is_ok() && snapshot.is_dir() { vec![snapshot] } else { Vec::new() };
        }
        let main = commit_of("main");
        let named_otherwise = |commit: &str| main != Some(commit) && refs.iter().any(|(_, c)| c == commit);
        let Ok(entries) = fs::read_dir(&folder) else { return Vec::new() };
        let mut found: Vec<(bool, std::time::SystemTime, PathBuf)> = entries
            .flatten()
            .filter(|e| e.path().is_dir() && !e.file_name().to_str().is_some_and(named_otherwise))
            .map(|e| {
                let time = e.metadata().and_then(|m| m.modified()).unwrap_or(std::time::UNIX_EPOCH);
                (e.file_name().to_str() == main, time, e.path())
            })
            .collect();
        found.sort();
        found.into_iter().rev().map(|(_, _, path)| path).collect()
    }

    /// The path to load for what is picked, or for the preferred model, if all its files are in the cache.
    pub fn find(&self, revision: Option<&str>, pick: Pick<'_>) -> Option<PathBuf> {
        self.snapshots(revision).iter().find_map(|snapshot| {
            let choices = snapshot::gguf_choices(snapshot);
            match quant::choose(&choices, pick) {
                Some(choice) => Some(snapshot.join(&choice.files[0])),
                None => {
                    let whole = pick.allows_safetensors() && snapshot::lacks(snapshot).is_empty();
                    whole.then(|| snapshot.clone())
                }
            }
        })
    }

    /// What the newest snapshot lacks of a safetensors model of which it holds a part; nothing where it holds none.
    pub fn lacks(&self, revision: Option<&str>) -> Vec<String> {
        let begun = |snapshot: &PathBuf| snapshot.join("config.json").is_file();
        self.snapshots(revision).iter().find(|s| begun(s)).map(|s| snapshot::lacks(s)).unwrap_or_default()
    }
}

/// The blob that a file leads to which is no link, but holds the text of one.
fn link_text(path: &Path) -> Option<String> {
    let metadata = path.symlink_metadata().ok()?;
    if !metadata.is_file() || metadata.len() > 512 {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let id = text.trim_start_matches("../").strip_prefix("blobs/")?;
    (text.starts_with("../") && check_id(id).is_ok()).then(|| id.to_string())
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
    let fresh = tempfile::Builder::new().prefix(".fresh-").make_in(folder, made).map_err(without_path)?;
    fresh.into_temp_path().persist(path).map_err(|failed| without_path(failed.error))
}

/// The error without the path of the temporary file: the caller names the file that was to be made.
fn without_path(error: io::Error) -> io::Error {
    if error.get_ref().is_some() { error.kind().into() } else { error }
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
                        cache.set_ref("main", id).unwrap();
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
