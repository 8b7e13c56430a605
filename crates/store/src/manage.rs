//! Pages of all identities, as people see them.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::SystemTime;

use crate::error::StoreError;
use crate::files::private;
use crate::names;
use crate::room::Lock;
use crate::scan::{self, Scan};

/// Largest description that is read, in bytes.
const ABOUT_BYTES_MAX: u64 = 64 << 10;

/// The pages of one identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredModel {
    /// Name of its folder, by which it can be removed.
    pub folder: String,
    /// What it is, in the words of who opened it; empty where it does not tell.
    pub about: String,
    /// Pages.
    pub pages: u64,
    /// Bytes that they take on disk.
    pub bytes: u64,
    /// When one of them was last used.
    pub used: Option<SystemTime>,
}

/// What was removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// Pages.
    pub pages: u64,
    /// Bytes that they took on disk.
    pub bytes: u64,
}

/// The pages below a root, by folder. A root that is not there has none.
///
/// # Errors
/// Where the root or a folder of it cannot be read.
pub fn list(root: &Path) -> Result<Vec<StoredModel>, StoreError> {
    // Who writes meanwhile is not disturbed: leftovers are taken for files that are being written.
    let scan = scan::look(root).map_err(StoreError::io(root))?;
    Ok(models(&scan))
}

fn models(scan: &Scan) -> Vec<StoredModel> {
    let mut models: Vec<StoredModel> = scan.folders.iter().map(|path| of_folder(path)).collect();
    for page in &scan.pages {
        let model = &mut models[page.folder];
        model.pages += 1;
        model.bytes += page.bytes;
        model.used = model.used.max(Some(page.used.time()));
    }
    models
}

fn of_folder(path: &Path) -> StoredModel {
    let folder = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut about = String::new();
    let read = private().read(true).open(path.join(names::ABOUT));
    if read.and_then(|file| file.take(ABOUT_BYTES_MAX).read_to_string(&mut about)).is_err() {
        about.clear();
    }
    StoredModel { folder, about, pages: 0, bytes: 0, used: None }
}

/// Removes the pages of one folder, as [`list`] names it. A process that has them open goes on without.
///
/// # Errors
/// Where there is no such folder, or the system refuses.
pub fn remove(root: &Path, folder: &str) -> Result<Removed, StoreError> {
    let path = root.join(folder);
    let ours = names::is_folder(folder.as_ref());
    if !ours || !fs::symlink_metadata(&path).is_ok_and(|told| told.is_dir()) {
        return Err(StoreError::Unknown { folder: folder.to_owned(), root: root.to_owned() });
    }
    let lock = Lock::take(root).map_err(StoreError::io(root))?;
    let before = scan::root(root).map_err(StoreError::io(root))?;
    let at = before.folders.iter().position(|found| *found == path);
    let mut removed = Removed::default();
    for page in before.pages.iter().filter(|page| Some(page.folder) == at) {
        let file = path.join(names::page_file(&page.key));
        match fs::remove_file(&file) {
            Ok(()) => {
                removed.pages += 1;
                removed.bytes += page.bytes;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::Io { path: file, source }),
        }
    }
    let about = path.join(names::ABOUT);
    let told = fs::read(&about).unwrap_or_default();
    let _ = fs::remove_file(&about);
    // It stays where someone writes into it, or where a file lies in it that is not the store's; it then still tells what it is.
    if fs::remove_dir(&path).is_err() && !told.is_empty() {
        let made = private().write(true).create_new(true).open(&about);
        let _ = made.and_then(|mut file| file.write_all(&told));
    }
    lock.set_used(before.bytes.saturating_sub(removed.bytes)).map_err(StoreError::io(root))?;
    Ok(removed)
}
