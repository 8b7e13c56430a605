//! Kernels that compute wrong while answers are under way: they are found, and no later answer is wrong.

use std::thread;
use std::time::Duration;

use serde_json::json;

use super::support::{Server, eventually};

/// What a server answers to several prompts, whose ends are far.
fn answers(server: &Server, from: usize, count: usize) -> Vec<(u16, String)> {
    let one = |i: usize| {
        let prompt = format!("{} tell me more of it", "word ".repeat(i % 7 + 1));
        let body = json!({"prompt": prompt, "max_tokens": 40, "temperature": 0, "ignore_eos": true});
        let reply = server.complete(body);
        (reply.status, reply.text().to_owned())
    };
    let text = |(status, body): (u16, String)| {
        let value: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        (status, value["choices"][0]["text"].as_str().map_or(body, str::to_owned))
    };
    (from..from + count).map(one).map(text).collect()
}

/// The answers of a device whose kernels are all right, in the place of the wrong ones.
fn right() -> Vec<(u16, String)> {
    answers(&Server::tiny(&["--device", "cpu:scalar"]), 0, 7)
}

#[test]
fn a_wrong_kernel_is_found_and_no_later_answer_is_wrong() {
    let right = right();
    assert!(right.iter().all(|(status, text)| *status == 200 && !text.is_empty()), "{right:?}");
    for fault in ["wrong-lane@60", "wrong-tile:attention@60", "wrong-tile:head@60"] {
        let mut server = Server::faulty(fault, &["--canary", "10%"]);
        let before = answers(&server, 0, 1);
        assert_eq!(before[0].0, 200, "{before:?}");
        eventually(Duration::from_secs(60), "the wrong kernel is found", || {
            answers(&server, 0, 3);
            server.metric("unicorn_canary_quarantined_total") >= 1.0
        });
        assert_eq!(answers(&server, 0, 7), right, "{fault}");
        assert!(server.metric("unicorn_canary_wrong_total") >= 3.0);
        assert!(server.metric("unicorn_canary_samples_total") >= 3.0);
        assert!(server.metric("unicorn_canary_seconds_total") > 0.0);
        assert_eq!(server.metric("unicorn_recoveries_total{how=\"usual\"}"), 1.0);
        let said = server.said().to_owned();
        for part in ["is not used any more", "was wrong in 3 of", "goes on as before"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert_eq!(server.get("/health").status, 200);
        server.survived();
    }
}

#[test]
fn answers_that_may_be_wrong_end_with_the_reason() {
    let mut server = Server::faulty("wrong-lane@40", &["--canary", "10%", "--ctx", "0"]);
    let mut stream = server.endless();
    let mut rest = Vec::new();
    while let Some(chunk) = stream.chunk() {
        rest.extend(chunk);
    }
    let rest = String::from_utf8_lossy(&rest).into_owned();
    let error = rest.lines().filter_map(|l| l.strip_prefix("data: ")).find(|l| l.contains("error"));
    assert!(error.is_some_and(|e| e.contains("a kernel was found wrong")), "{rest}");
    assert_eq!(server.complete(json!({"max_tokens": 1})).status, 200);
    assert_eq!(server.metric("unicorn_canary_requests_ended_total"), 1.0);
    server.survived();
}

#[test]
fn right_kernels_are_left_alone_and_it_can_be_off() {
    let mut server = Server::tiny(&["--canary", "10%"]);
    thread::scope(|scope| {
        for i in 0..4 {
            let server = &server;
            scope.spawn(move || assert!(answers(server, i, 12).iter().all(|a| a.0 == 200)));
        }
    });
    eventually(Duration::from_secs(20), "samples", || {
        answers(&server, 0, 1);
        server.metric("unicorn_canary_samples_total") >= 8.0
    });
    assert_eq!(server.metric("unicorn_canary_wrong_total"), 0.0);
    server.survived();
    for (args, said) in [
        (&["--canary", "0"][..], None),
        (&[][..], None),
        (&["--canary", "5", "--device", "cpu:scalar"][..], Some("plain kernels")),
    ] {
        let mut server = Server::tiny(args);
        answers(&server, 0, 2);
        assert_eq!(server.metric("unicorn_canary_samples_total"), 0.0, "{args:?}");
        assert!(said.is_none_or(|said| server.said().contains(said)), "{args:?}: {}", server.said());
    }
}
