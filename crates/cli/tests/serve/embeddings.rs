//! Texts that become vectors: the same as `unicorn embed` gives, over every API, and what is refused.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::Reply;
use super::support::{FREED_IN, Server, eventually, with};
use super::tiny::{output, stderr, stdout, unicorn};

/// Length of the tiny encoder's vectors, and the tokens that it takes.
const WIDTH: usize = 32;
const CONTEXT: usize = 64;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn bert() -> PathBuf {
    root("tests/data/tiny/bert.gguf")
}

/// A server of the tiny encoder.
fn encoder(args: &[&str]) -> Server {
    let mut server = Server::spawn(tempfile::tempdir().expect("a folder"), Some(&bert()), args);
    server.ready();
    server
}

/// What `unicorn embed` prints.
fn printed(server: &Server, model: &Path, texts: &[&str]) -> Vec<Vec<f32>> {
    let mut command = unicorn(server.folder.path());
    command.args(["embed", "--threads", "1", "--device", "cpu", "-m"]).arg(model).args(texts);
    let out = output(&mut command);
    assert!(out.status.success(), "{}", stderr(&out));
    let line = |line: &str| vector(&serde_json::from_str::<Value>(line).expect("JSON")["embedding"]);
    stdout(&out).lines().map(line).collect()
}

fn vector(value: &Value) -> Vec<f32> {
    let numbers = value.as_array().unwrap_or_else(|| panic!("no vector: {value}"));
    numbers.iter().map(|n| n.as_f64().expect("a number") as f32).collect()
}

/// The vectors of an answer of `/v1/embeddings`, which must be in order.
fn vectors(reply: &Reply) -> Vec<Vec<f32>> {
    let body = reply.json();
    assert_eq!(reply.status, 200, "{body}");
    let data = body["data"].as_array().expect("data");
    assert!(data.iter().enumerate().all(|(i, one)| one["index"] == i && one["object"] == "embedding"));
    data.iter().map(|one| vector(&one["embedding"])).collect()
}

fn ask(server: &Server, input: Value, more: Value) -> Reply {
    server.post("/v1/embeddings", &with(json!({"model": server.model, "input": input}), more))
}

fn tokens(server: &Server, text: &str) -> Vec<u64> {
    let reply = server.post("/tokenize", &json!({"content": text, "add_special": true}));
    reply.json()["tokens"].as_array().expect("tokens").iter().map(|t| t.as_u64().unwrap()).collect()
}

fn length(vector: &[f32]) -> f64 {
    vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// The numbers of a vector in base64.
fn decoded(text: &str) -> Vec<f32> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bits = text.trim_end_matches('=').bytes().map(value);
    let (mut bytes, mut left, mut count) = (Vec::new(), 0u32, 0);
    for six in bits {
        (left, count) = (left << 6 | u32::from(six), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((left >> count) as u8);
        }
    }
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn vectors_are_those_of_the_command() {
    let server = encoder(&[]);
    let texts = ["The cat sat on the mat.", "river bank", "money"];
    let expected = printed(&server, &bert(), &texts);
    let reply = ask(&server, json!(texts), json!({"user": "u", "unknown": 1}));
    assert_eq!(vectors(&reply), expected);
    let count: usize = texts.iter().map(|text| tokens(&server, text).len()).sum();
    assert_eq!(reply.json()["usage"], json!({"prompt_tokens": count, "total_tokens": count}));
    assert_eq!((&reply.json()["object"], &reply.json()["model"]), (&json!("list"), &json!(server.model)));

    assert_eq!(vectors(&ask(&server, json!(texts[0]), json!({"encoding_format": "float"}))), expected[..1]);
    let ids: Vec<Vec<u64>> = texts.iter().map(|text| tokens(&server, text)).collect();
    assert_eq!(vectors(&ask(&server, json!(ids), json!({}))), expected);
    assert_eq!(vectors(&ask(&server, json!(ids[1]), json!({}))), expected[1..2]);
    assert_eq!(vectors(&ask(&server, json!([texts[0], ids[1], texts[2]]), json!({}))), expected);

    let packed = ask(&server, json!(texts), json!({"encoding_format": "base64"})).json();
    let packed = packed["data"].as_array().unwrap();
    let packed: Vec<Vec<f32>> =
        packed.iter().map(|one| decoded(one["embedding"].as_str().unwrap())).collect();
    assert_eq!(packed, expected);

    for short in vectors(&ask(&server, json!(texts), json!({"dimensions": 8}))).iter().zip(&expected) {
        let (got, whole) = short;
        let scale = length(&whole[..8]);
        assert!((length(got) - 1.0).abs() < 1e-6);
        assert_eq!(got.len(), 8);
        assert!(got.iter().zip(whole).all(|(a, b)| (f64::from(*a) - f64::from(*b) / scale).abs() < 1e-6));
    }
    assert_eq!(vectors(&ask(&server, json!(texts), json!({"dimensions": WIDTH}))), expected);
}

#[test]
fn wrong_requests_are_refused_by_name() {
    let server = encoder(&[]);
    let long = "cat ".repeat(CONTEXT);
    let huge = "cat ".repeat(1 << 20);
    for (input, more, param) in [
        (Value::Null, json!({}), "input"),
        (json!(""), json!({}), "input"),
        (json!([]), json!({}), "input"),
        (json!(["a", ""]), json!({}), "input[1]"),
        (json!(["a", 7]), json!({}), "input[1]"),
        (json!([5, -1]), json!({}), "input"),
        (json!([[5], []]), json!({}), "input[1]"),
        (json!([[5], [102]]), json!({}), "input[1]"),
        (json!(7), json!({}), "input"),
        (json!(vec!["a"; 2049]), json!({}), "input"),
        (json!("a"), json!({"encoding_format": "hex"}), "encoding_format"),
        (json!("a"), json!({"dimensions": 0}), "dimensions"),
        (json!("a"), json!({"dimensions": WIDTH + 1}), "dimensions"),
        (json!("a"), json!({"dimensions": "8"}), "dimensions"),
        (json!("a"), json!({"model": null}), "model"),
    ] {
        ask(&server, input, more).refuses(400, Some(param));
    }
    ask(&server, json!("a"), json!({"model": "none"})).refuses(404, Some("model"));
    for (input, param) in
        [(json!(["a", long]), "input[1]"), (json!(huge), "input"), (json!(vec![5; CONTEXT + 1]), "input")]
    {
        let reply = ask(&server, input, json!({}));
        reply.refuses(400, Some(param));
        assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    }
    // As many tokens as it takes are no mistake, and neither is much that is no token.
    vectors(&ask(&server, json!(vec![5; CONTEXT]), json!({})));
    vectors(&ask(&server, json!(format!("cat{}cat", " ".repeat(1 << 20))), json!({})));
    // Each of them is short enough, and yet they are too many together.
    let server = Server::tiny(&[]);
    let reply = ask(&server, json!(vec![vec![5; 1000]; 301]), json!({}));
    reply.refuses(400, Some("input[300]"));
    assert!(reply.text().contains("300000"), "{}", reply.text());
}

#[test]
fn ollamas_clients_get_them_too() {
    let server = encoder(&[]);
    let texts = ["The cat sat on the mat.", "money"];
    let expected = printed(&server, &bert(), &texts);
    let embed = |more: Value| server.post("/api/embed", &with(json!({"model": server.model}), more));
    let of = |reply: &Reply| -> Vec<Vec<f32>> {
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["embeddings"].as_array().expect("embeddings").iter().map(vector).collect()
    };
    let reply = embed(json!({"input": texts}));
    assert_eq!(of(&reply), expected);
    let count: usize = texts.iter().map(|text| tokens(&server, text).len()).sum();
    assert_eq!(reply.json()["prompt_eval_count"], count);
    assert_eq!(of(&embed(json!({"input": texts[1]}))), expected[1..]);
    assert_eq!(of(&embed(json!({"input": texts[1], "dimensions": 4})))[0].len(), 4);
    assert_eq!((of(&embed(json!({}))).len(), of(&embed(json!({"input": ""}))).len()), (0, 0));

    // What is too long is cut before its last token, which is a special one, unless that is not wanted.
    let long = "cat ".repeat(3 * CONTEXT);
    let mut cut = tokens(&server, &long);
    cut.splice(CONTEXT - 1..cut.len() - 1, []);
    let wanted = vectors(&ask(&server, json!(cut), json!({})));
    assert_eq!(cut.len(), CONTEXT);
    assert_eq!(of(&embed(json!({"input": long}))), wanted);
    assert_eq!(of(&embed(json!({"input": [long], "truncate": true}))), wanted);
    let refused = embed(json!({"input": long, "truncate": false}));
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].as_str().unwrap().contains("the model takes 64"), "{}", refused.text());

    // The older route leaves the length of the vector as it is.
    let old = |prompt: &str| {
        let reply = server.post("/api/embeddings", &json!({"model": server.model, "prompt": prompt}));
        assert_eq!(reply.status, 200, "{}", reply.text());
        vector(&reply.json()["embedding"])
    };
    let plain = old(texts[0]);
    let by = length(&plain);
    assert!((by - 1.0).abs() > 1e-3);
    assert!(plain.iter().zip(&expected[0]).all(|(a, b)| (f64::from(*a) / by - f64::from(*b)).abs() < 1e-6));
    assert!(old("").is_empty());
    let shown = server.post("/api/show", &json!({"model": server.model})).json();
    assert_eq!(shown["capabilities"], json!(["embedding"]));
    assert_eq!(shown["model_info"]["bert.embedding_length"], WIDTH);
}

#[test]
fn an_encoder_says_that_it_writes_nothing() {
    let mut server = encoder(&[]);
    let messages = json!([{"role": "user", "content": "Hello"}]);
    for (path, more) in [
        ("/v1/chat/completions", json!({"messages": messages})),
        ("/v1/chat/completions", json!({"messages": messages, "stream": true})),
        ("/v1/completions", json!({"prompt": "Hello"})),
        ("/v1/responses", json!({"input": "Hello"})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 4})),
        ("/api/chat", json!({"messages": messages})),
        ("/api/generate", json!({"prompt": "Hello"})),
    ] {
        let reply = server.post(path, &with(json!({"model": server.model}), more));
        assert_eq!(reply.status, 400, "{path}: {}", reply.text());
        assert!(reply.text().contains("does not support chat"), "{path}: {}", reply.text());
        assert!(reply.text().contains("/v1/embeddings"), "{path}: {}", reply.text());
        if path.starts_with("/v1/c") {
            reply.refuses(400, Some("model"));
        }
    }
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["architecture"]["output_modalities"], json!(["embeddings"]));
    assert_eq!(
        (&models["data"][0]["max_input_tokens"], &models["data"][0]["max_tokens"]),
        (&json!(64), &Value::Null)
    );
    // What to type next is what works.
    let said = server.wait_line("curl");
    assert!(said.contains("/v1/embeddings"), "{said}");
    assert!(!server.said().contains("chat page"));
}

#[test]
fn many_at_once_get_what_each_gets_alone() {
    let server = encoder(&["--slots", "4"]);
    let texts = |i: usize| -> Vec<String> {
        (0..1 + i % 5).map(|k| format!("the cat {} sat on mat {k}", "river ".repeat(i % 7))).collect()
    };
    let expected: Vec<Vec<Vec<f32>>> =
        (0..32).map(|i| vectors(&ask(&server, json!(texts(i)), json!({})))).collect();
    // It is counted when a text has ended, which its client may hear of a moment before.
    let asked = |times: usize| (0..32).map(|i| times * texts(i).len()).sum::<usize>() as f64;
    let counted = |of: f64| {
        eventually(FREED_IN, "all are counted", || server.metric("unicorn_embeddings_total") == of);
    };
    counted(asked(1));
    std::thread::scope(|scope| {
        for (i, expected) in expected.iter().enumerate() {
            let server = &server;
            scope.spawn(move || {
                for _ in 0..3 {
                    assert_eq!(vectors(&ask(server, json!(texts(i)), json!({}))), *expected, "request {i}");
                }
            });
        }
    });
    counted(asked(4));
    eventually(FREED_IN, "everything is free", || server.idle());
    // One request of all texts that it may have does not overflow the queue.
    assert_eq!(vectors(&ask(&server, json!(vec!["cat"; 2048]), json!({}))).len(), 2048);
}

#[test]
fn a_client_that_goes_takes_its_texts_along() {
    let mut server = Server::tiny(&["--ctx", "0", "--kv-tokens", "262144", "--slots", "2"]);
    let long: Vec<usize> = (0..250_000).map(|i| i * i % 250).collect();
    let before = server.aborted();
    let body = json!({"model": server.model, "input": long}).to_string();
    let client = server.begin("POST", "/v1/embeddings", &[], Some(body.as_bytes()));
    server.wait_state("prefill");
    drop(client);
    eventually(FREED_IN, "counted as aborted", || server.aborted() == before + 1.0);
    // Of many texts those that have not begun are not begun.
    let many = json!({"model": server.model, "input": vec![&long[..30_000]; 10]}).to_string();
    let client = server.begin("POST", "/v1/embeddings", &[], Some(many.as_bytes()));
    server.wait_state("prefill");
    assert!(server.slots().len() <= 2);
    drop(client);
    eventually(FREED_IN, "all are gone", || server.idle());
    let done = server.metric("unicorn_embeddings_total");
    server.survived();
    assert_eq!(server.metric("unicorn_embeddings_total"), done);
    assert!(done < 10.0, "{done} of 10 became vectors");
}

#[test]
fn a_model_that_writes_gives_vectors_beside_its_answers() {
    let mut server = Server::tiny(&["--ctx", "0"]);
    let texts = ["some text", "another text, which is longer", "x"];
    let model = server.folder.path().join(format!("{}.gguf", server.model));
    let expected = printed(&server, &model, &texts);
    let answer = server.complete(json!({})).answer();
    let writes = server.endless();
    assert_eq!(vectors(&ask(&server, json!(texts), json!({}))), expected);
    assert_eq!(server.complete(json!({})).answer(), answer);
    // A beginning that was computed before changes nothing.
    assert_eq!(vectors(&ask(&server, json!(texts), json!({}))), expected);
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["architecture"]["output_modalities"], json!(["text"]));
    drop(writes);
    server.survived();
}

#[test]
fn vectors_of_minilm_are_those_of_its_makers() {
    let folder = root("target/test-data/minilm");
    if !folder.exists() {
        println!("NOT RUN: no all-MiniLM-L6-v2 here, which `cargo xtask data` fetches");
        return;
    }
    // What is meant for models that write does not keep an encoder from being loaded.
    let mut server = Server::spawn(
        tempfile::tempdir().expect("a folder"),
        Some(&folder),
        &["--ctx", "1024", "--draft", "ngram"],
    );
    server.ready();
    let golden = std::fs::read(root("tests/data/embeddings/minilm.json")).expect("golden data");
    let golden: Vec<Value> = serde_json::from_slice(&golden).expect("JSON");
    let texts: Vec<&str> = golden.iter().map(|one| one["text"].as_str().unwrap()).collect();
    let began = Instant::now();
    let got = vectors(&ask(&server, json!(texts), json!({})));
    assert!(began.elapsed() < Duration::from_secs(60));
    for (one, got) in golden.iter().zip(&got) {
        let expected = vector(&one["embedding"]);
        let dot: f64 = expected.iter().zip(got).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!(1.0 - dot / length(&expected) / length(got) < 1e-4, "{}", one["text"]);
    }
    assert_eq!(got, printed(&server, &folder, &texts));
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["max_input_tokens"], 256);
}
