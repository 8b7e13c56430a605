//! Clients that go away, wherever their request is: what they held is free within two seconds, and that is counted.

use std::time::Duration;

use serde_json::{Value, json};

use super::http::Connection;
use super::support::{FREED_IN, Server, eventually};

/// Sends a completion that goes on for minutes.
fn send(server: &Server, stream: bool, more: Value) -> Connection {
    let body =
        super::support::with(server.completion(json!({"max_tokens": 1_000_000, "stream": stream})), more);
    server.begin("POST", "/v1/completions", &[], Some(body.to_string().as_bytes()))
}

/// Lets a client go, and expects this many requests to end by that.
fn gone(server: &mut Server, clients: Vec<Connection>, count: f64) {
    let before = server.aborted();
    drop(clients);
    eventually(FREED_IN, "counted as aborted", || server.aborted() == before + count);
    server.survived();
}

#[test]
fn a_client_that_goes_during_its_answer() {
    let mut server = Server::tiny(&["--ctx", "0"]);
    for stream in [false, true] {
        let client = send(&server, stream, json!({}));
        server.wait_state("decode");
        gone(&mut server, vec![client], 1.0);
    }
    let several = send(&server, true, json!({"n": 4}));
    eventually(FREED_IN, "four run", || server.slots().len() == 4);
    gone(&mut server, vec![several], 4.0);
}

#[test]
fn a_client_that_goes_while_its_prompt_is_read() {
    let mut server = Server::tiny(&["--ctx", "0", "--kv-tokens", "262144"]);
    let long: Vec<usize> = (0..250_000).map(|i| i * i % 250).collect();
    for stream in [false, true] {
        let client = send(&server, stream, json!({"prompt": long}));
        server.wait_state("prefill");
        gone(&mut server, vec![client], 1.0);
    }
}

#[test]
fn a_client_that_goes_while_it_waits() {
    let mut server = Server::tiny(&["--ctx", "0", "--slots", "1"]);
    let runs = server.endless();
    let before = server.aborted();
    let waiting: Vec<Connection> = [false, true, false].map(|stream| send(&server, stream, json!({}))).into();
    eventually(FREED_IN, "three wait", || server.metric("vllm:num_requests_waiting") == 3.0);
    drop(waiting);
    eventually(FREED_IN, "none waits", || server.metric("vllm:num_requests_waiting") == 0.0);
    assert_eq!(server.aborted(), before + 3.0);
    assert_eq!(server.metric("vllm:num_requests_running"), 1.0, "the one that runs is another's");
    gone(&mut server, vec![runs], 1.0);
}

/// One that stays but takes nothing is given up, and what it left untaken is bounded.
#[test]
fn a_client_that_stops_reading() {
    let mut server = Server::tiny(&["--ctx", "0"]);
    // A thousand tokens with twenty alternatives each: some megabytes fill what the system buffers.
    let client = send(&server, true, json!({"logprobs": 20}));
    eventually(Duration::from_secs(30), "given up", || server.metric("unicorn_slow_clients_total") == 1.0);
    server.survived();
    drop(client);
}

/// Half of a request, then nothing any more.
#[test]
fn a_client_that_goes_before_it_has_asked() {
    let mut server = Server::tiny(&[]);
    for part in [
        "POST /v1/comp",
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n{\"mo",
    ] {
        let mut client = server.connect();
        client.send(part.as_bytes());
    }
    server.survived();
}

/// Many come and go at once, at all stages.
#[test]
fn many_clients_that_come_and_go() {
    let mut server = Server::tiny(&["--ctx", "0", "--slots", "4", "--queue", "64"]);
    let before = server.aborted();
    for round in 0..5 {
        let clients: Vec<Connection> =
            (0..12).map(|i| send(&server, (i + round) % 2 == 0, json!({"n": 2}))).collect();
        eventually(Duration::from_secs(5), "all have come", || server.slots().len() == 24);
        drop(clients);
        eventually(FREED_IN, "all are gone", || server.idle());
    }
    assert_eq!(server.aborted(), before + 120.0);
    server.survived();
}
