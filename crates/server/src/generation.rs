//! From the tokens of a job to the pieces of an answer.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_stream::{Stream, StreamExt};
use unicorn_engine::{FinishReason, Timings, TokenLogprobs};
use unicorn_text::{Detokenizer, Tokenizer};

use crate::error::ApiError;
use crate::stops::Stops;
use crate::worker::{Progress, Tokens};

/// A piece of an answer.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Part {
    /// What is said.
    Text(String),
    /// What is thought.
    Reasoning(String),
    /// A call of a tool begins.
    CallStart { index: usize, id: String, name: String },
    /// More of the arguments of a call, JSON in all.
    CallArguments { index: usize, delta: String },
}

/// A token with its log probability.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Scored {
    pub token: Spelled,
    pub logprob: f32,
    /// The most likely tokens, most likely first.
    pub top: Vec<(Spelled, f32)>,
}

/// A token as it is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Spelled {
    pub id: u32,
    /// Its text; bytes that are no characters alone show as U+FFFD.
    pub text: String,
    pub bytes: Vec<u8>,
}

impl Spelled {
    pub fn new(id: u32, tokenizer: &Tokenizer) -> Spelled {
        let bytes = tokenizer.token_bytes(id).map(|b| b.into_owned()).unwrap_or_default();
        Spelled { id, text: String::from_utf8_lossy(&bytes).into_owned(), bytes }
    }
}

/// What came since the last time.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Delta {
    pub parts: Vec<Part>,
    /// The tokens of these parts, where log probabilities were asked for.
    pub tokens: Vec<Scored>,
    /// Set in the last one.
    pub end: Option<End>,
}

/// Why an answer ended.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Finish {
    /// The model ended it.
    Stop,
    /// One of the stop strings came.
    StopString(String),
    /// It has as many tokens as it may have, or the context is full.
    Length,
    /// It ends in calls of tools.
    ToolCalls,
    /// It failed.
    Failed(String),
}

/// The end of an answer.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct End {
    pub finish: Finish,
    pub timings: Timings,
    /// Tokens of what was thought.
    pub reasoning_tokens: usize,
}

/// A call of a tool.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Call {
    pub id: String,
    pub name: String,
    /// JSON.
    pub arguments: String,
}

/// A whole answer.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Answer {
    pub text: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
    pub tokens: Vec<Scored>,
    pub end: End,
}

/// Waits for the whole of an answer.
///
/// # Errors
/// Why it failed.
pub(crate) async fn collect(mut generation: Generation) -> Result<Answer, ApiError> {
    let (mut text, mut reasoning) = (String::new(), String::new());
    let (mut calls, mut tokens): (Vec<Call>, Vec<Scored>) = (Vec::new(), Vec::new());
    while let Some(delta) = generation.next().await {
        for part in delta.parts {
            match part {
                Part::Text(piece) => text += &piece,
                Part::Reasoning(piece) => reasoning += &piece,
                Part::CallStart { id, name, .. } => calls.push(Call { id, name, arguments: String::new() }),
                Part::CallArguments { index, delta } => {
                    if let Some(call) = calls.get_mut(index) {
                        call.arguments += &delta;
                    }
                }
            }
        }
        tokens.extend(delta.tokens);
        match delta.end {
            Some(End { finish: Finish::Failed(why), .. }) => return Err(ApiError::internal(why)),
            Some(end) => return Ok(Answer { text, reasoning, calls, tokens, end }),
            None => {}
        }
    }
    Err(ApiError::internal("the answer ended without an end"))
}

/// How an answer is to be read.
pub(crate) struct Reading {
    pub detokenizer: Detokenizer,
    pub stops: Vec<String>,
    pub tokenizer: Tokenizer,
}

/// One answer as it comes. Dropping it cancels the job.
pub(crate) struct Generation {
    tokens: Tokens,
    detokenizer: Detokenizer,
    tokenizer: Tokenizer,
    stops: Stops,
    generated: usize,
    done: bool,
}

impl Generation {
    pub fn new(tokens: Tokens, reading: Reading) -> Generation {
        let Reading { detokenizer, stops, tokenizer } = reading;
        let stops = Stops::new(stops);
        Generation { tokens, detokenizer, tokenizer, stops, generated: 0, done: false }
    }

    fn scored(&self, token: u32, logprobs: Option<TokenLogprobs>) -> Option<Scored> {
        let TokenLogprobs { logprob, top } = logprobs?;
        let spelled = |id| Spelled::new(id, &self.tokenizer);
        let top = top.into_iter().map(|(id, logprob)| (spelled(id), logprob)).collect();
        Some(Scored { token: spelled(token), logprob, top })
    }

    fn text(&mut self, piece: &str) -> Vec<Part> {
        let text = self.stops.push(piece);
        if text.is_empty() { Vec::new() } else { vec![Part::Text(text)] }
    }

    fn token(&mut self, token: u32, logprobs: Option<TokenLogprobs>) -> Delta {
        // The engine may be a token or two ahead of a stop string.
        if self.stops.found().is_some() {
            return Delta::default();
        }
        self.generated += 1;
        let tokens = self.scored(token, logprobs).into_iter().collect();
        let piece = self.detokenizer.push(token);
        let parts = self.text(&piece);
        if self.stops.found().is_some() {
            self.tokens.cancel();
        }
        Delta { parts, tokens, end: None }
    }

    fn finish(&mut self, reason: FinishReason, timings: Timings) -> Delta {
        let rest = self.detokenizer.finish();
        let mut parts = self.text(&rest);
        let finish = match reason {
            FinishReason::Stop => Finish::Stop,
            FinishReason::Length | FinishReason::Context => Finish::Length,
            FinishReason::Cancelled => Finish::Failed("the request was cancelled".into()),
            FinishReason::OutOfKvPages => {
                Finish::Failed("the KV cache is too small for this request alone".into())
            }
            FinishReason::NoCandidate => {
                Finish::Failed("no token could be chosen: the model's output is not finite".into())
            }
            FinishReason::Constraint(why) => Finish::Failed(why),
            FinishReason::Embedded => Finish::Failed("a vector is no answer".into()),
            FinishReason::Device(failure) => Finish::Failed(failure.to_string()),
        };
        let (finish, generated_tokens) = match self.stops.found() {
            Some(stop) => (Finish::StopString(stop.to_owned()), self.generated),
            None => (finish, timings.generated_tokens),
        };
        let held = self.stops.finish();
        if !held.is_empty() {
            parts.push(Part::Text(held));
        }
        let timings = Timings { generated_tokens, ..timings };
        let end = End { finish, timings, reasoning_tokens: 0 };
        self.done = true;
        Delta { parts, tokens: Vec::new(), end: Some(end) }
    }
}

impl Stream for Generation {
    type Item = Delta;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delta>> {
        let this = self.get_mut();
        while !this.done {
            let delta = match std::task::ready!(this.tokens.poll_next(cx)) {
                Some(Progress::Token { token, logprobs }) => this.token(token, logprobs),
                Some(Progress::Finished { reason, timings }) => this.finish(reason, timings),
                None => {
                    this.done = true;
                    let finish = Finish::Failed("nobody took the answer in time".into());
                    let end = End { finish, timings: Timings::default(), reasoning_tokens: 0 };
                    Delta { end: Some(end), ..Delta::default() }
                }
            };
            if delta != Delta::default() {
                return Poll::Ready(Some(delta));
            }
        }
        Poll::Ready(None)
    }
}
