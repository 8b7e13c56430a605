//! A request on its way through the engine.

use std::time::Instant;

use unicorn_core::SequenceId;

use crate::kv::PageList;
use crate::request::{Request, Timings};
use crate::sampling::Sampler;

/// State of a waiting or running sequence.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: SequenceId,
    /// Prompt and generated tokens.
    pub tokens: Vec<u32>,
    /// Tokens of these whose K and V lie in `pages`.
    pub computed: usize,
    /// Empty while waiting.
    pub pages: PageList,
    pub sampler: Sampler,
    pub prompt_tokens: usize,
    pub reused_tokens: usize,
    pub max_tokens: Option<usize>,
    pub stop_tokens: Vec<u32>,
    pub keep: bool,
    added: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    pub fn new(id: SequenceId, request: Request, sampler: Sampler, pages: PageList) -> Sequence {
        Sequence {
            id,
            prompt_tokens: request.prompt.len(),
            tokens: request.prompt,
            computed: 0,
            pages,
            sampler,
            reused_tokens: 0,
            max_tokens: request.max_tokens,
            stop_tokens: request.stop_tokens,
            keep: request.keep,
            added: Instant::now(),
            started: None,
            first_token: None,
            last_token: None,
        }
    }

    /// Tokens not computed yet; at least 1 while running.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Leaves the queue with the pages and positions of a reused prefix. A preempted sequence comes here again: its times and
    /// its count of reused tokens are those of the first start.
    pub fn start(&mut self, pages: PageList, reused: usize) {
        self.pages = pages;
        self.computed = reused;
        if self.started.is_none() {
            self.started = Some(Instant::now());
            self.reused_tokens = reused;
        }
    }

    /// Goes back to the queue; everything is computed again later.
    pub fn preempt(&mut self) {
        self.pages.truncate(0);
        self.computed = 0;
    }

    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        let now = Instant::now();
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    pub fn timings(&self) -> Timings {
        let now = Instant::now();
        let seconds = |from: Option<Instant>, to: Option<Instant>| {
            from.map_or(0.0, |from| to.unwrap_or(now).duration_since(from).as_secs_f64())
        };
        Timings {
            prompt_tokens: self.prompt_tokens,
            reused_tokens: self.reused_tokens,
            queue_seconds: seconds(Some(self.added), self.started),
            prefill_seconds: seconds(self.started, self.first_token),
            generated_tokens: self.generated(),
            decode_seconds: seconds(self.first_token, self.last_token),
        }
    }
}
