//! Who may ask: keys, origins, hosts.

use serde_json::json;

use super::support::{Server, file, with};
use super::tiny::tiny_model;

/// Every route that there is, a few that are not, and those that other servers have.
const ROUTES: &[(&str, &str)] = &[
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/index.html"),
    ("GET", "/metrics"),
    ("GET", "/props"),
    ("GET", "/slots"),
    ("GET", "/openapi.json"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/apply-template"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/x"),
    ("DELETE", "/v1/responses/x"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("POST", "/api/embed"),
    ("GET", "/api/tags"),
    ("POST", "/api/show"),
    ("GET", "/api/ps"),
    ("GET", "/api/version"),
    ("GET", "/no/such/route"),
    ("OPTIONS", "/v1/models"),
    ("GET", "/health/"),
    ("GET", "/health/../v1/models"),
    ("GET", "//health"),
    ("GET", "/%68ealth/x"),
    ("TRACE", "/v1/models"),
];

#[test]
fn every_route_but_health_asks_for_a_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny_model(folder.path(), Some("x"));
    let keys = file(folder.path(), "keys", "sk-secret-one\n# a comment\nsk-other\n");
    let mut server = Server::spawn(folder, Some(&model), &["--api-key-file", keys.to_str().unwrap()]);
    server.ready();
    let wrong: &[(&str, &str)] = &[
        ("X-None", "x"),
        ("Authorization", "Bearer sk-secret"),
        ("Authorization", "Bearer sk-secret-on"),
        ("Authorization", "Bearer sk-secret-one1"),
        ("Authorization", "Bearer sk-secret-onf"),
        ("Authorization", "Bearer SK-SECRET-ONE"),
        ("Authorization", "Bearer sk-secret-one sk-other"),
        ("Authorization", "Bearer # a comment"),
        ("Authorization", "Bearer "),
        ("Authorization", "Bearer"),
        ("Authorization", "sk-secret-one"),
        ("Authorization", "Digest sk-secret-one"),
        ("Authorization", "Basic c2stc2VjcmV0LW9uZQ=="),
        ("X-Api-Key", "sk-secret"),
        ("X-Api-Key", ""),
        ("Cookie", "key=sk-secret-one"),
    ];
    for (method, path) in ROUTES {
        for header in wrong {
            let body = (*method == "POST").then_some(&b"{}"[..]);
            let mut connection = server.begin(method, path, &[*header], body);
            let status = connection.head().expect("an answer").0;
            assert_eq!(status, 401, "{method} {path} {header:?}");
        }
        let query =
            server.begin(method, &format!("{path}?key=sk-secret-one&api_key=sk-other"), &[], None).head();
        assert_eq!(query.expect("an answer").0, 401, "{method} {path}");
    }
    assert_eq!(server.get("/health").status, 200);
    for header in [
        ("Authorization", "Bearer sk-secret-one"),
        ("Authorization", "bearer sk-other"),
        ("X-Api-Key", "sk-other"),
        // x:sk-other
        ("Authorization", "Basic eDpzay1vdGhlcg=="),
    ] {
        let right = &[header];
        assert_eq!(server.begin("GET", "/v1/models", right, None).reply().status, 200, "{header:?}");
        let reply = server.post_with("/v1/completions", right, &server.completion(json!({})));
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let told = server.begin("GET", "/v1/models", &[], None).reply();
    assert!(!told.text().contains("sk-"), "{}", told.text());
    assert!(!server.said().contains("sk-"), "{}", server.said());
}

/// A variable that is set asks for a key, whatever the key looks like, and one without a key does not open the server.
#[test]
fn a_key_in_the_environment_is_never_overlooked() {
    for (variable, right) in [("#s3cret", "#s3cret"), ("a-key,#other", "#other"), (" s3cret ", "s3cret")] {
        let folder = tempfile::tempdir().expect("a folder");
        let model = tiny_model(folder.path(), Some("x"));
        let mut server = Server::spawn_with(folder, Some(&model), &[], &[("UNICORN_API_KEY", variable)]);
        server.ready();
        assert_eq!(server.get("/v1/models").status, 401, "{variable}");
        let bearer = format!("Bearer {right}");
        let reply = server.begin("GET", "/v1/models", &[("Authorization", &bearer)], None).reply();
        assert_eq!(reply.status, 200, "{variable}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny_model(folder.path(), Some("x"));
    for variable in ["", " ", ",", ",\n"] {
        let mut command = super::tiny::unicorn(folder.path());
        command.env("UNICORN_API_KEY", variable).args(["serve", "--port", "0", "-m"]).arg(&model);
        let out = super::tiny::output(&mut command);
        assert_eq!(out.status.code(), Some(2), "{variable:?}");
        assert!(super::tiny::stderr(&out).contains("UNICORN_API_KEY"), "{variable:?}");
    }
    // In a file a comma belongs to the key.
    let keys = file(folder.path(), "keys", "# a comment\na,b\n");
    let mut server = Server::spawn(folder, Some(&model), &["--api-key-file", keys.to_str().unwrap()]);
    server.ready();
    for (key, status) in [("a,b", 200), ("a", 401), ("# a comment", 401)] {
        let bearer = format!("Bearer {key}");
        let reply = server.begin("GET", "/v1/models", &[("Authorization", &bearer)], None).reply();
        assert_eq!(reply.status, status, "{key}");
    }
}

#[test]
fn pages_of_others_may_not_call() {
    let mut server = Server::tiny(&["--cors-origin", "https://chat.example"]);
    let body = server.completion(json!({}));
    for origin in [
        "http://evil.example",
        "https://chat.example.evil",
        "https://evil.example/https://chat.example",
        "http://chat.example",
        "http://localhost:3000",
        "null",
        "file://",
    ] {
        let headers = &[("Origin", origin), ("Content-Type", "application/json")];
        let reply = server.post_with("/v1/completions", headers, &body);
        reply.refuses(403, None);
        assert!(reply.header("access-control-allow-origin").is_none(), "{reply:?}");
        let asked = &[("Origin", origin), ("Access-Control-Request-Method", "POST")];
        let reply = server.begin("OPTIONS", "/v1/completions", asked, None).reply();
        assert_eq!(reply.status, 403, "{origin}");
    }
    let own = format!("http://localhost:{}", server.port);
    let host = format!("localhost:{}", server.port);
    for (origin, host) in [("https://chat.example", host.as_str()), (&own, &host)] {
        let headers = &[("Origin", origin), ("Host", host), ("Content-Type", "application/json")];
        assert_eq!(server.post_with("/v1/completions", headers, &body).status, 200, "{origin}");
    }
    let asked = &[("Origin", "https://chat.example"), ("Access-Control-Request-Method", "POST")];
    let reply = server.begin("OPTIONS", "/v1/completions", asked, None).reply();
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://chat.example"));
    server.survived();
}

/// A page can make a browser reach this address under a name of its own (DNS rebinding).
#[test]
fn names_of_others_do_not_reach_it() {
    let mut server = Server::tiny(&["--allow-host", "box.lan"]);
    for host in [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "localhost@evil.example",
        "box.lan.evil",
    ] {
        let reply = server.begin("GET", "/v1/models", &[("Host", host)], None).reply();
        assert!([400, 403].contains(&reply.status), "{host}: {reply:?}");
    }
    for host in ["localhost", "127.0.0.1:8080", "[::1]:8080", "box.lan", "BOX.lan:80"] {
        assert_eq!(server.begin("GET", "/v1/models", &[("Host", host)], None).reply().status, 200, "{host}");
    }
    // The name may stand in the first line in its place.
    let mut connection = server.connect();
    connection.send(b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(connection.reply().status, 403);
    server.survived();
}

/// Forms are what a page of another site can send. Programs, which send no Origin, may call their JSON what they like.
#[test]
fn forms_are_taken_from_programs_alone() {
    let mut server = Server::tiny(&[]);
    let body = server.completion(json!({}));
    let host = format!("localhost:{}", server.port);
    let own = format!("http://{host}");
    for kind in ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"] {
        assert_eq!(
            server.post_with("/v1/completions", &[("Content-Type", kind)], &body).status,
            200,
            "{kind}"
        );
        let browser = &[("Origin", own.as_str()), ("Host", host.as_str()), ("Content-Type", kind)];
        server.post_with("/v1/completions", browser, &body).refuses(415, None);
    }
    assert_eq!(server.post("/v1/completions", &with(body, json!({"user": "x"}))).status, 200);
    server.survived();
}
