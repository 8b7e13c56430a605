//! A forward reader over the head of a file. What was read stays in one buffer, so that values can refer to it.

use std::ops::Range;

use super::error::GgufError;
use crate::read_at::ReadAt;

/// Bytes of the first read; enough for the metadata of a model without its vocabulary.
const FIRST_READ: u64 = 256 << 10;

pub(super) struct Cursor<'a> {
    source: &'a dyn ReadAt,
    /// Length of the whole file, of which the source may be the beginning.
    file_bytes: u64,
    /// Bytes of the file read so far. Never longer than the file.
    pub buf: Vec<u8>,
    pub pos: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(source: &'a dyn ReadAt, file_bytes: u64) -> Cursor<'a> {
        Cursor { source, file_bytes, buf: Vec::new(), pos: 0 }
    }

    /// Bytes between the position and the end of the file.
    pub fn remaining(&self) -> u64 {
        self.file_bytes.saturating_sub(self.pos as u64)
    }

    /// Bytes between the position and the end of what can be read.
    pub fn available(&self) -> u64 {
        self.source.len().saturating_sub(self.pos as u64)
    }

    /// Advances over `n` bytes and returns where they lie in `buf`. Nothing is allocated unless the file holds them.
    pub fn take(&mut self, n: u64, field: impl Fn() -> String) -> Result<Range<usize>, GgufError> {
        if n > self.available() {
            let end = (self.pos as u64).saturating_add(n);
            return Err(GgufError::Truncated { field: field(), end, file_bytes: self.source.len() });
        }
        // The length fits: it is at most the file's, and `fill` fails where memory cannot hold it.
        let end = self.pos as u64 + n;
        if end > self.buf.len() as u64 {
            self.fill(end, &field)?;
        }
        let start = self.pos;
        self.pos = end as usize;
        Ok(start..self.pos)
    }

    fn fill(&mut self, end: u64, field: &impl Fn() -> String) -> Result<(), GgufError> {
        let have = self.buf.len() as u64;
        // Doubling keeps the number of reads small.
        let target = end.max(have.saturating_mul(2)).max(FIRST_READ).min(self.source.len());
        let out_of_memory = || GgufError::OutOfMemory { field: field(), bytes: target };
        let size = usize::try_from(target).map_err(|_| out_of_memory())?;
        self.buf.try_reserve_exact(size - self.buf.len()).map_err(|_| out_of_memory())?;
        self.buf.resize(size, 0);
        let read = self.source.read_exact_at(&mut self.buf[have as usize..], have);
        read.map_err(|source| GgufError::Io { field: field(), source })
    }

    fn array<const N: usize>(&mut self, field: impl Fn() -> String) -> Result<[u8; N], GgufError> {
        let range = self.take(N as u64, field)?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.buf[range]);
        Ok(bytes)
    }

    pub fn u32(&mut self, field: impl Fn() -> String) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub fn u64(&mut self, field: impl Fn() -> String) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A length-prefixed string, as it lies in `buf`.
    pub fn string(&mut self, field: impl Fn() -> String) -> Result<Range<usize>, GgufError> {
        let len = self.u64(&field)?;
        self.take(len, field)
    }

    /// A length-prefixed string that must be UTF-8.
    pub fn text(&mut self, field: impl Fn() -> String) -> Result<&str, GgufError> {
        let range = self.string(&field)?;
        std::str::from_utf8(&self.buf[range]).map_err(|_| GgufError::Utf8 { field: field() })
    }
}
