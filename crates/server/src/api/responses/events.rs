//! From the pieces of an answer to a response: its items, and the events that tell how they come about.

use serde_json::{Map, Value, json};

use super::tools::Names;
use crate::api::openai::usage::logprobs;
use crate::error::ApiError;
use crate::generation::{Delta, End, Finish, Part};
use crate::job::{fresh_id, now_seconds};

/// An event with its name.
pub(crate) type Event = (&'static str, Value);

/// The item that is being written, the last one.
enum Open {
    Reasoning { text: String },
    Message { text: String, scores: Vec<Value> },
    Call { index: usize, arguments: String },
}

/// How an item ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Completed,
    Incomplete,
}

impl Ending {
    fn name(self) -> &'static str {
        match self {
            Ending::Completed => "completed",
            Ending::Incomplete => "incomplete",
        }
    }
}

/// What of a response is known before it is answered.
pub(crate) struct Frame {
    /// All fields of the response, in their order.
    pub fields: Map<String, Value>,
    pub names: Names,
    /// What was thought goes into summaries.
    pub summary: bool,
}

/// A response as it is written.
pub(crate) struct Writer {
    frame: Frame,
    items: Vec<Value>,
    open: Option<Open>,
    /// Log probabilities of tokens whose text has not come yet.
    scores: Vec<Value>,
    sequence: u64,
    prompt_tokens: usize,
    end: Option<End>,
}

impl Writer {
    pub fn new(frame: Frame, prompt_tokens: usize) -> Writer {
        let (items, scores) = (Vec::new(), Vec::new());
        Writer { frame, items, open: None, scores, sequence: 0, prompt_tokens, end: None }
    }

    /// The response as it stands.
    pub fn response(&self) -> Value {
        let mut fields = self.frame.fields.clone();
        let status = match self.end.as_ref().map(|end| &end.finish) {
            None => "in_progress",
            Some(Finish::Length) => "incomplete",
            Some(Finish::Failed(_)) => "failed",
            Some(_) => "completed",
        };
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        set("status", status.into());
        set("output", self.items.clone().into());
        set("usage", self.usage());
        match self.end.as_ref().map(|end| &end.finish) {
            None => {}
            Some(Finish::Failed(error)) => {
                set("error", json!({"code": "server_error", "message": error.message}));
            }
            Some(Finish::Length) => {
                set("incomplete_details", json!({"reason": "max_output_tokens"}));
            }
            Some(_) => {
                set("completed_at", now_seconds().into());
            }
        }
        Value::Object(fields)
    }

    /// Why the answer failed, if it did.
    pub fn failure(&self) -> Option<&ApiError> {
        match &self.end.as_ref()?.finish {
            Finish::Failed(error) => Some(error),
            _ => None,
        }
    }

    pub fn ended(&self) -> bool {
        self.end.is_some()
    }

    fn usage(&self) -> Value {
        let timings = self.end.as_ref().map(|end| &end.timings);
        let output = timings.map_or(0, |timings| timings.generated_tokens);
        let cached = timings.map_or(0, |timings| timings.reused_tokens);
        let reasoning = self.end.as_ref().map_or(0, |end| end.reasoning_tokens);
        json!({
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": output, "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": self.prompt_tokens + output,
        })
    }

    /// Names and numbers an event.
    fn event(&mut self, name: &'static str, data: Value) -> Event {
        let mut event = Map::new();
        event.insert("type".into(), name.into());
        event.insert("sequence_number".into(), self.sequence.into());
        self.sequence += 1;
        if let Value::Object(data) = data {
            event.extend(data);
        }
        (name, Value::Object(event))
    }

    /// An event about the last item. `place` is where in the item, if anywhere.
    fn about(&mut self, name: &'static str, place: Option<&str>, data: Value) -> Event {
        let mut event = Map::new();
        event.insert("item_id".into(), self.items.last().map_or(Value::Null, |item| item["id"].clone()));
        event.insert("output_index".into(), self.items.len().saturating_sub(1).into());
        if let Some(place) = place {
            event.insert(place.to_owned(), 0.into());
        }
        if let Value::Object(data) = data {
            event.extend(data);
        }
        self.event(name, Value::Object(event))
    }

    /// The events before the answer.
    pub fn begin(&mut self) -> Vec<Event> {
        let response = self.response();
        vec![
            self.event("response.created", json!({"response": response})),
            self.event("response.in_progress", json!({"response": response})),
        ]
    }

    /// What more of the answer means.
    pub fn push(&mut self, delta: Delta) -> Vec<Event> {
        let mut events = Vec::new();
        if !delta.tokens.is_empty()
            && let Value::Array(scores) = logprobs(&delta.tokens)["content"].take()
        {
            self.scores.extend(scores);
        }
        for part in delta.parts {
            match part {
                Part::Text(text) => self.text(&text, &mut events),
                Part::Reasoning(text) => self.reasoning(&text, &mut events),
                Part::CallStart { index, id, name } => self.call(index, &id, &name, &mut events),
                Part::CallArguments { index, delta } => self.arguments(index, &delta, &mut events),
            }
        }
        if let Some(end) = delta.end {
            self.finish(end, &mut events);
        }
        events
    }

    fn add(&mut self, item: Value, open: Open, events: &mut Vec<Event>) {
        self.close(Ending::Completed, events);
        self.items.push(item);
        self.open = Some(open);
        let data = json!({"output_index": self.items.len() - 1, "item": self.items.last()});
        events.push(self.event("response.output_item.added", data));
    }

    fn text(&mut self, delta: &str, events: &mut Vec<Event>) {
        if !matches!(self.open, Some(Open::Message { .. })) {
            let item = json!({
                "id": fresh_id("msg_"), "type": "message", "status": "in_progress", "role": "assistant", "content": [],
            });
            self.add(item, Open::Message { text: String::new(), scores: Vec::new() }, events);
            let part = output_text("", Vec::new());
            events.push(self.about(
                "response.content_part.added",
                Some("content_index"),
                json!({"part": part}),
            ));
        }
        let scores = std::mem::take(&mut self.scores);
        if let Some(Open::Message { text, scores: all }) = &mut self.open {
            *text += delta;
            all.extend(scores.iter().cloned());
        }
        if !delta.is_empty() {
            let data = json!({"delta": delta, "logprobs": scores});
            events.push(self.about("response.output_text.delta", Some("content_index"), data));
        }
    }

    fn reasoning(&mut self, delta: &str, events: &mut Vec<Event>) {
        // Tokens of what is thought have no place for their log probabilities.
        self.scores.clear();
        let summary = self.frame.summary;
        if !matches!(self.open, Some(Open::Reasoning { .. })) {
            let mut item =
                json!({"id": fresh_id("rs_"), "type": "reasoning", "status": "in_progress", "summary": []});
            if !summary {
                item["content"] = json!([]);
            }
            self.add(item, Open::Reasoning { text: String::new() }, events);
            events.push(match summary {
                true => self.about(
                    "response.reasoning_summary_part.added",
                    Some("summary_index"),
                    json!({"part": {"type": "summary_text", "text": ""}}),
                ),
                false => self.about(
                    "response.content_part.added",
                    Some("content_index"),
                    json!({"part": {"type": "reasoning_text", "text": ""}}),
                ),
            });
        }
        if let Some(Open::Reasoning { text }) = &mut self.open {
            *text += delta;
        }
        let (name, place) = match summary {
            true => ("response.reasoning_summary_text.delta", "summary_index"),
            false => ("response.reasoning_text.delta", "content_index"),
        };
        events.push(self.about(name, Some(place), json!({"delta": delta})));
    }

    fn call(&mut self, index: usize, id: &str, shown: &str, events: &mut Vec<Event>) {
        self.scores.clear();
        let (namespace, name) = self.frame.names.called(shown);
        let mut item = json!({
            "id": fresh_id("fc_"), "type": "function_call", "status": "in_progress", "call_id": id, "name": name,
            "arguments": "",
        });
        if let Some(namespace) = namespace {
            item["namespace"] = namespace.into();
        }
        self.add(item, Open::Call { index, arguments: String::new() }, events);
    }

    fn arguments(&mut self, at: usize, delta: &str, events: &mut Vec<Event>) {
        self.scores.clear();
        match &mut self.open {
            Some(Open::Call { index, arguments }) if *index == at => *arguments += delta,
            _ => return,
        }
        events.push(self.about("response.function_call_arguments.delta", None, json!({"delta": delta})));
    }

    /// Ends the item that is being written.
    fn close(&mut self, ending: Ending, events: &mut Vec<Event>) {
        let Some(open) = self.open.take() else { return };
        let item = self.items.len() - 1;
        match open {
            Open::Message { text, scores } => {
                let part = output_text(&text, scores.clone());
                let place = Some("content_index");
                let done = json!({"text": text, "logprobs": scores});
                events.push(self.about("response.output_text.done", place, done));
                events.push(self.about("response.content_part.done", place, json!({"part": part})));
                self.items[item]["content"] = json!([part]);
            }
            Open::Reasoning { text } if self.frame.summary => {
                let part = json!({"type": "summary_text", "text": text});
                let place = Some("summary_index");
                let done = json!({"text": text});
                events.push(self.about("response.reasoning_summary_text.done", place, done));
                events.push(self.about("response.reasoning_summary_part.done", place, json!({"part": part})));
                self.items[item]["summary"] = json!([part]);
            }
            Open::Reasoning { text } => {
                let part = json!({"type": "reasoning_text", "text": text});
                let place = Some("content_index");
                events.push(self.about("response.reasoning_text.done", place, json!({"text": text})));
                events.push(self.about("response.content_part.done", place, json!({"part": part})));
                self.items[item]["content"] = json!([part]);
            }
            Open::Call { arguments, .. } => {
                // Arguments that were cut off are not done, and are no JSON.
                if ending == Ending::Completed {
                    let done = json!({"name": self.items[item]["name"], "arguments": arguments});
                    events.push(self.about("response.function_call_arguments.done", None, done));
                }
                self.items[item]["arguments"] = arguments.into();
            }
        }
        self.items[item]["status"] = ending.name().into();
        let data = json!({"output_index": item, "item": self.items[item]});
        events.push(self.event("response.output_item.done", data));
    }

    fn finish(&mut self, end: End, events: &mut Vec<Event>) {
        let ending = match end.finish {
            Finish::Length | Finish::Failed(_) => Ending::Incomplete,
            _ => Ending::Completed,
        };
        // An answer without a word is a message without a word.
        if self.items.is_empty() && ending == Ending::Completed {
            self.text("", events);
        }
        self.close(ending, events);
        let name = match &end.finish {
            Finish::Length => "response.incomplete",
            Finish::Failed(_) => "response.failed",
            _ => "response.completed",
        };
        self.end = Some(end);
        let response = self.response();
        events.push(self.event(name, json!({"response": response})));
    }

    /// The event of an answer that broke off without an end.
    pub fn broken(&mut self, why: &str) -> Event {
        let inner = json!({"type": "server_error", "code": "server_error", "message": why, "param": null});
        let data = json!({"code": "server_error", "message": why, "param": null, "error": inner});
        self.event("error", data)
    }
}

fn output_text(text: &str, scores: Vec<Value>) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": scores})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::made::{end, parts};

    fn writer(summary: bool) -> Writer {
        let fields = ["id", "status", "output", "usage", "error", "completed_at", "incomplete_details"];
        let fields = fields.into_iter().map(|name| (name.to_owned(), Value::Null)).collect();
        Writer::new(Frame { fields, names: Names::default(), summary }, 7)
    }

    fn run(writer: &mut Writer, deltas: Vec<Delta>) -> Vec<Event> {
        let mut events = writer.begin();
        events.extend(deltas.into_iter().flat_map(|delta| writer.push(delta)).collect::<Vec<_>>());
        for (i, (name, event)) in events.iter().enumerate() {
            assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(i)));
        }
        events
    }

    fn names(events: &[Event]) -> Vec<&str> {
        events.iter().map(|(name, _)| name.strip_prefix("response.").unwrap_or(name)).collect()
    }

    #[test]
    fn thoughts_words_and_calls_come_in_order() {
        let mut writer = writer(false);
        let events = run(
            &mut writer,
            vec![
                parts(vec![Part::Reasoning("h".into())]),
                parts(vec![Part::Reasoning("m".into()), Part::Text("a".into())]),
                parts(vec![Part::Text("b".into())]),
                parts(vec![
                    Part::CallStart { index: 0, id: "call_1".into(), name: "f".into() },
                    Part::CallArguments { index: 0, delta: "{".into() },
                ]),
                parts(vec![Part::CallArguments { index: 0, delta: "}".into() }]),
                parts(vec![
                    Part::CallStart { index: 1, id: "call_2".into(), name: "g".into() },
                    Part::CallArguments { index: 1, delta: "{}".into() },
                ]),
                end(Finish::ToolCalls),
            ],
        );
        assert_eq!(
            names(&events),
            [
                "created",
                "in_progress",
                "output_item.added",
                "content_part.added",
                "reasoning_text.delta",
                "reasoning_text.delta",
                "reasoning_text.done",
                "content_part.done",
                "output_item.done",
                "output_item.added",
                "content_part.added",
                "output_text.delta",
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done",
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done",
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done",
                "completed",
            ]
        );
        let output = &events.last().unwrap().1["response"]["output"];
        assert_eq!(output[0]["content"], json!([{"type": "reasoning_text", "text": "hm"}]));
        assert_eq!(output[1]["content"][0]["text"], "ab");
        assert_eq!((&output[2]["call_id"], &output[2]["arguments"]), (&json!("call_1"), &json!("{}")));
        assert_eq!(output[3]["name"], "g");
        // Every event about an item tells which, and the items at the end are those that were told as done.
        for (name, event) in &events[2..25] {
            let at = event["output_index"].as_u64().unwrap() as usize;
            match name.contains("output_item") {
                true => assert_eq!(event["item"]["id"], output[at]["id"], "{name}"),
                false => assert_eq!(event["item_id"], output[at]["id"], "{name}"),
            }
            if *name == "response.output_item.done" {
                assert_eq!(event["item"], output[at]);
            }
        }
        assert!(events[4..8].iter().all(|(_, event)| event["content_index"] == 0));
    }

    #[test]
    fn a_summary_is_asked_for() {
        let mut writer = writer(true);
        let events = run(&mut writer, vec![parts(vec![Part::Reasoning("hm".into())]), end(Finish::Stop)]);
        assert_eq!(
            names(&events[2..]),
            [
                "output_item.added",
                "reasoning_summary_part.added",
                "reasoning_summary_text.delta",
                "reasoning_summary_text.done",
                "reasoning_summary_part.done",
                "output_item.done",
                "completed",
            ]
        );
        let item = &writer.response()["output"][0];
        assert_eq!(item["summary"], json!([{"type": "summary_text", "text": "hm"}]));
        assert!(item.get("content").is_none());
    }

    #[test]
    fn every_end_is_told() {
        let text = || parts(vec![Part::Text("a".into())]);
        let mut full = writer(false);
        let events = run(&mut full, vec![text(), end(Finish::Length)]);
        let response = &events.last().unwrap().1["response"];
        assert_eq!(events.last().unwrap().0, "response.incomplete");
        assert_eq!(response["status"], "incomplete");
        assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
        assert_eq!(response["completed_at"], Value::Null);
        assert_eq!(response["output"][0]["status"], "incomplete");
        assert_eq!(
            response["usage"],
            json!({"input_tokens": 7, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0}, "output_tokens": 5,
                "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 12})
        );

        let mut failed = writer(false);
        let events = run(&mut failed, vec![text(), end(Finish::Failed(ApiError::internal("no luck")))]);
        let (name, event) = events.last().unwrap();
        assert_eq!((*name, &event["response"]["status"]), ("response.failed", &json!("failed")));
        assert_eq!(event["response"]["error"], json!({"code": "server_error", "message": "no luck"}));
        assert_eq!(failed.failure().unwrap().message, "no luck");

        let mut silent = writer(false);
        run(&mut silent, vec![end(Finish::Stop)]);
        assert_eq!(silent.response()["output"][0]["content"][0]["text"], "");
        assert!(silent.response()["completed_at"].is_u64());

        let mut cut = writer(false);
        let call = Part::CallStart { index: 0, id: "c".into(), name: "f".into() };
        let begun = Part::CallArguments { index: 0, delta: "{\"x".into() };
        let events = run(&mut cut, vec![parts(vec![call, begun]), end(Finish::Length)]);
        assert!(!names(&events).contains(&"function_call_arguments.done"));
        assert_eq!(cut.response()["output"][0]["status"], "incomplete");
    }
}
