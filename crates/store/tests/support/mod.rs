//! Pages whose content follows from their key, so that whoever reads one knows what it must hold.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use unicorn_core::{Outcome, PageKey, PageRecords, PageStore, SharedBuffer, Signal};
use unicorn_store::{DiskStore, Identity, StoreOptions};

/// Words of the parts of every page here.
pub const WIDTHS: [usize; 3] = [96, 1, 1700];
/// Bytes of a page's file.
pub const FILE: u64 = 96 + 4 * (96 + 1 + 1700);
/// What it takes on disk.
pub const ON_DISK: u64 = FILE.div_ceil(4096) * 4096;

pub const IDENTITY: Identity = Identity([5; 32]);

pub fn key(n: u64) -> PageKey {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    key[24..].copy_from_slice(&n.to_le_bytes());
    PageKey(key)
}

pub fn keys(range: std::ops::Range<u64>) -> Vec<PageKey> {
    range.map(key).collect()
}

/// The bytes that a part of a page must hold.
fn content(key: &PageKey, part: usize) -> Vec<u8> {
    let seed = key.0.iter().fold(part as u32 + 1, |sum, b| sum.wrapping_mul(31).wrapping_add(u32::from(*b)));
    let word = |w: u32| (seed ^ w).wrapping_mul(0x9e37_79b9).rotate_left(w % 31).to_ne_bytes();
    (0..WIDTHS[part] as u32).flat_map(word).collect()
}

pub fn empty(keys: &[PageKey]) -> PageRecords {
    let parts = WIDTHS.map(|width| Arc::new(SharedBuffer::new(keys.len(), width).unwrap()));
    PageRecords { keys: keys.to_vec(), parts: parts.to_vec() }
}

pub fn full(keys: &[PageKey]) -> PageRecords {
    let records = empty(keys);
    for (p, part) in records.parts.iter().enumerate() {
        keys.iter().enumerate().for_each(|(row, key)| part.write_part(row, 0, &content(key, p)));
    }
    records
}

pub fn options(root: &Path, bytes_max: u64) -> StoreOptions {
    StoreOptions::new(root.to_owned(), IDENTITY, bytes_max)
}

pub fn open(root: &Path, bytes_max: u64) -> DiskStore {
    DiskStore::open(options(root, bytes_max)).unwrap()
}

/// Writes pages and waits until their parts may be used again.
pub fn put(store: &DiskStore, keys: &[PageKey]) {
    let done = Signal::new();
    let fence = done.fence();
    store.write(full(keys), Vec::new(), done);
    fence.wait().unwrap();
}

/// Reads pages; panics where they come back with anything but what they must hold.
pub fn get(store: &DiskStore, keys: &[PageKey]) -> Outcome {
    let (records, done) = (empty(keys), Signal::new());
    let fence = done.fence();
    store.read(records.clone(), done);
    fence.wait()?;
    for (p, part) in records.parts.iter().enumerate() {
        for (row, key) in keys.iter().enumerate() {
            let mut bytes = vec![0; WIDTHS[p] * 4];
            part.read_part(row, 0, &mut bytes);
            assert_eq!(bytes, content(key, p), "part {p} of page {row}");
        }
    }
    Ok(())
}

/// The folder of the one identity, and the files of pages in it.
pub fn folder(root: &Path) -> PathBuf {
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    folders.into_iter().find(|path| path.is_dir()).unwrap()
}

pub fn files(root: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder(root)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "page"));
    files.sort();
    files
}

pub fn temporary(root: &Path) -> usize {
    let names = std::fs::read_dir(folder(root)).unwrap().map(|entry| entry.unwrap().file_name());
    names.into_iter().filter(|name| name.to_string_lossy().starts_with(".part-")).count()
}

pub fn file_of(root: &Path, key: &PageKey) -> PathBuf {
    let hex: String = key.0.iter().map(|b| format!("{b:02x}")).collect();
    folder(root).join(hex + ".page")
}

/// Bytes that everything below a root takes, files that are being written included.
pub fn taken(root: &Path) -> u64 {
    let entries = std::fs::read_dir(folder(root)).unwrap().filter_map(|entry| entry.ok()?.metadata().ok());
    entries.map(|told| told.len().div_ceil(4096) * 4096).sum()
}
