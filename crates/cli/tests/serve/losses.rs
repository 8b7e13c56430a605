//! Devices that are lost, and memory that runs out, while answers are under way: nobody's answer is lost.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Reply, events};
use super::support::{Server, eventually};

const STREAMS: u64 = 8;
const TOKENS: u64 = 48;

/// The body of one of several streams: drawn, greedy, held to a schema.
fn body(server: &Server, i: u64) -> Value {
    let more = match i % 4 {
        0 => json!({"temperature": 0}),
        1 => json!({"temperature": 0.9, "seed": i, "frequency_penalty": 0.5}),
        2 => json!({"temperature": 1.2, "seed": i, "top_p": 0.9}),
        _ => json!({"temperature": 1, "seed": i, "response_format": {"type": "json_schema", "json_schema": {
            "name": "a", "schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 3}}}}),
    };
    let mut body = server.chat(more);
    body["messages"] =
        json!([{"role": "user", "content": format!("{i} {}", "word ".repeat(i as usize * 9))}]);
    (body["max_tokens"], body["stream"]) = (TOKENS.into(), true.into());
    body
}

/// The answers to all streams at once.
fn all(server: &Server) -> Vec<Reply> {
    thread::scope(|scope| {
        let ask = |i| scope.spawn(move || server.post("/v1/chat/completions", &body(server, i)));
        let asked: Vec<_> = (0..STREAMS).map(ask).collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

fn texts(replies: &[Reply]) -> Vec<(String, Value)> {
    let text = |reply: &Reply| {
        let events = events(&reply.body);
        let deltas = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
        let reason = events.iter().rev().find_map(|e| e["choices"][0]["finish_reason"].as_str());
        (deltas.collect(), json!(reason))
    };
    replies.iter().map(text).collect()
}

#[test]
fn eight_streams_go_on_when_their_device_is_lost() {
    let expected = texts(&all(&Server::tiny(&[])));
    assert!(expected.iter().all(|(text, reason)| !text.is_empty() && reason.is_string()), "{expected:?}");
    for at in [4, 5, 7, 10, 14, 19, 25, 32, 40, 47] {
        let mut server = Server::faulty(&format!("lose@{at}"), &[]);
        assert_eq!(texts(&all(&server)), expected, "lost at {at}");
        assert_eq!(server.metric("unicorn_recoveries_total{how=\"usual\"}"), 1.0, "lost at {at}");
        assert!(server.metric("unicorn_recovery_seconds_total") > 0.0);
        assert_eq!(server.get("/health").status, 200);
        assert!(server.said().contains("goes on as before"));
        server.survived();
    }
}

#[test]
fn what_has_no_memory_is_done_in_smaller_steps() {
    let expected = texts(&all(&Server::tiny(&[])));
    for at in [4, 6, 9, 20] {
        let mut server = Server::faulty(&format!("memory@{at}"), &[]);
        assert_eq!(texts(&all(&server)), expected, "no memory at {at}");
        server.survived();
    }
    // A batch of a long prompt is cut.
    let mut server = Server::faulty("memory@5", &[]);
    server.complete(json!({"prompt": "long ".repeat(200)})).answer();
    // What was in flight behind it fails with it.
    assert!(server.metric("unicorn_batches_cut_total") >= 1.0);
    server.survived();
}

#[test]
fn who_loses_every_device_is_told_why() {
    let faults = (10..2000).step_by(10).map(|at| format!("lose@{at}")).collect::<Vec<_>>().join(",");
    let mut server = Server::faulty(&faults, &["--ctx", "0"]);
    let mut stream = server.endless();
    let mut rest = Vec::new();
    while let Some(chunk) = stream.chunk() {
        rest.extend(chunk);
    }
    let rest = String::from_utf8_lossy(&rest).into_owned();
    let error = rest.lines().filter_map(|l| l.strip_prefix("data: ")).find(|l| l.contains("error"));
    assert!(error.is_some_and(|e| e.contains("device lost") && e.contains("another device")), "{rest}");
    server.wait_line("there is no other device");
    let said = server.said().to_owned();
    for part in ["goes on as before", "goes on with less work at a time"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Who asks next has the model loaded anew.
    eventually(Duration::from_secs(20), "it answers again", || {
        server.complete(json!({"max_tokens": 1})).status == 200
    });
    assert!(!server.said().contains("panicked"));
}

/// A fault of the program ends the answers that were under way, with an error, and nothing more: the next request is answered.
#[test]
fn a_panic_of_the_engine_costs_no_model() {
    for (at, stream) in [(4, false), (9, true), (30, false), (30, true)] {
        let server = Server::faulty(&format!("panic@{at}"), &[]);
        let reply = server.complete(json!({"max_tokens": 60, "ignore_eos": true, "stream": stream}));
        assert_eq!(reply.status, if stream { 200 } else { 500 }, "{}", reply.text());
        assert!(reply.text().contains("a fault of the server"), "{}", reply.text());
        // By itself, before anybody asks.
        eventually(Duration::from_secs(20), "it is opened again", || {
            server.metric("unicorn_recoveries_total{how=\"usual\"}") == 1.0
        });
        assert_eq!(server.get("/health").status, 200);
        let more = server.complete(json!({"max_tokens": 100, "ignore_eos": true})).json();
        assert_eq!(more["usage"]["completion_tokens"], 100, "{more}");
        eventually(Duration::from_secs(2), "everything is free", || server.idle());
    }
}

#[test]
fn texts_become_vectors_when_their_device_is_lost() {
    let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny/bert.gguf");
    let start = |faults: &str| Server::faulty_of(tempfile::tempdir().expect("a folder"), &model, faults, &[]);
    let texts: Vec<String> =
        (0..100).map(|i| format!("the cat sat {}", "on the mat ".repeat(i % 9))).collect();
    let ask = |server: &Server| {
        let reply = server.post("/v1/embeddings", &json!({"model": server.model, "input": texts}));
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["data"].clone()
    };
    let expected = ask(&start(""));
    for at in [2, 3, 4] {
        let mut server = start(&format!("lose@{at}"));
        assert_eq!(ask(&server), expected, "lost at {at}");
        assert_eq!(server.metric("unicorn_recoveries_total{how=\"usual\"}"), 1.0, "lost at {at}");
        assert_eq!(server.metric("unicorn_embeddings_total"), 100.0);
        assert!(server.said().contains("goes on as before"));
    }
}

/// With a second device, which the processor is: what the first cannot do goes on there.
#[test]
fn an_answer_goes_on_on_another_device() {
    let probe = super::tiny::unicorn(std::env::temp_dir().as_path())
        .args(["devices", "--json"])
        .output()
        .expect("the binary starts");
    if !String::from_utf8_lossy(&probe.stdout).contains("vulkan:0") {
        println!("NOT RUN: no Vulkan driver here");
        return;
    }
    let faults = (10..2000).step_by(10).map(|at| format!("vulkan:0/lose@{at}")).collect::<Vec<_>>().join(",");
    let mut server = Server::faulty(&faults, &["--device", "vulkan:0"]);
    let body = server.completion(json!({"max_tokens": 100, "ignore_eos": true}));
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["usage"]["completion_tokens"], 100);
    assert_eq!(server.metric("unicorn_recoveries_total{how=\"elsewhere\"}"), 1.0);
    let said = server.said().to_owned();
    assert!(said.contains("goes on on other devices (cpu"), "{said}");
    assert!(server.get("/props").json()["device"].as_str().is_some_and(|d| d.starts_with("cpu")));
    server.survived();
}
