//! From the tokens of a job to the pieces of an answer.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt};
use unicorn_engine::{FinishReason, Timings, TokenLogprobs};
use unicorn_grammar::{Piece, Reader};
use unicorn_text::{Detokenizer, Tokenizer};

use crate::error::ApiError;
use crate::record::Record;
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
    /// It failed, as its client is to be told.
    Failed(ApiError),
}

impl Finish {
    /// In a word, for figures.
    fn word(&self) -> &'static str {
        match self {
            Finish::Stop | Finish::StopString(_) => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool_calls",
            Finish::Failed(_) => "error",
        }
    }
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
            Some(End { finish: Finish::Failed(error), .. }) => return Err(error),
            Some(end) => return Ok(Answer { text, reasoning, calls, tokens, prompt, end }),
            None => {}
        }
    }
    Err(ApiError::internal("the answer ended without an end"))
}

/// Waits for all of several answers. They are taken as they come: one that nobody took would be given up.
///
/// # Errors
/// Why the first that failed did; the others are cancelled then.
pub(crate) async fn collect_all(generations: Vec<Generation>) -> Result<Vec<Answer>, ApiError> {
    let mut answers: Vec<Option<Answer>> = generations.iter().map(|_| None).collect();
    let mut all = JoinSet::new();
    for (index, generation) in generations.into_iter().enumerate() {
        all.spawn(async move { (index, collect(generation).await) });
    }
    // Dropped, the set ends what still runs.
    while let Some(done) = all.join_next().await {
        let (index, answer) =
            done.map_err(|_| ApiError::internal("an answer panicked: a fault of the server"))?;
        answers[index] = Some(answer?);
    }
    Ok(answers.into_iter().flatten().collect())
}

/// What a client is told of an answer that could not be ended well.
fn failure(reason: FinishReason) -> ApiError {
    match reason {
        // The client asked for what takes too much, and the same request would fail again.
        FinishReason::OutOfKvPages => {
            ApiError::bad_request("the KV cache is too small for this request alone")
        }
        FinishReason::Constraint(why) => {
            let message = format!("the answer cannot be held to its form any further: {why}");
            ApiError { code: Some("output_form_failed"), ..ApiError::bad_request(message) }
        }
        FinishReason::NoCandidate => {
            ApiError::bad_request("no token could be chosen: the request rules out every one")
        }
        FinishReason::NotFinite => ApiError::internal(NOT_FINITE),
        FinishReason::Device(failure) if failure.0.is_wrong() => {
            ApiError::internal(format!("{failure}; this answer may be wrong, please ask again"))
        }
        FinishReason::Device(failure) if failure.0.is_lost() => ApiError::internal(format!(
            "{failure}, and again each time that the answer went on; a shorter prompt or another device may help"
        )),
        FinishReason::Device(failure) => ApiError::internal(failure.to_string()),
        other => ApiError::internal(format!("the answer ended as no answer should: {other:?}")),
    }
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
    /// Where its end is written down.
    pub record: Option<Arc<Record>>,
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
    record: Option<Arc<Record>>,
    prompt_tokens: usize,
    generated: usize,
    reasoning: usize,
    done: bool,
}

impl Generation {
    pub fn new(tokens: Tokens, reading: Reading) -> Generation {
        let Reading { scored_prompt, detokenizer, stops, tokenizer, reader, shown, prompt_tokens, record } =
            reading;
        Generation {
            tokens,
            detokenizer,
            tokenizer,
            stops: Stops::new(stops),
            reader,
            shown,
            scored_prompt,
            record,
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
            // What may be the beginning of a stop string was said before what is no text.
            if !matches!(piece, Piece::Text(_)) {
                parts.push(Part::Text(self.stops.finish()));
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

    /// Lets go of the record, which waits for all answers.
    fn write_down(&mut self, finish: &'static str, timings: &Timings) {
        if let Some(record) = self.record.take() {
            record.ended(finish, timings);
        }
    }

    /// The end of an answer of which nothing more comes.
    fn broken(&mut self, why: String) -> Delta {
        self.done = true;
        self.write_down("error", &Timings::default());
        let end = End {
            finish: Finish::Failed(ApiError::internal(why)),
            timings: Timings::default(),
            reasoning_tokens: 0,
        };
        Delta { end: Some(end), ..Delta::default() }
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
            FinishReason::Cancelled => Finish::Failed(ApiError::unavailable(ENDING, RETRY_SECONDS)),
            other => Finish::Failed(failure(other)),
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
        self.write_down(finish.word(), &timings);
        let end = End { finish, timings, reasoning_tokens: self.reasoning };
        self.done = true;
        Delta { parts, end: Some(end), ..Delta::default() }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // Nobody wanted the rest.
        let timings = Timings {
            prompt_tokens: self.prompt_tokens,
            generated_tokens: self.generated,
            ..Timings::default()
        };
        self.write_down("cancelled", &timings);
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
                Some(Progress::Broken(why)) => this.broken(why),
                None => this.broken("nobody took the answer in time".into()),
            };
            if delta != Delta::default() {
                return Poll::Ready(Some(delta));
            }
        }
        Poll::Ready(None)
    }
}

/// Pieces of answers as tests want them.
#[cfg(test)]
pub(crate) mod made {
    use super::*;

    pub(crate) fn parts(parts: Vec<Part>) -> Delta {
        Delta { parts, ..Delta::default() }
    }

    pub(crate) fn end(finish: Finish) -> Delta {
        let timings = Timings { generated_tokens: 5, reused_tokens: 4, ..Timings::default() };
        Delta { end: Some(End { finish, timings, reasoning_tokens: 3 }), ..Delta::default() }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use unicorn_text::GgufVocabulary;

    use super::*;

    /// An answer of a model with the tokens `a` and `b`, of which what is sent comes; `room` as in the worker's channels.
    fn generation(
        room: usize,
        stops: &[&str],
        reader: Option<Reader>,
    ) -> (mpsc::Sender<Progress>, Generation) {
        let tokenizer = Tokenizer::from_gguf(GgufVocabulary {
            model: "gpt2".to_owned(),
            tokens: ["a", "b", "ab"].map(str::to_owned).to_vec(),
            merges: vec!["a b".to_owned()],
            ..GgufVocabulary::default()
        })
        .unwrap();
        let (sender, tokens) = Tokens::given(room);
        let reading = Reading {
            scored_prompt: Vec::new(),
            detokenizer: tokenizer.detokenizer_after(None, true),
            stops: stops.iter().map(|stop| (*stop).to_owned()).collect(),
            tokenizer,
            prompt_tokens: 1,
            reader,
            shown: HashMap::new(),
            record: None,
        };
        (sender, Generation::new(tokens, reading))
    }

    #[test]
    fn what_a_stop_string_holds_back_stands_before_a_call() {
        let (_sender, mut generation) = generation(4, &["STOP"], None);
        let call = || Piece::CallStart { index: 0, id: "c".into(), name: "f".into() };
        let parts = generation.of_pieces(vec![Piece::Text("a ST".into()), call(), Piece::Text("OP".into())]);
        let start = Part::CallStart { index: 0, id: "c".into(), name: "f".into() };
        let behind = Part::Text("OP".into());
        assert_eq!(parts, [Part::Text("a ".into()), Part::Text("ST".into()), start, behind]);
        assert_eq!(generation.stops.found(), None);
    }

    #[test]
    fn failures_tell_whose_fault_they_are() {
        for (reason, status) in [
            (FinishReason::Cancelled, 503),
            (FinishReason::OutOfKvPages, 400),
            (FinishReason::Constraint("too many items".into()), 400),
            (FinishReason::NoCandidate, 400),
            (FinishReason::NotFinite, 500),
        ] {
            let (_sender, mut generation) = generation(4, &[], None);
            let end = generation.finish(reason.clone(), Timings::default()).end.unwrap();
            let Finish::Failed(error) = end.finish else { panic!("{reason:?}") };
            assert_eq!(error.status.as_u16(), status, "{reason:?}");
        }
    }

    #[tokio::test]
    async fn several_answers_are_taken_as_they_come() {
        const ROOM: usize = 4;
        const LONG: usize = 40;
        let (senders, generations): (Vec<_>, Vec<_>) = (0..3).map(|_| generation(ROOM, &[], None)).unzip();
        let collected = tokio::spawn(collect_all(generations));
        for _ in 0..LONG / ROOM {
            for sender in &senders {
                for _ in 0..ROOM {
                    // As the engine's thread, which waits for nobody.
                    sender
                        .try_send(Progress::Token { token: 0, logprobs: None })
                        .expect("the channel has room");
                }
            }
            while senders.iter().any(|sender| sender.capacity() < ROOM) {
                tokio::task::yield_now().await;
            }
        }
        for sender in senders {
            let end = Progress::Finished { reason: FinishReason::Stop, timings: Timings::default() };
            sender.try_send(end).unwrap();
        }
        let answers = collected.await.unwrap().unwrap();
        assert!(answers.len() == 3 && answers.iter().all(|answer| answer.text == "a".repeat(LONG)));
    }
}
