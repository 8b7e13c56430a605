//! What is told about requests: in lines for who runs the server, in headers for who asks.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::{FREED_IN, Server, eventually, with};

#[test]
fn a_line_is_written_for_each_request_and_nothing_that_was_said() {
    let mut server = Server::tiny(&["--log-requests", "--ctx", "0"]);
    let secret = "xyzzy-plugh";
    let body = server.completion(json!({"prompt": secret, "n": 2, "max_tokens": 5, "ignore_eos": true}));
    let reply = server.post("/v1/completions", &body);
    let id = reply.header("x-request-id").expect("an id").to_owned();
    let line = server.wait_line(&id);
    let line: Value = serde_json::from_str(&line).expect("a line of JSON");
    for (name, value) in [
        ("id", json!(id)),
        ("model", json!("tiny")),
        ("method", json!("POST")),
        ("route", json!("/v1/completions")),
        ("status", json!(200)),
        ("prompt_tokens", json!(secret.len())),
        ("completion_tokens", json!(10)),
        ("finish", json!(["length", "length"])),
    ] {
        assert_eq!(line[name], value, "{name}: {line}");
    }
    assert!(line["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{line}");
    // A stream is written down at its end, and so is one whose client goes.
    let stream = server.post("/v1/completions", &with(body, json!({"stream": true, "n": 1})));
    let line = server.wait_line(stream.header("x-request-id").expect("an id"));
    assert!(line.contains("\"completion_tokens\":5"), "{line}");
    drop(server.endless());
    let line = server.wait_line("cancelled");
    assert!(line.contains("\"status\":200"), "{line}");
    let refused = server.post("/v1/completions", &json!({"model": "none", "prompt": secret}));
    let line = server.wait_line(refused.header("x-request-id").expect("an id"));
    assert!(line.contains("\"status\":404") && line.contains("\"model\":null"), "{line}");
    assert!(!server.said().contains("xyzzy"), "{}", server.said());
}

#[test]
fn nothing_is_written_where_nobody_asks_for_it() {
    let mut server = Server::tiny(&[]);
    server.complete(json!({})).answer();
    std::thread::sleep(Duration::from_millis(200));
    assert!(!server.said().contains("completion_tokens"));
}

/// What of a tool's schema cannot be enforced is left aside, and whoever sent it is told.
#[test]
fn what_is_left_aside_is_told() {
    let mut server = Server::tiny(&[]);
    let tool = |schema: Value| json!([{"type": "function", "function": {"name": "f", "parameters": schema}}]);
    let pattern = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?!x)"}}});
    let reply = server.post("/v1/chat/completions", &server.chat(json!({"tools": tool(pattern)})));
    let notice = reply.header("x-unicorn-notice").unwrap_or_else(|| panic!("{reply:?}"));
    assert!(notice.contains("tool \"f\"") && notice.contains("pattern"), "{notice}");
    let plain = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    let reply = server.post("/v1/chat/completions", &server.chat(json!({"tools": tool(plain)})));
    assert_eq!((reply.status, reply.header("x-unicorn-notice")), (200, None));
    server.survived();
}

/// As vLLM has it: what is lower goes first.
#[test]
fn who_has_priority_goes_first() {
    let mut server = Server::tiny(&["--ctx", "0", "--slots", "1"]);
    let runs = server.endless();
    let ask = |priority: i64| {
        let body = server.completion(json!({"priority": priority, "max_tokens": 400, "ignore_eos": true}));
        server.begin("POST", "/v1/completions", &[], Some(body.to_string().as_bytes()))
    };
    let mut late = ask(5);
    eventually(FREED_IN, "one waits", || server.metric("vllm:num_requests_waiting") == 1.0);
    let mut soon = ask(-5);
    eventually(FREED_IN, "two wait", || server.metric("vllm:num_requests_waiting") == 2.0);
    drop(runs);
    let queued = |reply: super::http::Reply| reply.json()["timings"]["queue_seconds"].as_f64().unwrap();
    let (soon, late) = (queued(soon.reply()), queued(late.reply()));
    assert!(soon < late, "{soon} {late}");
    for wrong in [json!(5000), json!("high"), json!(0.5)] {
        server.complete(json!({"priority": wrong})).refuses(400, Some("priority"));
    }
    server.survived();
}
