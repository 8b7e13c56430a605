//! From the tokens of a job to the pieces of an answer.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_stream::{Stream, StreamExt};
use unicorn_engine::{FinishReason, Timings, TokenLogprobs};
use unicorn_grammar::{Piece, Reader};
use unicorn_text::{Detokenizer, Tokenizer};

use crate::error::ApiError;
use crate::stops::Stops;
use crate::worker::{Progress, Tokens};

/// What is told where a logit is no number.
const NOT_FINITE: &str = "the model's output is not finite: its file, a kernel or the driver is wrong; `unicorn selftest` looks for it";
/// Why an answer was cut short that its client still wants.
const ENDING: &str = "the server is shutting down";
/// Seconds until another one may be there.
const RETRY_SECONDS: u64 = 5;

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
    /// The tokens of the prompt but the first, where their log probabilities were asked for.
    pub prompt: Vec<Scored>,
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
    /// The tokens of the prompt but the first.
    pub prompt: Vec<Scored>,
    pub end: End,
}

/// Waits for the whole of an answer.
///
/// # Errors
/// Why it failed.
pub(crate) async fn collect(mut generation: Generation) -> Result<Answer, ApiError> {
    let (mut text, mut reasoning) = (String::new(), String::new());
    let (mut calls, mut tokens): (Vec<Call>, Vec<Scored>) = (Vec::new(), Vec::new());
    let mut prompt = Vec::new();
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
        prompt.extend(delta.prompt);
        match delta.end {
            Some(End { finish: Finish::Failed(why), .. }) if why == ENDING => {
                return Err(ApiError::unavailable(why, RETRY_SECONDS));
            }
            Some(End { finish: Finish::Failed(why), .. }) => return Err(ApiError::internal(why)),
            Some(end) => return Ok(Answer { text, reasoning, calls, tokens, prompt, end }),
            None => {}
        }
    }
    Err(ApiError::internal("the answer ended without an end"))
}

/// How an answer is to be read.
pub(crate) struct Reading {
    /// The prompt, where its tokens are to be scored.
    pub scored_prompt: Vec<u32>,
    pub detokenizer: Detokenizer,
    pub stops: Vec<String>,
    pub tokenizer: Tokenizer,
    /// Tokens of the prompt that is answered.
    pub prompt_tokens: usize,
    /// Tells thoughts and calls from text; without it all is text.
    pub reader: Option<Reader>,
    /// Control tokens that it must see, with their texts.
    pub shown: HashMap<u32, &'static str>,
}

/// One answer as it comes. Dropping it cancels the job.
pub(crate) struct Generation {
    tokens: Tokens,
    detokenizer: Detokenizer,
    tokenizer: Tokenizer,
    stops: Stops,
    reader: Option<Reader>,
    shown: HashMap<u32, &'static str>,
    scored_prompt: Vec<u32>,
    prompt_tokens: usize,
    generated: usize,
    reasoning: usize,
    done: bool,
}

impl Generation {
    pub fn new(tokens: Tokens, reading: Reading) -> Generation {
        let Reading { scored_prompt, detokenizer, stops, tokenizer, reader, shown, prompt_tokens } = reading;
        Generation {
            tokens,
            detokenizer,
            tokenizer,
            stops: Stops::new(stops),
            reader,
            shown,
            scored_prompt,
            prompt_tokens,
            generated: 0,
            reasoning: 0,
            done: false,
        }
    }

    /// Tokens of the prompt that is answered.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    fn scored(&self, token: u32, logprobs: Option<TokenLogprobs>) -> Option<Scored> {
        let TokenLogprobs { logprob, top } = logprobs?;
        let spelled = |id| Spelled::new(id, &self.tokenizer);
        let top = top.into_iter().map(|(id, logprob)| (spelled(id), logprob)).collect();
        Some(Scored { token: spelled(token), logprob, top })
    }

    /// The parts in a piece of text. Stop strings are looked for in what is said alone.
    fn parts(&mut self, text: String) -> Vec<Part> {
        let pieces = match &mut self.reader {
            None => vec![Piece::Text(text)],
            Some(reader) => reader.push(&text),
        };
        self.of_pieces(pieces)
    }

    fn of_pieces(&mut self, pieces: Vec<Piece>) -> Vec<Part> {
        let mut parts = Vec::new();
        for piece in pieces {
            // Nothing comes behind a stop string.
            if self.stops.found().is_some() {
                break;
            }
            match piece {
                Piece::Text(text) => parts.push(Part::Text(self.stops.push(&text))),
                Piece::Reasoning(text) => parts.push(Part::Reasoning(text)),
                Piece::CallStart { index, id, name } => parts.push(Part::CallStart { index, id, name }),
                Piece::CallArguments { index, delta } => parts.push(Part::CallArguments { index, delta }),
                Piece::CallEnd { .. } => {}
            }
        }
        parts.retain(|part| !matches!(part, Part::Text(text) | Part::Reasoning(text) if text.is_empty()));
        parts
    }

    fn token(&mut self, token: u32, logprobs: Option<TokenLogprobs>) -> Delta {
        // The engine may be a token or two ahead of a stop string.
        if self.stops.found().is_some() {
            return Delta::default();
        }
        self.generated += 1;
        let tokens = self.scored(token, logprobs).into_iter().collect();
        let text = match self.shown.get(&token).filter(|_| self.reader.is_some()) {
            Some(mark) => (*mark).to_owned(),
            None => self.detokenizer.push(token),
        };
        let parts = self.parts(text);
        if parts.iter().any(|part| matches!(part, Part::Reasoning(_))) {
            self.reasoning += 1;
        }
        if self.stops.found().is_some() {
            self.tokens.cancel();
        }
        Delta { parts, tokens, ..Delta::default() }
    }

    fn prompt(&mut self, logprobs: Vec<TokenLogprobs>) -> Delta {
        let tokens = std::mem::take(&mut self.scored_prompt);
        let scored = tokens.into_iter().skip(1).zip(logprobs);
        let prompt = scored.filter_map(|(token, logprobs)| self.scored(token, Some(logprobs))).collect();
        Delta { prompt, ..Delta::default() }
    }

    fn finish(&mut self, reason: FinishReason, timings: Timings) -> Delta {
        let rest = self.detokenizer.finish();
        let mut parts = self.parts(rest);
        if let Some(pieces) = self.reader.as_mut().map(Reader::finish) {
            parts.extend(self.of_pieces(pieces));
        }
        let calls = self.reader.as_ref().is_some_and(Reader::has_calls);
        let finish = match reason {
            FinishReason::Stop if calls => Finish::ToolCalls,
            FinishReason::Stop => Finish::Stop,
            FinishReason::Length | FinishReason::Context => Finish::Length,
            // Nobody reads the end of an answer that its client or a stop string has cancelled.
            FinishReason::Cancelled => Finish::Failed(ENDING.into()),
            FinishReason::OutOfKvPages => {
                Finish::Failed("the KV cache is too small for this request alone".into())
            }
            FinishReason::NoCandidate => {
                Finish::Failed("no token could be chosen: the request rules out every one".into())
            }
            FinishReason::NotFinite => Finish::Failed(NOT_FINITE.into()),
            FinishReason::Constraint(why) => Finish::Failed(why),
            FinishReason::Device(failure) if failure.0.is_wrong() => {
                Finish::Failed(format!("{failure}; this answer may be wrong, please ask again"))
            }
            FinishReason::Embedded => Finish::Failed("a vector is no answer".into()),
            FinishReason::Device(failure) if failure.0.is_lost() => Finish::Failed(format!(
                "{failure}, and again each time that the answer went on; a shorter prompt or another device may help"
            )),
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
        let end = End { finish, timings, reasoning_tokens: self.reasoning };
        self.done = true;
        Delta { parts, end: Some(end), ..Delta::default() }
    }
}

impl Stream for Generation {
    type Item = Delta;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delta>> {
        let this = self.get_mut();
        while !this.done {
            let delta = match std::task::ready!(this.tokens.poll_next(cx)) {
                Some(Progress::Token { token, logprobs }) => this.token(token, logprobs),
                Some(Progress::Prompt(logprobs)) => this.prompt(logprobs),
                // Comes of texts that are not continued.
                Some(Progress::Embedding(_)) => Delta::default(),
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
