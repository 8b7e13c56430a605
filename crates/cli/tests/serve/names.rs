//! Names of models lead to models, and nowhere else.

use serde_json::json;

use super::support::{Server, TEMPLATE};
use super::tiny::tiny_model;

#[test]
fn names_do_not_leave_the_folder() {
    let (folder, outside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let models = folder.path().join("models");
    std::fs::create_dir(&models).unwrap();
    tiny_model(&models, Some(TEMPLATE));
    let secret = tiny_model(outside.path(), Some(TEMPLATE));
    let secret = secret.to_str().unwrap().to_owned();
    std::os::unix::fs::symlink(&secret, models.join("link.gguf")).unwrap();
    std::os::unix::fs::symlink(outside.path(), models.join("folder")).unwrap();
    std::os::unix::fs::symlink("loop.gguf", models.join("loop.gguf")).unwrap();
    std::fs::write(models.join("zbroken.gguf"), b"GGUF\x03\0\0\0").unwrap();
    std::fs::copy(&secret, folder.path().join("beside.gguf")).unwrap();
    let mut server = Server::spawn(folder, None, &["--models-dir", models.to_str().unwrap()]);
    server.ready();
    let ids: Vec<String> = server.get("/v1/models").json()["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, ["tiny", "zbroken"]);
    server.model = "tiny".into();
    let long = "x".repeat(1 << 20);
    let names = [
        "../beside",
        "../beside.gguf",
        "..",
        ".",
        "",
        "/",
        "models/../../beside",
        "%2e%2e%2fbeside",
        "..\\beside",
        &secret,
        "link",
        "link.gguf",
        "folder",
        "folder/tiny",
        "loop",
        "tiny\0",
        "tiny\0.gguf",
        "tiny/",
        "./tiny",
        "TINY",
        "tiny.gguf\n",
        "file:///etc/passwd",
        "https://example.com/model.gguf",
        "owner/repo:Q4_0",
        &long,
    ];
    for name in names {
        for (path, body) in [
            ("/v1/completions", json!({"model": name, "prompt": "1", "max_tokens": 1})),
            ("/v1/chat/completions", server.chat(json!({"model": name}))),
            ("/tokenize", json!({"model": name, "content": "x"})),
        ] {
            server.post(path, &body).refuses(404, Some("model"));
        }
    }
    for path in [
        "/v1/models/../beside",
        "/v1/models/%2e%2e%2fbeside",
        "/v1/models/..%2fbeside",
        "/v1/models/%2fetc%2fpasswd",
        "/v1/models/link",
        "/v1/models/tiny%00",
        "/v1/models/%ff",
        "/v1/models/%",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/../../../etc/passwd",
    ] {
        let reply = server.get(path);
        assert!([400, 404].contains(&reply.status), "{path}: {reply:?}");
        assert!(reply.json()["error"]["message"].is_string(), "{path}: {}", reply.text());
    }
    // A file that is no model fails as itself, each time, and hurts no other.
    for _ in 0..2 {
        let reply = server.complete(json!({"model": "zbroken"}));
        assert!(reply.status >= 500 && reply.json()["error"]["message"].as_str().is_some(), "{reply:?}");
        server.complete(json!({})).answer();
    }
}

#[test]
fn names_of_the_wrong_kind_are_named() {
    let mut server = Server::tiny(&[]);
    for model in [json!(null), json!(3), json!([]), json!({}), json!(true)] {
        for path in ["/v1/completions", "/v1/chat/completions"] {
            server
                .post(path, &server.chat(json!({"model": model, "prompt": "1"})))
                .refuses(400, Some("model"));
        }
    }
    server.survived();
}

/// Pictures are not fetched from anywhere.
#[test]
fn nothing_is_fetched() {
    let mut server = Server::tiny(&[]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/x.png", listener.local_addr().unwrap());
    for part in [
        json!({"type": "image_url", "image_url": {"url": url}}),
        json!({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}),
        json!({"type": "input_audio", "input_audio": {"data": url}}),
        json!({"type": "file", "file": {"file_id": url}}),
    ] {
        let body = server.chat(json!({"messages": [{"role": "user", "content": [part]}]}));
        server.post("/v1/chat/completions", &body).refuses(400, Some("messages[0].content[0].type"));
    }
    assert!(listener.accept().is_err(), "something was fetched");
    server.survived();
}
