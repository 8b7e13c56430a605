//! Numbers at and beyond their ends.

use serde_json::{Value, json};

use super::http::Reply;
use super::support::Server;

/// Fields and values that both APIs refuse.
fn wrong() -> Vec<(&'static str, Value)> {
    let two_to_63: Value = serde_json::from_str("9223372036854775808").unwrap();
    let two_to_64: Value = serde_json::from_str("18446744073709551616").unwrap();
    let mut wrong = Vec::new();
    for name in ["n", "max_tokens"] {
        for value in [two_to_63.clone(), two_to_64.clone(), json!(-1), json!(1.5), json!("NaN"), json!(1e300)]
        {
            wrong.push((name, value));
        }
    }
    wrong.extend([
        ("n", json!(0)),
        ("n", json!(17)),
        ("temperature", json!(-0.1)),
        ("temperature", json!(1e300)),
        ("top_p", json!(1.1)),
        ("top_p", json!(-1)),
        ("top_k", json!(-2)),
        ("top_k", two_to_63.clone()),
        ("min_p", json!(2)),
        ("seed", two_to_64),
        ("presence_penalty", json!(1e9)),
        ("frequency_penalty", json!("x")),
        ("repeat_penalty", json!(0)),
        ("repeat_last_n", json!(-2)),
        ("logit_bias", json!({"999999": 1})),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!({"9223372036854775808": 1})),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"1": 1e300})),
        ("logit_bias", json!({"1": null})),
        ("logit_bias", json!([[1]])),
        ("stop", json!(3)),
        ("stop", json!(vec!["x"; 10_000])),
        ("stream", json!("yes")),
        ("stream_options", json!(3)),
    ]);
    wrong
}

#[test]
fn numbers_out_of_range_are_named() {
    let mut server = Server::tiny(&[]);
    for (name, value) in wrong() {
        server.complete(json!({name: value})).refuses(400, Some(name));
        server.post("/v1/chat/completions", &server.chat(json!({name: value}))).refuses(400, Some(name));
    }
    for (stop, param) in
        [(json!(""), "stop[0]"), (json!(["x", ""]), "stop[1]"), (json!("x".repeat(100_000)), "stop[0]")]
    {
        server.complete(json!({"stop": stop})).refuses(400, Some(param));
        server.post("/v1/chat/completions", &server.chat(json!({"stop": stop}))).refuses(400, Some(param));
    }
    for logprobs in [json!(-1), json!(21), json!(1u64 << 63)] {
        server.complete(json!({"logprobs": logprobs})).refuses(400, Some("logprobs"));
        let chat = server.chat(json!({"logprobs": true, "top_logprobs": logprobs}));
        server.post("/v1/chat/completions", &chat).refuses(400, Some("top_logprobs"));
    }
    server.survived();
}

/// Text that is no JSON: `NaN` and its kin, as some programs write them.
#[test]
fn what_is_no_json_is_refused() {
    let mut server = Server::tiny(&[]);
    for number in ["NaN", "Infinity", "-Infinity", "1e", "0x10", "01"] {
        let body =
            format!("{{\"model\":\"tiny\",\"prompt\":\"1\",\"max_tokens\":4,\"temperature\":{number}}}");
        let reply = server.begin("POST", "/v1/completions", &[], Some(body.as_bytes())).reply();
        reply.refuses(400, None);
    }
    server.survived();
}

/// Numbers at the ends of what is allowed are taken.
#[test]
fn numbers_at_their_ends_are_taken() {
    let mut server = Server::tiny(&[]);
    for fields in [
        json!({"temperature": 100, "top_k": -1, "top_p": 1, "min_p": 0}),
        json!({"temperature": 1e-30}),
        json!({"top_k": i64::MAX}),
        json!({"top_p": 0}),
        json!({"seed": i64::MIN}),
        json!({"seed": i64::MAX}),
        json!({"logit_bias": {"0": -1e9, "1": 1e9}}),
        json!({"presence_penalty": -100, "frequency_penalty": 100}),
        json!({"repeat_last_n": i64::MAX, "repeat_penalty": 10}),
        json!({"logprobs": 20}),
        json!({"n": 16, "max_tokens": 1}),
    ] {
        let reply = server.complete(fields.clone());
        assert_eq!(reply.status, 200, "{fields}: {}", reply.text());
        assert!(!reply.text().contains("NaN") && !reply.text().contains("inf"), "{}", reply.text());
    }
    server.survived();
}

/// More tokens than there is room for are cut to it, not refused: clients send what they would like at most.
#[test]
fn max_tokens_is_cut_to_the_room() {
    let mut server = Server::tiny(&["--ctx", "64"]);
    let reply = server.complete(json!({"max_tokens": 1u64 << 40}));
    assert_eq!(reply.json()["usage"]["total_tokens"], 64, "{}", reply.text());
    assert_eq!(reply.json()["choices"][0]["finish_reason"], "length");
    server.survived();
}

#[test]
fn a_prompt_over_the_context_is_refused_before_anything_is_sent() {
    let mut server = Server::tiny(&["--ctx", "256"]);
    let long = "x".repeat(300);
    let check = |reply: Reply, param: &str| {
        reply.refuses(400, Some(param));
        assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
        assert_eq!(reply.header("content-type"), Some("application/json"));
    };
    for stream in [false, true] {
        check(server.complete(json!({"prompt": long, "stream": stream})), "prompt");
        check(server.complete(json!({"prompt": vec![7; 256], "stream": stream})), "prompt");
        let messages = json!([{"role": "user", "content": long}]);
        let chat = server.chat(json!({"messages": messages, "stream": stream}));
        check(server.post("/v1/chat/completions", &chat), "messages");
    }
    // The longest that fits leaves room for one token.
    assert_eq!(server.complete(json!({"prompt": vec![7; 255]})).json()["usage"]["completion_tokens"], 1);
    server.survived();
}

/// Megabytes take seconds to be cut into tokens: what cannot fit is not cut, and nothing else waits for it.
#[test]
fn a_prompt_of_megabytes_holds_nobody_up() {
    let mut server = Server::tiny(&["--ctx", "4096"]);
    let long = "a".repeat(20 << 20);
    let begin = std::time::Instant::now();
    let message = json!([{"role": "user", "content": long}]);
    for (path, body, param) in [
        ("/v1/completions", server.completion(json!({"prompt": long})), "prompt"),
        ("/v1/completions", server.completion(json!({"prompt": ["x", long]})), "prompt[1]"),
        ("/v1/chat/completions", server.chat(json!({"messages": message})), "messages"),
    ] {
        let reply = server.post(path, &body);
        reply.refuses(400, Some(param));
        assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    }
    assert!(begin.elapsed() < std::time::Duration::from_secs(4), "{:?}", begin.elapsed());
    server.survived();
}

#[test]
fn token_ids_are_checked() {
    let mut server = Server::tiny(&[]);
    for ids in
        [json!([-1]), json!([4_000_000_000u64]), json!([1u64 << 63]), json!([1.5]), json!([0, 100_000])]
    {
        server.complete(json!({"prompt": ids})).refuses(400, Some("prompt"));
        server.post("/detokenize", &json!({"tokens": ids})).refuses(400, Some("tokens"));
    }
    for prompt in [
        json!(""),
        json!([]),
        json!([[]]),
        json!([""]),
        json!(3),
        json!({}),
        json!(null),
        json!(vec!["x"; 1000]),
    ] {
        assert_eq!(server.complete(json!({"prompt": prompt})).status, 400, "{prompt}");
    }
    server.survived();
}
