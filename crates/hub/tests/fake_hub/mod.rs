//! A hub on the loopback interface that serves files from memory and misbehaves on demand.
#![allow(dead_code)] // Not every test file uses all of it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use unicorn_hub::{HubConfig, Setting};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Clone, Default)]
pub struct FakeFile {
    pub content: Vec<u8>,
    /// In the file list as a large file with its SHA-256.
    pub lfs: bool,
    /// The list tells this hash instead of the right one.
    pub listed_sha256: Option<String>,
    /// The first answers end after so many bytes each.
    pub cuts: Vec<usize>,
    /// Answered instead of the content.
    pub status: Option<u16>,
    /// Pause between pieces of 4 KiB.
    pub pause: Duration,
    /// Content is behind a redirect to another path.
    pub redirect: bool,
    /// `Range` is ignored.
    pub no_ranges: bool,
    /// The file is said to be as long as this; its content is only the beginning.
    pub said_bytes: Option<usize>,
}

#[derive(Default)]
pub struct State {
    pub files: HashMap<String, FakeFile>,
    /// Bytes of files that were sent.
    pub sent: usize,
    /// First lines of all requests with their `range` and `authorization` headers.
    pub requests: Vec<String>,
    /// Statuses of the next file lists; then they work.
    pub list_statuses: Vec<u16>,
    /// Entries of the list leave hash and size out.
    pub bare_list: bool,
    /// Revisions beside `main`, with their commits; all have the same files.
    pub revisions: HashMap<String, String>,
}

pub struct FakeHub {
    pub endpoint: String,
    pub state: Arc<Mutex<State>>,
}

impl FakeHub {
    /// Serves `owner/repo`.
    pub fn start(files: &[(&str, FakeFile)]) -> FakeHub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, file)| (name.to_string(), file.clone())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let served = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = served.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        FakeHub { endpoint, state }
    }

    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    pub fn change(&self, name: &str, change: impl FnOnce(&mut FakeFile)) {
        change(self.state.lock().unwrap().files.get_mut(name).unwrap());
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A file that the list tells as a large one.
pub fn lfs(bytes: Vec<u8>) -> FakeFile {
    FakeFile { content: bytes, lfs: true, ..FakeFile::default() }
}

/// What asks this hub, with its cache in `dir`; gives up fast.
pub fn config(hub: &FakeHub, dir: &TempDir) -> HubConfig {
    let mut config = HubConfig::new(dir.path());
    config.endpoint = Setting::new(&hub.endpoint, "HF_ENDPOINT");
    config.retry_pause = Duration::from_millis(5);
    config.read_timeout = Duration::from_secs(5);
    config
}

/// Bytes that differ everywhere, so that a shifted or repeated piece is noticed.
pub fn content(len: usize, seed: u32) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x >> 8) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some((request, headers)) = read_request(&mut reader) {
        let range = headers.get("range").cloned().unwrap_or_default();
        let auth = headers.get("authorization").cloned().unwrap_or_default();
        state.lock().unwrap().requests.push(format!("{request} {range} {auth}"));
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !answer(&mut stream, state, method, path, &range) {
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<(String, HashMap<String, String>)> {
    let mut first = String::new();
    if reader.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    Some((first.trim_end().to_string(), headers))
}

/// Returns whether the connection goes on.
fn answer(stream: &mut TcpStream, state: &Mutex<State>, method: &str, path: &str, range: &str) -> bool {
    let commit_of = |named: &str| match named {
        "main" | COMMIT => Some(COMMIT.to_string()),
        _ => state.lock().unwrap().revisions.get(named).cloned(),
    };
    if let Some(named) = path.strip_prefix("/api/models/owner/repo/revision/") {
        let Some(commit) = commit_of(named.split('?').next().unwrap()) else {
            return head(stream, 404, 0, "");
        };
        let status = state.lock().unwrap().list_statuses.pop().unwrap_or(200);
        let body = if status == 200 { list(&state.lock().unwrap(), &commit) } else { String::new() };
        return head(stream, status, body.len(), "") && stream.write_all(body.as_bytes()).is_ok();
    }
    let direct = path.strip_prefix("/owner/repo/resolve/").and_then(|rest| {
        let (commit, name) = rest.split_once('/')?;
        let known = commit == COMMIT || state.lock().unwrap().revisions.values().any(|c| c == commit);
        known.then_some(name)
    });
    let moved = path.strip_prefix("/content/");
    let Some(name) = direct.or(moved) else { return head(stream, 404, 0, "") };
    let (file, cut) = {
        let mut state = state.lock().unwrap();
        let Some(file) = state.files.get_mut(name) else { return head(stream, 404, 0, "") };
        let redirected = file.redirect && direct.is_some();
        let cut = (!file.cuts.is_empty() && method == "GET" && !redirected && !range.starts_with("bytes=0-"))
            .then(|| file.cuts.remove(0));
        (file.clone(), cut)
    };
    if let Some(status) = file.status {
        return head(stream, status, 0, "");
    }
    let tag = format!("etag: \"{}\"\r\n", sha256(&file.content));
    if file.redirect && direct.is_some() {
        return head(stream, 302, 0, &format!("location: /content/{name}\r\nx-linked-{tag}"));
    }
    let whole = file.said_bytes.unwrap_or(file.content.len());
    let bounds = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let bounds =
        bounds.and_then(|(from, last)| Some((from.parse::<usize>().ok()?, last.parse::<usize>().ok()?)));
    if let Some((from, last)) = bounds.filter(|(from, _)| *from < whole)
        && !file.no_ranges
    {
        // Past the content a large file is all zeros.
        let end = whole.min(last + 1);
        let mut part = file.content.get(from..end.min(file.content.len())).unwrap_or_default().to_vec();
        part.resize(end - from, 0);
        let extra = format!("{tag}content-range: bytes {from}-{}/{whole}\r\n", end - 1);
        state.lock().unwrap().sent += part.len();
        return head(stream, 206, part.len(), &extra) && stream.write_all(&part).is_ok();
    }
    let from: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
    if from > 0 && from >= whole && !file.no_ranges {
        return head(stream, 416, 0, "");
    }
    let (status, from, extra) = match from {
        0 => (200, 0, tag),
        _ if file.no_ranges => (200, 0, tag),
        _ => (206, from, format!("{tag}content-range: bytes {from}-{}/{whole}\r\n", whole - 1)),
    };
    if !head(stream, status, whole - from, &extra) {
        return false;
    }
    if method == "HEAD" {
        return true;
    }
    let end = cut.map_or(whole, |cut| whole.min(from + cut));
    for piece in file.content[from..end].chunks(4096) {
        if stream.write_all(piece).is_err() {
            return false;
        }
        state.lock().unwrap().sent += piece.len();
        std::thread::sleep(file.pause);
    }
    end == whole
}

fn head(stream: &mut TcpStream, status: u16, length: usize, extra: &str) -> bool {
    let head = format!("HTTP/1.1 {status} Status\r\ncontent-length: {length}\r\n{extra}\r\n");
    stream.write_all(head.as_bytes()).is_ok()
}

fn list(state: &State, commit: &str) -> String {
    let mut names: Vec<&String> = state.files.keys().collect();
    names.sort();
    let entry = |name: &&String| {
        let file = &state.files[*name];
        let size = file.said_bytes.unwrap_or(file.content.len());
        let hash = file.listed_sha256.clone().unwrap_or_else(|| sha256(&file.content));
        if state.bare_list {
            return serde_json::json!({ "rfilename": name });
        }
        if file.lfs {
            let lfs = serde_json::json!({ "sha256": hash, "size": size, "pointerSize": 130 });
            return serde_json::json!({ "rfilename": name, "size": size, "blobId": "aa", "lfs": lfs });
        }
        serde_json::json!({ "rfilename": name, "size": size, "blobId": &hash[..40] })
    };
    let siblings: Vec<serde_json::Value> = names.iter().map(entry).collect();
    serde_json::json!({ "id": "owner/repo", "sha": commit, "siblings": siblings }).to_string()
}
