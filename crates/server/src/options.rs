//! How a server is set up.

use std::time::Duration;

/// Limits, keys and names. Everything that a request may take is bounded here.
#[derive(Clone, PartialEq, Debug)]
pub struct ServerOptions {
    /// API keys; without any, no request needs one.
    pub keys: Vec<String>,
    /// Origins whose pages may call the server, for example `https://chat.example`; `*` for all. Its own page always may.
    pub origins: Vec<String>,
    /// Names in `Host` headers beside `localhost` and numeric addresses.
    pub hosts: Vec<String>,
    /// Names of models with at most one `*`, and what they stand for; an empty name is the default model.
    pub aliases: Vec<(String, String)>,
    /// Models that are loaded at once; fewer where the memory does not do for them.
    pub models_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// Bytes of all bodies that are being read.
    pub bodies_bytes_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// How long a client may take to send a head.
    pub head_time: Duration,
    /// How long a client may take to send a body.
    pub body_time: Duration,
    /// How long a client may take nothing of an answer.
    pub write_time: Duration,
    /// Connections at once; more wait to be accepted.
    pub connections_max: usize,
    /// Responses that are kept for `previous_response_id` and its like; the oldest go.
    pub responses_max: usize,
    /// Bytes of these.
    pub responses_bytes_max: usize,
    /// Answers to one request.
    pub choices_max: usize,
    /// A sign of life is sent on a stream after this much silence.
    pub ping: Duration,
    /// A line is written down for each request.
    pub log_requests: bool,
    /// How long running answers may take once the server is told to end.
    pub drain: Duration,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            keys: Vec::new(),
            origins: Vec::new(),
            hosts: Vec::new(),
            aliases: ["gpt-*", "claude-*"].map(|pattern| (pattern.to_owned(), String::new())).to_vec(),
            models_max: 1,
            body_bytes_max: 32 << 20,
            bodies_bytes_max: 256 << 20,
            head_bytes_max: 32 << 10,
            head_time: Duration::from_secs(15),
            body_time: Duration::from_secs(60),
            write_time: Duration::from_secs(60),
            connections_max: 1024,
            responses_max: 4096,
            responses_bytes_max: 64 << 20,
            choices_max: 16,
            ping: Duration::from_secs(10),
            log_requests: false,
            drain: Duration::from_secs(30),
        }
    }
}
