//! Schemas that cannot be honoured: refused in under a second, never left out.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::Server;

const REFUSED_IN: Duration = Duration::from_secs(1);

fn strict(schema: Value) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}})
}

/// Schemas, and the field that is wrong.
fn hostile() -> Vec<Value> {
    let mut deep = json!({"type": "string"});
    // Deeper is no JSON for the server.
    for _ in 0..55 {
        deep = json!({"type": "object", "properties": {"a": deep}, "required": ["a"]});
    }
    let words: Vec<String> = (0..50_000).map(|i| format!("a long entry {i:08}")).collect();
    let groups = "(a)".repeat(60_000);
    vec![
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        json!({"$ref": "https://example.com/schema.json"}),
        json!({"$ref": "file:///etc/passwd"}),
        json!({"type": "string", "pattern": groups}),
        json!({"type": "string", "pattern": "^a{0,1000000000}$"}),
        json!({"type": "string", "pattern": "^((a{0,1000}){0,1000}){0,1000}$"}),
        json!({"type": "string", "pattern": "^a{1000000000}$"}),
        json!({"type": "string", "pattern": "("}),
        json!({"type": "array", "items": {"type": "string"}, "minItems": 1_000_000_000}),
        json!({"type": "nonsense"}),
        json!({"type": "object", "properties": 3}),
        json!(3),
        json!("x"),
        json!({"enum": []}),
        json!({"enum": words}),
        deep,
    ]
}

/// The same for texts that are no schema.
fn hostile_grammars() -> Vec<Value> {
    let many = (0..20_000).map(|i| format!("r{i} ::= \"a\" r{}\n", i + 1)).collect::<String>();
    vec![
        json!({"structured_outputs": {"regex": "(a)".repeat(60_000)}}),
        json!({"structured_outputs": {"regex": "(a*)*".repeat(2000)}}),
        json!({"structured_outputs": {"regex": "a{0,1000000000}"}}),
        json!({"structured_outputs": {"regex": "a{1000000000}"}}),
        json!({"structured_outputs": {"regex": "(a{1000}){1000}"}}),
        json!({"structured_outputs": {"grammar": "start: /a{1000000000}/"}}),
        json!({"structured_outputs": {"grammar": "start: \"a\"{1000000000}"}}),
        json!({"grammar": "root ::= (\"a\"{1000}){1000}"}),
        json!({"structured_outputs": {"regex": "("}}),
        json!({"structured_outputs": {"choice": vec!["x".repeat(1000); 5000]}}),
        json!({"structured_outputs": {"json": "{"}}),
        json!({"structured_outputs": {"grammar": "start: start start"}}),
        json!({"structured_outputs": {"grammar": format!("start: {}", "(".repeat(10_000))}}),
        json!({"grammar": "root ::= root"}),
        json!({"grammar": "root ::= nowhere"}),
        json!({"grammar": format!("root ::= {}\"a\"{}", "(".repeat(10_000), ")".repeat(10_000))}),
        json!({"grammar": format!("root ::= r0\n{many}r20000 ::= \"a\"\n")}),
        json!({"grammar": "root ::= \"a\"{1000000000}"}),
    ]
}

#[test]
fn hostile_grammars_are_refused_soon() {
    let mut server = Server::tiny(&[]);
    for fields in hostile_grammars() {
        let begin = Instant::now();
        let reply = server.post("/v1/chat/completions", &server.chat(fields.clone()));
        let shown: String = fields.to_string().chars().take(100).collect();
        assert!(begin.elapsed() < REFUSED_IN, "{shown}: {:?}", begin.elapsed());
        if reply.status != 200 {
            reply.refuses(400, None);
            assert!(reply.json()["error"]["param"].is_string(), "{shown}: {}", reply.text());
        }
    }
    server.survived();
}

/// What is refused is refused soon and named; what is taken is honoured, which other tests see to.
#[test]
fn hostile_schemas_are_refused_soon() {
    let mut server = Server::tiny(&[]);
    for schema in hostile() {
        for stream in [false, true] {
            let begin = Instant::now();
            let mut body = server.chat(strict(schema.clone()));
            body["stream"] = stream.into();
            let reply = server.post("/v1/chat/completions", &body);
            let took = begin.elapsed();
            let shown: String = schema.to_string().chars().take(100).collect();
            assert!(took < REFUSED_IN, "{shown}: {took:?}");
            if reply.status == 200 {
                // Taken: then the few tokens that there were began what the schema asks for.
                assert!(!stream || reply.text().contains("data: "), "{shown}");
                continue;
            }
            assert_eq!(reply.status, 400, "{shown}: {}", reply.text());
            let error = reply.json();
            let param = error["error"]["param"].as_str().unwrap_or_default();
            assert!(param.starts_with("response_format"), "{shown}: {error}");
            assert!(reply.body.len() < 4096, "{shown}: an error of {} bytes", reply.body.len());
        }
    }
    server.survived();
}

#[test]
fn formats_of_the_wrong_kind_are_named() {
    let mut server = Server::tiny(&[]);
    for (format, param) in [
        (json!("json"), "response_format"),
        (json!({}), "response_format.type"),
        (json!({"type": "yaml"}), "response_format.type"),
        (json!({"type": "json_schema"}), "response_format.json_schema"),
    ] {
        let body = server.chat(json!({"response_format": format}));
        server.post("/v1/chat/completions", &body).refuses(400, Some(param));
    }
    for (tools, param) in [
        (json!("x"), "tools"),
        (json!([3]), "tools[0]"),
        (json!([{"type": "function"}]), "tools[0].function"),
        (json!([{"type": "function", "function": {"name": ""}}]), "tools[0].function.name"),
        (
            json!([{"type": "function", "function": {"name": "x", "parameters": 3}}]),
            "tools[0].function.parameters",
        ),
    ] {
        let body = server.chat(json!({"tools": tools}));
        server.post("/v1/chat/completions", &body).refuses(400, Some(param));
    }
    server.survived();
}

/// Whatever the tokens, a text under a grammar is one of the grammar's, or its beginning where the tokens ran out.
#[test]
fn text_under_a_grammar_is_the_grammars() {
    let mut server = Server::tiny(&[]);
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
    for seed in 0..5 {
        let mut body = server.chat(strict(schema.clone()));
        body["temperature"] = json!(1.5);
        body["seed"] = json!(seed);
        body["max_tokens"] = json!(200);
        let reply = server.post("/v1/chat/completions", &body);
        assert_eq!(reply.status, 200, "{}", reply.text());
        let choice = reply.json()["choices"][0].clone();
        let text = choice["message"]["content"].as_str().expect("a text").to_owned();
        if choice["finish_reason"] == "stop" {
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!(value == json!({"a": "x"}) || value == json!({"a": "y"}), "{value}");
        } else {
            assert!(text.trim_start().starts_with('{'), "{text}");
        }
    }
    server.survived();
}
