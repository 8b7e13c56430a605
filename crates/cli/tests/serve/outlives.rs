//! What was computed for prompts outlives the process, whatever ends it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::{FREED_IN, Server, TEMPLATE, eventually};
use super::tiny::tiny_model;

/// Time for an end that saves.
const SAVED_IN: Duration = Duration::from_secs(20);

fn start(folder: tempfile::TempDir, args: &[&str]) -> Server {
    let model = tiny_model(folder.path(), Some(TEMPLATE));
    let mut server = Server::spawn(folder, Some(&model), args);
    server.ready();
    server
}

/// The text of an answer to a prompt of many pages, and how many of its tokens were computed before.
fn ask(server: &Server) -> (String, u64) {
    let story: String = (0..80).map(|i| format!("line {i} of a long story\n")).collect();
    let reply = server.complete(json!({"prompt": story, "max_tokens": 8}));
    let usage: Value = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    (reply.answer(), usage.as_u64().unwrap_or(0))
}

/// Pages on disk.
fn pages(home: &Path) -> usize {
    let folders = std::fs::read_dir(home.join(".cache/unicorn/kv")).into_iter().flatten().flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files.filter(|file| file.file_name().to_string_lossy().ends_with(".page")).count()
}

fn folder_of(server: &mut Server) -> tempfile::TempDir {
    std::mem::replace(&mut server.folder, tempfile::tempdir().expect("a folder"))
}

#[test]
fn a_server_that_is_told_to_end_saves_and_the_next_goes_on_from_there() {
    let mut server = start(tempfile::tempdir().expect("a folder"), &[]);
    let (text, cached) = ask(&server);
    assert_eq!(cached, 0);
    server.signal("-TERM");
    assert!(server.end(SAVED_IN).success());
    let folder = folder_of(&mut server);
    assert!(pages(folder.path()) > 10, "{}", pages(folder.path()));

    let mut again = start(folder, &[]);
    let (same, cached) = ask(&again);
    assert!(cached > 1000, "{cached} tokens were there");
    assert_eq!(same, text);
    again.survived();
}

#[test]
fn a_server_that_is_killed_has_saved_what_it_had_time_for() {
    let mut server = start(tempfile::tempdir().expect("a folder"), &[]);
    let (text, _) = ask(&server);
    // It saves by itself, in the background.
    let home = server.folder.path().to_owned();
    eventually(SAVED_IN, "pages are on disk", || pages(&home) > 10);
    let _client = server.endless();
    server.signal("-KILL");
    server.end(FREED_IN);
    let mut again = start(folder_of(&mut server), &[]);
    let (same, cached) = ask(&again);
    assert!(cached > 0);
    assert_eq!(same, text);
    again.survived();
}

#[test]
fn nothing_outlives_a_server_that_is_told_so() {
    let mut server = start(tempfile::tempdir().expect("a folder"), &["--kv-disk", "0"]);
    ask(&server);
    server.signal("-TERM");
    assert!(server.end(SAVED_IN).success());
    assert!(!server.folder.path().join(".cache/unicorn/kv").exists());
}
