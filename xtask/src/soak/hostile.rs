//! Requests that are wrong, and requests that are slow.

use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::ask::{Asks, Outcome};
use crate::http::{Answer, Client, request};

/// A request that is wrong in one of many ways: it is refused as its maker's fault.
pub fn malformed(client: Client, model: &str, random: u64) -> Result<()> {
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let long = "x".repeat(40_000);
    let body = |more: serde_json::Value| {
        let mut body = json!({"model": model, "prompt": "x", "max_tokens": 3});
        if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
            body.extend(more.clone());
        }
        request("POST", "/v1/completions", Some(body.to_string().as_bytes()))
    };
    let raw = |bytes: &[u8]| request("POST", "/v1/completions", Some(bytes));
    let bytes = match random % 16 {
        0 => raw(b"{\"model\":"),
        1 => raw(deep.as_bytes()),
        2 => raw(b"\xff\xfe\0"),
        3 => raw(b"{\"temperature\":NaN}"),
        4 => body(json!({"n": -1})),
        5 => body(json!({"max_tokens": 1e300})),
        6 => body(json!({"logit_bias": {"9999999": 1}})),
        7 => body(json!({"stop": vec!["x"; 10_000]})),
        8 => body(json!({"model": "../../etc/passwd"})),
        9 => body(json!({"prompt": long})),
        10 => body(json!({"prompt": [1e9]})),
        11 => request("GET", "/no/such/route", None),
        12 => request("PUT", "/v1/completions", Some(b"{}")),
        13 => format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000)).into_bytes(),
        14 => b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".to_vec(),
        _ => b"\x16\x03\x01\x02\0\x01\0\r\n\r\n".to_vec(),
    };
    let mut stream = client.connect()?;
    // The answer may come before all is sent.
    let _ = stream.write_all(&bytes);
    let Ok(answer) = Answer::begin(stream) else {
        // What is no HTTP, or is cut off in the middle, need not be answered.
        ensure!(matches!(random % 16, 13 | 15), "no answer");
        return Ok(());
    };
    ensure!((400..500).contains(&answer.status), "case {}: {}", random % 16, answer.status);
    Ok(())
}

/// A client that sends or reads slowly, or never gets to the end.
pub fn slow(client: Client, asks: &Asks, random: u64) -> Result<Outcome> {
    let (bytes, rest) = (asks.bytes(random), random / 64);
    let mut stream = client.connect()?;
    match rest % 4 {
        // The request comes in pieces, but comes.
        0 | 1 => {
            for piece in bytes.chunks(bytes.len().div_ceil(4)) {
                stream.write_all(piece)?;
                sleep(Duration::from_millis(rest / 4 % 25));
            }
            asks.judge(&Answer::begin(stream)?.whole()?, random)
        }
        // It stays half said.
        2 => {
            stream.write_all(&bytes[..bytes.len() * 2 / 3])?;
            sleep(Duration::from_millis(rest / 4 % 100));
            Ok(Outcome::Fine)
        }
        // The answer is taken late.
        _ => {
            stream.write_all(&bytes)?;
            sleep(Duration::from_millis(rest / 4 % 200));
            asks.judge(&Answer::begin(stream)?.whole()?, random)
        }
    }
}
