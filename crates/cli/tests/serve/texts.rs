//! What comes out: stop strings and characters that are cut into several tokens, several answers at once.
//!
//! The tiny model has one token a byte. Biases that fall from byte to byte, with a penalty for what has come, make it say any text
//! whose bytes differ.

use serde_json::{Value, json};

use super::http::{events, streamed};
use super::support::{Server, with};

/// Fields that make the tiny model say these bytes, at most twelve, which all differ: the steps are larger than the model's own logits, and
/// all together smaller than the penalty.
fn says(bytes: &[u8]) -> Value {
    let biases = bytes.iter().enumerate().map(|(i, byte)| (byte.to_string(), json!(9000 - 15 * i)));
    json!({
        "logit_bias": biases.collect::<serde_json::Map<_, _>>(), "presence_penalty": 100, "frequency_penalty": 100,
        "max_tokens": bytes.len(), "repeat_penalty": 1, "top_k": 0, "repeat_last_n": -1,
    })
}

/// The text of an answer, the same whole and in a stream, with its reason to end.
fn text(server: &Server, fields: &Value) -> (String, Value) {
    let whole = server.complete(fields.clone());
    let text = whole.answer();
    let reason = whole.json()["choices"][0]["finish_reason"].clone();
    let events = events(&server.complete(with(fields.clone(), json!({"stream": true}))).body);
    assert_eq!(streamed(&events), text);
    let reasons: Vec<&Value> =
        events.iter().map(|event| &event["choices"][0]["finish_reason"]).filter(|r| !r.is_null()).collect();
    assert_eq!(reasons, [&reason]);
    (text, reason)
}

#[test]
fn characters_of_several_tokens_come_whole() {
    let mut server = Server::tiny(&[]);
    for word in ["aé🦄b", "語é", "\u{1f9ea}", "ñ"] {
        assert_eq!(text(&server, &says(word.as_bytes())).0, word);
        // Each event is text of its own, never a part of a character.
        let reply = server.complete(with(says(word.as_bytes()), json!({"stream": true})));
        assert!(!streamed(&events(&reply.body)).contains('\u{fffd}'), "{}", reply.text());
    }
    server.survived();
}

#[test]
fn bytes_that_are_no_text_never_come_out() {
    let mut server = Server::tiny(&[]);
    for bytes in [
        // Cut short at one, two and three of four bytes.
        &"a🦄".as_bytes()[..2],
        &"a🦄".as_bytes()[..3],
        &"a🦄".as_bytes()[..4],
        b"\xff\xfea",
        b"\xc0\x80a",
        b"\xed\xa0\x80a",
        b"\x80a\xc3",
        b"\0\x01\x1ba",
    ] {
        let (text, _) = text(&server, &says(bytes));
        assert_eq!(text, String::from_utf8_lossy(bytes), "{bytes:?}");
    }
    server.survived();
}

#[test]
fn stop_strings_of_several_tokens_are_found() {
    let mut server = Server::tiny(&[]);
    for (word, stop, expected) in [
        ("abcSTOPxyz", json!("STOP"), "abc"),
        ("abcSTOPxyz", json!(["OPx", "STOPxy"]), "abcST"),
        ("aé🦄b", json!("🦄"), "aé"),
        ("aé🦄b", json!("é🦄b"), "a"),
        ("STOPab", json!("STOP"), ""),
    ] {
        let fields = with(says(word.as_bytes()), json!({"stop": stop}));
        assert_eq!(text(&server, &fields), (expected.to_owned(), json!("stop")), "{word} {stop}");
    }
    // What only begins like one is said in the end.
    let fields = with(says(b"abcSTO"), json!({"stop": "STOP"}));
    assert_eq!(text(&server, &fields), ("abcSTO".to_owned(), json!("length")));
    server.survived();
}

#[test]
fn several_answers_come_side_by_side() {
    let mut server = Server::tiny(&[]);
    let fields = json!({"n": 5, "max_tokens": 12, "temperature": 1.5, "seed": 7});
    let whole = server.complete(fields.clone()).json();
    let texts: Vec<&str> =
        whole["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 5);
    assert!(
        texts.iter().all(|text| *text != texts[0] || text == &texts[0]) && texts[0] != texts[1],
        "{texts:?}"
    );
    assert_eq!(whole["usage"]["completion_tokens"], 60);
    assert_eq!(whole["usage"]["prompt_tokens"], 1);
    let events = events(&server.complete(with(fields, json!({"stream": true}))).body);
    let mut streamed = vec![String::new(); 5];
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        streamed[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!(streamed, texts);
    let chat = server.post("/v1/chat/completions", &server.chat(json!({"n": 3, "temperature": 1}))).json();
    let indexes: Vec<_> =
        chat["choices"].as_array().unwrap().iter().map(|c| c["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [0, 1, 2]);
    server.survived();
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let mut server = Server::tiny(&[]);
    let ask =
        |seed: i64| server.complete(json!({"seed": seed, "temperature": 1.5, "max_tokens": 24})).answer();
    assert_eq!(ask(5), ask(5));
    assert_ne!(ask(5), ask(6));
    server.survived();
}

/// What one asked does not come into another's answer: prompts share their beginning, and pages of the cache.
#[test]
fn a_shared_beginning_changes_no_answer() {
    let mut server = Server::tiny(&[]);
    let beginning =
        "The same beginning of some hundred characters, so that whole pages of it are kept. ".repeat(8);
    let ask = |end: &str| {
        let reply = server.complete(json!({"prompt": format!("{beginning}{end}"), "max_tokens": 32}));
        (reply.answer(), reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
    };
    let (first, cached) = ask("one");
    assert_eq!(cached, 0);
    let (other, cached) = ask("two");
    assert!(cached > 0, "nothing of the beginning was kept");
    let (again, _) = ask("one");
    assert_eq!(first, again);
    assert_ne!(first, other);
    let mut fresh = Server::tiny(&[]);
    let alone = fresh.complete(json!({"prompt": format!("{beginning}two"), "max_tokens": 32})).answer();
    assert_eq!(alone, other);
    server.survived();
    fresh.survived();
}
