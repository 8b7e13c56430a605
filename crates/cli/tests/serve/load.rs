//! More requests than can be answered at once, and a model that is not there yet.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::http::Connection;
use super::support::{FREED_IN, Server, TEMPLATE, eventually};
use super::tiny::{heavy_model, tiny_model};

#[test]
fn a_full_queue_is_told_with_a_time_to_come_back() {
    let mut server = Server::tiny(&["--ctx", "0", "--slots", "1", "--queue", "2"]);
    let runs = server.endless();
    let body = server.completion(json!({"stream": true})).to_string();
    let waiting: Vec<Connection> =
        (0..2).map(|_| server.begin("POST", "/v1/completions", &[], Some(body.as_bytes()))).collect();
    eventually(FREED_IN, "two wait", || server.metric("vllm:num_requests_waiting") == 2.0);
    for stream in [false, true] {
        let chat = server.chat(json!({"stream": stream}));
        for reply in [server.complete(json!({"stream": stream})), server.post("/v1/chat/completions", &chat)]
        {
            reply.refuses(429, None);
            assert_eq!(reply.json()["error"]["code"], "queue_full");
            let seconds = reply.header("retry-after").expect("Retry-After");
            assert!(seconds.parse::<u64>().is_ok_and(|s| s > 0), "{seconds}");
        }
    }
    // Several answers that do not all find room: none is left behind.
    server.complete(json!({"n": 4})).refuses(429, None);
    assert_eq!(server.metric("vllm:num_requests_waiting"), 2.0);
    // Those that wait get their answers.
    drop(runs);
    for mut client in waiting {
        assert_eq!(client.reply().status, 200);
    }
    server.survived();
}

#[test]
fn a_model_that_is_still_loading_is_told_with_a_time_to_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = heavy_model(folder.path(), TEMPLATE);
    let mut server = Server::spawn(folder, Some(&model), &["--ctx", "64"]);
    // The server listens before the model is there.
    let (mut refused, begin) = (0, Instant::now());
    loop {
        let reply = server.complete(json!({"stream": refused % 2 == 0, "max_tokens": 1}));
        if reply.status == 200 {
            break;
        }
        reply.refuses(503, None);
        assert!(
            reply.header("retry-after").is_some_and(|s| s.parse::<u64>().is_ok_and(|s| s > 0)),
            "{reply:?}"
        );
        let health = server.get("/health");
        assert!(health.status == 200 || health.json()["status"] == "loading", "{}", health.text());
        assert_eq!(server.get("/v1/models").status, 200);
        refused += 1;
        assert!(begin.elapsed() < Duration::from_secs(60), "it never loads");
    }
    assert!(refused > 0, "it was loaded before the first request came: make it slower");
    server.ready();
    assert_eq!(server.get("/health").status, 200);
    server.survived();
}

/// A second model is loaded when it is asked for, and the request waits for it; the first is unloaded by that, and comes back.
#[test]
fn a_model_that_is_asked_for_is_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny_model(folder.path(), Some(TEMPLATE));
    let second = folder.path().join("second.gguf");
    std::fs::copy(&model, &second).expect("a copy");
    let mut server = Server::spawn(folder, Some(&model), &["-m", second.to_str().unwrap()]);
    server.ready();
    let first = server.complete(json!({})).answer();
    for name in ["second", "tiny", "second"] {
        assert_eq!(server.complete(json!({"model": name})).answer(), first);
        assert_eq!(server.get("/props").json()["model"], name);
    }
    server.survived();
}

/// Sixteen at once, each with the text that it has alone.
fn together(server: &Server, tokens: usize) {
    let prompts: Vec<String> = (0..16)
        .map(|i| {
            format!(
                "{} {} is",
                ["The capital of France", "A good name for a dog", "In winter the sea"][i % 3],
                i
            )
        })
        .collect();
    let body = |prompt: &String| server.completion(json!({"prompt": prompt, "max_tokens": tokens}));
    let ask = |prompt: &String| server.post("/v1/completions", &body(prompt)).answer();
    let alone: Vec<String> = prompts.iter().map(ask).collect();
    let at_once: Vec<String> = thread::scope(|scope| {
        let asked: Vec<_> = prompts.iter().map(|prompt| scope.spawn(move || ask(prompt))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(at_once, alone);
    assert!(alone.iter().collect::<std::collections::HashSet<_>>().len() > 2, "{alone:?}");
}

#[test]
fn answers_at_once_are_those_given_alone() {
    let mut server = Server::tiny(&[]);
    together(&server, 64);
    server.survived();
}

#[test]
fn answers_of_a_real_model_at_once_are_those_given_alone() {
    let Some(mut server) = Server::smollm2(&["--ctx", "512"]) else { return };
    together(&server, 10);
    server.survived();
}
