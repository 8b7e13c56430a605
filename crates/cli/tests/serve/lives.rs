//! The process told to end, told twice, killed, and started again.

use std::time::{Duration, Instant};

use serde_json::json;

use super::http::events;
use super::support::{FREED_IN, Server, TEMPLATE, eventually};
use super::tiny::tiny_model;

#[test]
fn an_answer_under_way_is_finished_before_the_end() {
    let mut server = Server::tiny(&["--ctx", "0", "--drain", "20"]);
    let body = server.completion(json!({"max_tokens": 3000, "stream": true})).to_string();
    let mut client = server.begin("POST", "/v1/completions", &[], Some(body.as_bytes()));
    assert_eq!(client.head().expect("an answer").0, 200);
    client.chunk().expect("an event");
    server.signal("-TERM");
    server.wait_line("ending");
    let mut rest = Vec::new();
    while let Some(chunk) = client.chunk() {
        rest.extend(chunk);
    }
    let events = events(&rest);
    let [.., last, done] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((&last["choices"][0]["finish_reason"], done), (&json!("length"), &json!("[DONE]")));
    assert!(server.end(FREED_IN).success());
}

/// At the deadline what still runs is ended with a last event that says so.
#[test]
fn an_answer_that_takes_too_long_has_a_last_event() {
    let mut server = Server::tiny(&["--ctx", "0", "--slots", "1", "--drain", "1"]);
    let mut runs = server.endless();
    let chat = server.chat(json!({"max_tokens": 1_000_000})).to_string();
    let mut waits = server.begin("POST", "/v1/chat/completions", &[], Some(chat.as_bytes()));
    let others = ["/v1/messages", "/v1/responses"].map(|path| {
        let more = json!({"max_tokens": 1_000_000, "input": "x"});
        let body = super::support::with(server.chat(json!({})), more).to_string();
        server.begin("POST", path, &[], Some(body.as_bytes()))
    });
    eventually(FREED_IN, "three wait", || server.metric("vllm:num_requests_waiting") == 3.0);
    let begin = Instant::now();
    server.signal("-TERM");
    let mut rest = Vec::new();
    while let Some(chunk) = runs.chunk() {
        rest.extend(chunk);
    }
    let events = events(&rest);
    let [.., last, done] = events.as_slice() else { panic!("{events:?}") };
    assert!(last["error"]["message"].as_str().is_some_and(|m| m.contains("shutting down")), "{last}");
    assert_eq!(done, "[DONE]");
    waits.reply().refuses(503, None);
    for mut other in others {
        let reply = other.reply();
        assert!(reply.status == 503 && reply.header("retry-after").is_some(), "{}", reply.text());
    }
    assert!(server.end(Duration::from_secs(3)).success());
    assert!(begin.elapsed() >= Duration::from_secs(1));
}

#[test]
fn told_twice_it_ends_at_once() {
    let mut server = Server::tiny(&["--ctx", "0", "--drain", "60"]);
    let client = server.endless();
    server.signal("-TERM");
    server.wait_line("ending");
    server.signal("-TERM");
    let status = server.end(FREED_IN);
    assert_eq!(status.code(), Some(130), "{status}");
    drop(client);
}

/// No new connection is taken while the last answers are finished, and one that is kept alive is not kept any longer.
#[test]
fn nothing_new_begins_at_the_end() {
    let mut server = Server::tiny(&["--ctx", "0", "--drain", "60"]);
    let _runs = server.endless();
    let mut idle = server.connect();
    idle.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(idle.reply().status, 200);
    server.signal("-INT");
    server.wait_line("ending");
    assert!(idle.ends());
    let port = server.port;
    eventually(FREED_IN, "no connection is taken", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
    });
}

/// Killed under load, it comes back on the same port with the same answers.
#[test]
fn killed_it_starts_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny_model(folder.path(), Some(TEMPLATE));
    let mut server = Server::spawn(folder, Some(&model), &["--ctx", "0"]);
    server.ready();
    let text = server.complete(json!({})).answer();
    let mut clients = [server.endless(), server.endless()];
    server.signal("-KILL");
    server.end(FREED_IN);
    for client in &mut clients {
        while client.chunk().is_some() {}
    }
    let port = server.port.to_string();
    let folder = std::mem::replace(&mut server.folder, tempfile::tempdir().expect("a folder"));
    let mut again = Server::spawn(folder, Some(&model), &["--ctx", "0", "--port", &port]);
    again.ready();
    assert_eq!(again.complete(json!({})).answer(), text);
    again.survived();
}

/// A signal while the model is loaded ends it too.
#[test]
fn told_to_end_while_it_loads() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = super::tiny::heavy_model(folder.path(), TEMPLATE);
    let mut server = Server::spawn(folder, Some(&model), &[]);
    server.signal("-TERM");
    assert!(server.end(Duration::from_secs(5)).success());
}
