//! What lies below a root. Only names that this crate gives are looked at.

use std::fs::{self, DirEntry, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use unicorn_core::PageKey;

use crate::files::{Used, on_disk, private};
use crate::names;

/// A page that was found.
pub(crate) struct Found {
    /// Index into [`Scan::folders`].
    pub folder: usize,
    pub key: PageKey,
    /// What it takes on disk.
    pub bytes: u64,
    pub used: Used,
}

/// Everything below a root.
#[derive(Default)]
pub(crate) struct Scan {
    pub folders: Vec<PathBuf>,
    pub pages: Vec<Found>,
    /// Bytes of pages, and of files that are being written.
    pub bytes: u64,
}

/// The entries of a folder; those that cannot be read are left out, and a folder that is gone has none.
fn entries(path: &Path) -> io::Result<impl Iterator<Item = DirEntry>> {
    let found = match fs::read_dir(path) {
        Ok(found) => Some(found),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    Ok(found.into_iter().flatten().filter_map(Result::ok))
}

/// The folders of all identities.
pub(crate) fn folders(root: &Path) -> io::Result<Vec<PathBuf>> {
    let ours = |entry: &DirEntry| {
        names::is_folder(&entry.file_name()) && entry.file_type().is_ok_and(|kind| kind.is_dir())
    };
    let mut folders: Vec<PathBuf> = entries(root)?.filter(ours).map(|entry| entry.path()).collect();
    folders.sort();
    Ok(folders)
}

/// The keys of a folder's pages, from names alone.
pub(crate) fn keys(folder: &Path) -> io::Result<Vec<PageKey>> {
    Ok(entries(folder)?.filter_map(|entry| names::page_key(&entry.file_name())).collect())
}

/// Removes what someone who is gone was writing. Under the root's lock.
pub(crate) fn clean(folder: &Path) -> io::Result<()> {
    let temporary = entries(folder)?.filter(|entry| names::is_temporary(&entry.file_name()));
    temporary.for_each(|entry| {
        remove_stale(&entry.path());
    });
    Ok(())
}

/// Removes a file that no living process is writing; false where it is still being written. Such files are made and locked
/// under the root's lock.
fn remove_stale(path: &Path) -> bool {
    let Ok(file) = private().read(true).write(true).open(path) else { return true };
    match file.try_lock() {
        Ok(()) => fs::remove_file(path).is_ok(),
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
    }
}

/// Looks at everything and removes leftovers. Under the root's lock.
pub(crate) fn root(root: &Path) -> io::Result<Scan> {
    all(root, remove_stale)
}

/// Looks at everything and leaves it as it is.
pub(crate) fn look(root: &Path) -> io::Result<Scan> {
    all(root, |_| false)
}

fn all(root: &Path, removed: impl Fn(&Path) -> bool) -> io::Result<Scan> {
    let mut scan = Scan { folders: folders(root)?, ..Scan::default() };
    for folder in 0..scan.folders.len() {
        for entry in entries(&scan.folders[folder])? {
            let name = entry.file_name();
            // The entry's own data: links are not followed.
            let Ok(told) = entry.metadata() else { continue };
            let bytes = on_disk(told.len());
            if names::is_temporary(&name) {
                scan.bytes += if removed(&entry.path()) { 0 } else { bytes };
                continue;
            }
            let Some(key) = names::page_key(&name).filter(|_| told.is_file()) else { continue };
            let used = Used::of(told.modified().unwrap_or(std::time::SystemTime::UNIX_EPOCH));
            scan.bytes += bytes;
            scan.pages.push(Found { folder, key, bytes, used });
        }
    }
    Ok(scan)
}
