//! What `/v1/completions` counts and scores is the same in one piece and in a stream.

use serde_json::{Value, json};

use super::http::events;
use super::support::{Server, with};

const LISTS: [&str; 4] = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];

#[test]
fn usage_counts_every_prompt_once() {
    let mut server = Server::tiny(&[]);
    // One token a byte.
    let fields =
        json!({"prompt": ["12345", "12345678901"], "n": 3, "max_tokens": 2, "temperature": 1, "seed": 1});
    let whole = server.complete(fields.clone()).json();
    assert_eq!(
        (&whole["usage"]["prompt_tokens"], &whole["usage"]["completion_tokens"]),
        (&json!(16), &json!(12))
    );
    let streams = with(fields, json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = events(&server.complete(streams).body);
    let usage = events.iter().rev().find_map(|event| event.get("usage").filter(|usage| !usage.is_null()));
    let usage = usage.expect("a usage");
    for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage[name], whole["usage"][name], "{name}");
    }
    server.survived();
}

/// Text and scores of a completion, in one piece and as a stream brings them.
fn scored(server: &Server, fields: &Value) -> (String, Value) {
    let fields = with(fields.clone(), json!({"echo": true, "logprobs": 1}));
    let whole = server.complete(fields.clone()).json();
    let (mut text, mut lists) = (String::new(), json!({}));
    for name in LISTS {
        lists[name] = json!([]);
    }
    for event in events(&server.complete(with(fields, json!({"stream": true}))).body) {
        let choice = &event["choices"][0];
        text += choice["text"].as_str().unwrap_or_default();
        for name in LISTS {
            let more = choice["logprobs"][name].as_array().cloned().unwrap_or_default();
            lists[name].as_array_mut().unwrap().extend(more);
        }
    }
    let choice = &whole["choices"][0];
    assert_eq!((&choice["text"], &choice["logprobs"]), (&json!(text), &lists));
    (text, lists)
}

#[test]
fn an_echo_of_any_length_is_scored() {
    let mut server = Server::tiny(&[]);
    for max_tokens in [0, 1, 3] {
        for (prompt, tokens, offsets) in [
            (json!("1"), vec!["1"], vec![0]),
            (json!("123"), vec!["1", "2", "3"], vec![0, 1, 2]),
            // A control token is no part of the text.
            (json!([257, 49, 50]), vec!["<|turn|>", "1", "2"], vec![0, 0, 1]),
            (json!([257]), vec!["<|turn|>"], vec![0]),
            // A character of two tokens, one of three, one more.
            (json!("é語1"), vec!["\u{fffd}"; 5].into_iter().chain(["1"]).collect(), vec![0, 0, 1, 1, 1, 2]),
        ] {
            let (text, scores) = scored(&server, &json!({"prompt": prompt, "max_tokens": max_tokens}));
            let echoed = tokens.len();
            assert_eq!(scores["tokens"].as_array().unwrap()[..echoed], tokens, "{prompt} {max_tokens}");
            assert_eq!(scores["text_offset"].as_array().unwrap()[..echoed], offsets, "{prompt} {max_tokens}");
            for name in LISTS {
                assert_eq!(scores[name].as_array().unwrap().len(), echoed + max_tokens, "{name}: {prompt}");
            }
            assert_eq!(scores["token_logprobs"][0], Value::Null);
            let length = text.chars().count();
            assert!(
                scores["text_offset"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|at| at.as_u64().unwrap() <= length as u64)
            );
        }
    }
    server.survived();
}
