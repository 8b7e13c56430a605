//! What the threads of a store have in common.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use unicorn_core::{PageKey, PageRecords};

use crate::error::{StoreError, Trouble};
use crate::files::{self, Used, private, set_used};
use crate::index::Index;
use crate::names;
use crate::record::{self, ReadError};
use crate::room::{Lock, Room};
use crate::scan;
use crate::state::{Counts, add};

pub(crate) struct Shared {
    pub identity: [u8; 32],
    /// Folder of this identity.
    pub folder: PathBuf,
    /// What the identity is, in the words of who opened it.
    pub about: String,
    pub room: Room,
    pub index: Index,
    pub counts: Counts,
}

impl Shared {
    pub fn path(&self, key: &PageKey) -> PathBuf {
        self.folder.join(names::page_file(key))
    }

    /// Makes the folder, says in it what it is, takes out leftovers and learns which pages are there. A folder that can only be read is
    /// good enough.
    pub fn open(&self) -> Result<(), StoreError> {
        if fs::symlink_metadata(&self.folder).is_ok_and(|told| !told.is_dir()) {
            return Err(StoreError::NotAFolder { path: self.folder.clone() });
        }
        if let Err(source) = self.prepare() {
            if !self.folder.is_dir() {
                return Err(StoreError::Io { path: self.folder.clone(), source });
            }
            self.counts.troubled(&Trouble::NotWritten { folder: self.folder.clone(), source });
        }
        let keys = scan::keys(&self.folder).map_err(StoreError::io(&self.folder))?;
        keys.into_iter().for_each(|key| self.index.add(key));
        Ok(())
    }

    fn prepare(&self) -> io::Result<()> {
        let lock = Lock::take(&self.room.root)?;
        self.make_folder(&lock)?;
        scan::clean(&self.folder)?;
        self.counts.root_bytes.store(lock.used().unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }

    /// Makes the folder, which others may remove at any time.
    fn make_folder(&self, _lock: &Lock) -> io::Result<()> {
        files::make_folder(&self.folder)?;
        if !fs::symlink_metadata(&self.folder)?.is_dir() {
            return Err(io::Error::other("a link lies where the folder was"));
        }
        files::make_private(&self.folder)?;
        let path = self.folder.join(names::ABOUT);
        if !path.is_file() {
            let mut file = tempfile::Builder::new().prefix(names::TEMPORARY).tempfile_in(&self.folder)?;
            file.write_all(self.about.as_bytes())?;
            file.persist(path).map_err(|e| e.error)?;
        }
        Ok(())
    }

    /// True when the page is there. One that is not known may have come from another process.
    pub fn has(&self, key: &PageKey) -> bool {
        if self.index.use_known(key, 0) {
            return true;
        }
        let there = fs::symlink_metadata(self.path(key)).is_ok_and(|told| told.is_file());
        if there {
            self.index.add(*key);
            self.index.use_known(key, 0);
        }
        there
    }

    /// Reads the `row`-th page; says why it could not.
    pub fn read(&self, records: &PageRecords, row: usize) -> Result<(), String> {
        let key = &records.keys[row];
        let path = self.path(key);
        match record::read(&path, &self.identity, key, &records.parts, row) {
            Ok(bytes) => {
                add(&self.counts.read_pages, 1);
                add(&self.counts.read_bytes, bytes);
                self.index.add(*key);
                self.index.use_known(key, place(row));
                Ok(())
            }
            Err(error) => {
                add(&self.counts.read_failed, 1);
                Err(self.failed(key, path, error))
            }
        }
    }

    fn failed(&self, key: &PageKey, path: PathBuf, error: ReadError) -> String {
        match error {
            ReadError::OtherSize => "the page is of another size".to_owned(),
            ReadError::Io(error) => {
                self.index.remove(key);
                error.to_string()
            }
            ReadError::Damaged(why) => {
                self.index.remove(key);
                let _ = fs::remove_file(&path);
                add(&self.counts.damaged, 1);
                self.counts.troubled(&Trouble::Damaged { file: path, why });
                format!("the page was {why}")
            }
        }
    }

    /// Keeps the `row`-th page unless it is there. `Ok(None)` where there is no room for it.
    pub fn write(&self, records: &PageRecords, row: usize) -> io::Result<Option<()>> {
        let key = &records.keys[row];
        if self.has(key) {
            self.index.use_known(key, place(row));
            return Ok(Some(()));
        }
        let bytes = record::payload(&records.parts).unwrap_or(u64::MAX);
        let len = bytes.saturating_add(record::HEADER as u64);
        let taken = match self.room.take(&self.folder, len, || self.settle()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_folder(&Lock::take(&self.room.root)?)?;
                self.room.take(&self.folder, len, || self.settle())?
            }
            other => other?,
        };
        self.counts.root_bytes.store(taken.used, Ordering::Relaxed);
        add(&self.counts.evicted, taken.evicted.len() as u64);
        taken
            .evicted
            .iter()
            .filter(|(folder, _)| *folder == self.folder)
            .for_each(|(_, key)| self.index.remove(key));
        let file = match taken.file {
            Ok(file) => file,
            Err(limit) => {
                let root = self.room.root.clone();
                self.counts.troubled(&Trouble::NoRoom { root, bytes: len, limit });
                return Ok(None);
            }
        };
        record::write(file.as_file(), &self.identity, key, &records.parts, row)?;
        set_used(file.as_file(), Used::now(place(row)));
        file.persist(self.path(key)).map_err(|e| e.error)?;
        self.index.add(*key);
        add(&self.counts.written_pages, 1);
        add(&self.counts.written_bytes, bytes);
        self.counts.well();
        Ok(Some(()))
    }

    /// Writes down which pages were used, as their files' times.
    pub fn settle(&self) {
        for (key, place) in self.index.take_used() {
            let path = self.path(&key);
            let Ok(file) = private().write(true).open(&path) else { continue };
            let before = file.metadata().and_then(|told| told.modified()).map(|time| Used::of(time).place());
            set_used(&file, Used::now(place.max(before.unwrap_or(0))));
        }
    }
}

fn place(row: usize) -> u32 {
    u32::try_from(row).unwrap_or(u32::MAX)
}
