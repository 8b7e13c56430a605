//! The Responses API and Anthropic's API of `unicorn serve`, over raw HTTP.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::{Running, tiny_model, unchunked, unicorn};

/// Every character is a token here, but for `he`, so that prompts can be counted by hand.
const TEMPLATE: &str = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant: {% endif %}";
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    _process: Running,
    port: u16,
    /// Holds the model.
    _home: tempfile::TempDir,
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find_map(|line| line.split_once(": ").filter(|(n, _)| *n == name));
        line.map(|(_, value)| value)
    }

    /// The events of a stream: name and data.
    fn events(&self) -> Vec<(String, Value)> {
        assert_eq!(self.header("content-type"), Some("text/event-stream"), "{} {}", self.head, self.body);
        let event = |text: &str| {
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let data = serde_json::from_str(&field("data: ")?).expect("JSON");
            Some((field("event: ").expect("a name"), data))
        };
        self.body.split("\n\n").filter_map(event).collect()
    }
}

impl Server {
    fn start(more: impl FnOnce(&mut Command)) -> Server {
        let home = tempfile::tempdir().expect("a folder");
        let model = tiny_model(home.path(), Some(TEMPLATE));
        let mut command = unicorn(home.path());
        command.args(["serve", "--port", "0", "--device", "cpu", "--ctx", "2048", "-m"]).arg(&model);
        more(&mut command);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the binary");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr"));
        let (mut line, mut port) = (String::new(), None);
        let port = loop {
            line.clear();
            assert!(stderr.read_line(&mut line).expect("text") > 0, "the server ended");
            if let Some((_, rest)) = line.split_once("listening on http://127.0.0.1:") {
                port = rest.split(',').next().and_then(|n| n.trim().parse().ok());
            }
            // Before that its model is loading.
            if line.starts_with("ready:") {
                break port.expect("a port");
            }
        };
        // What it says later must not fill the pipe.
        let drain = move || std::io::copy(&mut stderr, &mut std::io::sink());
        std::thread::Builder::new().spawn(drain).expect("a thread");
        Server { _process: Running(child), port, _home: home }
    }

    fn plain() -> Server {
        Server::start(|_| {})
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: Option<&Value>) -> Reply {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             {headers}content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).expect("sent");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("an answer in time");
        let text = String::from_utf8(bytes).expect("UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a status");
        let chunked = head.contains("transfer-encoding: chunked");
        let body = if chunked { unchunked(body) } else { body.to_owned() };
        Reply { status, head, body }
    }

    fn post(&self, path: &str, body: Value) -> Reply {
        self.ask("POST", path, "", Some(&body))
    }

    fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, "", None)
    }

    /// A response of a few tokens, always the same.
    fn response(&self, mut body: Value) -> Value {
        for (name, value) in
            [("model", json!("tiny")), ("max_output_tokens", 6.into()), ("temperature", 0.into())]
        {
            if body.get(name).is_none() {
                body[name] = value;
            }
        }
        self.post("/v1/responses", body).ok()
    }
}

/// Tokens of what the template makes of these turns.
fn tokens(turns: &[(&str, &str)]) -> usize {
    let turn = |role: &str, content: &str| {
        // The mark in front is one token, ": " two, the line break one.
        4 + role.len() + content.len() - content.matches("he").count()
    };
    turns.iter().map(|(role, content)| turn(role, content)).sum::<usize>() + turn("assistant", "") - 1
}

fn field(value: &Value, path: &str) -> Value {
    value.pointer(path).cloned().unwrap_or_else(|| panic!("no {path} in {value}"))
}

fn text_of(response: &Value) -> String {
    field(response, "/output/0/content/0/text").as_str().expect("text").to_owned()
}

#[test]
fn a_response_is_whole() {
    let server = Server::plain();
    let response =
        server.response(json!({"input": "ab", "instructions": "c", "metadata": {"k": "v"}, "user": "u"}));
    let expected = json!({
        "object": "response", "status": "incomplete", "background": false, "error": null, "conversation": null,
        "incomplete_details": {"reason": "max_output_tokens"}, "instructions": "c", "max_output_tokens": 6,
        "max_tool_calls": null, "model": "tiny", "parallel_tool_calls": true, "previous_response_id": null,
        "prompt_cache_key": "", "prompt_cache_retention": null, "reasoning": {"effort": null, "summary": null},
        "safety_identifier": "", "service_tier": "default", "store": true, "temperature": 0.0,
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_logprobs": 0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "truncation": "disabled", "metadata": {"k": "v"},
        "user": "u",
    });
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(response.get(name), Some(value), "{name}");
    }
    let mut names: Vec<&str> = response.as_object().expect("an object").keys().map(String::as_str).collect();
    names.retain(|name| expected.get(name).is_none());
    assert_eq!(names, ["id", "created_at", "completed_at", "output", "top_p", "usage"]);
    let prompt = tokens(&[("system", "c"), ("user", "ab")]);
    assert_eq!(field(&response, "/usage/input_tokens"), prompt);
    assert_eq!(field(&response, "/usage/output_tokens"), 6);
    assert_eq!(field(&response, "/usage/total_tokens"), prompt + 6);
    let message = field(&response, "/output/0");
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(field(&message, "/content/0/annotations"), json!([]));
    let body = json!({"model": "tiny", "input": "ab", "instructions": "c"});
    let counted = server.post("/v1/responses/input_tokens", body).ok();
    assert_eq!(counted, json!({"object": "response.input_tokens", "input_tokens": prompt}));
}

#[test]
fn a_response_is_kept_and_built_upon() {
    let server = Server::plain();
    let first = server.response(json!({"input": "one"}));
    let (id, said) = (first["id"].as_str().expect("an id"), text_of(&first));
    assert_eq!(server.get(&format!("/v1/responses/{id}")).ok(), first);
    let items = server.get(&format!("/v1/responses/{id}/input_items?order=asc&limit=5")).ok();
    assert_eq!(field(&items, "/data/0/content"), json!([{"type": "input_text", "text": "one"}]));
    assert_eq!((&items["first_id"], &items["has_more"]), (&field(&items, "/data/0/id"), &json!(false)));

    // The same conversation in four ways has the same tokens and the same answer.
    let whole = json!([{"role": "user", "content": "one"}, {"role": "assistant", "content": said}, {"role": "user", "content": "two"}]);
    let expected = server.response(json!({"input": whole, "store": false}));
    let on = server.response(json!({"input": "two", "previous_response_id": id}));
    let reference = json!([{"role": "user", "content": "one"},
        {"type": "item_reference", "id": field(&first, "/output/0/id")}, {"role": "user", "content": "two"}]);
    let referred = server.response(json!({"input": reference}));
    let mut given = vec![json!({"role": "user", "content": "one"})];
    given.extend(first["output"].as_array().expect("items").clone());
    given
        .push(json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "two"}]}));
    let resent = server.response(json!({"input": given}));
    for other in [&on, &referred, &resent] {
        assert_eq!(field(other, "/usage/input_tokens"), field(&expected, "/usage/input_tokens"));
        assert_eq!(text_of(other), text_of(&expected));
    }
    assert_eq!(on["previous_response_id"], id);

    let unkept = expected["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/v1/responses/{unkept}")).status, 404);
    assert_eq!(
        server.ask("DELETE", &format!("/v1/responses/{id}"), "", None).ok(),
        json!({"id": id, "object": "response", "deleted": true})
    );
    assert_eq!(server.ask("DELETE", &format!("/v1/responses/{id}"), "", None).status, 404);
    let body = json!({"model": "tiny", "input": "x", "previous_response_id": on["id"]});
    let lost = server.post("/v1/responses", body);
    assert_eq!(
        (lost.status, field(&lost.json(), "/error/code")),
        (400, json!("previous_response_not_found"))
    );
    assert_eq!(field(&lost.json(), "/error/param"), "previous_response_id");
}

#[test]
fn responses_belong_to_keys() {
    let server = Server::start(|command| {
        let file = command.get_envs().find(|(name, _)| *name == "HOME").and_then(|(_, home)| home);
        let file = Path::new(file.expect("a home")).join("keys");
        std::fs::write(&file, "mine\nyours\n").expect("written");
        command.arg("--api-key-file").arg(file);
    });
    let (mine, yours) = ("authorization: Bearer mine\r\n", "authorization: Bearer yours\r\n");
    let body = json!({"model": "tiny", "input": "x", "max_output_tokens": 2});
    let response = server.ask("POST", "/v1/responses", mine, Some(&body)).ok();
    let id = response["id"].as_str().expect("an id");
    let path = format!("/v1/responses/{id}");
    assert_eq!(server.ask("GET", &path, mine, None).status, 200);
    assert_eq!(server.ask("GET", &path, yours, None).status, 404);
    assert_eq!(server.ask("GET", &format!("{path}/input_items"), yours, None).status, 404);
    assert_eq!(server.ask("DELETE", &path, yours, None).status, 404);
    let on = json!({"model": "tiny", "input": "x", "previous_response_id": id, "max_output_tokens": 2});
    assert_eq!(server.ask("POST", "/v1/responses", yours, Some(&on)).status, 400);
    assert_eq!(server.ask("POST", "/v1/responses", mine, Some(&on)).status, 200);
    assert_eq!(server.get(&path).status, 401);
    let refused = server.post("/v1/messages", json!({}));
    assert_eq!((refused.status, field(&refused.json(), "/error/type")), (401, json!("authentication_error")));
    assert_eq!(server.ask("POST", "/v1/messages", "x-api-key: mine\r\n", Some(&json!({}))).status, 400);
}

#[test]
fn a_response_streams_in_order() {
    let server = Server::plain();
    let plain = server.response(json!({"input": "hello"}));
    let body =
        json!({"model": "tiny", "input": "hello", "max_output_tokens": 6, "temperature": 0, "stream": true});
    let reply = server.post("/v1/responses", body);
    let events = reply.events();
    for (i, (name, event)) in events.iter().enumerate() {
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(i)));
    }
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    let deltas: String = events.iter().filter_map(|(_, event)| event["delta"].as_str()).collect();
    assert_eq!(deltas, text_of(&plain));
    let (created, last) = (&events[0].1["response"], &events.last().expect("events").1["response"]);
    assert_eq!(created["status"], "in_progress");
    assert_eq!(
        created.as_object().map(|response| response.keys().collect::<Vec<_>>()),
        plain.as_object().map(|response| response.keys().collect())
    );
    assert_eq!((&last["usage"], text_of(last)), (&plain["usage"], text_of(&plain)));
    let id = last["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/v1/responses/{id}")).ok(), *last);
}

#[test]
fn responses_tell_log_probabilities() {
    let server = Server::plain();
    let response = server.response(json!({"input": "x", "top_logprobs": 2, "max_output_tokens": 3}));
    let scores = field(&response, "/output/0/content/0/logprobs");
    let scores = scores.as_array().expect("a list");
    assert_eq!(scores.len(), 3);
    assert!(scores.iter().all(|score| score["top_logprobs"].as_array().is_some_and(|top| top.len() == 2)));
    assert_eq!(response["top_logprobs"], 2);
}

#[test]
fn wrong_requests_for_responses_are_named() {
    let server = Server::plain();
    for (body, param) in [
        (json!({"input": "x"}), "model"),
        (json!({"model": "tiny"}), "input"),
        (json!({"model": "tiny", "input": []}), "input"),
        (json!({"model": "tiny", "input": [{"type": "poem"}]}), "input[0].type"),
        (json!({"model": "tiny", "input": "x", "max_output_tokens": 0}), "max_output_tokens"),
        (json!({"model": "tiny", "input": "x", "temperature": "hot"}), "temperature"),
        (json!({"model": "tiny", "input": "x", "background": true}), "background"),
        (json!({"model": "tiny", "input": "x", "metadata": {"a": 1}}), "metadata.a"),
        (json!({"model": "tiny", "input": "x", "tools": [{"type": "function"}]}), "tools[0].name"),
        (json!({"model": "tiny", "input": "x", "tool_choice": "required"}), "tool_choice"),
        (json!({"model": "tiny", "input": "x", "text": {"format": {"type": "xml"}}}), "text.format.type"),
        (json!({"model": "tiny", "input": "x".repeat(4000), "stream": true}), "input"),
    ] {
        let reply = server.post("/v1/responses", body.clone());
        assert_eq!((reply.status, field(&reply.json(), "/error/param")), (400, json!(param)), "{body}");
    }
    let lost = server
        .post("/v1/responses", json!({"model": "tiny", "input": [{"type": "item_reference", "id": "x"}]}));
    assert_eq!((lost.status, field(&lost.json(), "/error/code")), (404, json!("item_not_found")));
    assert_eq!(server.get("/v1/responses/resp_none").status, 404);
    assert_eq!(server.post("/v1/responses/compact", json!({"model": "tiny", "input": "x"})).status, 404);
}

fn message(more: Value) -> Value {
    let mut body = json!({"model": "claude-opus-9", "max_tokens": 6, "temperature": 0});
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    body
}

#[test]
fn a_message_is_whole() {
    let server = Server::plain();
    let body = message(json!({"system": "c", "messages": [{"role": "user", "content": "ab"}]}));
    let reply = server.post("/v1/messages?beta=true", body);
    assert!(reply.header("request-id").is_some_and(|id| id.starts_with("req_")), "{}", reply.head);
    let answer = reply.ok();
    let text = field(&answer, "/content/0/text");
    let mut expected = json!({
        "type": "message", "role": "assistant", "model": "tiny", "stop_reason": "max_tokens", "stop_sequence": null,
        "stop_details": null, "container": null, "content": [{"type": "text", "text": text, "citations": []}],
        "usage": {
            "input_tokens": tokens(&[("system", "c"), ("user", "ab")]), "output_tokens": 6,
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
            "inference_geo": null, "output_tokens_details": {"thinking_tokens": 0}, "server_tool_use": null,
            "service_tier": "standard",
        },
    });
    expected["id"] = answer["id"].clone();
    assert_eq!(answer, expected);
}

#[test]
fn tokens_are_counted_as_they_are_used() {
    let server = Server::plain();
    let count =
        |body: &Value| server.post("/v1/messages/count_tokens", body.clone()).ok()["input_tokens"].clone();
    let used = |body: &Value| {
        let answer = server.post("/v1/messages", message(body.clone())).ok();
        field(&answer, "/usage/input_tokens")
    };
    let turns = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "foreign"},
            {"type": "text", "text": "c"}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "d"}]}]},
    ]);
    let long = json!({"model": "tiny", "messages": turns});
    assert_eq!(count(&long), tokens(&[("user", "a\n\nb"), ("assistant", "c"), ("tool", "d")]));
    let with_tools = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "tools": [
        {"name": "f", "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}},
        {"type": "web_search_20250305", "name": "web_search"}]});
    let begun = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "The"}]});
    // What is begun is continued: no turn ends, and none begins.
    assert_eq!(count(&begun), tokens(&[("user", "x")]) + 2);
    let cached = json!({"model": "tiny", "messages": [{"role": "user", "content": "long ".repeat(100)}]});
    for body in [&long, &with_tools, &begun, &cached, &cached] {
        assert_eq!(count(body), used(body), "{body}");
    }
    // Whoever marks what is to be cached is told what was; all parts together are what was counted.
    let marked = json!({"model": "tiny", "messages": [{"role": "user", "content": [
        {"type": "text", "text": "long ".repeat(100), "cache_control": {"type": "ephemeral"}}]}]});
    let answer = server.post("/v1/messages", message(marked.clone())).ok();
    let usage = &answer["usage"];
    let (read, input) = (usage["cache_read_input_tokens"].as_u64(), usage["input_tokens"].as_u64());
    assert!(read.is_some_and(|read| read > 100), "{usage}");
    assert_eq!(read.zip(input).map(|(read, input)| json!(read + input)), Some(count(&marked)));
    // A header for bills, which differs each time, is nothing to the model.
    let plain = json!({"model": "tiny", "system": [{"type": "text", "text": "s"}], "messages": [{"role": "user", "content": "x"}]});
    let mut billed = plain.clone();
    billed["system"] = json!([{"type": "text", "text": "x-anthropic-billing-header: cch=1a2b"}, {"type": "text", "text": "s"}]);
    assert_eq!(count(&plain), count(&billed));
}

#[test]
fn a_message_streams_in_order() {
    let server = Server::plain();
    let body = message(json!({"messages": [{"role": "user", "content": "hello"}]}));
    let plain = server.post("/v1/messages", body.clone()).ok();
    let text = field(&plain, "/content/0/text");
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let reply = server.post("/v1/messages", streamed);
    assert!(reply.header("request-id").is_some());
    let events = reply.events();
    assert!(events.iter().all(|(name, event)| event["type"] == *name));
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    let deltas: String =
        events.iter().filter_map(|(_, event)| event.pointer("/delta/text")?.as_str()).collect();
    assert_eq!(text, deltas);
    assert_eq!(field(&events[0].1, "/message/usage/input_tokens"), field(&plain, "/usage/input_tokens"));
    let delta = &events[events.len() - 2].1;
    assert_eq!(field(delta, "/delta/stop_reason"), "max_tokens");
    assert_eq!(field(delta, "/usage/output_tokens"), 6);

    // The same answer, stopped at one of its own characters.
    let stop = text.as_str().and_then(|text| text.chars().nth(2)).expect("three characters").to_string();
    let mut stopped = body;
    stopped["stop_sequences"] = json!([stop]);
    let answer = server.post("/v1/messages", stopped).ok();
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let whole = text.as_str().expect("text");
    assert_eq!(field(&answer, "/content/0/text"), whole[..whole.find(&stop).expect("is there")]);
}

#[test]
fn wrong_messages_are_named() {
    let server = Server::plain();
    let image = json!([{"type": "image", "source": {"type": "url", "url": "http://example.com/x.png"}}]);
    for (body, start) in [
        (json!({"max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}), "model: is missing"),
        (json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}]}), "max_tokens: is missing"),
        (
            json!({"model": "tiny", "max_tokens": 0, "messages": [{"role": "user", "content": "x"}]}),
            "max_tokens: must be",
        ),
        (json!({"model": "tiny", "max_tokens": 5, "messages": []}), "messages: is empty"),
        (
            json!({"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": image}]}),
            "messages[0].content[0].type:",
        ),
        (
            message(json!({"messages": [{"role": "user", "content": "x"}], "tool_choice": {"type": "any"}})),
            "tool_choice:",
        ),
    ] {
        let reply = server.post("/v1/messages", body.clone());
        let error = reply.json();
        assert_eq!(
            (reply.status, field(&error, "/error/type")),
            (400, json!("invalid_request_error")),
            "{body}"
        );
        assert!(
            field(&error, "/error/message").as_str().is_some_and(|text| text.starts_with(start)),
            "{error}"
        );
        assert_eq!(error["request_id"].as_str(), reply.header("request-id"));
    }
    let body = message(json!({"thread": {"type": "create"}, "messages": [{"role": "user", "content": "x"}]}));
    let refused = server.post("/v1/messages", body);
    assert_eq!(refused.status, 400);
    assert_eq!(field(&refused.json(), "/error/details/error_code"), "thread_unsupported_request");
    let unknown = server.post("/v1/messages", json!({"model": "x", "max_tokens": 1, "messages": []}));
    assert_eq!((unknown.status, field(&unknown.json(), "/error/type")), (404, json!("not_found_error")));
}

#[test]
fn models_are_listed_for_both() {
    let server = Server::plain();
    let list = server.get("/v1/models").ok();
    assert_eq!((&list["object"], &list["has_more"]), (&json!("list"), &json!(false)));
    assert_eq!((&list["first_id"], &list["last_id"]), (&json!("tiny"), &json!("tiny")));
    let model = server.get("/v1/models/tiny").ok();
    assert_eq!(field(&list, "/data/0"), model);
    for (name, value) in [
        ("object", json!("model")),
        ("type", json!("model")),
        ("display_name", json!("tiny")),
        ("max_input_tokens", json!(2048)),
    ] {
        assert_eq!(model[name], value, "{name}");
    }
    assert!(model["created_at"].as_str().is_some_and(|date| date.len() == 20 && date.ends_with('Z')));
}

/// A schema of one value, so that any model writes the same.
fn narrow() -> Value {
    json!({"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome"]}}, "required": ["city"],
        "additionalProperties": false})
}

#[test]
fn responses_call_tools_and_keep_to_formats() {
    let server = Server::plain();
    let tools = json!([{"type": "web_search"}, {"type": "namespace", "name": "sky", "tools": [
        {"type": "function", "name": "weather", "description": "d", "parameters": narrow()}]}]);
    let body = json!({"input": "x", "tools": tools, "tool_choice": "required", "parallel_tool_calls": false,
        "max_output_tokens": 500, "temperature": 1, "seed": 1});
    let response = server.response(body.clone());
    assert_eq!(response["status"], "completed", "{response}");
    let call = field(&response, "/output/0");
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("weather")));
    assert_eq!((&call["namespace"], &call["status"]), (&json!("sky"), &json!("completed")));
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().expect("text")).expect("JSON");
    assert_eq!(arguments, json!({"city": "Rome"}));

    let mut streamed = body;
    for (name, value) in [("stream", json!(true)), ("model", json!("tiny"))] {
        streamed[name] = value;
    }
    let events = server.post("/v1/responses", streamed).events();
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let deltas: String = events.iter().filter_map(|(_, event)| event["delta"].as_str()).collect();
    assert_eq!(call["arguments"], deltas);

    // The result goes back with the call, and the conversation goes on.
    let output = json!([{"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}]);
    let on =
        server.response(json!({"input": output, "previous_response_id": response["id"], "tools": tools}));
    assert_eq!(on["status"], "incomplete");

    let format = json!({"format": {"type": "json_schema", "name": "n", "schema": narrow(), "strict": true}});
    let body = json!({"input": "x", "text": format, "max_output_tokens": 500, "temperature": 1, "seed": 1});
    let formed = server.response(body);
    assert_eq!(formed["status"], "completed", "{formed}");
    assert_eq!(serde_json::from_str::<Value>(&text_of(&formed)).expect("JSON"), json!({"city": "Rome"}));
    let wrong = json!({"format": {"type": "json_schema", "name": "n", "schema": {"type": "nonsense"}}});
    let refused = server.post("/v1/responses", json!({"model": "tiny", "input": "x", "text": wrong}));
    assert_eq!((refused.status, field(&refused.json(), "/error/param")), (400, json!("text.format")));
}

#[test]
fn messages_use_tools_and_keep_to_formats() {
    let server = Server::plain();
    let tools =
        json!([{"name": "weather", "input_schema": narrow()}, {"type": "bash_20250124", "name": "bash"}]);
    let asked = json!([{"role": "user", "content": "x"}]);
    let body =
        message(json!({"messages": asked, "tools": tools, "max_tokens": 500, "temperature": 1, "seed": 1,
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true}}));
    let answer = server.post("/v1/messages", body.clone()).ok();
    assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
    let used = field(&answer, "/content/0");
    assert_eq!((&used["type"], &used["name"]), (&json!("tool_use"), &json!("weather")));
    assert_eq!((&used["input"], &used["caller"]), (&json!({"city": "Rome"}), &json!({"type": "direct"})));

    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = server.post("/v1/messages", streamed).events();
    let started = events.iter().find(|(name, _)| name == "content_block_start").expect("a block");
    assert_eq!(field(&started.1, "/content_block/input"), json!({}));
    let json: String =
        events.iter().filter_map(|(_, event)| event.pointer("/delta/partial_json")?.as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON"), json!({"city": "Rome"}));

    let result = json!({"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": used["id"], "content": "sunny"}, {"type": "text", "text": "and?"}]});
    let turns = json!([asked[0], {"role": "assistant", "content": answer["content"]}, result]);
    let on = message(json!({"messages": turns, "tools": tools}));
    let counted = server.post("/v1/messages/count_tokens", on.clone()).ok();
    let on = server.post("/v1/messages", on).ok();
    assert_eq!(field(&on, "/usage/input_tokens"), counted["input_tokens"]);

    let format = json!({"format": {"type": "json_schema", "schema": narrow()}});
    let formed = message(
        json!({"messages": asked, "output_config": format, "max_tokens": 500, "temperature": 1, "seed": 1}),
    );
    let formed = server.post("/v1/messages", formed).ok();
    let text = field(&formed, "/content/0/text");
    assert_eq!(
        serde_json::from_str::<Value>(text.as_str().expect("text")).expect("JSON"),
        json!({"city": "Rome"})
    );
}
