//! Room on disk: how much all identities and processes of a root have taken, and who has to go where there is none left.
//!
//! The bytes that are taken stand in the lock file, so that taking room costs a lock and not a look at every file. They may tell too much,
//! after a kill or where someone removed files by hand, but never too little: at the bound everything is looked at anew.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use unicorn_core::PageKey;

use crate::files::{self, on_disk, private};
use crate::names;
use crate::scan;

/// How long a process waits for others that take room.
const PATIENCE: Duration = Duration::from_secs(5);

/// The lock of a root, held until dropped.
pub(crate) struct Lock(File);

impl Lock {
    /// Waits for others, but not for ever. Makes the root where it is missing.
    pub fn take(root: &Path) -> io::Result<Lock> {
        let path = root.join(names::LOCK);
        let open = || private().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                files::make_folder(root)?;
                open()?
            }
            other => other?,
        };
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(100);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(TryLockError::Error(e)) => return Err(e),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    let held = format!("{} is held by another process", path.display());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, held));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Bytes that are taken, `None` where the file does not tell.
    pub fn used(&self) -> Option<u64> {
        let mut bytes = [0; 16];
        files::read_at(&self.0, &mut bytes, 0).ok()?;
        let at = |from: usize| bytes[from..from + 8].iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b));
        (at(0) == !at(8)).then(|| at(0))
    }

    pub fn set_used(&self, used: u64) -> io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&used.to_le_bytes());
        bytes[8..].copy_from_slice(&(!used).to_le_bytes());
        files::write_at(&self.0, &bytes, 0)
    }
}

/// What taking room came to.
pub(crate) struct Taken {
    /// A file of the length that was asked for, to be written and renamed; or what may be taken at most, where that is less.
    pub file: Result<NamedTempFile, u64>,
    /// Pages that had to go, with their folders.
    pub evicted: Vec<(PathBuf, PageKey)>,
    /// Bytes that all pages of the root take now.
    pub used: u64,
}

/// A file of this length to be written. It is locked for as long as it is open: one that nobody holds is a leftover.
fn make(folder: &Path, len: u64) -> io::Result<NamedTempFile> {
    let file = tempfile::Builder::new().prefix(names::TEMPORARY).tempfile_in(folder)?;
    file.as_file().lock()?;
    file.as_file().set_len(len)?;
    Ok(file)
}

/// The bound of a root.
pub(crate) struct Room {
    pub root: PathBuf,
    /// Bytes that all identities together may take.
    pub bytes_max: u64,
}

impl Room {
    /// What may be taken: the bound, but no more than is left free beside it.
    fn limit(&self, used: u64) -> u64 {
        let half = files::free(&self.root).map_or(u64::MAX, |free| used.saturating_add(free) / 2);
        self.bytes_max.min(half)
    }

    /// Takes room for a file of `len` bytes in a folder. Where the least useful pages are to be found, `settle` is called first: it writes
    /// down what was used.
    pub fn take(&self, folder: &Path, len: u64, settle: impl FnOnce()) -> io::Result<Taken> {
        let lock = Lock::take(&self.root)?;
        let need = on_disk(len);
        let told = lock.used();
        let fits = |used: u64| used.saturating_add(need) <= self.limit(used);
        let mut taken = Taken { file: Err(0), evicted: Vec::new(), used: told.unwrap_or(0) };
        if !told.is_some_and(fits) {
            settle();
            taken.used = self.make_room(need, &mut taken.evicted)?;
            lock.set_used(taken.used)?;
            if !fits(taken.used) {
                taken.file = Err(self.limit(taken.used));
                return Ok(taken);
            }
        }
        // Before the file is made: who is killed in between has taken too much, not too little.
        lock.set_used(taken.used.saturating_add(need))?;
        let file = make(folder, len).inspect_err(|_| drop(lock.set_used(taken.used)))?;
        taken.used = taken.used.saturating_add(need);
        taken.file = Ok(file);
        Ok(taken)
    }

    /// Removes the least useful pages until there is room and a little more, so that not every page looks at everything. Returns the bytes
    /// that are taken.
    fn make_room(&self, need: u64, evicted: &mut Vec<(PathBuf, PageKey)>) -> io::Result<u64> {
        let mut scan = scan::root(&self.root)?;
        let mut used = scan.bytes;
        let limit = self.limit(used);
        if need > limit || used.saturating_add(need) <= limit {
            return Ok(used);
        }
        let wanted = limit - limit / 32;
        scan.pages.sort_unstable_by_key(|page| page.used);
        for page in &scan.pages {
            if used.saturating_add(need) <= wanted {
                break;
            }
            let folder = &scan.folders[page.folder];
            match fs::remove_file(folder.join(names::page_file(&page.key))) {
                Ok(()) => evicted.push((folder.clone(), page.key)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(_) => continue,
            }
            used = used.saturating_sub(page.bytes);
        }
        Ok(used)
    }
}
