//! Partial files that survive interruption, and downloads into them.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::cache::RepoCache;
use crate::http::{Answer, Client, Range, header};
use crate::progress::{Event, Progress, say};
use crate::sniff;
use crate::{HubConfig, HubError};

const CHUNK: usize = 256 * 1024;
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A file to fetch.
pub(crate) struct Blob<'a> {
    /// Name for people.
    pub name: &'a str,
    /// Name in the blobs folder: the hub's hash of the content.
    pub id: &'a str,
    /// Size, where the hub told it.
    pub bytes: Option<u64>,
    /// SHA-256 in lower-case hexadecimal, where the hub told it.
    pub sha256: Option<&'a str>,
}

/// `blobs/<id>.incomplete`: grows at its end, hashed as it grows, renamed when it is whole and right.
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
    hash: Sha256,
    written: u64,
    total: Option<u64>,
}

impl Partial {
    /// Opens or creates the partial file of `target` and hashes what it already holds.
    pub fn open(target: &Path, total: Option<u64>) -> Result<Partial, HubError> {
        let mut name = target.file_name().unwrap_or_default().to_os_string();
        name.push(".incomplete");
        let path = target.with_file_name(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(HubError::io(parent))?;
        }
        let open = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = open.map_err(HubError::io(&path))?;
        let length = file.metadata().map_err(HubError::io(&path))?.len();
        let mut partial =
            Partial { file, path, target: target.to_path_buf(), hash: Sha256::new(), written: 0, total };
        match total {
            Some(total) if length > total => partial.truncate(0)?,
            _ => partial.truncate(length)?,
        }
        Ok(partial)
    }

    /// Bytes held.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Cuts the file to `length` bytes, no more than it has, and hashes what remains.
    pub fn truncate(&mut self, length: u64) -> Result<(), HubError> {
        let current = self.file.metadata().map_err(HubError::io(&self.path))?.len();
        if length < current {
            self.file.set_len(length).map_err(HubError::io(&self.path))?;
        }
        self.hash = Sha256::new();
        self.file.seek(SeekFrom::Start(0)).map_err(HubError::io(&self.path))?;
        let mut buffer = vec![0; CHUNK];
        let mut left = length.min(current);
        self.written = left;
        while left > 0 {
            let want = buffer.len().min(left as usize);
            self.file.read_exact(&mut buffer[..want]).map_err(HubError::io(&self.path))?;
            self.hash.update(&buffer[..want]);
            left -= want as u64;
        }
        Ok(())
    }

    /// Appends. On failure everything before it stays, and the count is exact.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<(), HubError> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => {
                    let source = std::io::Error::from(ErrorKind::WriteZero);
                    return Err(HubError::Io { path: self.path.clone(), source });
                }
                Ok(n) => {
                    self.hash.update(&bytes[..n]);
                    self.written += n as u64;
                    bytes = &bytes[n..];
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(HubError::write(&self.path, self.written, self.total, e)),
            }
        }
        Ok(())
    }

    /// Checks size and hash and gives the file its final name; removes it where they are wrong.
    pub fn finish(&mut self, sha256: Option<&str>) -> Result<(), HubError> {
        let wrong = if let Some(expected) = self.total.filter(|total| *total != self.written) {
            Some(HubError::WrongSize { path: self.path.clone(), expected, found: self.written })
        } else {
            let found = hex(&self.hash.clone().finalize());
            sha256.filter(|expected| !expected.eq_ignore_ascii_case(&found)).map(|expected| {
                HubError::WrongHash { path: self.path.clone(), expected: expected.to_string(), found }
            })
        };
        if let Some(wrong) = wrong {
            fs::remove_file(&self.path).map_err(HubError::io(&self.path))?;
            return Err(wrong);
        }
        self.file.sync_all().map_err(|e| HubError::write(&self.path, self.written, self.total, e))?;
        fs::rename(&self.path, &self.target).map_err(HubError::io(&self.target))
    }

    /// The error for a caller that asked to stop.
    pub fn interrupted(&self) -> HubError {
        HubError::Interrupted { path: self.path.clone(), written: self.written, total: self.total }
    }

    fn broken_off(&self, reason: String) -> HubError {
        HubError::BrokenOff { path: self.path.clone(), written: self.written, total: self.total, reason }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Fetches one file into the cache, continuing what an earlier attempt left, and returns the blob's path.
pub(crate) fn fetch(
    client: &Client<'_>,
    config: &HubConfig,
    cache: &RepoCache,
    url: &str,
    blob: &Blob<'_>,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, HubError> {
    let target = cache.blob(blob.id)?;
    let whole = |path: &Path| {
        fs::metadata(path).is_ok_and(|m| m.is_file() && blob.bytes.is_none_or(|bytes| bytes == m.len()))
    };
    if whole(&target) {
        return Ok(target);
    }
    let _lock = cache.lock(blob.id, progress)?;
    if whole(&target) {
        return Ok(target);
    }
    let mut partial = Partial::open(&target, blob.bytes)?;
    let resumed = partial.written() > 0;
    let outcome = fetch_once(client, config, url, blob, &mut partial, progress);
    if resumed && matches!(outcome, Err(HubError::WrongHash { .. } | HubError::WrongSize { .. })) {
        // What was there before may have been the wrong part.
        let notice = format!("{}: what an earlier download left is damaged; starting anew", blob.name);
        say(progress, &notice);
        let mut partial = Partial::open(&target, blob.bytes)?;
        fetch_once(client, config, url, blob, &mut partial, progress)?;
    } else {
        outcome?;
    }
    Ok(target)
}

fn fetch_once(
    client: &Client<'_>,
    config: &HubConfig,
    url: &str,
    blob: &Blob<'_>,
    partial: &mut Partial,
    progress: &mut Progress<'_>,
) -> Result<(), HubError> {
    let begin = Event::Begin { file: blob.name, have: partial.written, total: partial.total };
    if progress(begin).is_break() {
        return Err(partial.interrupted());
    }
    let mut failures = 0;
    while partial.total.is_none_or(|total| partial.written < total) {
        let before = partial.written;
        let error = match receive(client, config, url, blob, partial, progress) {
            Ok(()) => break,
            Err(error) if transient(&error) => error,
            Err(error) => return Err(error),
        };
        failures = if partial.written > before { 1 } else { failures + 1 };
        if failures > config.retries {
            return Err(partial.broken_off(error.to_string()));
        }
        let pause = config.retry_pause.saturating_mul(1 << (failures - 1).min(16)).min(PAUSE_MAX);
        let notice = format!("{error}; trying again in {:.0} s", pause.as_secs_f32());
        say(progress, &notice);
        wait(pause, progress).map_err(|()| partial.interrupted())?;
    }
    partial.finish(blob.sha256)?;
    let _ = progress(Event::End { file: blob.name, bytes: partial.written, verified: blob.sha256.is_some() });
    Ok(())
}

/// Sleeps, asking now and then whether to stop.
fn wait(pause: Duration, progress: &mut Progress<'_>) -> Result<(), ()> {
    let end = Instant::now() + pause;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        if progress(Event::Waiting).is_break() {
            return Err(());
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
    Ok(())
}

/// One request: appends what arrives.
fn receive(
    client: &Client<'_>,
    config: &HubConfig,
    url: &str,
    blob: &Blob<'_>,
    partial: &mut Partial,
    progress: &mut Progress<'_>,
) -> Result<(), HubError> {
    let answer = client.get(url, Range::From(partial.written))?;
    match answer.status {
        200 => {
            // The server ignores ranges: what is there already comes again.
            partial.truncate(0)?;
            let length = header(&answer.last, "content-length").and_then(|v| v.parse().ok());
            partial.total = partial.total.or(length);
        }
        206 => partial.total = partial.total.or(check_range(&answer, partial.written)?),
        416 => {
            partial.truncate(0)?;
            return Err(HubError::Status { url: answer.url, status: 416 });
        }
        _ => return Err(status_error(config, blob.name, &answer)),
    }
    let url = answer.url.clone();
    let mut reader = answer.reader();
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(HubError::Unreachable { url, reason: e.to_string() }),
        };
        if n == 0 {
            break;
        }
        if partial.written == 0
            && let Some(found) = sniff::not_the_file(&buffer[..n])
        {
            return Err(HubError::WrongContent { url, found });
        }
        partial.append(&buffer[..n])?;
        if partial.total.is_some_and(|total| partial.written > total) {
            // More than announced: the size check removes it.
            return partial.finish(blob.sha256);
        }
        let event = Event::Advance { file: blob.name, have: partial.written, total: partial.total };
        if let ControlFlow::Break(()) = progress(event) {
            return Err(partial.interrupted());
        }
    }
    match partial.total {
        Some(total) if partial.written < total => {
            Err(HubError::Unreachable { url, reason: "the connection closed early".to_string() })
        }
        _ => Ok(()),
    }
}

/// Checks that a partial answer begins where it should; returns the whole size where it tells it.
pub(crate) fn check_range(answer: &Answer, from: u64) -> Result<Option<u64>, HubError> {
    let range = header(&answer.last, "content-range").unwrap_or_default();
    let parts = range.strip_prefix("bytes ").and_then(|r| r.split_once('/')).unwrap_or_default();
    let start = parts.0.split('-').next().and_then(|s| s.parse::<u64>().ok());
    if start != Some(from) {
        let reason = format!("asked for bytes from {from}, answered with content-range {range:?}");
        return Err(HubError::BadAnswer { url: answer.url.clone(), reason });
    }
    Ok(parts.1.parse().ok())
}

/// The error for a status that is no success.
pub(crate) fn status_error(config: &HubConfig, what: &str, answer: &Answer) -> HubError {
    let (what, endpoint, status) = (what.to_string(), config.hub().to_string(), answer.status);
    match status {
        401 | 403 => HubError::Denied { what, endpoint, status },
        404 | 410 => HubError::NotFound { what, endpoint },
        _ => HubError::Status { url: answer.url.clone(), status },
    }
}

/// Failures that another attempt may not meet.
pub(crate) fn transient(error: &HubError) -> bool {
    match error {
        HubError::Unreachable { .. } => true,
        HubError::Status { status, .. } => matches!(status, 408 | 416 | 425 | 429 | 500 | 502 | 503 | 504),
        _ => false,
    }
}
