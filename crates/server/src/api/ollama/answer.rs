//! Answers in Ollama's form: lines as they come, or one object.

use std::time::{Duration, Instant, SystemTime};

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::keep::Kept;
use super::time::{nanos, nanos_of, rfc3339};
use crate::api::openai::usage;
use crate::error::{ApiError, Dialect};
use crate::generation::{Call, Delta, End, Finish, Generation, Part, Scored, collect};
use crate::http::sse::{Lines, respond_lines};

/// Which route answers: their fields differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// `message` with `content`, `thinking` and `tool_calls`
    Chat,
    /// `response` and `thinking`
    Generate,
}

/// How an answer is written.
#[derive(Clone, Debug)]
pub(super) struct Form {
    pub kind: Kind,
    /// The model's name as the request has it.
    pub model: String,
    pub started: Instant,
    pub load: Duration,
}

/// Some of an answer.
#[derive(Clone, PartialEq, Debug, Default)]
struct Piece {
    text: String,
    thinking: String,
    calls: Vec<Value>,
}

impl Form {
    /// For a request that waited this long for its model.
    pub fn of(kind: Kind, model: &str, started: Instant, load: Duration) -> Form {
        Form { kind, model: model.to_owned(), started, load }
    }

    /// For a request that needed no model.
    pub fn of_name(kind: Kind, name: &str) -> Form {
        Form::of(kind, name, Instant::now(), Duration::ZERO)
    }

    fn head(&self) -> Map<String, Value> {
        let mut head = Map::new();
        head.insert("model".into(), self.model.as_str().into());
        head.insert("created_at".into(), rfc3339(SystemTime::now()).into());
        head
    }

    /// A line that is not the last.
    fn line(&self, piece: Piece, tokens: &[Scored]) -> Value {
        let mut line = self.head();
        self.put(&mut line, piece);
        line.insert("done".into(), false.into());
        scores(&mut line, tokens);
        line.into()
    }

    fn put(&self, line: &mut Map<String, Value>, piece: Piece) {
        let Piece { text, thinking, calls } = piece;
        let mut optional = Map::new();
        if !thinking.is_empty() {
            optional.insert("thinking".into(), thinking.into());
        }
        match self.kind {
            Kind::Generate => {
                line.insert("response".into(), text.into());
                line.append(&mut optional);
            }
            Kind::Chat => {
                if !calls.is_empty() {
                    optional.insert("tool_calls".into(), calls.into());
                }
                let mut message = json!({"role": "assistant", "content": text});
                if let Some(message) = message.as_object_mut() {
                    message.append(&mut optional);
                }
                line.insert("message".into(), message);
            }
        }
    }

    /// The last line, or all of an answer in one.
    fn last(&self, piece: Piece, end: &End) -> Value {
        let mut line = self.head();
        self.put(&mut line, piece);
        let t = &end.timings;
        for (name, value) in [
            ("done", true.into()),
            ("done_reason", done_reason(&end.finish).into()),
            ("total_duration", nanos(self.started.elapsed()).into()),
            ("load_duration", nanos(self.load).into()),
            ("prompt_eval_count", t.prompt_tokens.into()),
            ("prompt_eval_duration", nanos_of(t.prefill_seconds).into()),
            ("eval_count", t.generated_tokens.into()),
            ("eval_duration", nanos_of(t.decode_seconds).into()),
        ] {
            line.insert(name.into(), value);
        }
        line.into()
    }

    /// The answer to a request that only loads or unloads its model.
    pub fn nothing(&self, reason: &'static str) -> Value {
        let mut line = self.head();
        self.put(&mut line, Piece::default());
        line.insert("done_reason".into(), reason.into());
        line.insert("done".into(), true.into());
        line.into()
    }
}

fn scores(line: &mut Map<String, Value>, tokens: &[Scored]) {
    if !tokens.is_empty() {
        line.insert("logprobs".into(), usage::logprobs(tokens)["content"].take());
    }
}

fn done_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        // Ollama does not tell calls apart here.
        Finish::Stop | Finish::StopString(_) | Finish::ToolCalls | Finish::Failed(_) => "stop",
    }
}

/// A call in Ollama's form, whose arguments are an object.
fn call(index: usize, call: &Call) -> Result<Value, String> {
    let text = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
    let arguments: Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| format!("the arguments of the call of {} are no JSON object: {error}", call.name))?;
    Ok(json!({"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}))
}

/// All calls of an answer. One that was cut off in the middle is none.
fn calls(calls: &[Call], finish: &Finish) -> Result<Vec<Value>, String> {
    let cut = |index: usize| *finish == Finish::Length && index + 1 == calls.len();
    let each = calls.iter().enumerate().filter_map(|(i, one)| match call(i, one) {
        Err(_) if cut(i) => None,
        result => Some(result),
    });
    each.collect()
}

/// Puts calls together again that come in parts: Ollama's clients take them whole.
#[derive(Default)]
struct Pieces {
    open: Option<Call>,
    /// Calls before the open one.
    before: usize,
}

impl Pieces {
    /// What can be sent now.
    fn push(&mut self, part: Part) -> Result<Option<Piece>, String> {
        match part {
            Part::Text(text) => Ok(Some(Piece { text, ..Piece::default() })),
            Part::Reasoning(thinking) => Ok(Some(Piece { thinking, ..Piece::default() })),
            Part::CallStart { id, name, .. } => {
                let piece = self.close()?;
                self.open = Some(Call { id, name, arguments: String::new() });
                Ok(piece)
            }
            Part::CallArguments { delta, .. } => {
                if let Some(open) = &mut self.open {
                    open.arguments += &delta;
                }
                Ok(None)
            }
        }
    }

    fn close(&mut self) -> Result<Option<Piece>, String> {
        let Some(open) = self.open.take() else { return Ok(None) };
        let whole = call(self.before, &open)?;
        self.before += 1;
        Ok(Some(Piece { calls: vec![whole], ..Piece::default() }))
    }

    /// The last call, if any.
    fn finish(&mut self, finish: &Finish) -> Result<Option<Piece>, String> {
        match (self.close(), finish) {
            (Err(_), Finish::Length) => Ok(None),
            (result, _) => result,
        }
    }
}

/// Sends an answer in one piece, or as lines, where there is one after each silence of this length.
pub(super) async fn respond(
    generation: Generation,
    form: Form,
    kept: Kept,
    stream: Option<Duration>,
) -> Result<Response, ApiError> {
    if let Some(silence) = stream {
        return Ok(respond_lines(|lines| send(lines, generation, form, kept, silence)));
    }
    let answer = collect(generation).await?;
    let calls = calls(&answer.calls, &answer.end.finish).map_err(ApiError::internal)?;
    let piece = Piece { text: answer.text, thinking: answer.reasoning, calls };
    let mut whole = form.last(piece, &answer.end);
    if let Some(whole) = whole.as_object_mut() {
        scores(whole, &answer.tokens);
    }
    drop(kept);
    Ok(Json(whole).into_response())
}

async fn send(
    lines: Lines,
    mut generation: Generation,
    form: Form,
    kept: Kept,
    silence: Duration,
) -> Option<()> {
    let (mut pieces, mut ended) = (Pieces::default(), false);
    let nothing = || form.line(Piece::default(), &[]);
    while let Some(delta) = lines.next(&mut generation, silence, nothing).await {
        ended |= delta.end.is_some();
        for line in lines_of(&form, &mut pieces, delta) {
            lines.line(&line).await?;
        }
    }
    if !ended {
        lines.line(&ApiError::internal("the answer ended without an end").body(Dialect::Ollama)).await?;
    }
    drop(kept);
    Some(())
}

/// The lines for what came. One that fails is the last.
fn lines_of(form: &Form, pieces: &mut Pieces, delta: Delta) -> Vec<Value> {
    let failed = |error: ApiError| error.body(Dialect::Ollama);
    let Delta { parts, mut tokens, end, .. } = delta;
    let mut lines = Vec::new();
    for part in parts {
        match pieces.push(part) {
            Ok(Some(piece)) => lines.push(form.line(piece, &std::mem::take(&mut tokens))),
            Ok(None) => {}
            Err(why) => {
                lines.push(failed(ApiError::internal(why)));
                return lines;
            }
        }
    }
    if !tokens.is_empty() {
        lines.push(form.line(Piece::default(), &tokens));
    }
    let Some(end) = end else { return lines };
    if let Finish::Failed(error) = end.finish {
        lines.push(failed(error));
        return lines;
    }
    match pieces.finish(&end.finish) {
        Ok(piece) => {
            lines.extend(piece.map(|piece| form.line(piece, &[])));
            lines.push(form.last(Piece::default(), &end));
        }
        Err(why) => lines.push(failed(ApiError::internal(why))),
    }
    lines
}

#[cfg(test)]
mod tests {
    use unicorn_engine::Timings;

    use super::*;
    use crate::generation::Spelled;

    fn form(kind: Kind) -> Form {
        Form { kind, model: "m:latest".into(), started: Instant::now(), load: Duration::from_nanos(5) }
    }

    fn end(finish: Finish) -> End {
        let timings = Timings {
            prompt_tokens: 7,
            generated_tokens: 3,
            prefill_seconds: 0.5,
            decode_seconds: 0.25,
            ..Timings::default()
        };
        End { finish, timings, reasoning_tokens: 0 }
    }

    /// The lines of several deltas without what changes from run to run.
    fn lines(kind: Kind, deltas: Vec<Delta>) -> Vec<Value> {
        let mut pieces = Pieces::default();
        let mut lines: Vec<Value> =
            deltas.into_iter().flat_map(|delta| lines_of(&form(kind), &mut pieces, delta)).collect();
        for line in lines.iter_mut().filter_map(Value::as_object_mut) {
            for name in ["created_at", "total_duration"] {
                line.remove(name);
            }
        }
        lines
    }

    fn parts(parts: Vec<Part>) -> Delta {
        Delta { parts, ..Delta::default() }
    }

    fn started(index: usize, name: &str) -> Part {
        Part::CallStart { index, id: format!("call_{index}"), name: name.into() }
    }

    fn arguments(index: usize, delta: &str) -> Part {
        Part::CallArguments { index, delta: delta.into() }
    }

    #[test]
    fn calls_come_whole_with_objects_as_arguments() {
        let deltas = vec![
            parts(vec![Part::Reasoning("hm".into()), Part::Text("I see. ".into())]),
            parts(vec![started(0, "f"), arguments(0, "{\"a\"")]),
            parts(vec![arguments(0, ": [1]}"), started(1, "g")]),
            Delta { end: Some(end(Finish::ToolCalls)), ..Delta::default() },
        ];
        let message = |message: Value| json!({"model": "m:latest", "message": message, "done": false});
        let call = |index: usize, name: &str, arguments: Value| {
            let function = json!({"index": index, "name": name, "arguments": arguments});
            json!({"role": "assistant", "content": "",
                "tool_calls": [{"id": format!("call_{index}"), "function": function}]})
        };
        assert_eq!(
            lines(Kind::Chat, deltas),
            [
                message(json!({"role": "assistant", "content": "", "thinking": "hm"})),
                message(json!({"role": "assistant", "content": "I see. "})),
                message(call(0, "f", json!({"a": [1]}))),
                message(call(1, "g", json!({}))),
                json!({
                    "model": "m:latest", "message": {"role": "assistant", "content": ""}, "done": true,
                    "done_reason": "stop", "load_duration": 5, "prompt_eval_count": 7,
                    "prompt_eval_duration": 500_000_000, "eval_count": 3, "eval_duration": 250_000_000,
                }),
            ]
        );
    }

    #[test]
    fn a_call_that_was_cut_off_is_left_out() {
        let deltas = |finish| {
            vec![
                parts(vec![started(0, "f"), arguments(0, "{\"a\": ")]),
                Delta { end: Some(end(finish)), ..Delta::default() },
            ]
        };
        let cut = lines(Kind::Chat, deltas(Finish::Length));
        assert_eq!((cut.len(), &cut[0]["done_reason"]), (1, &json!("length")));
        let broken = lines(Kind::Chat, deltas(Finish::ToolCalls));
        assert!(broken.last().unwrap()["error"].as_str().unwrap().contains("of f"), "{broken:?}");
        let list = [("f", "{}"), ("g", "{\"x\"")].map(|(name, arguments)| Call {
            name: name.into(),
            arguments: arguments.into(),
            id: "1".into(),
        });
        assert_eq!(calls(&list, &Finish::Length).map(|calls| calls.len()), Ok(1));
        assert!(calls(&list, &Finish::ToolCalls).is_err());
    }

    #[test]
    fn generated_text_has_its_own_fields_and_scores() {
        let token = Spelled { id: 1, text: "a".into(), bytes: vec![97] };
        let scored = Scored { token: token.clone(), logprob: -0.5, top: vec![(token, -0.5)] };
        let deltas = vec![
            Delta { parts: vec![Part::Text("a".into())], tokens: vec![scored.clone()], ..Delta::default() },
            Delta { tokens: vec![scored], ..Delta::default() },
            Delta { end: Some(end(Finish::Failed(ApiError::internal("lost")))), ..Delta::default() },
        ];
        let scores = json!([{"token": "a", "logprob": -0.5, "bytes": [97],
            "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}]}]);
        assert_eq!(
            lines(Kind::Generate, deltas),
            [
                json!({"model": "m:latest", "response": "a", "done": false, "logprobs": scores}),
                json!({"model": "m:latest", "response": "", "done": false, "logprobs": scores}),
                json!({"error": "lost"}),
            ]
        );
    }

    #[test]
    fn loading_is_told() {
        let line = form(Kind::Chat).nothing("load");
        assert_eq!((&line["done_reason"], &line["done"]), (&json!("load"), &json!(true)));
        assert_eq!(line["message"], json!({"role": "assistant", "content": ""}));
        assert_eq!(form(Kind::Generate).nothing("unload")["response"], "");
    }
}
