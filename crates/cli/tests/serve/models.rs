//! Several models: one that is broken hurts no other, and each gets its turn.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{Server, TEMPLATE, eventually};
use super::tiny::tiny_model;

/// Tiny models of these names in a folder of their own.
fn models(folder: &Path, names: &[&str]) -> PathBuf {
    let models = folder.join("models");
    std::fs::create_dir(&models).expect("a folder");
    for name in names {
        let file = tiny_model(folder, Some(TEMPLATE));
        std::fs::rename(file, models.join(format!("{name}.gguf"))).expect("a model");
    }
    models
}

/// A server of these models, of which `a` is loaded.
fn server(names: &[&str], args: &[&str], variables: &[(&str, &str)]) -> (Server, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let models = models(folder.path(), names);
    let mut all = vec!["--models-dir", models.to_str().unwrap()];
    all.extend(args);
    let mut server = Server::spawn_with(folder, None, &all, variables);
    server.ready();
    assert_eq!(server.model, "a");
    (server, models)
}

fn loaded(server: &Server) -> Vec<String> {
    let models = server.get("/api/ps").json();
    let name = |model: &Value| model["name"].as_str().unwrap().to_owned();
    models["models"].as_array().unwrap().iter().map(name).collect()
}

#[test]
fn a_broken_file_unloads_nothing() {
    let (mut server, models) = server(&["a", "b"], &[], &[]);
    let good = std::fs::read(models.join("b.gguf")).unwrap();
    std::fs::write(models.join("b.gguf"), &good[..good.len() / 2]).unwrap();
    eventually(Duration::from_secs(5), "the change is seen", || {
        let list = server.get("/v1/models").json();
        list["data"][1]["id"] == "b" && list["data"][1]["meta"].is_null()
    });
    for _ in 0..2 {
        let reply = server.complete(json!({"model": "b"}));
        assert_eq!(reply.status, 500, "{}", reply.text());
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("b.gguf") && message.matches("b.gguf").count() == 1, "{message}");
        assert!(!reply.text().contains(models.to_str().unwrap()), "{}", reply.text());
        assert_eq!(loaded(&server), ["a"]);
    }
    // Whoever runs the server is told where it is.
    let path = models.join("b.gguf");
    server.wait_line(path.to_str().unwrap());
    assert_eq!(server.metric("unicorn_model_loads_total"), 1.0);
    // At least once: what failed is not tried again at once.
    assert!(server.metric("unicorn_model_load_failures_total") >= 1.0);
    // Another file is.
    std::fs::write(&path, &good).unwrap();
    eventually(Duration::from_secs(5), "it is loaded", || {
        server.complete(json!({"model": "b"})).status == 200
    });
    assert_eq!(loaded(&server), ["b"]);
    server.complete(json!({})).answer();
    server.survived();
}

/// Who is asked without a pause keeps nobody else waiting.
#[test]
fn every_model_gets_its_turn() {
    let (mut server, _) = server(&["a", "b", "c"], &[], &[]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    server.complete(json!({"max_tokens": 200, "ignore_eos": true})).answer();
                }
            });
        }
        eventually(Duration::from_secs(5), "two run", || server.metric("vllm:num_requests_running") >= 2.0);
        let others = ["b", "c", "b"].map(|model| {
            let server = &server;
            scope.spawn(move || {
                let began = Instant::now();
                let reply = server.complete(json!({"model": model}));
                (model, reply.status, began.elapsed())
            })
        });
        let replies = others.map(|one| one.join().expect("an answer in time"));
        done.store(true, Ordering::Relaxed);
        for (model, status, after) in replies {
            assert!(status == 200 && after < Duration::from_secs(20), "{model}: {status} after {after:?}");
        }
    });
    server.survived();
}

#[test]
fn what_is_not_loaded_is_described() {
    let (mut server, models) = server(&["a", "b"], &["--ctx", "512"], &[]);
    let list = server.get("/v1/models").json();
    let [a, b] = [&list["data"][0], &list["data"][1]];
    assert_eq!((a["id"].as_str(), b["id"].as_str()), (Some("a"), Some("b")));
    for name in ["context_length", "max_model_len", "max_input_tokens"] {
        assert_eq!((&a[name], &b[name]), (&json!(512), &json!(512)), "{name}");
    }
    assert_eq!(a["meta"], b["meta"]);
    assert_eq!(b["meta"]["n_ctx_train"], 1 << 20);
    assert_eq!(server.get("/v1/models/b").json()["context_length"], 512);
    let props = server.get("/props?model=b").json();
    assert_eq!(
        (&props["model"], &props["loaded"], &props["context_length"]),
        (&json!("b"), &json!(false), &json!(512))
    );
    assert_eq!(server.get("/props").json()["model"], "a");
    server.get("/props?model=c").refuses(404, Some("model"));
    let tags = server.get("/api/tags").json();
    assert_eq!(tags["models"][1]["details"]["family"], "llama");
    assert_eq!(loaded(&server), ["a"]);
    // What comes later is found.
    std::fs::copy(models.join("a.gguf"), models.join("c.gguf")).unwrap();
    eventually(Duration::from_secs(5), "it is there", || {
        server.complete(json!({"model": "c"})).status == 200
    });
    server.survived();
}

/// A model that has lost its devices for good is no reason to send nobody here, unless it is the one that all ask for; that one gets well
/// without being asked.
#[test]
fn health_is_that_of_the_default_model() {
    // Both models have been loaded by then, each with some work to warm up.
    let faults = (30..36).map(|at| format!("lose@{at}")).collect::<Vec<_>>().join(",");
    for lost in ["b", "a"] {
        let (server, _) = server(&["a", "b"], &["--models-max", "2"], &[("UNICORN_FAULTS", &faults)]);
        server.complete(json!({"model": "b", "max_tokens": 1})).answer();
        let reply = server.complete(json!({"model": lost, "max_tokens": 100, "ignore_eos": true}));
        assert_eq!(reply.status, 500, "{}", reply.text());
        let health = server.get("/health");
        match lost {
            "b" => assert_eq!(health.status, 200, "{}", health.text()),
            _ => {
                assert_eq!(health.status, 503, "{}", health.text());
                eventually(Duration::from_secs(60), "it gets well", || server.get("/health").status == 200);
                server.complete(json!({})).answer();
            }
        }
    }
}
