//! Models that are in the cache already: what they lack, by which revision they are found, and taking them out of it.

mod fake_hub;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fake_hub::{COMMIT, FakeFile, FakeHub, config, content, lfs};
use tempfile::TempDir;
use unicorn_hub::{Event, HubConfig, HubError, Preview, Setting, cached, list, pull, removal, resolve};

fn plain(text: &str) -> FakeFile {
    FakeFile { content: text.into(), ..FakeFile::default() }
}

/// The path, and what was said.
fn said(name: &str, config: &HubConfig) -> Result<(PathBuf, Vec<String>), HubError> {
    let mut said = Vec::new();
    let path = pull(&resolve(name)?, config, &|_| Ok(()), &mut |event| {
        if let Event::Message(text) | Event::Lacking { text, .. } = event {
            said.push(text.to_string());
        }
        ControlFlow::Continue(())
    })?;
    Ok((path, said))
}

fn fetch(name: &str, config: &HubConfig) -> Result<PathBuf, HubError> {
    said(name, config).map(|(path, _)| path)
}

/// A cache that another tool filled with as little as a model runs with.
fn minimal(dir: &TempDir) -> PathBuf {
    let root = dir.path().join("models--owner--repo");
    let snapshot = root.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), COMMIT).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::write(snapshot.join(name), "{}").unwrap();
    }
    snapshot
}

fn safetensors_hub(more: &[(&str, FakeFile)]) -> FakeHub {
    let mut files = vec![
        ("config.json", plain("{}")),
        ("tokenizer.json", plain("{ }")),
        ("model.safetensors", lfs(content(3000, 13))),
    ];
    files.extend(more.iter().cloned());
    FakeHub::start(&files)
}

#[test]
fn what_another_tool_left_out_is_fetched_once() {
    let hub = safetensors_hub(&[
        ("tokenizer_config.json", plain(r#"{"eos_token": "x"}"#)),
        ("chat_template.jinja", plain("{{ messages }}")),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let snapshot = minimal(&dir);
    let config = config(&hub, &dir);
    let (path, messages) = said("owner/repo", &config).unwrap();
    assert_eq!((&path, messages), (&snapshot, vec![]));
    assert_eq!(fs::read_to_string(path.join("chat_template.jinja")).unwrap(), "{{ messages }}");
    assert!(path.join("tokenizer_config.json").is_file());
    // What the hub does not have is noted as its own tools note it, and is neither asked for nor warned about again.
    let absent = dir.path().join("models--owner--repo/.no_exist").join(COMMIT);
    assert!(
        absent.join("generation_config.json").is_file() && absent.join("special_tokens_map.json").is_file()
    );
    let asked = hub.requests().len();
    let mut offline = config.clone();
    offline.offline = true;
    for config in [&config, &offline] {
        assert_eq!(said("owner/repo", config).unwrap(), (snapshot.clone(), vec![]));
    }
    assert_eq!(hub.requests().len(), asked);
}

#[test]
fn what_cannot_be_fetched_is_named() {
    let hub = FakeHub::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let snapshot = minimal(&dir);
    let mut offline = config(&hub, &dir);
    offline.offline = true;
    let mut unreachable = config(&hub, &dir);
    unreachable.endpoint = Setting::new("http://127.0.0.1:1", "HF_ENDPOINT");
    let mut misset = config(&hub, &dir);
    misset.http_proxy = Some(Setting::new("::", "HTTP_PROXY"));
    for (config, why) in [
        (offline, "offline mode is on"),
        (unreachable, "cannot reach"),
        (misset, "HTTP_PROXY: "),
        // The hub knows nothing of this commit, so it says nothing about its files.
        (config(&hub, &dir), "not found"),
    ] {
        let (path, messages) = said("owner/repo", &config).unwrap();
        assert_eq!((path, messages.len()), (snapshot.clone(), 1), "{messages:?}");
        for part in ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", why] {
            assert!(messages[0].contains(part), "{messages:?}");
        }
        let lost = "; not known without them: recommended sampling, tokens that end an answer, the names of special tokens, \
            the chat template";
        assert!(messages[0].ends_with(lost), "{messages:?}");
    }
    fs::write(snapshot.join("tokenizer_config.json"), r#"{"chat_template": "x"}"#).unwrap();
    let mut config = config(&hub, &dir);
    config.offline = true;
    let (_, messages) = said("owner/repo", &config).unwrap();
    let text = "warning: owner/repo: the cache lacks generation_config.json, and offline mode is on; \
        not known without them: recommended sampling, tokens that end an answer";
    assert_eq!(messages, [text]);
    assert!(!dir.path().join("models--owner--repo/.no_exist").exists());
}

#[test]
fn only_what_may_be_missed_is_asked_for() {
    let hub = safetensors_hub(&[]);
    let dir = tempfile::tempdir().unwrap();
    let snapshot = minimal(&dir);
    fs::write(snapshot.join("tokenizer_config.json"), r#"{"chat_template": "x"}"#).unwrap();
    fs::write(snapshot.join("generation_config.json"), "{}").unwrap();
    assert_eq!(said("owner/repo", &config(&hub, &dir)).unwrap(), (snapshot, vec![]));
    assert_eq!(hub.requests(), Vec::<String>::new());
}

#[test]
fn a_pull_notes_what_there_is_not() {
    let hub = safetensors_hub(&[("generation_config.json", plain("{}"))]);
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    let path = fetch("owner/repo", &config).unwrap();
    let asked = hub.requests().len();
    assert_eq!(said("owner/repo", &config).unwrap(), (path, vec![]));
    assert_eq!(hub.requests().len(), asked);
}

#[test]
fn links_that_became_text_are_mended() {
    let hub = FakeHub::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let snapshot = minimal(&dir);
    let blobs = dir.path().join("models--owner--repo/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("abc"), "the content").unwrap();
    fs::write(snapshot.join("config.json"), "../../blobs/abc").unwrap();
    fs::write(snapshot.join("tokenizer.json"), "../../blobs/gone").unwrap();
    fs::write(snapshot.join("model.safetensors"), "../../blobs/../../x").unwrap();
    let mut config = config(&hub, &dir);
    config.offline = true;
    let path = fetch("owner/repo", &config).unwrap();
    assert_eq!(fs::read_to_string(path.join("config.json")).unwrap(), "the content");
    assert_eq!(fs::read_to_string(path.join("tokenizer.json")).unwrap(), "../../blobs/gone");
    assert_eq!(fs::read_to_string(path.join("model.safetensors")).unwrap(), "../../blobs/../../x");
}

#[test]
fn parts_of_a_model_are_named_offline() {
    let hub = FakeHub::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let snapshot = minimal(&dir);
    fs::rename(snapshot.join("model.safetensors"), snapshot.join("model-00001-of-00001.safetensors"))
        .unwrap();
    fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    let mut config = config(&hub, &dir);
    config.offline = true;
    assert_eq!(cached(&resolve("owner/repo").unwrap(), &config), None);
    let error = fetch("owner/repo", &config).unwrap_err().to_string();
    assert!(error.contains("(tokenizer.json, model.safetensors.index.json missing)"), "{error}");
    assert_eq!(list(&config).unwrap(), []);
}

#[test]
fn a_model_is_refused_before_its_weights_are_fetched() {
    let hub = safetensors_hub(&[]);
    let dir = tempfile::tempdir().unwrap();
    let config_of = config(&hub, &dir);
    let no = |preview: Preview<'_>| match preview {
        Preview::Safetensors { config, files } => {
            assert_eq!(config, b"{}");
            assert!(files.contains(&"tokenizer.json"));
            Err("unknown architecture".to_string())
        }
        _ => Ok(()),
    };
    let error = pull(&resolve("owner/repo").unwrap(), &config_of, &no, &mut |_| ControlFlow::Continue(()))
        .unwrap_err();
    assert_eq!(error.to_string(), "owner/repo: unknown architecture");
    assert!(!hub.requests().iter().any(|r| r.contains("model.safetensors ")), "{:?}", hub.requests());
    assert_eq!(list(&config_of).unwrap(), []);

    let bytes = content(3 << 20, 5);
    let hub = FakeHub::start(&[("m-Q4_0.gguf", lfs(bytes.clone()))]);
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    let no = |preview: Preview<'_>| match preview {
        Preview::Gguf { head, bytes: whole } => {
            assert_eq!((head, whole), (&bytes[..1 << 20], Some(3 << 20)));
            Err("unknown architecture".to_string())
        }
        _ => Ok(()),
    };
    let error =
        pull(&resolve("owner/repo").unwrap(), &config, &no, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, HubError::Refused { .. }), "{error}");
    let fetched: Vec<String> = hub.requests().into_iter().filter(|r| r.contains("/resolve/")).collect();
    assert!(fetched.len() == 1 && fetched[0].contains("bytes=0-1048575"), "{fetched:?}");
    assert_eq!(fetch("owner/repo", &config).map(|path| fs::read(path).unwrap()).unwrap(), bytes);
}

#[test]
fn pages_and_pointers_in_the_place_of_files_are_named() {
    let page = "<!DOCTYPE html><html><body>Log in</body></html>";
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    for (name, content, found) in [
        ("config.json", page, "an HTML page"),
        ("tokenizer.json", page, "an HTML page"),
        ("tokenizer.json", pointer, "a Git LFS pointer"),
        ("model.safetensors", pointer, "a Git LFS pointer"),
    ] {
        let hub = safetensors_hub(&[(name, plain(content))]);
        let dir = tempfile::tempdir().unwrap();
        let error = fetch("owner/repo", &config(&hub, &dir)).unwrap_err();
        assert!(matches!(error, HubError::WrongContent { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(found) && text.contains(name), "{text}");
    }
    let hub = FakeHub::start(&[("m-Q4_0.gguf", plain(page))]);
    let dir = tempfile::tempdir().unwrap();
    let error = fetch("owner/repo", &config(&hub, &dir)).unwrap_err();
    assert!(matches!(error, HubError::WrongContent { .. }), "{error}");
}

#[test]
fn names_lead_to_revisions_files_and_folders() {
    let files = [
        ("m-Q4_0.gguf", lfs(content(100, 1))),
        ("m-Q8_0.gguf", lfs(content(200, 2))),
        ("big/m-F16.gguf", lfs(content(300, 3))),
        ("m.mmproj-F16.gguf", lfs(content(400, 4))),
    ];
    let hub = FakeHub::start(&files);
    let other = "f".repeat(40);
    hub.state.lock().unwrap().revisions.insert("v1".into(), other.clone());
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    for (name, expected) in [
        ("https://huggingface.co/owner/repo", "m-Q4_0.gguf"),
        ("hf.co/owner/repo:Q8", "m-Q8_0.gguf"),
        ("https://huggingface.co/owner/repo/blob/main/m-Q8_0.gguf", "m-Q8_0.gguf"),
        ("https://huggingface.co/owner/repo/resolve/main/big/m-F16.gguf?download=true", "big/m-F16.gguf"),
        ("https://huggingface.co/owner/repo/tree/main/big", "big/m-F16.gguf"),
        ("hf://owner/repo/m-Q8_0.gguf", "m-Q8_0.gguf"),
    ] {
        let path = fetch(name, &config).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(
            path.ends_with(Path::new("snapshots").join(COMMIT).join(expected)),
            "{name}: {}",
            path.display()
        );
    }
    for name in ["owner/repo@v1:Q8_0", "https://huggingface.co/owner/repo/blob/v1/m-Q8_0.gguf"] {
        let path = fetch(name, &config).unwrap();
        assert!(
            path.ends_with(Path::new("snapshots").join(&other).join("m-Q8_0.gguf")),
            "{}",
            path.display()
        );
    }
    let names: Vec<String> = list(&config).unwrap().into_iter().map(|model| model.name).collect();
    assert_eq!(names, ["owner/repo:F16", "owner/repo:Q4_0", "owner/repo:Q8_0", "owner/repo@v1:Q8_0"]);
    for (name, part) in [
        ("owner/repo@v2", "owner/repo@v2 not found"),
        ("hf.co/owner/repo/blob/main/gone.gguf", "gone.gguf"),
        ("https://hf-mirror.com/owner/repo", "HF_ENDPOINT=https://hf-mirror.com"),
    ] {
        let error = fetch(name, &config).unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
    }
    // An address of the hub that is configured is no other hub's.
    assert!(fetch(&format!("{}/owner/repo", hub.endpoint), &config).is_ok());
}

#[test]
fn a_name_without_a_revision_is_not_another_revision() {
    let hub = FakeHub::start(&[("m-Q4_0.gguf", lfs(content(100, 1)))]);
    hub.state.lock().unwrap().revisions.insert("v1".into(), "f".repeat(40));
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    fetch("owner/repo@v1", &config).unwrap();
    assert_eq!(cached(&resolve("owner/repo").unwrap(), &config), None);
    assert!(fetch("owner/repo", &config).unwrap().to_string_lossy().contains(COMMIT));
}

fn exists(dir: &TempDir, path: &str) -> bool {
    dir.path().join("models--owner--repo").join(path).exists()
}

#[test]
fn removing_takes_what_nothing_else_uses() {
    let shared = content(300, 3);
    let files = [
        ("m-Q4_0.gguf", lfs(content(100, 1))),
        ("m-Q8_0.gguf", lfs(content(200, 2))),
        ("m-Q6_K.gguf", lfs(shared.clone())),
        ("copy-F16.gguf", lfs(shared)),
    ];
    let hub = FakeHub::start(&files);
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    for quant in ["Q4_0", "Q8_0", "Q6_K", "F16"] {
        fetch(&format!("owner/repo:{quant}"), &config).unwrap();
    }
    let blobs = |dir: &TempDir| fs::read_dir(dir.path().join("models--owner--repo/blobs")).unwrap().count();
    assert_eq!(blobs(&dir), 3);
    let remove = |name: &str| {
        let removal = removal(name, &config).unwrap_or_else(|e| panic!("{name}: {e}"));
        removal.carry_out().unwrap();
        removal.bytes()
    };
    assert_eq!(remove("owner/repo:q8"), 200);
    assert_eq!((blobs(&dir), list(&config).unwrap().len()), (2, 3));
    assert_eq!(remove("hf.co/owner/repo:Q6_K"), 0, "the same content has another name still");
    assert_eq!(remove("https://huggingface.co/owner/repo/blob/main/copy-F16.gguf"), 300);
    assert_eq!(blobs(&dir), 1);
    let path = cached(&resolve("owner/repo").unwrap(), &config).unwrap();
    // The blob, and the commit in refs/main.
    assert_eq!(remove(path.to_str().unwrap()), 100 + COMMIT.len() as u64);
    assert!(!exists(&dir, "") && !dir.path().join(".locks/models--owner--repo").exists());
    let error = removal("owner/repo", &config).unwrap_err();
    assert!(matches!(error, HubError::NotCached { closest: None, .. }), "{error}");
}

#[test]
fn removing_a_repository_takes_remains_and_other_revisions() {
    let hub = FakeHub::start(&[("m-Q4_0.gguf", lfs(content(100, 1)))]);
    hub.state.lock().unwrap().revisions.insert("v1".into(), "f".repeat(40));
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    fetch("owner/repo", &config).unwrap();
    fetch("owner/repo@v1", &config).unwrap();
    removal("owner/repo@v1", &config).unwrap().carry_out().unwrap();
    assert!(exists(&dir, "refs/main") && !exists(&dir, "refs/v1"));
    assert!(cached(&resolve("owner/repo").unwrap(), &config).is_some(), "the blob is shared");
    fs::write(dir.path().join("models--owner--repo/blobs/x.incomplete"), [0; 50]).unwrap();
    let all = removal("owner/repo", &config).unwrap();
    // The blob, the remains, and the commit in refs/main.
    assert_eq!(all.bytes(), 100 + 50 + COMMIT.len() as u64);
    all.carry_out().unwrap();
    assert!(!exists(&dir, ""));
    let error = removal("owner/repp", &config).unwrap_err().to_string();
    assert!(error.contains("owner/repp is not in the cache") && !error.contains("did you mean"), "{error}");
}

#[test]
fn removing_asks_for_the_right_name() {
    let hub = FakeHub::start(&[("m-Q4_0.gguf", lfs(content(100, 1)))]);
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    fetch("owner/repo", &config).unwrap();
    for name in ["owner/rep:Q4_0", "repo", "owner/repo:Q8_0"] {
        let error = removal(name, &config).unwrap_err().to_string();
        assert!(error.contains("did you mean `owner/repo:Q4_0`?"), "{name}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn nothing_outside_the_cache_is_removed() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("blobs/precious.gguf");
    fs::create_dir_all(precious.parent().unwrap()).unwrap();
    fs::write(&precious, "precious").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = HubConfig::new(dir.path());
    for path in [
        precious.as_path(),
        outside.path(),
        Path::new("/"),
        Path::new("."),
        Path::new(".."),
        dir.path(),
        &dir.path().join(".."),
        &dir.path().join("models--x--y/../.."),
    ] {
        fs::create_dir_all(dir.path().join("models--x--y")).unwrap();
        let error = removal(path.to_str().unwrap(), &config).unwrap_err();
        assert!(matches!(error, HubError::NotOfTheCache { .. }), "{}: {error}", path.display());
    }
    // Folders of the cache that are links to elsewhere.
    let elsewhere = outside.path().join("models--x--y");
    fs::create_dir_all(elsewhere.join("c1")).unwrap();
    fs::write(elsewhere.join("c1/m-Q4_0.gguf"), "precious").unwrap();
    symlink(&elsewhere, dir.path().join("models--x--y/snapshots")).unwrap();
    symlink(outside.path(), dir.path().join(".locks")).unwrap();
    let error = removal("x/y:Q4_0", &config).unwrap_err();
    assert!(matches!(error, HubError::NotOfTheCache { .. }), "{error}");
    removal("x/y", &config).unwrap().carry_out().unwrap();
    assert!(!dir.path().join("models--x--y").exists() && elsewhere.join("c1/m-Q4_0.gguf").exists());
    // A repository that is a link to elsewhere, and links in one that lead out of it.
    symlink(outside.path(), dir.path().join("models--linked--repo")).unwrap();
    let error = removal("linked/repo", &config).unwrap_err();
    assert!(matches!(error, HubError::NotOfTheCache { .. }), "{error}");
    let snapshot = dir.path().join("models--owner--repo/snapshots/c1");
    fs::create_dir_all(&snapshot).unwrap();
    symlink(&precious, snapshot.join("m-Q4_0.gguf")).unwrap();
    symlink(outside.path(), snapshot.join("folder")).unwrap();
    fs::write(snapshot.join("m-Q8_0.gguf"), "own").unwrap();
    removal("owner/repo:Q4_0", &config).unwrap().carry_out().unwrap();
    assert!(!snapshot.join("m-Q4_0.gguf").exists() && snapshot.join("m-Q8_0.gguf").exists());
    let removed = removal("owner/repo", &config).unwrap();
    assert_eq!(removed.bytes(), 3);
    removed.carry_out().unwrap();
    assert!(!exists(&dir, ""));
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
}

#[test]
fn messages_name_a_path_once() {
    let hub = FakeHub::start(&[("m-Q4_0.gguf", lfs(content(100, 1)))]);
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("models--owner--repo/refs/main");
    fs::create_dir_all(main.join("in the way")).unwrap();
    let text = fetch("owner/repo", &config(&hub, &dir)).unwrap_err().to_string();
    assert!(text.starts_with(main.to_str().unwrap()), "{text}");
    assert_eq!(text.matches(dir.path().to_str().unwrap()).count(), 1, "{text}");
}

#[test]
fn a_model_that_is_being_fetched_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    minimal(&dir);
    let locks = dir.path().join(".locks/models--owner--repo");
    fs::create_dir_all(&locks).unwrap();
    let lock = File::create(locks.join("x.lock")).unwrap();
    lock.lock().unwrap();
    let removal = removal("owner/repo", &HubConfig::new(dir.path())).unwrap();
    assert!(matches!(removal.carry_out(), Err(HubError::Busy { .. })));
    assert!(exists(&dir, "refs/main"));
    drop(lock);
    removal.carry_out().unwrap();
    assert!(!exists(&dir, ""));
}
