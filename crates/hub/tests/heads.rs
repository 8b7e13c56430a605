//! Looking at the beginnings of files on a hub.

mod fake_hub;

use std::ops::{ControlFlow, Range};

use fake_hub::{FakeFile, FakeHub, config, content, lfs};
use tempfile::TempDir;
use unicorn_hub::{Event, HubConfig, HubError, RemoteFile, Setting, fetch_heads, resolve};

const MIB: usize = 1 << 20;

fn quietly(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn heads(
    name: &str,
    config: &HubConfig,
    wants: impl Fn(&RemoteFile) -> Result<Option<Range<u64>>, String>,
) -> Result<Vec<RemoteFile>, HubError> {
    fetch_heads(&resolve(name).unwrap(), config, &wants, &mut quietly)
}

/// Everything in the cache folder.
fn kept(dir: &TempDir) -> usize {
    std::fs::read_dir(dir.path()).unwrap().count()
}

/// The first megabyte, then three, then a part in the middle.
fn three_parts(file: &RemoteFile) -> Result<Option<Range<u64>>, String> {
    let mib = MIB as u64;
    let first = file.parts.iter().find(|p| p.0 == 0).map_or(0, |p| p.1.len() as u64);
    Ok(match (first, file.parts.len()) {
        (0, _) => Some(0..mib),
        (n, _) if n < 3 * mib => Some(0..3 * mib),
        (_, 1) => Some(5 * mib..5 * mib + 10),
        _ => None,
    })
}

#[test]
fn of_four_gigabytes_only_what_is_asked_for_is_sent() {
    let beginning = content(6 * MIB, 3);
    let file = FakeFile { said_bytes: Some(4_000_000_000), redirect: true, ..lfs(beginning.clone()) };
    let (hub, dir) = (FakeHub::start(&[("m-Q4_K_M.gguf", file)]), tempfile::tempdir().unwrap());
    let mut config = config(&hub, &dir);
    config.token = Some(Setting::new("secret", "HF_TOKEN"));
    let files = heads("owner/repo:Q4_K_M", &config, three_parts).unwrap();
    let [file] = &files[..] else { panic!("{} files", files.len()) };
    assert_eq!((file.name.as_str(), file.bytes), ("m-Q4_K_M.gguf", 4_000_000_000));
    assert_eq!(file.parts[0], (0, beginning[..3 * MIB].to_vec()));
    assert_eq!(file.parts[1], (5 * MIB as u64, beginning[5 * MIB..5 * MIB + 10].to_vec()));
    assert_eq!(hub.state.lock().unwrap().sent, 4 * MIB + 10);
    // As for a pull, the token goes to the hub.
    assert!(hub.requests().iter().any(|r| r.contains("/resolve/") && r.contains("Bearer secret")));
    assert_eq!(kept(&dir), 0, "nothing is kept");
}

#[test]
fn shards_and_safetensors_are_looked_at_each() {
    let small = |seed| lfs(content(1000, seed));
    let files =
        [("m-00001-of-00002.gguf", small(1)), ("m-00002-of-00002.gguf", small(2)), ("README.md", small(3))];
    let (hub, dir) = (FakeHub::start(&files), tempfile::tempdir().unwrap());
    let all = |file: &RemoteFile| Ok(file.parts.is_empty().then_some(0..file.bytes));
    let found = heads("owner/repo", &config(&hub, &dir), all).unwrap();
    assert_eq!(
        found.iter().map(|f| &f.name[..]).collect::<Vec<_>>(),
        ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    );
    let files = [
        ("config.json", FakeFile { content: b"{}".to_vec(), ..FakeFile::default() }),
        ("tokenizer.json", small(1)),
        ("model-00001-of-00002.safetensors", small(2)),
        ("model-00002-of-00002.safetensors", small(3)),
    ];
    let hub = FakeHub::start(&files);
    hub.state.lock().unwrap().bare_list = true;
    let found = heads("owner/repo", &config(&hub, &dir), all).unwrap();
    let mut names: Vec<&str> = found.iter().map(|f| &f.name[..]).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    );
}

#[test]
fn a_server_without_parts_is_read_up_to_them() {
    let whole = content(3 * MIB, 9);
    let file = FakeFile { no_ranges: true, ..lfs(whole.clone()) };
    let (hub, dir) = (FakeHub::start(&[("m.gguf", file)]), tempfile::tempdir().unwrap());
    let wants = |file: &RemoteFile| Ok(file.parts.is_empty().then_some(MIB as u64..MIB as u64 + 7));
    let found = heads("owner/repo", &config(&hub, &dir), wants).unwrap();
    assert_eq!(found[0].parts, [(MIB as u64, whole[MIB..MIB + 7].to_vec())]);
}

#[test]
fn refusals_and_failures_are_those_of_a_pull() {
    let (hub, dir) = (FakeHub::start(&[("m.gguf", lfs(content(1000, 1)))]), tempfile::tempdir().unwrap());
    let config = config(&hub, &dir);
    let error = heads("owner/repo", &config, |_| Err("no".to_string())).unwrap_err();
    assert!(matches!(&error, HubError::Refused { reason, .. } if reason == "no"), "{error}");
    let endless = heads("owner/repo", &config, |_| Ok(Some(0..10))).unwrap_err();
    assert!(matches!(&endless, HubError::BadAnswer { reason, .. } if reason.contains("no end")), "{endless}");
    let missing = heads("owner/other", &config, three_parts).unwrap_err();
    assert!(matches!(missing, HubError::NotFound { .. }), "{missing}");
    let quant = heads("owner/repo:Q8_0", &config, three_parts).unwrap_err();
    assert!(matches!(quant, HubError::NoSuchQuant { .. }), "{quant}");
    hub.change("m.gguf", |file| file.status = Some(403));
    let denied = heads("owner/repo", &config, |f| Ok(f.parts.is_empty().then_some(0..9))).unwrap_err();
    assert!(matches!(denied, HubError::Denied { status: 403, .. }), "{denied}");
    let offline = HubConfig { offline: true, ..config };
    assert!(matches!(heads("owner/repo", &offline, three_parts), Err(HubError::Offline { .. })));
    assert_eq!(kept(&dir), 0);
}
