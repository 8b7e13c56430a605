//! A page as a file: a header of 96 bytes, then its rows of all parts in their order, in the machine's byte order.
//!
//! | bytes | hold |
//! | --- | --- |
//! | 0..8 | `UNICRNKV` |
//! | 8..12 | version of this format, little endian as all that follows but for the mark |
//! | 12..16 | 0x01020304 in the machine's byte order |
//! | 16..48 | identity |
//! | 48..80 | key |
//! | 80..88 | bytes of the rows |
//! | 88..92 | CRC-32 of the rows |
//! | 92..96 | CRC-32 of the header before it |

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use unicorn_core::{PageKey, SharedBuffer};

use crate::files::{private, read_at, write_at};

const MAGIC: &[u8; 8] = b"UNICRNKV";
const VERSION: u32 = 1;
const MARK: u32 = 0x0102_0304;
pub(crate) const HEADER: usize = 96;

/// Bytes that are read or written at once.
const CHUNK: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Header {
    identity: [u8; 32],
    key: PageKey,
    bytes: u64,
    checksum: u32,
}

impl Header {
    fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&MARK.to_ne_bytes());
        out[16..48].copy_from_slice(&self.identity);
        out[48..80].copy_from_slice(&self.key.0);
        out[80..88].copy_from_slice(&self.bytes.to_le_bytes());
        out[88..92].copy_from_slice(&self.checksum.to_le_bytes());
        let sum = crc32fast::hash(&out[..92]);
        out[92..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Bytes and checksum of the rows, or what is wrong with the header of a page of this identity and key.
    fn check(found: &[u8; HEADER], identity: &[u8; 32], key: &PageKey) -> Result<(u64, u32), &'static str> {
        let u32_at = |at: usize| u32::from_le_bytes([found[at], found[at + 1], found[at + 2], found[at + 3]]);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&found[80..88]);
        let expected =
            Header { identity: *identity, key: *key, bytes: u64::from_le_bytes(bytes), checksum: u32_at(88) };
        if *found == expected.encode() {
            return Ok((expected.bytes, expected.checksum));
        }
        Err(if &found[..8] != MAGIC {
            "no page of state"
        } else if u32_at(92) != crc32fast::hash(&found[..92]) {
            "damaged"
        } else {
            "of another version, model or text"
        })
    }
}

/// Why a page could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// It is not there, or the system could not read it.
    Io(io::Error),
    /// It is not what was written under this name.
    Damaged(&'static str),
    /// It is whole, but of other parts than asked for.
    OtherSize,
}

/// Bytes of a page's rows, `None` where they cannot be counted.
pub(crate) fn payload(parts: &[Arc<SharedBuffer>]) -> Option<u64> {
    let words =
        parts.iter().try_fold(0u64, |sum, part| sum.checked_add(u64::try_from(part.width()).ok()?))?;
    words.checked_mul(4)
}

/// Calls `f` with each part that has bytes among those at `at..at + len` of a page: where they begin in the part's row, and which of the
/// `len` they are.
fn spans(
    parts: &[Arc<SharedBuffer>],
    at: u64,
    len: usize,
    mut f: impl FnMut(&SharedBuffer, usize, Range<usize>),
) {
    let end = at + len as u64;
    let mut begin = 0u64;
    for part in parts {
        let next = begin + part.width() as u64 * 4;
        let (from, to) = (begin.max(at), next.min(end));
        if from < to {
            f(part, (from - begin) as usize, (from - at) as usize..(to - at) as usize);
        }
        begin = next;
    }
}

fn chunks(bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..bytes).step_by(CHUNK).map(move |at| (at, (bytes - at).min(CHUNK as u64) as usize))
}

/// Writes row `row` of the parts into an empty file. The header comes last.
pub(crate) fn write(
    file: &File,
    identity: &[u8; 32],
    key: &PageKey,
    parts: &[Arc<SharedBuffer>],
    row: usize,
) -> io::Result<()> {
    let bytes = payload(parts).unwrap_or(0);
    let mut sum = crc32fast::Hasher::new();
    let mut buffer = vec![0; bytes.min(CHUNK as u64) as usize];
    for (at, len) in chunks(bytes) {
        let chunk = &mut buffer[..len];
        spans(parts, at, len, |part, byte, range| part.read_part(row, byte, &mut chunk[range]));
        sum.update(chunk);
        write_at(file, chunk, HEADER as u64 + at)?;
    }
    let header = Header { identity: *identity, key: *key, bytes, checksum: sum.finalize() };
    write_at(file, &header.encode(), 0)
}

/// Reads a page into row `row` of the parts. Where it fails the row may hold anything.
pub(crate) fn read(
    path: &Path,
    identity: &[u8; 32],
    key: &PageKey,
    parts: &[Arc<SharedBuffer>],
    row: usize,
) -> Result<u64, ReadError> {
    let file = private().read(true).open(path).map_err(ReadError::Io)?;
    let told = file.metadata().map_err(ReadError::Io)?;
    if !told.is_file() {
        return Err(ReadError::Damaged("no file"));
    }
    let cut = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => ReadError::Damaged("cut off"),
        _ => ReadError::Io(e),
    };
    let mut header = [0; HEADER];
    read_at(&file, &mut header, 0).map_err(cut)?;
    let (bytes, checksum) = Header::check(&header, identity, key).map_err(ReadError::Damaged)?;
    if told.len() != bytes.saturating_add(HEADER as u64) {
        return Err(ReadError::Damaged("of another length than it tells"));
    }
    if payload(parts) != Some(bytes) {
        return Err(ReadError::OtherSize);
    }
    let mut sum = crc32fast::Hasher::new();
    let mut buffer = vec![0; bytes.min(CHUNK as u64) as usize];
    for (at, len) in chunks(bytes) {
        let chunk = &mut buffer[..len];
        read_at(&file, chunk, HEADER as u64 + at).map_err(cut)?;
        sum.update(chunk);
        spans(parts, at, len, |part, byte, range| part.write_part(row, byte, &chunk[range]));
    }
    if sum.finalize() != checksum {
        return Err(ReadError::Damaged("damaged"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PageKey = PageKey([7; 32]);
    const IDENTITY: [u8; 32] = [3; 32];

    fn parts(widths: &[usize], seed: u32) -> Vec<Arc<SharedBuffer>> {
        let of = |(i, width): (usize, &usize)| {
            let part = SharedBuffer::new(3, *width).unwrap();
            let words: Vec<u8> = (0..3 * *width as u32)
                .flat_map(|w| (w ^ seed).wrapping_mul(0x9e37_79b9 + i as u32).to_ne_bytes())
                .collect();
            part.write_bytes(&words);
            Arc::new(part)
        };
        widths.iter().enumerate().map(of).collect()
    }

    fn row(parts: &[Arc<SharedBuffer>], row: usize) -> Vec<u8> {
        let of = |part: &Arc<SharedBuffer>| {
            let mut out = vec![0; part.width() * 4];
            part.read_part(row, 0, &mut out);
            out
        };
        parts.iter().flat_map(of).collect()
    }

    /// Parts that end inside chunks, at their ends, and fill several.
    const WIDTHS: [&[usize]; 4] = [&[5], &[CHUNK / 4, 1], &[3, 300_000, 7, 500_000], &[16, 16, 16]];

    #[test]
    fn a_row_comes_back_into_another_row() {
        let folder = tempfile::tempdir().unwrap();
        for (n, widths) in WIDTHS.iter().enumerate() {
            let path = folder.path().join(n.to_string());
            let (from, to) = (parts(widths, 1), parts(widths, 2));
            write(&File::create(&path).unwrap(), &IDENTITY, &KEY, &from, 2).unwrap();
            let bytes = read(&path, &IDENTITY, &KEY, &to, 0).unwrap();
            assert_eq!(bytes as usize, widths.iter().sum::<usize>() * 4);
            assert_eq!(row(&to, 0), row(&from, 2));
            // Its neighbours stay.
            assert_eq!(row(&to, 1), row(&parts(widths, 2), 1));
        }
    }

    #[test]
    fn every_changed_byte_and_every_length_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        let there = parts(&[4, 6], 1);
        write(&File::create(&path).unwrap(), &IDENTITY, &KEY, &there, 1).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), HEADER + 40);
        let try_read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(&path, &IDENTITY, &KEY, &there, 0)
        };
        for at in 0..whole.len() {
            for bit in [1, 0x80] {
                let mut changed = whole.clone();
                changed[at] ^= bit;
                assert!(matches!(try_read(&changed), Err(ReadError::Damaged(_))), "byte {at}");
            }
        }
        for len in 0..whole.len() {
            assert!(matches!(try_read(&whole[..len]), Err(ReadError::Damaged(_))), "length {len}");
        }
        let longer = [&whole[..], &[0]].concat();
        assert!(matches!(try_read(&longer), Err(ReadError::Damaged(_))));
        assert!(try_read(&whole).is_ok());
    }

    #[test]
    fn another_key_identity_or_size_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        let there = parts(&[4, 6], 1);
        write(&File::create(&path).unwrap(), &IDENTITY, &KEY, &there, 1).unwrap();
        let other = PageKey([8; 32]);
        assert!(matches!(read(&path, &IDENTITY, &other, &there, 0), Err(ReadError::Damaged(_))));
        assert!(matches!(read(&path, &[4; 32], &KEY, &there, 0), Err(ReadError::Damaged(_))));
        let shorter = parts(&[4, 5], 1);
        assert!(matches!(read(&path, &IDENTITY, &KEY, &shorter, 0), Err(ReadError::OtherSize)));
        let missing = folder.path().join("none");
        assert!(matches!(read(&missing, &IDENTITY, &KEY, &there, 0), Err(ReadError::Io(_))));
    }
}
