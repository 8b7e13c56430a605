//! Ollama's API of `unicorn serve`, and the document that describes all routes, over raw HTTP.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Running, named_tiny_model, tiny_model, unchunked, unicorn};

const TEMPLATE: &str = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant: {% endif %}";
const NAME: &str = "tiny";
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    _process: Running,
    port: u16,
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    fn lines(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.body);
        assert!(self.head.contains("content-type: application/x-ndjson"), "{}", self.head);
        self.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// The error, in Ollama's form.
    fn refused(self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        let body = self.json();
        assert_eq!(body.as_object().map(|body| body.len()), Some(1), "{body}");
        body["error"].as_str().expect("a sentence").to_owned()
    }
}

impl Server {
    fn start(command: &mut Command) -> Server {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the binary");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr"));
        let mut seen = String::new();
        let port = loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).expect("text") > 0, "it ended: {seen}");
            seen += &line;
            if let Some((_, rest)) = line.split_once("listening on http://127.0.0.1:") {
                break rest.split(',').next().and_then(|n| n.trim().parse().ok()).expect("a port");
            }
        };
        while !seen.contains("\nready: ") {
            assert!(stderr.read_line(&mut seen).expect("text") > 0, "it ended: {seen}");
        }
        // What it says later must not fill the pipe.
        std::thread::Builder::new()
            .spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()))
            .expect("a thread");
        Server { _process: Running(child), port }
    }

    fn of(model: &Path, more: &[&str]) -> Server {
        let home = model.parent().expect("a folder");
        let mut command = unicorn(home);
        command.args(["serve", "--port", "0", "--device", "cpu", "-m"]).arg(model).args(more);
        Server::start(&mut command)
    }

    fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Reply {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        headers.iter().for_each(|header| head += &format!("{header}\r\n"));
        head += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes()).expect("sent");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("an answer");
        let text = String::from_utf8(bytes).expect("UTF-8");
        let (head, rest) = text.split_once("\r\n\r\n").expect("a head");
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        let body = match head.contains("transfer-encoding: chunked") {
            true => unchunked(rest),
            false => rest.to_owned(),
        };
        Reply { status, head, body }
    }

    fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], "")
    }

    fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &["Content-Type: application/json"], &body.to_string())
    }

    fn loaded(&self) -> Vec<Value> {
        self.get("/api/ps").ok()["models"].as_array().expect("a list").clone()
    }

    fn wait_unloaded(&self) {
        let since = Instant::now();
        while !self.loaded().is_empty() {
            assert!(since.elapsed() < PATIENCE, "still loaded");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A server of one model that chats.
fn chatting() -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::of(&tiny_model(folder.path(), Some(TEMPLATE)), &[]);
    (folder, server)
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().expect("an object").append(&mut more.as_object().expect("an object").clone());
    body
}

fn chat(more: Value) -> Value {
    let base = json!({"model": NAME, "messages": [{"role": "user", "content": "hi"}],
        "options": {"temperature": 0, "num_predict": 6}});
    with(base, more)
}

fn generate(more: Value) -> Value {
    with(json!({"model": NAME, "prompt": "hi", "options": {"temperature": 0, "num_predict": 6}}), more)
}

#[test]
fn chats_stream_by_default_and_say_the_same_in_one_piece() {
    let (_folder, server) = chatting();
    let lines = server.post("/api/chat", &chat(json!({}))).lines();
    let (last, pieces) = lines.split_last().expect("lines");
    assert!(pieces.iter().all(|line| line["done"] == json!(false)), "{lines:?}");
    let text: String = pieces.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("length")));
    assert_eq!((&last["eval_count"], &last["model"]), (&json!(6), &json!(NAME)));
    assert!(last["prompt_eval_count"].as_u64() > Some(5), "{last}");
    let nanoseconds = |name: &str| last[name].as_u64().expect("a whole number");
    let parts = nanoseconds("prompt_eval_duration") + nanoseconds("eval_duration");
    assert!(parts > 0 && parts <= nanoseconds("total_duration"), "{last}");
    let whole = server.post("/api/chat", &chat(json!({"stream": false}))).ok();
    assert_eq!(whole["message"], json!({"role": "assistant", "content": text}));
    // The name may have a tag, which comes back as it was sent.
    let tagged = server.post("/api/chat", &chat(json!({"stream": false, "model": "tiny:latest"}))).ok();
    assert_eq!((&tagged["model"], &tagged["message"]), (&json!("tiny:latest"), &whole["message"]));
    // The same conversation over OpenAI's API.
    let body = json!({"model": NAME, "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 6});
    let openai = server.post("/v1/chat/completions", &body).ok();
    assert_eq!(openai["choices"][0]["message"]["content"], whole["message"]["content"]);
}

#[test]
fn an_answer_that_is_begun_is_gone_on_with() {
    let (_folder, server) = chatting();
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let ask = |messages: Value| {
        let whole = server.post("/api/chat", &chat(json!({"stream": false, "messages": messages}))).ok();
        (whole["prompt_eval_count"].as_u64().expect("a count"), whole["message"]["content"].clone())
    };
    let (tokens, _) = ask(json!([turn("user", "hi")]));
    // "abc" behind the header of the assistant's turn, and no further header.
    let (begun, text) = ask(json!([turn("user", "hi"), turn("assistant", "abc")]));
    assert_eq!(begun, tokens + 3);
    let raw = "<|turn|>user: hi\n<|turn|>assistant: abc";
    let body = generate(json!({"stream": false, "raw": true, "prompt": raw}));
    assert_eq!(server.post("/api/generate", &body).ok()["response"], text);
}

#[test]
fn generating_uses_the_template_unless_the_prompt_is_raw() {
    let (_folder, server) = chatting();
    let say =
        |more: Value| server.post("/api/generate", &with(generate(json!({"stream": false})), more)).ok();
    let templated = say(json!({}));
    assert_eq!(
        templated["response"],
        say(json!({"raw": true, "prompt": "<|turn|>user: hi\n<|turn|>assistant: "}))["response"]
    );
    assert!(templated.get("message").is_none(), "{templated}");
    let raw = say(json!({"raw": true}));
    assert_eq!(raw["prompt_eval_count"], 2);
    let system = say(json!({"system": "be brief"}));
    assert_eq!(
        system["prompt_eval_count"].as_u64(),
        Some(templated["prompt_eval_count"].as_u64().expect("n") + 18)
    );
    let body = json!({"model": NAME, "prompt": "hi", "temperature": 0, "max_tokens": 6});
    assert_eq!(raw["response"], server.post("/v1/completions", &body).ok()["choices"][0]["text"]);
    let lines = server.post("/api/generate", &generate(json!({"logprobs": true, "top_logprobs": 2}))).lines();
    let scores: Vec<&Value> =
        lines.iter().filter_map(|line| line.get("logprobs")?.as_array()).flatten().collect();
    assert_eq!(scores.len(), 6, "{lines:?}");
    assert!(scores.iter().all(|score| score["top_logprobs"].as_array().is_some_and(|top| top.len() == 2)));
}

#[test]
fn options_reach_the_sampler_and_bound_the_answer() {
    let (_folder, server) = chatting();
    let say = |options: Value| {
        let body = generate(json!({"stream": false, "raw": true, "options": options}));
        server.post("/api/generate", &body).ok()
    };
    let seeded =
        |seed: u64| say(json!({"seed": seed, "num_predict": 12, "temperature": 1.5}))["response"].clone();
    assert_eq!(seeded(7), seeded(7));
    assert_ne!(seeded(7), seeded(8));
    // Two tokens of prompt and a context of five leave three.
    let bounded = say(json!({"num_ctx": 5, "num_predict": -1}));
    assert_eq!((&bounded["eval_count"], &bounded["done_reason"]), (&json!(3), &json!("length")));
    let greedy =
        say(json!({"temperature": 0, "num_predict": 12}))["response"].as_str().expect("text").to_owned();
    let (at, stop) = greedy.char_indices().nth(4).map(|(at, c)| (at, c.to_string())).expect("text");
    let first = greedy.find(&stop).expect("it is in it");
    assert!(first <= at);
    let stopped = say(json!({"temperature": 0, "num_predict": 12, "stop": [stop]}));
    assert_eq!((&stopped["response"], &stopped["done_reason"]), (&json!(greedy[..first]), &json!("stop")));
}

#[test]
fn formats_hold_the_answer() {
    let (_folder, server) = chatting();
    let options = json!({"temperature": 1, "seed": 3, "num_predict": 64});
    let format = json!({"enum": ["done"]});
    let more = json!({"format": format, "options": options, "stream": false});
    let told = server.post("/api/chat", &chat(more.clone())).ok();
    assert_eq!(
        (&told["message"]["content"], &told["done_reason"]),
        (&json!("\"done\""), &json!("stop")),
        "{told}"
    );
    assert_eq!(server.post("/api/generate", &generate(more)).ok()["response"], "\"done\"");
    let lost = json!({"format": {"$ref": "#/nowhere"}});
    assert!(server.post("/api/chat", &chat(lost)).refused(400).starts_with("format"));
}

#[test]
fn without_content_the_model_is_loaded_and_keep_alive_unloads_it() {
    let (_folder, server) = chatting();
    for (path, empty) in [("/api/chat", json!({"messages": []})), ("/api/generate", json!({"prompt": ""}))] {
        let load = server.post(path, &with(json!({"model": NAME}), empty.clone())).ok();
        assert_eq!((&load["done"], &load["done_reason"]), (&json!(true), &json!("load")), "{load}");
        assert_eq!(server.loaded().len(), 1);
        let unload = server.post(path, &with(json!({"model": NAME, "keep_alive": 0}), empty)).ok();
        assert_eq!(unload["done_reason"], "unload");
        assert!(server.loaded().is_empty());
    }
    // Requests with content load it and let it go.
    let whole = server.post("/api/chat", &chat(json!({"stream": false, "keep_alive": "0s"}))).ok();
    assert!(whole["load_duration"].as_u64() > Some(0), "{whole}");
    server.wait_unloaded();
    server.post("/api/generate", &generate(json!({"keep_alive": 0}))).lines();
    server.wait_unloaded();
    // With no limit it stays for ever, which is told; one that is set is told too, and asking again takes it back.
    let until = || server.loaded()[0]["expires_at"].as_str().expect("a time").to_owned();
    server.post("/api/generate", &generate(json!({"keep_alive": -1}))).lines();
    assert!(until().starts_with("23"), "{}", until());
    server.post("/api/generate", &generate(json!({"keep_alive": "5m"}))).lines();
    assert!(until().starts_with("20"), "{}", until());
    server.post("/api/generate", &generate(json!({}))).lines();
    assert!(until().starts_with("23"), "{}", until());
}

#[test]
fn models_are_listed_and_shown_loaded_or_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let models = folder.path().join("models");
    for (name, template) in [("chats", Some(TEMPLATE)), ("continues", None)] {
        let own = models.join(format!("{name}-made"));
        std::fs::create_dir_all(&own).expect("a folder");
        std::fs::rename(named_tiny_model(&own, name, template), models.join(format!("{name}.gguf")))
            .expect("moved");
    }
    let mut command = unicorn(folder.path());
    command.args(["serve", "--port", "0", "--device", "cpu", "--models-dir"]).arg(&models);
    let server = Server::start(&mut command);
    server.post("/v1/models/load", &json!({"model": "chats"})).ok();
    let tags = server.get("/api/tags").ok();
    let tags = tags["models"].as_array().expect("a list");
    let names: Vec<&str> = tags.iter().filter_map(|tag| tag["name"].as_str()).collect();
    assert_eq!(names, ["chats", "continues"]);
    assert_eq!(
        (&tags[0]["details"]["family"], &tags[1]["details"]["family"]),
        (&json!("llama"), &json!("llama"))
    );
    let loaded = server.loaded();
    assert_eq!((loaded.len(), &loaded[0]["name"], &loaded[0]["size_vram"]), (1, &json!("chats"), &json!(0)));
    for (name, capabilities) in
        [("chats", json!(["completion", "tools"])), ("continues", json!(["completion"]))]
    {
        let shown = server.post("/api/show", &json!({"model": name})).ok();
        assert_eq!(shown["capabilities"], capabilities);
        let info = &shown["model_info"];
        assert_eq!((&info["general.architecture"], &info["general.name"]), (&json!("llama"), &json!(name)));
        // The context that the server gives, not the million that the file allows.
        assert_eq!(
            (&info["llama.context_length"], &info["llama.embedding_length"]),
            (&json!(32768), &json!(32))
        );
        assert!(info["general.parameter_count"].as_u64() > Some(10_000), "{info}");
        assert_eq!(shown["details"]["family"], "llama");
        assert!(shown["parameters"].as_str().expect("text").contains("num_ctx 32768\n"), "{shown}");
    }
    assert_eq!(server.post("/api/show", &json!({"name": "chats:latest"})).ok()["template"], TEMPLATE);
    assert_eq!(server.loaded()[0]["name"], "chats", "showing loads nothing");
    // Without a template a prompt is taken as it is, and there is no place for more.
    let plain = json!({"model": "continues", "prompt": "hi", "stream": false, "options": {"num_predict": 2}});
    assert_eq!(server.post("/api/generate", &plain).ok()["prompt_eval_count"], 2);
    assert!(
        server.post("/api/generate", &with(plain, json!({"system": "x"}))).refused(400).contains("system")
    );
    let version = server.get("/api/version").ok()["version"].as_str().expect("a version").to_owned();
    let numbers: Vec<u32> = version.split('.').filter_map(|n| n.parse().ok()).collect();
    assert!(numbers.len() == 3 && numbers > vec![0, 13, 4], "{version}");
    assert_eq!(server.send("HEAD", "/api/version", &[], "").status, 200);
}

#[test]
fn what_is_wrong_is_told_in_ollamas_form() {
    let (_folder, server) = chatting();
    for path in ["/api/chat", "/api/generate", "/api/show", "/api/embed", "/api/pull"] {
        let error = server.post(path, &json!({"model": "missing"})).refused(404);
        assert!(error.contains("'missing' not found") && error.contains(NAME), "{path}: {error}");
        assert!(server.post(path, &json!({})).refused(400).contains("model"), "{path}");
        assert!(server.send("POST", path, &[], "{").refused(400).contains("JSON"), "{path}");
    }
    let wrong = |path: &str, body: Value, word: &str| {
        let error = server.post(path, &body).refused(400);
        assert!(error.contains(word), "{path} {body}: {error}");
    };
    wrong(
        "/api/chat",
        chat(json!({"messages": [{"role": "user", "images": ["aGk="]}]})),
        "messages[0].images",
    );
    wrong("/api/chat", chat(json!({"messages": [{"role": "king", "content": ""}]})), "messages[0].role");
    wrong("/api/chat", chat(json!({"options": {"num_ctx": 4}})), "options.num_ctx");
    wrong("/api/chat", chat(json!({"options": {"temperature": "hot"}})), "options.temperature");
    wrong("/api/chat", chat(json!({"options": {"repeat_penalty": 0}})), "options.repeat_penalty");
    wrong("/api/chat", chat(json!({"format": "xml"})), "format");
    wrong("/api/chat", chat(json!({"think": true})), "does not support thinking");
    wrong("/api/chat", chat(json!({"keep_alive": "soon"})), "keep_alive");
    wrong(
        "/api/chat",
        chat(json!({"tools": [{"type": "function", "function": {}}]})),
        "tools[0].function.name",
    );
    wrong("/api/generate", generate(json!({"suffix": "x"})), "suffix");
    wrong("/api/generate", generate(json!({"template": "x"})), "template");
    wrong("/api/generate", generate(json!({"prompt": "x".repeat(40_000)})), "32768");
    let none =
        [("POST", "/api/push"), ("POST", "/api/create"), ("POST", "/api/copy"), ("DELETE", "/api/delete")];
    for (method, path) in
        none.into_iter().chain([("HEAD", "/api/blobs/sha256:0"), ("POST", "/api/blobs/sha256:0")])
    {
        assert_eq!(server.send(method, path, &[], "").status, 501, "{method} {path}");
    }
    server.get("/api/nothing").refused(404);
    server.get("/api/chat").refused(405);
}

#[test]
fn a_model_that_is_here_can_be_pulled_and_no_other() {
    let (_folder, server) = chatting();
    let lines = server.post("/api/pull", &json!({"model": NAME})).lines();
    assert_eq!(lines.last(), Some(&json!({"status": "success"})));
    let whole = server.post("/api/pull", &json!({"name": "tiny:latest", "stream": false})).ok();
    assert_eq!(whole, json!({"status": "success"}));
    assert!(server.post("/api/pull", &json!({"model": "llama9"})).refused(404).contains("-m llama9"));
}

#[test]
fn bodies_need_no_content_type_unless_a_page_sends_them() {
    let (_folder, server) = chatting();
    let body = generate(json!({"stream": false})).to_string();
    let form = "Content-Type: application/x-www-form-urlencoded";
    for headers in [&[][..], &[form]] {
        assert_eq!(server.send("POST", "/api/generate", headers, &body).status, 200, "{headers:?}");
    }
    assert_eq!(server.send("POST", "/api/generate", &[form, "Origin: http://localhost"], &body).status, 415);
    assert_eq!(server.send("POST", "/api/generate", &["Origin: https://evil.example"], &body).status, 403);
}

#[test]
fn models_are_loaded_and_unloaded_on_request() {
    let (_folder, server) = chatting();
    let name = json!({"model": NAME});
    for prefix in ["", "/v1"] {
        let unloaded = server.post(&format!("{prefix}/models/unload"), &name);
        if unloaded.status == 409 {
            // The first model may still be on its way.
            server.post("/models/load", &name).ok();
            assert_eq!(server.post("/models/unload", &name).ok()["loaded"], false);
        }
        assert!(server.loaded().is_empty());
        assert_eq!(server.post(&format!("{prefix}/models/unload"), &name).ok()["success"], true);
        let loaded = server.post(&format!("{prefix}/models/load"), &name).ok();
        assert_eq!(loaded, json!({"success": true, "model": NAME, "loaded": true}));
        assert_eq!(server.loaded().len(), 1);
    }
    let missing = server.post("/v1/models/load", &json!({"model": "missing"}));
    assert_eq!((missing.status, &missing.json()["error"]["param"]), (404, &json!("model")));
    // One that answers is not unloaded.
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("a connection");
    let body = generate(json!({"options": {"num_predict": -1}})).to_string();
    let head = format!(
        "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream.read_exact(&mut [0; 16]).expect("it began");
    assert_eq!(server.post("/models/unload", &name).status, 409);
    drop(stream);
}

/// Answers fit the schemas of `/openapi.json`.
#[test]
fn answers_are_what_the_document_says() {
    let (_folder, server) = chatting();
    let document = server.get("/openapi.json").ok();
    let check = |schema: &str, value: &Value| {
        let reference = format!("#/components/schemas/{schema}");
        let whole = json!({"$ref": reference, "components": document["components"]});
        let validator = jsonschema::validator_for(&whole).expect("a schema");
        let errors: Vec<String> =
            validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{schema}: {errors:?}\n{value}");
    };
    let ask = |path: &str, request: &str, body: Value| {
        check(request, &body);
        server.post(path, &body)
    };
    let messages = json!([{"role": "user", "content": "hi"}]);
    let short =
        json!({"model": NAME, "max_tokens": 3, "logprobs": true, "top_logprobs": 1, "messages": messages});
    check("ChatCompletion", &ask("/v1/chat/completions", "ChatRequest", short.clone()).ok());
    let streamed = with(short, json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = ask("/v1/chat/completions", "ChatRequest", streamed).body;
    let events: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert!(events.len() > 4 && events.last() == Some(&"[DONE]"), "{events:?}");
    for event in &events[..events.len() - 1] {
        check("ChatChunk", &serde_json::from_str(event).expect("JSON"));
    }
    let body = json!({"model": NAME, "prompt": "hi", "max_tokens": 3, "logprobs": 2});
    check("Completion", &ask("/v1/completions", "CompletionRequest", body).ok());
    for line in ask("/api/chat", "OllamaChatRequest", chat(json!({"logprobs": true}))).lines() {
        check("OllamaChatLine", &line);
    }
    for line in ask("/api/generate", "OllamaGenerateRequest", generate(json!({"keep_alive": "5m"}))).lines() {
        check("OllamaGenerateLine", &line);
    }
    check("OllamaShow", &ask("/api/show", "OllamaModel", json!({"model": NAME})).ok());
    check(
        "OllamaStatus",
        &ask("/api/pull", "OllamaPullRequest", json!({"name": NAME, "stream": false})).ok(),
    );
    let body = json!({"model": NAME, "input": ["hi", [1, 2]], "dimensions": 4, "truncate": false});
    check("OllamaEmbed", &ask("/api/embed", "OllamaEmbedRequest", body).ok());
    let body = json!({"model": NAME, "prompt": "hi"});
    check("OllamaEmbedding", &ask("/api/embeddings", "OllamaEmbeddingRequest", body).ok());
    for format in ["float", "base64"] {
        let body = json!({"model": NAME, "input": "hi", "encoding_format": format});
        check("Embeddings", &ask("/v1/embeddings", "EmbeddingsRequest", body).ok());
    }
    check("Tokens", &ask("/tokenize", "TokenizeRequest", json!({"content": "hi", "with_pieces": true})).ok());
    check("Content", &ask("/detokenize", "DetokenizeRequest", json!({"tokens": [1, 2]})).ok());
    check(
        "RenderedPrompt",
        &ask("/apply-template", "ApplyTemplateRequest", json!({"messages": messages})).ok(),
    );
    check("ModelState", &ask("/v1/models/load", "ModelName", json!({"model": NAME})).ok());
    let body = json!({"model": NAME, "input": "hi", "max_output_tokens": 3});
    check("Response", &ask("/v1/responses", "ResponsesRequest", body.clone()).ok());
    check("ResponseTokens", &server.post("/v1/responses/input_tokens", &body).ok());
    let body = json!({"model": NAME, "max_tokens": 3, "messages": messages});
    check("AnthropicMessage", &ask("/v1/messages", "MessagesRequest", body.clone()).ok());
    check("InputTokens", &ask("/v1/messages/count_tokens", "CountTokensRequest", body).ok());
    check("AnthropicError", &server.post("/v1/messages", &json!({})).json());
    for (path, schema) in [
        ("/tokenizer_info", "TokenizerInfo"),
        ("/health", "Health"),
        ("/props", "Props"),
        ("/v1/models", "ModelList"),
        ("/v1/models/tiny", "Model"),
        ("/api/tags", "OllamaTags"),
        ("/api/ps", "OllamaPs"),
        ("/api/version", "OllamaVersion"),
    ] {
        check(schema, &server.get(path).ok());
    }
    check("Error", &server.post("/v1/completions", &json!({})).json());
    check("OllamaError", &server.post("/api/chat", &json!({})).json());
}
