//! Opened model files and positioned reads over them. Nothing is memory-mapped: a file that shrinks while in use
//! gives an error instead of a bus fault. Reads go through the page cache (no `O_DIRECT`): they may start anywhere, and the second start of
//! a model, the usual case, then reads no disk at all.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use unicorn_core::{WeightError, WeightSource, WeightSpan};

use crate::error::ModelError;
use crate::read_at::ReadAt;

/// An open file with its path and the length it had then.
#[derive(Debug)]
pub(crate) struct OpenFile {
    path: PathBuf,
    content: Content,
    len: u64,
}

#[derive(Debug)]
enum Content {
    File(File),
    /// Parts of a file that is somewhere else, with their positions.
    Parts(Vec<(u64, Vec<u8>)>),
}

impl OpenFile {
    /// Opens a regular file for reading.
    pub fn open(path: &Path) -> Result<OpenFile, ModelError> {
        let io = |source| ModelError::Io { path: path.to_owned(), source };
        // Asked before opening: opening a pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(ModelError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        Ok(OpenFile { path: path.to_owned(), content: Content::File(file), len })
    }

    /// Parts of a file of `len` bytes. Reading anything else is an error.
    pub fn of_parts(path: PathBuf, len: u64, parts: Vec<(u64, Vec<u8>)>) -> OpenFile {
        OpenFile { path, content: Content::Parts(parts), len }
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl ReadAt for OpenFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.content {
            Content::File(file) => read_file_at(file, buf, offset),
            Content::Parts(parts) => {
                let held = parts.iter().find_map(|(at, bytes)| {
                    let start = usize::try_from(offset.checked_sub(*at)?).ok()?;
                    bytes.get(start..start.checked_add(buf.len())?)
                });
                let missing = || io::Error::other("this part of the file was not fetched");
                buf.copy_from_slice(held.ok_or_else(missing)?);
                Ok(())
            }
        }
    }
}

#[cfg(unix)]
fn read_file_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

#[cfg(windows)]
fn read_file_at(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The files (shards) of one model, in the order that [`WeightSpan::file`] counts.
#[derive(Debug)]
pub(crate) struct ModelFiles {
    files: Vec<OpenFile>,
}

impl ModelFiles {
    pub(crate) fn new(files: Vec<OpenFile>) -> ModelFiles {
        ModelFiles { files }
    }

    /// Paths in shard order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(OpenFile::path)
    }

    /// Bytes of all files together, as they were when opened.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(ReadAt::len).sum()
    }
}

impl WeightSource for ModelFiles {
    fn read(&self, span: &WeightSpan, offset: u64, buf: &mut [u8]) -> Result<(), WeightError> {
        let len = buf.len() as u64;
        let start = span.offset.checked_add(offset);
        let inside = offset.checked_add(len).is_some_and(|end| end <= span.bytes);
        let (true, Some(start), Some(file)) = (inside, start, self.files.get(span.file as usize)) else {
            return Err(WeightError::OutOfSpan { offset, len, span: span.bytes });
        };
        file.read_exact_at(buf, start).map_err(|source| {
            let name = file.path.display().to_string();
            match source.kind() {
                io::ErrorKind::UnexpectedEof => {
                    WeightError::Truncated { file: name, end: start.saturating_add(len) }
                }
                _ => WeightError::Io { file: name, source },
            }
        })
    }
}

/// Reads a whole small file (JSON, templates), refusing one larger than `bytes_max`.
pub(crate) fn read_small(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ModelError> {
    let file = OpenFile::open(path)?;
    if file.len > bytes_max {
        return Err(ModelError::FileTooLarge { path: path.to_owned(), bytes: file.len, bytes_max });
    }
    let mut bytes = vec![0; file.len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(content: &[u8]) -> (tempfile::TempDir, ModelFiles) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.bin");
        std::fs::write(&path, content).unwrap();
        let files = ModelFiles::new(vec![OpenFile::open(&path).unwrap()]);
        (dir, files)
    }

    #[test]
    fn reads_inside_the_span_only() {
        let (_dir, files) = files(b"0123456789");
        let span = WeightSpan { file: 0, offset: 2, bytes: 5 };
        let mut buf = [0; 3];
        files.read(&span, 2, &mut buf).unwrap();
        assert_eq!(&buf, b"456");
        for (span, offset) in [
            (span, 3),
            (span, u64::MAX),
            (WeightSpan { offset: u64::MAX, ..span }, 1),
            (WeightSpan { file: 1, ..span }, 0),
        ] {
            assert!(matches!(files.read(&span, offset, &mut buf), Err(WeightError::OutOfSpan { .. })));
        }
    }

    #[test]
    fn shrunken_file_is_an_error() {
        let (dir, files) = files(&[7; 100]);
        let path = dir.path().join("w.bin");
        File::options().write(true).open(&path).unwrap().set_len(50).unwrap();
        let span = WeightSpan { file: 0, offset: 40, bytes: 60 };
        let mut buf = [0; 10];
        files.read(&span, 0, &mut buf).unwrap();
        let error = files.read(&span, 5, &mut buf).unwrap_err();
        assert!(matches!(&error, WeightError::Truncated { end: 55, .. }), "{error}");
    }
}
