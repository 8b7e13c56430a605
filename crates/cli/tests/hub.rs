//! Models on a hub that are told about from the beginnings of their files alone.

#[path = "../../hub/tests/fake_hub/mod.rs"]
mod fake_hub;
mod support;

use std::path::Path;
use std::process::Output;

use fake_hub::{FakeFile, FakeHub, lfs};
use support::{output, stderr, stdout, tiny_model, unicorn};

/// A model of four gigabytes, as the hub says; all but its beginning is zeros.
fn hub_of(model: &Path) -> FakeHub {
    let content = std::fs::read(model).unwrap();
    let file = FakeFile { said_bytes: Some(4_000_000_000), redirect: true, ..lfs(content) };
    FakeHub::start(&[("m-Q8_0.gguf", file.clone()), ("m-Q4_K_M.gguf", file)])
}

/// Runs the binary with this hub; its cache is in `home`.
fn with_hub(home: &Path, hub: &FakeHub, words: &[&str]) -> Output {
    let mut command = unicorn(home);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.endpoint).env("NO_PROXY", "127.0.0.1");
    output(command.args(words))
}

/// The same words tell the same about a model that is here and one on a hub, of which little is sent and nothing kept.
fn told_from_the_beginning(name: &str, words: impl Fn(&str) -> Vec<String>) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_of(&tiny_model(folder.path(), None));
    let home = tempfile::tempdir().unwrap();
    let words = words(name);
    let out = with_hub(home.path(), &hub, &words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let said = stderr(&out);
    assert!(said.contains("only the beginnings") && said.contains(&hub.endpoint), "{said}");
    let sent = hub.state.lock().unwrap().sent;
    assert!(sent > 1000 && sent < 16 << 20, "{sent} bytes");
    let asked = |file: &str| hub.requests().iter().any(|r| r.contains("/resolve/") && r.contains(file));
    assert!(asked("m-Q4_K_M.gguf") && !asked("m-Q8_0.gguf"), "{:?}", hub.requests());
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "something was kept");
    out
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

#[test]
fn a_model_on_a_hub_is_planned_for_without_its_weights() {
    let plan = |name: &str| {
        owned(&[
            "plan",
            "-m",
            name,
            "--simulate",
            "phoenix",
            "--prompt",
            "64",
            "--decode",
            "16",
            "-o",
            "json",
        ])
    };
    let there = told_from_the_beginning("owner/repo:Q4_K_M", plan);
    // What is planned is what the same model is planned with from this machine.
    let home = tempfile::tempdir().unwrap();
    let model = tiny_model(home.path(), None);
    let here = output(unicorn(home.path()).args(plan(model.to_str().unwrap())));
    assert_eq!(stdout(&there), stdout(&here), "{}", stderr(&here));
    assert!(!stderr(&here).contains("beginnings"));
}

#[test]
fn a_model_on_a_hub_is_inspected_without_its_weights() {
    let out = told_from_the_beginning("owner/repo:Q4_K_M", |name| owned(&["inspect", name]));
    for part in ["llama", "blk.0.ffn_down.weight", "4.00 GB", "general.name"] {
        assert!(stdout(&out).contains(part), "{part}\n{}", stdout(&out));
    }
}

#[test]
fn what_a_hub_does_not_have_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_of(&tiny_model(folder.path(), None));
    let plan = |name| with_hub(folder.path(), &hub, &["plan", "-m", name, "--simulate", "phoenix"]);
    for (name, part) in [("owner/other", "owner/other"), ("owner/repo:Q2_K", "Q2_K")] {
        let refused = plan(name);
        assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
        assert!(stderr(&refused).contains(part), "{}", stderr(&refused));
    }
    // Nothing is asked of a hub where that is forbidden.
    let before = hub.requests().len();
    let offline = output(unicorn(folder.path()).env("HF_ENDPOINT", &hub.endpoint).args([
        "plan",
        "-m",
        "owner/repo:Q8_0",
        "--simulate",
        "phoenix",
    ]));
    assert_eq!(offline.status.code(), Some(1));
    assert!(stderr(&offline).contains("owner/repo:Q8_0 is not on this machine"), "{}", stderr(&offline));
    assert_eq!(hub.requests().len(), before);
}

#[test]
fn a_known_model_has_another_source_where_the_hub_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |name| {
        let mut command = unicorn(folder.path());
        // No server, and no pip either.
        command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", "http://127.0.0.1:9");
        command.env("NO_PROXY", "127.0.0.1").env("PATH", folder.path());
        output(command.args(["plan", "-m", name, "--simulate", "phoenix"]))
    };
    let known = plan("smollm2-135m");
    assert_eq!(known.status.code(), Some(1));
    for part in ["smollm2-135m is fetched whole", "package index"] {
        assert!(stderr(&known).contains(part), "{}", stderr(&known));
    }
    let other = plan("owner/repo");
    assert!(other.status.code() == Some(1) && !stderr(&other).contains("whole"), "{}", stderr(&other));
}
