//! Heads and bodies that are too large, too deep, too slow, or no HTTP at all.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Connection, Reply, request};
use super::support::Server;

/// Times in which heads and bodies must come.
const SHORT: &[&str] = &["--head-timeout", "1", "--body-timeout", "1"];

fn raw(server: &Server, bytes: &[u8]) -> Option<Reply> {
    let mut connection = server.connect();
    // The answer may come, and the connection end, before all is sent.
    connection.send(bytes);
    connection.try_reply()
}

#[test]
fn a_body_of_100_mb_is_refused() {
    let mut server = Server::tiny(&[]);
    let huge = vec![b' '; 100 << 20];
    let told = raw(&server, &request("POST", "/v1/completions", &[], Some(&huge)));
    told.expect("an answer, though the body was not taken").refuses(413, None);
    // In chunks nobody knows beforehand how long it will be.
    let mut connection = server.connect();
    connection
        .send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in huge.chunks(1 << 20) {
        if !(connection.send(format!("{:x}\r\n", chunk.len()).as_bytes())
            && connection.send(chunk)
            && connection.send(b"\r\n"))
        {
            break;
        }
    }
    connection.send(b"0\r\n\r\n");
    connection.try_reply().expect("an answer, though the body was not taken").refuses(413, None);
    // A client that asks first is told before it sends.
    let mut connection = server.connect();
    connection.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 104857600\r\n\r\n");
    connection.reply().refuses(413, None);
    server.survived();
}

#[test]
fn json_that_is_too_deep_or_no_text_is_refused() {
    let mut server = Server::tiny(&[]);
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let objects = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let within = format!("{{\"model\":\"tiny\",\"prompt\":\"1\",\"x\":{}}}", nested(10_000));
    let unclosed = "[".repeat(100_000);
    for body in
        [nested(10_000), objects, within, unclosed, String::new(), "{".into(), "null".into(), "[]".into()]
    {
        for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/apply-template"]
        {
            server.begin("POST", path, &[], Some(body.as_bytes())).reply().refuses(400, None);
        }
    }
    for bytes in
        [&b"\xff\xfe{\0}\0"[..], b"{\"model\":\"\xc3\"}", b"{\"model\":\"\xed\xa0\x80\"}", b"\0\0\0\0"]
    {
        server.begin("POST", "/v1/completions", &[], Some(bytes)).reply().refuses(400, None);
    }
    // Half of a surrogate pair is no text either.
    server.begin("POST", "/v1/completions", &[], Some(b"{\"model\":\"\\ud800\"}")).reply().refuses(400, None);
    server.survived();
}

/// Three bytes of JSON can take hundreds of memory: a body within the limit must not take gigabytes, nor seconds from others.
#[test]
fn many_small_values_are_refused() {
    let mut server = Server::tiny(&[]);
    for (piece, count) in
        [("[],", 9_000_000), ("{},", 9_000_000), ("{\"\":0},", 4_000_000), ("0,", 14_000_000)]
    {
        let body = format!(
            "{{\"model\":\"tiny\",\"prompt\":\"1\",\"max_tokens\":1,\"x\":[{}0]}}",
            piece.repeat(count)
        );
        let bytes = request("POST", "/v1/completions", &[], Some(body.as_bytes()));
        let begin = Instant::now();
        let asked: Vec<Connection> = (0..3)
            .map(|_| {
                let mut connection = server.connect();
                assert!(connection.send(&bytes));
                connection
            })
            .collect();
        assert_eq!(server.get("/health").status, 200);
        for mut connection in asked {
            connection.reply().refuses(413, None);
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{piece}: {:?}", begin.elapsed());
    }
    // A long text with as many commas is one value.
    let text = ",".repeat(3_000_000);
    server.complete(json!({"prompt": text})).refuses(400, Some("prompt"));
    server.survived();
}

/// Bodies that are sent and not ended are kept in memory: not more of them than there is room for.
#[test]
fn bodies_at_once_are_bounded() {
    let mut server = Server::tiny(&[]);
    let part = vec![b' '; 30 << 20];
    let head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 31457290\r\n\r\n";
    let before = server.resident_bytes();
    let mut waiting: Vec<Connection> = Vec::new();
    let mut refused = 0;
    for _ in 0..16 {
        let mut connection = server.connect();
        connection.send(head);
        match connection.send(&part) {
            true => waiting.push(connection),
            false => {
                connection.reply().refuses(503, None);
                refused += 1;
            }
        }
    }
    assert!(refused > 4, "{refused} of 16 refused");
    let taken = server.resident_bytes().saturating_sub(before);
    assert!(taken < 700 << 20, "{} MB", taken >> 20);
    // Small requests find room as soon as the others are gone, and there is room for them in time.
    drop(waiting);
    server.survived();
}

#[test]
fn heads_are_bounded() {
    let mut server = Server::tiny(&[]);
    let long = "x".repeat(64 << 10);
    let one = request("GET", "/v1/models", &[("X-Long", &long)], None);
    assert_eq!(raw(&server, &one).expect("an answer").status, 431);
    let many: Vec<(&str, &str)> = vec![("X-Many", "x"); 5000];
    assert_eq!(raw(&server, &request("GET", "/v1/models", &many, None)).expect("an answer").status, 431);
    let path = request("GET", &format!("/{long}"), &[], None);
    let status = raw(&server, &path).expect("an answer").status;
    assert!([414, 431].contains(&status), "{status}");
    server.survived();
}

#[test]
fn what_is_no_http_is_refused() {
    let mut server = Server::tiny(&[]);
    let smuggled: &[u8] = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n";
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"nonsense\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        smuggled,
    ] {
        let mut connection = server.connect();
        connection.send(bytes);
        connection.no_more();
        if let Some(reply) = connection.try_reply() {
            assert!((400..500).contains(&reply.status), "{:?}: {reply:?}", String::from_utf8_lossy(bytes));
        }
        assert!(connection.ends(), "{:?} goes on", String::from_utf8_lossy(bytes));
    }
    server.survived();
}

#[test]
fn slow_heads_and_bodies_are_told_408() {
    let mut server = Server::tiny(SHORT);
    let begin = Instant::now();
    let mut head = server.connect();
    head.send(b"POST /v1/completions HTTP/1.1\r\nHost: loc");
    let mut body = server.connect();
    body.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{\"model\"");
    // One that drips does not go on for longer.
    let mut drips = server.connect();
    drips.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n");
    for _ in 0..15 {
        thread::sleep(Duration::from_millis(100));
        drips.send(b" ");
    }
    for mut slow in [head, body, drips] {
        slow.reply().refuses(408, None);
        assert!(slow.ends());
    }
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    server.survived();
}

/// Connections on which nothing comes are closed without a word, and do not keep others out.
#[test]
fn silent_connections_keep_nobody_out() {
    let mut server = Server::tiny(SHORT);
    let mut silent: Vec<Connection> = (0..300).map(|_| server.connect()).collect();
    for connection in silent.iter_mut().take(150) {
        connection.send(b"GET / HT");
    }
    server.complete(json!({})).answer();
    thread::sleep(Duration::from_millis(1500));
    for connection in &mut silent {
        assert!(connection.ends());
    }
    server.survived();
}

/// What a refused request still sends does not hide the answer.
#[test]
fn a_refusal_arrives_though_the_body_is_unread() {
    let mut server = Server::tiny(&[]);
    let body = vec![b' '; 2 << 20];
    for (path, headers, status) in [
        ("/v1/completions", &[("Origin", "http://evil.example")][..], 403),
        ("/no/such/route", &[], 404),
        ("/health", &[], 405),
    ] {
        let told = raw(&server, &request("POST", path, headers, Some(&body)));
        assert_eq!(told.unwrap_or_else(|| panic!("{path}: no answer")).status, status, "{path}");
    }
    server.survived();
}

/// A connection on which a request was refused goes on.
#[test]
fn a_refusal_does_not_end_the_connection() {
    let mut server = Server::tiny(&[]);
    let mut connection = server.connect();
    for (path, status) in [("/no/such/route", 404), ("/health", 405), ("/v1/models", 405)] {
        for headers in [&[][..], &[("Origin", "http://evil.example")]] {
            let body = vec![b' '; 200_000];
            assert!(connection.send(&request("POST", path, headers, Some(&body))), "{path}");
            let status = if headers.is_empty() { status } else { 403 };
            assert_eq!(connection.reply().status, status, "{path}");
        }
    }
    assert!(connection.send(&request("GET", "/health", &[], None)));
    assert_eq!(connection.reply().status, 200);
    server.survived();
}

/// Several requests sent in one go are answered in order, on one connection.
#[test]
fn requests_in_one_go_are_answered_in_order() {
    let mut server = Server::tiny(&[]);
    let body = server.completion(json!({"stream": true})).to_string();
    let mut bytes = request("POST", "/v1/completions", &[], Some(body.as_bytes()));
    bytes.extend(request("GET", "/v1/models", &[], None));
    bytes.extend(request("GET", "/health", &[], None));
    let mut connection = server.connect();
    assert!(connection.send(&bytes));
    assert_eq!(connection.reply().header("content-type"), Some("text/event-stream"));
    assert_eq!(connection.reply().json()["object"], "list");
    assert_eq!(connection.reply().json()["status"], "ok");
    server.survived();
}

/// What a request refers to counts as if it had been sent.
#[test]
fn what_is_referred_to_is_bounded() {
    let mut server = Server::tiny(&[]);
    let large = json!({"type": "compaction", "id": "cmp_1", "encrypted_content": "x".repeat(10 << 20)});
    let said = json!({"role": "user", "content": "hi"});
    let ask = |input: Value| {
        let body = json!({"model": server.model, "input": input, "max_output_tokens": 2});
        server.post("/v1/responses", &body)
    };
    let first = ask(json!([large, said]));
    assert_eq!(first.status, 200, "{}", first.text());
    let refer = |times: usize| {
        let mut input = vec![json!({"type": "item_reference", "id": "cmp_1"}); times];
        input.push(said.clone());
        ask(input.into())
    };
    let reply = refer(2);
    assert_eq!(reply.status, 200, "{}", reply.text());
    for _ in 0..4 {
        refer(100).refuses(413, Some("input"));
    }
    server.survived();
}

/// Long requests are read a few at a time, so that their memory is bounded; none is lost.
#[test]
fn many_long_requests_at_once() {
    const REQUESTS: usize = 48;
    let mut server = Server::tiny(&["--ctx", "0"]);
    let before = server.peak_bytes();
    let body = server.chat(json!({"messages": [{"role": "user", "content": "word ".repeat(114_000)}]}));
    thread::scope(|scope| {
        let ask = || server.post("/apply-template", &body);
        let asked: Vec<_> = (0..REQUESTS).map(|_| scope.spawn(ask)).collect();
        for reply in asked.into_iter().map(|one| one.join().unwrap()) {
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
    });
    let grown = server.peak_bytes() - before;
    let processors = thread::available_parallelism().map_or(1, usize::from) as u64;
    // A long one takes some forty times its length while it is read.
    assert!(grown < (128 << 20) + 2 * processors * (32 << 20), "{} MB", grown >> 20);
    server.survived();
}
