//! A request on its way through the engine.

use std::time::Instant;

use unicorn_core::SequenceId;

use crate::constraint::Constrained;
use crate::drafts::Drafting;
use crate::embed::Pooler;
use crate::kv::StatePages;
use crate::kv_store::Chain;
use crate::request::{Failure, Request, Timings};
use crate::sampling::Sampler;

use super::scores::Scores;

/// A failed batch.
#[derive(Debug)]
pub(super) struct Fault {
    pub failure: Failure,
    /// Other sequences or drafts were in that batch: this one may not be the cause.
    pub shared: bool,
}

/// State of a waiting or running sequence.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: SequenceId,
    /// Prompt and generated tokens.
    pub tokens: Vec<u32>,
    /// Tokens of these whose state lies in `pages`.
    pub computed: usize,
    /// Tokens that were launched; those behind `computed` are in flight. One more than there are tokens, where the next one was launched
    /// before it is known.
    pub launched: usize,
    /// Where devices keep its latest token, while its latest batch leaves that there.
    pub kept: Option<u32>,
    /// Its own slot among those that devices have.
    pub slot: u32,
    /// How it becomes a vector, where it is not to be continued.
    pub embedding: Option<Pooler>,
    /// Where guesses come from.
    pub drafting: Option<Drafting>,
    /// What its text has to obey.
    pub constraint: Option<Constrained>,
    /// Batches in flight that have tokens of this sequence.
    pub flights: usize,
    /// The number of the latest batch with tokens of this sequence.
    pub latest: Option<u64>,
    /// Something of it was reported.
    pub told: bool,
    /// Empty while waiting.
    pub pages: StatePages,
    /// Full pages that others know of.
    pub published: usize,
    /// Full pages that are wanted in a store.
    pub wanted: usize,
    /// What its full pages are called in a store.
    pub chains: Vec<Chain>,
    /// Times that it has waited for a store.
    pub restores: usize,
    /// What went wrong with a batch, until all of its batches have landed.
    pub failure: Option<Fault>,
    /// The next batch is this sequence's own: one that it shared failed.
    pub alone: bool,
    /// Devices that were lost while it ran.
    pub losses: u32,
    /// It was cancelled, and ends when all of its batches have landed.
    pub cancelled: bool,
    pub sampler: Sampler,
    /// What is known of its prompt's log probabilities, until they were reported.
    pub scores: Option<Scores>,
    pub prompt_tokens: usize,
    pub reused_tokens: usize,
    /// How many of these came from a store.
    pub restored_tokens: usize,
    pub max_tokens: Option<usize>,
    pub stop_tokens: Vec<u32>,
    pub keep: bool,
    pub priority: i32,
    pub group: u64,
    pub scope: u64,
    /// When its latest batch was launched.
    pub sent: Instant,
    /// Nothing but single tokens and drafts was in the batch that landed last.
    pub timed: bool,
    added: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    pub fn new(
        id: SequenceId,
        request: Request,
        sampler: Sampler,
        drafting: Option<Drafting>,
        constraint: Option<Constrained>,
        pages: StatePages,
    ) -> Sequence {
        let scores = request.prompt_logprobs.map(|top| Scores::new(request.prompt.len(), top));
        Sequence {
            id,
            prompt_tokens: request.prompt.len(),
            tokens: request.prompt,
            computed: 0,
            launched: 0,
            kept: None,
            slot: 0,
            embedding: None,
            drafting,
            constraint,
            flights: 0,
            latest: None,
            told: false,
            pages,
            published: 0,
            wanted: 0,
            chains: Vec::new(),
            restores: 0,
            failure: None,
            alone: false,
            losses: 0,
            cancelled: false,
            sampler,
            scores,
            reused_tokens: 0,
            restored_tokens: 0,
            max_tokens: request.max_tokens,
            stop_tokens: request.stop_tokens,
            keep: request.keep,
            priority: request.priority,
            group: request.group,
            scope: request.scope,
            sent: Instant::now(),
            timed: false,
            added: Instant::now(),
            started: None,
            first_token: None,
            last_token: None,
        }
    }

    /// Tokens whose state may come from elsewhere, and one that has to be computed.
    pub fn reusable(&self) -> &[u32] {
        let most = self.scores.as_ref().map_or(usize::MAX, |scores| scores.first() + 1);
        let most = if self.embedding.as_ref().is_none_or(Pooler::skips_beginnings) { most } else { 0 };
        &self.tokens[..self.tokens.len().min(most)]
    }

    /// Tokens not launched yet.
    pub fn pending(&self) -> usize {
        self.tokens.len().saturating_sub(self.launched)
    }

    /// The slot that its next token will be in, where that can be launched before it is known: when its last token is in flight, the device
    /// keeps what follows, and the sequence goes on behind that as far as can be told.
    pub fn goes_ahead(&self, context: usize) -> Option<u32> {
        let alive = self.failure.is_none() && !self.cancelled && !self.alone;
        let goes_on =
            self.max_tokens.is_none_or(|most| self.generated() + 1 < most) && self.launched < context;
        let latest = self.flights == 1 && self.launched == self.tokens.len();
        self.kept.filter(|_| alive && goes_on && latest)
    }

    /// True when it has tokens to launch and nothing speaks against launching them.
    pub fn is_ready(&self) -> bool {
        self.pending() > 0 && self.failure.is_none() && !self.cancelled
    }

    /// True where it has generated tokens and all but the last are launched: one that was preempted reads them again first, as a prompt.
    pub fn decodes(&self) -> bool {
        self.generated() > 0 && self.pending() <= 1
    }

    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Leaves the queue with the pages and positions of a reused prefix. A preempted sequence comes here again: its times and
    /// its count of reused tokens are those of the first start.
    /// True when this is the first start.
    pub fn start(&mut self, pages: StatePages, reused: usize, restored: usize) -> bool {
        self.pages = pages;
        self.computed = reused;
        self.launched = reused;
        self.published = 0;
        self.wanted = 0;
        self.restores = 0;
        let first = self.started.is_none();
        if first {
            self.started = Some(Instant::now());
            self.reused_tokens = reused;
            self.restored_tokens = restored.min(reused);
        }
        first
    }

    /// Goes back to the queue; everything is computed again later. Nothing of it is in flight.
    pub fn preempt(&mut self) {
        self.pages.truncate(0);
        self.computed = 0;
        self.launched = 0;
        self.embedding.iter_mut().for_each(Pooler::reset);
    }

    /// Its devices are gone, and all that they had of it.
    pub fn survive(&mut self) {
        self.preempt();
        self.failure = None;
        self.alone = false;
        self.kept = None;
        self.latest = None;
        self.chains.clear();
        self.restores = 0;
    }

    /// True once it has left the queue.
    pub fn was_started(&self) -> bool {
        self.started.is_some()
    }

    /// A batch with `tokens` of it, drafts left out, has landed well, and `accepted` drafts behind them were right. What was computed for the
    /// others is written over by what comes in their place.
    pub fn advance(&mut self, tokens: usize, accepted: usize) {
        self.computed += tokens + accepted;
        self.launched += accepted;
    }

    /// Forgets that anything was computed for drafts that were wrong.
    pub fn rewind(&mut self) {
        self.pages.rewind(self.computed);
    }

    /// Guesses of what follows the last token, at most `max`.
    pub fn draft(&mut self, max: usize, vocab: usize) -> Vec<u32> {
        // The last token of an answer needs no draft behind it.
        let left = self.max_tokens.map_or(max, |most| most.saturating_sub(self.generated() + 1));
        let drafting = self.drafting.as_mut().filter(|_| !self.alone);
        drafting.map_or(Vec::new(), |d| d.draft(&self.tokens, max.min(left), vocab))
    }

    /// Asks the constraint, if there is one, what may come next.
    pub fn constrain(&mut self, vocab: usize) -> Result<(), String> {
        if let Some(constraint) = &mut self.constraint {
            self.sampler.allow(constraint.mask(vocab)?);
        }
        Ok(())
    }

    /// Tells the constraint, if there is one, which token was chosen; true when nothing may follow it.
    pub fn accept(&mut self, token: u32) -> Result<bool, String> {
        self.constraint.as_mut().map_or(Ok(false), |constraint| constraint.accept(token))
    }

    /// Gives up what a failed batch left behind, to try again alone, from an earlier position where recurrent state is there no longer.
    pub fn retry(&mut self) {
        self.failure = None;
        self.alone = true;
        self.computed = self.pages.truncate(self.computed);
        self.launched = self.computed;
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
            restored_tokens: self.restored_tokens,
            queue_seconds: seconds(Some(self.added), self.started),
            prefill_seconds: seconds(self.started, self.first_token),
            generated_tokens: self.generated(),
            decode_seconds: seconds(self.first_token, self.last_token),
            drafted_tokens: self.drafting.as_ref().map_or(0, |d| d.drafted),
            accepted_tokens: self.drafting.as_ref().map_or(0, |d| d.accepted),
        }
    }
}
