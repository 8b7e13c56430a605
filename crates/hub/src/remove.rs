//! Taking models out of the cache. Nothing outside the cache folder is ever removed: links are removed as links, and a
//! folder that is itself a link is left alone.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

use crate::cache::{self, RepoCache};
use crate::names::{closest, is_path, resolve_name};
use crate::quant::{self, Pick};
use crate::snapshot::entries_below;
use crate::{HubConfig, HubError, Reference, known, list};

/// What removing a model takes out of the cache.
#[derive(Debug)]
pub struct Removal {
    name: String,
    parts: Vec<Part>,
}

/// What goes of one repository.
#[derive(Debug)]
struct Part {
    root: PathBuf,
    locks: PathBuf,
    /// Everything goes; `files` is not looked at.
    whole: bool,
    /// Links, blobs and remains of downloads.
    files: Vec<PathBuf>,
    bytes: u64,
}

impl Removal {
    /// The model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that it frees.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Folders that it is removed from, or that are removed.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.root.as_path())
    }

    /// Removes it. What cannot be removed is an error that names it; what was removed before stays so.
    ///
    /// Errors: [`HubError::Busy`] while another process fetches into the folder.
    pub fn carry_out(&self) -> Result<(), HubError> {
        let locks: Vec<Vec<File>> = self.parts.iter().map(Part::lock).collect::<Result<_, _>>()?;
        self.parts.iter().try_for_each(Part::remove)?;
        drop(locks);
        for part in self.parts.iter().filter(|part| !part.root.exists()) {
            // Lock files hold nothing, so a folder of them that stays does no harm. Behind a link it is not ours.
            if part.locks.parent().is_some_and(|folder| !folder.is_symlink()) {
                let _ = fs::remove_dir_all(&part.locks);
            }
        }
        Ok(())
    }
}

/// Finds out what removing `name` takes away. It may be any name that a model in the cache is used by, or a path into the
/// cache; removes nothing.
///
/// Errors: [`HubError::NotCached`] with the closest name, [`HubError::NotOfTheCache`] for other paths.
pub fn removal(name: &str, config: &HubConfig) -> Result<Removal, HubError> {
    let cache_dir = config.cache()?;
    let not_cached = || {
        let models = list(config).unwrap_or_default();
        let closest = closest(name, models.iter().map(|model| model.name.as_str())).map(str::to_string);
        HubError::NotCached { name: name.to_string(), cache_dir: cache_dir.to_path_buf(), closest }
    };
    let path = Path::new(name);
    if !is_path(name) {
        let parts = match resolve_name(name) {
            Ok(Reference::Known(known)) => known_parts(cache_dir, known)?,
            Ok(Reference::Hub(hub)) => {
                let pick = Pick { quant: hub.quant.as_deref(), file: hub.file.as_deref() };
                let folder = cache::folder(&hub.owner, &hub.repo);
                part(cache_dir, &folder, hub.revision.as_deref(), pick)?.into_iter().collect()
            }
            _ if path.exists() => Vec::new(),
            Err(HubError::UnknownModel { .. }) => return Err(not_cached()),
            Err(error) => return Err(error),
            Ok(_) => Vec::new(),
        };
        if !parts.is_empty() {
            return Ok(Removal { name: name.to_string(), parts });
        }
    }
    match path.symlink_metadata() {
        Ok(_) => Ok(Removal { name: name.to_string(), parts: vec![part_at(cache_dir, path)?] }),
        Err(_) => Err(not_cached()),
    }
}

fn known_parts(cache_dir: &Path, name: &str) -> Result<Vec<Part>, HubError> {
    let Some(model) = known::find(name) else { return Ok(Vec::new()) };
    let on_hub = cache::folder(model.hub.owner, model.hub.repo);
    let from_hub = part(cache_dir, &on_hub, None, model.pick())?;
    let from_packages = match model.package_folder() {
        Some(folder) => part(cache_dir, folder, None, Pick::default())?,
        None => None,
    };
    Ok(from_hub.into_iter().chain(from_packages).collect())
}

/// The part of the cache that a path leads to: a repository, a snapshot, or a file of one. The last component is not
/// followed, so a link in the cache stands for itself.
fn part_at(cache_dir: &Path, path: &Path) -> Result<Part, HubError> {
    let refused = |reason: String| HubError::NotOfTheCache { path: path.to_path_buf(), reason };
    let outside =
        || refused(format!("lies outside the cache {}: remove it as any other file", cache_dir.display()));
    let cache = fs::canonicalize(cache_dir).map_err(|_| outside())?;
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(outside()),
    };
    let name = path.file_name().ok_or_else(outside)?;
    let full = fs::canonicalize(parent).map_err(HubError::io(parent))?.join(name);
    let inside = full.strip_prefix(&cache).map_err(|_| outside())?;
    let names: Vec<&str> = inside
        .components()
        .filter_map(|c| match c {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let found = match &names[..] {
        [folder] if folder.starts_with("models--") => part(cache_dir, folder, None, Pick::default())?,
        [folder, "snapshots", commit] => part(cache_dir, folder, Some(commit), Pick::default())?,
        [folder, "snapshots", commit, file @ ..] => {
            let file = file.join("/");
            part(cache_dir, folder, Some(commit), Pick { quant: None, file: Some(&file) })?
        }
        _ => None,
    };
    found.ok_or_else(|| refused("is no model of the cache".to_string()))
}

/// What goes of one repository's folder; nothing where it holds nothing of what is picked.
fn part(
    cache_dir: &Path,
    folder: &str,
    revision: Option<&str>,
    pick: Pick<'_>,
) -> Result<Option<Part>, HubError> {
    let cache = RepoCache::new(cache_dir, folder);
    let root = cache.root().to_path_buf();
    match root.symlink_metadata() {
        Err(_) => return Ok(None),
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => {
            let reason = "is a link or a file, not a folder of the cache; it is left alone".to_string();
            return Err(HubError::NotOfTheCache { path: root, reason });
        }
    }
    let locks = cache.locks().to_path_buf();
    let all = || Part {
        bytes: bytes_below(&root),
        root: root.clone(),
        locks: locks.clone(),
        whole: true,
        files: Vec::new(),
    };
    if revision.is_none() && pick == Pick::default() {
        return Ok(Some(all()));
    }
    if let Some(link) =
        ["snapshots", "refs"].iter().map(|name| root.join(name)).find(|path| path.is_symlink())
    {
        let reason =
            "is a link: what it leads to is left alone; name the repository to remove the link".to_string();
        return Err(HubError::NotOfTheCache { path: link, reason });
    }
    let (going, staying) = split(&cache, revision, pick);
    if going.is_empty() {
        return Ok(None);
    }
    if staying.is_empty() {
        return Ok(Some(all()));
    }
    let kept: HashSet<PathBuf> = staying.iter().filter_map(|link| blob_of(&root, link)).collect();
    let mut blobs: Vec<PathBuf> =
        going.iter().filter_map(|link| blob_of(&root, link)).filter(|blob| !kept.contains(blob)).collect();
    blobs.sort();
    blobs.dedup();
    let mut files = going;
    for blob in blobs {
        let mut partial = blob.clone().into_os_string();
        partial.push(".incomplete");
        files.extend(
            [blob, PathBuf::from(partial)].into_iter().filter(|path| path.symlink_metadata().is_ok()),
        );
    }
    let bytes = files.iter().map(|file| own_bytes(file)).sum();
    Ok(Some(Part { root, locks, whole: false, files, bytes }))
}

/// The files of all snapshots: those that go, and those that stay.
fn split(cache: &RepoCache, revision: Option<&str>, pick: Pick<'_>) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut going, mut staying) = (Vec::new(), Vec::new());
    let meant: HashSet<PathBuf> = cache.snapshots(revision).into_iter().collect();
    let every =
        fs::read_dir(cache.root().join("snapshots")).into_iter().flatten().flatten().map(|e| e.path());
    for snapshot in every.filter(|path| path.is_dir() && !path.is_symlink()) {
        let names: Vec<String> = entries_below(&snapshot).into_iter().map(|entry| entry.name).collect();
        let choices = quant::choices(names.iter().map(String::as_str));
        let chosen = quant::choose(&choices, pick).map(|choice| &choice.files);
        for name in &names {
            let picked = pick == Pick::default() || chosen.is_some_and(|files| files.contains(name));
            let list = if meant.contains(&snapshot) && picked { &mut going } else { &mut staying };
            list.push(snapshot.join(name));
        }
    }
    (going, staying)
}

/// The blob of this repository that a link leads to, be it there or not.
fn blob_of(root: &Path, link: &Path) -> Option<PathBuf> {
    let target = fs::read_link(link).ok()?;
    let id = target.file_name()?;
    let blobs = root.join("blobs");
    let folder = link.parent()?.join(target.parent()?);
    let same = fs::canonicalize(folder).ok()? == fs::canonicalize(&blobs).ok()?;
    // A `blobs` that is itself a link leads out of the cache.
    (same && !blobs.is_symlink()).then(|| blobs.join(id))
}

/// Bytes of a file itself: a link has none.
fn own_bytes(path: &Path) -> u64 {
    path.symlink_metadata().map_or(0, |m| if m.is_file() { m.len() } else { 0 })
}

/// Bytes of the files below a folder. Links are not followed.
fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        _ => own_bytes(&entry.path()),
    };
    entries.map(size).sum()
}

impl Part {
    /// Takes every lock of the repository, so that no download is under way.
    fn lock(&self) -> Result<Vec<File>, HubError> {
        let mut held = Vec::new();
        for entry in fs::read_dir(&self.locks).into_iter().flatten().flatten() {
            let Ok(file) = File::options().write(true).open(entry.path()) else { continue };
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Err(HubError::Busy { path: self.root.clone() }),
                // Held, or on a file system without locks.
                _ => held.push(file),
            }
        }
        Ok(held)
    }

    fn remove(&self) -> Result<(), HubError> {
        // What is gone by now was part of another name of the same model.
        let gone = |done: io::Result<()>| match done {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        };
        if self.whole {
            return gone(fs::remove_dir_all(&self.root)).map_err(HubError::io(&self.root));
        }
        for file in &self.files {
            gone(fs::remove_file(file)).map_err(HubError::io(file))?;
        }
        self.tidy();
        Ok(())
    }

    /// Removes what leads to nothing any more: empty folders, and names of revisions without a snapshot. Neither takes
    /// space, so a failure is nobody's loss.
    fn tidy(&self) {
        let snapshots = self.root.join("snapshots");
        remove_empty_folders(&snapshots);
        let refs = self.root.join("refs");
        for name in entries_below(&refs) {
            let commit = fs::read_to_string(refs.join(&name.name)).unwrap_or_default();
            if !commit.trim().is_empty() && !snapshots.join(commit.trim()).exists() {
                let _ = fs::remove_file(refs.join(&name.name));
            }
        }
    }
}

fn remove_empty_folders(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty_folders(&entry.path());
            // Fails where something is in it.
            let _ = fs::remove_dir(entry.path());
        }
    }
}
