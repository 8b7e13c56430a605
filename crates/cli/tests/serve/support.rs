//! A server in a process of its own, and what is asked of it after each attack.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Connection, Reply, request};
use super::tiny::{tiny_model, unicorn};

pub const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
/// What the process may take beyond what it took at its start.
const MEMORY_EXTRA_BYTES: u64 = 256 << 20;
/// Time in which what a gone client held must be free.
pub const FREED_IN: Duration = Duration::from_secs(2);

/// A running server, which is killed when dropped.
pub struct Server {
    child: Child,
    pub port: u16,
    pub model: String,
    lines: Mutex<Receiver<String>>,
    said: String,
    memory_bytes: u64,
    pub folder: tempfile::TempDir,
}

impl Server {
    /// A server of a tiny model with one token a byte, ready.
    pub fn tiny(args: &[&str]) -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let model = tiny_model(folder.path(), Some(TEMPLATE));
        let mut server = Server::spawn(folder, Some(&model), args);
        server.ready();
        server
    }

    /// A server of a real model; `None`, and a line about it, where that is not on this machine.
    pub fn smollm2(args: &[&str]) -> Option<Server> {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-data");
        let model = data.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
        if !model.exists() {
            println!("NOT RUN: no SmolLM2 here, which `cargo xtask data` fetches");
            return None;
        }
        let mut server = Server::spawn(tempfile::tempdir().expect("a folder"), Some(&model), args);
        server.ready();
        Some(server)
    }

    /// A server of a tiny model, ready, in which things go wrong: see `UNICORN_FAULTS`.
    pub fn faulty(faults: &str, args: &[&str]) -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let model = tiny_model(folder.path(), Some(TEMPLATE));
        Server::faulty_of(folder, &model, faults, args)
    }

    /// The same of another model.
    pub fn faulty_of(folder: tempfile::TempDir, model: &Path, faults: &str, args: &[&str]) -> Server {
        let mut server = Server::spawn_with(folder, Some(model), args, &[("UNICORN_FAULTS", faults)]);
        server.ready();
        server
    }

    /// A server that listens and loads its model.
    pub fn spawn(folder: tempfile::TempDir, model: Option<&Path>, args: &[&str]) -> Server {
        Server::spawn_with(folder, model, args, &[])
    }

    pub fn spawn_with(
        folder: tempfile::TempDir,
        model: Option<&Path>,
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> Server {
        let mut command = unicorn(folder.path());
        command.env_remove("UNICORN_API_KEY").envs(variables.iter().copied());
        command.args(["serve", "--threads", "1"]);
        if !args.contains(&"--device") {
            command.args(["--device", "cpu"]);
        }
        if !args.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        if let Some(model) = model {
            command.arg("-m").arg(model);
        }
        let mut child = command
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = child.stderr.take().expect("stderr");
        let (tell, lines) = channel();
        thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| drop(tell.send(line)));
        });
        let (port, said, memory_bytes, lines) = (0, String::new(), 0, Mutex::new(lines));
        let mut server = Server { child, port, model: String::new(), lines, said, memory_bytes, folder };
        let line = server.wait_line("listening on http://");
        let (_, address) = line.split_once("http://").unwrap();
        let (address, model) = address.split_once(", loading ").unwrap();
        server.port = address.rsplit(':').next().unwrap().parse().unwrap();
        server.model = model.to_owned();
        server
    }

    /// Waits until the model is loaded.
    pub fn ready(&mut self) {
        self.wait_line("ready: ");
        self.memory_bytes = self.resident_bytes();
    }

    /// Waits until a line that holds this was said.
    pub fn wait_line(&mut self, part: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.get_mut().unwrap().recv_timeout(left) else {
                panic!("{part:?} was not said: {}", self.said)
            };
            self.said += &line;
            self.said.push('\n');
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Everything said so far.
    pub fn said(&mut self) -> &str {
        while let Ok(line) = self.lines.get_mut().unwrap().try_recv() {
            self.said += &line;
            self.said.push('\n');
        }
        &self.said
    }

    pub fn connect(&self) -> Connection {
        Connection::open(self.port)
    }

    /// Sends a request and returns the connection, to wait for the answer or not.
    pub fn begin(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Connection {
        let mut connection = self.connect();
        assert!(connection.send(&request(method, path, headers, body)), "{method} {path} could not be sent");
        connection
    }

    pub fn get(&self, path: &str) -> Reply {
        self.begin("GET", path, &[], None).reply()
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_with(path, &[], body)
    }

    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        self.begin("POST", path, headers, Some(body.to_string().as_bytes())).reply()
    }

    /// A completion with further fields.
    pub fn complete(&self, more: Value) -> Reply {
        self.post("/v1/completions", &self.completion(more))
    }

    /// The body of a completion with further fields.
    pub fn completion(&self, more: Value) -> Value {
        with(json!({"model": self.model, "prompt": "1", "max_tokens": 4, "temperature": 0}), more)
    }

    /// The body of a chat with further fields.
    pub fn chat(&self, more: Value) -> Value {
        let messages = json!([{"role": "user", "content": "Hello"}]);
        with(json!({"model": self.model, "messages": messages, "max_tokens": 4, "temperature": 0}), more)
    }

    /// Begins a stream that would go on for minutes, and waits for its first event.
    pub fn endless(&self) -> Connection {
        let body = self.completion(json!({"max_tokens": 1_000_000, "stream": true}));
        let mut connection = self.begin("POST", "/v1/completions", &[], Some(body.to_string().as_bytes()));
        assert_eq!(connection.head().expect("an answer").0, 200);
        connection.chunk().expect("an event");
        connection
    }

    /// A figure of `/metrics` by its name with its labels; 0 where it is not there yet.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let line = text.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a figure"))
    }

    /// Requests that ended because somebody gave them up.
    pub fn aborted(&self) -> f64 {
        self.metric("vllm:request_success_total{finished_reason=\"abort\"}")
    }

    pub fn slots(&self) -> Vec<Value> {
        self.get("/slots").json().as_array().expect("a list").clone()
    }

    /// Waits until some request is in this state.
    pub fn wait_state(&self, state: &str) {
        eventually(Duration::from_secs(10), &format!("a request in {state}"), || {
            self.slots().iter().any(|slot| slot["state"] == state)
        });
    }

    /// Nothing runs, waits or holds pages.
    pub fn idle(&self) -> bool {
        self.metric("vllm:num_requests_running") == 0.0
            && self.metric("vllm:num_requests_waiting") == 0.0
            && self.metric("vllm:kv_cache_usage_perc") == 0.0
            && self.slots().is_empty()
    }

    /// What must be true after an attack.
    pub fn survived(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the process has ended: {}", self.said());
        eventually(FREED_IN, "everything is free", || self.idle());
        self.complete(json!({})).answer();
        let grown = self.resident_bytes().saturating_sub(self.memory_bytes);
        assert!(grown < MEMORY_EXTRA_BYTES, "{} MB more than at the start", grown >> 20);
        assert!(!self.said().contains("panicked"), "{}", self.said);
    }

    pub fn resident_bytes(&self) -> u64 {
        self.memory_status("VmRSS:")
    }

    /// The most that it ever had.
    pub fn peak_bytes(&self) -> u64 {
        self.memory_status("VmHWM:")
    }

    fn memory_status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a figure");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let kill = std::process::Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(kill.expect("kill").success());
    }

    /// Waits for the end of the process.
    pub fn end(&mut self, within: Duration) -> ExitStatus {
        let mut status = None;
        eventually(within, "the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An object with the fields of another.
pub fn with(mut body: Value, more: Value) -> Value {
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    body
}

/// Waits until something is true.
pub fn eventually(within: Duration, what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !is() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A file in a folder.
pub fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a file");
    path
}
