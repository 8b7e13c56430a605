//! From the pieces of an answer to a message: its blocks, and the events that tell how they come about.

use base64::Engine as _;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::request::{Thinking, use_block};
use crate::error::{ApiError, Dialect};
use crate::generation::{Delta, End, Finish, Part};
use crate::job::fresh_id;

/// An event with its name.
pub(crate) type Event = (&'static str, Value);

/// The block that is being written, the last one.
enum Open {
    Text,
    Thinking,
    Call { index: usize, arguments: String },
}

/// A message as it is written.
pub(crate) struct Writer {
    id: String,
    model: String,
    thinking: Thinking,
    tells_cache: bool,
    prompt_tokens: usize,
    blocks: Vec<Value>,
    open: Option<Open>,
    /// What was thought, of which an omitted block has only the signature.
    thought: String,
    /// The last block is a call that was cut off in the middle, which is none.
    cut: bool,
    end: Option<End>,
}

impl Writer {
    pub fn new(model: String, thinking: Thinking, tells_cache: bool, prompt_tokens: usize) -> Writer {
        let (id, blocks, thought) = (fresh_id("msg_"), Vec::new(), String::new());
        Writer {
            id,
            model,
            thinking,
            tells_cache,
            prompt_tokens,
            blocks,
            open: None,
            thought,
            cut: false,
            end: None,
        }
    }

    /// The message as it stands.
    pub fn message(&self) -> Value {
        let (reason, sequence) = self.stop();
        let mut blocks = self.blocks.clone();
        if self.cut {
            blocks.pop();
            // Clients look into the first block, so there is one.
            if blocks.is_empty() {
                blocks.push(text_block());
            }
        }
        let mut usage = self.usage();
        usage["cache_creation"] = json!({"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0});
        usage["inference_geo"] = Value::Null;
        usage["service_tier"] = "standard".into();
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": blocks,
            "stop_reason": reason, "stop_sequence": sequence, "stop_details": null, "container": null, "usage": usage,
        })
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

    /// The reason and the stop string, if it was one.
    fn stop(&self) -> (Option<&'static str>, Option<&str>) {
        match self.end.as_ref().map(|end| &end.finish) {
            None | Some(Finish::Failed(_)) => (None, None),
            Some(Finish::Length) => (Some("max_tokens"), None),
            Some(Finish::StopString(stop)) => (Some("stop_sequence"), Some(stop)),
            Some(Finish::ToolCalls) => (Some("tool_use"), None),
            Some(Finish::Stop) => (Some("end_turn"), None),
        }
    }

    /// What beginning and end both tell. Tokens from the cache are no input tokens; who marked nothing to be cached gets them as input.
    fn usage(&self) -> Value {
        let end = self.end.as_ref();
        let cached = end.filter(|_| self.tells_cache).map_or(0, |end| end.timings.reused_tokens);
        json!({
            "input_tokens": self.prompt_tokens.saturating_sub(cached), "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached, "output_tokens": end.map_or(0, |end| end.timings.generated_tokens),
            "output_tokens_details": {"thinking_tokens": end.map_or(0, |end| end.reasoning_tokens)},
            "server_tool_use": null,
        })
    }

    /// The events before the answer.
    pub fn begin(&self) -> Vec<Event> {
        vec![
            ("message_start", json!({"type": "message_start", "message": self.message()})),
            ("ping", json!({"type": "ping"})),
        ]
    }

    /// What more of the answer means.
    pub fn push(&mut self, delta: Delta) -> Vec<Event> {
        let mut events = Vec::new();
        for part in delta.parts {
            match part {
                Part::Text(text) => self.text(&text, &mut events),
                Part::Reasoning(text) => self.reasoning(&text, &mut events),
                Part::CallStart { index, id, name } => {
                    self.start(
                        use_block(&id, &name),
                        Open::Call { index, arguments: String::new() },
                        &mut events,
                    );
                }
                Part::CallArguments { index, delta } => self.arguments(index, &delta, &mut events),
            }
        }
        if let Some(end) = delta.end {
            self.finish(end, &mut events);
        }
        events
    }

    fn start(&mut self, block: Value, open: Open, events: &mut Vec<Event>) {
        self.close(events);
        let event =
            json!({"type": "content_block_start", "index": self.blocks.len(), "content_block": block});
        events.push(("content_block_start", event));
        self.blocks.push(block);
        self.open = Some(open);
    }

    fn delta(&self, delta: Value) -> Event {
        let index = self.blocks.len().saturating_sub(1);
        ("content_block_delta", json!({"type": "content_block_delta", "index": index, "delta": delta}))
    }

    /// Adds to a text of the last block.
    fn append(&mut self, name: &str, text: &str) {
        if let Some(Value::String(all)) = self.blocks.last_mut().and_then(|block| block.get_mut(name)) {
            all.push_str(text);
        }
    }

    fn text(&mut self, text: &str, events: &mut Vec<Event>) {
        if !matches!(self.open, Some(Open::Text)) {
            self.start(text_block(), Open::Text, events);
        }
        self.append("text", text);
        if !text.is_empty() {
            events.push(self.delta(json!({"type": "text_delta", "text": text})));
        }
    }

    fn reasoning(&mut self, text: &str, events: &mut Vec<Event>) {
        if self.thinking == Thinking::Unasked {
            return;
        }
        if !matches!(self.open, Some(Open::Thinking)) {
            let block = json!({"type": "thinking", "thinking": "", "signature": ""});
            self.start(block, Open::Thinking, events);
        }
        self.thought += text;
        if self.thinking == Thinking::Shown {
            self.append("thinking", text);
            events.push(self.delta(json!({"type": "thinking_delta", "thinking": text})));
        }
    }

    fn arguments(&mut self, at: usize, delta: &str, events: &mut Vec<Event>) {
        match &mut self.open {
            Some(Open::Call { index, arguments }) if *index == at => *arguments += delta,
            _ => return,
        }
        events.push(self.delta(json!({"type": "input_json_delta", "partial_json": delta})));
    }

    /// Ends the block that is being written.
    fn close(&mut self, events: &mut Vec<Event>) {
        let Some(open) = self.open.take() else { return };
        let index = self.blocks.len() - 1;
        match open {
            Open::Text => {}
            Open::Thinking => {
                // Clients want one; what it signs is not looked at here.
                let hash = Sha256::digest(std::mem::take(&mut self.thought));
                let signature = base64::engine::general_purpose::STANDARD.encode(hash);
                events.push(self.delta(json!({"type": "signature_delta", "signature": signature})));
                self.blocks[index]["signature"] = signature.into();
            }
            Open::Call { arguments, .. } => {
                // Arguments that were cut off are no JSON; the reason of the end tells.
                let text = if arguments.trim().is_empty() { "{}" } else { &arguments };
                let input = serde_json::from_str(text).ok().filter(Value::is_object);
                self.cut = input.is_none();
                self.blocks[index]["input"] = input.unwrap_or_else(|| json!({}));
            }
        }
        events.push(("content_block_stop", json!({"type": "content_block_stop", "index": index})));
    }

    fn finish(&mut self, end: End, events: &mut Vec<Event>) {
        let failed = match &end.finish {
            Finish::Failed(why) => Some(error(why)),
            _ => None,
        };
        // Clients look into the first block, so there is one.
        if self.blocks.is_empty() && failed.is_none() {
            self.text("", events);
        }
        self.close(events);
        self.end = Some(end);
        if let Some(error) = failed {
            events.push(error);
            return;
        }
        let (reason, sequence) = self.stop();
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence, "stop_details": null, "container": null});
        let event = json!({"type": "message_delta", "delta": delta, "usage": self.usage()});
        events.push(("message_delta", event));
        events.push(("message_stop", json!({"type": "message_stop"})));
    }
}

/// A block of text that has just begun.
fn text_block() -> Value {
    json!({"type": "text", "text": "", "citations": []})
}

/// The event of an answer that fails.
pub(crate) fn error(error: &ApiError) -> Event {
    ("error", error.body(Dialect::Anthropic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::made::{end, parts};

    fn writer(thinking: Thinking) -> Writer {
        Writer::new("m".into(), thinking, true, 9)
    }

    fn run(writer: &mut Writer, deltas: Vec<Delta>) -> Vec<Event> {
        let mut events = writer.begin();
        events.extend(deltas.into_iter().flat_map(|delta| writer.push(delta)).collect::<Vec<_>>());
        assert!(events.iter().all(|(name, event)| event["type"] == *name));
        events
    }

    fn names(events: &[Event]) -> Vec<String> {
        let name = |(name, event): &Event| match event.get("index") {
            Some(index) => format!("{name} {index} {}", event["delta"]["type"].as_str().unwrap_or_default()),
            None => (*name).to_owned(),
        };
        events.iter().map(name).map(|name| name.trim_end().to_owned()).collect()
    }

    #[test]
    fn thoughts_words_and_uses_come_in_order() {
        let mut writer = writer(Thinking::Shown);
        let events = run(
            &mut writer,
            vec![
                parts(vec![Part::Reasoning("hm".into()), Part::Text("a".into())]),
                parts(vec![Part::Text("b".into())]),
                parts(vec![
                    Part::CallStart { index: 0, id: "call_1".into(), name: "f".into() },
                    Part::CallArguments { index: 0, delta: "{\"x\":".into() },
                    Part::CallArguments { index: 0, delta: "1}".into() },
                    Part::CallStart { index: 1, id: "call_2".into(), name: "g".into() },
                ]),
                end(Finish::ToolCalls),
            ],
        );
        assert_eq!(
            names(&events),
            [
                "message_start",
                "ping",
                "content_block_start 0",
                "content_block_delta 0 thinking_delta",
                "content_block_delta 0 signature_delta",
                "content_block_stop 0",
                "content_block_start 1",
                "content_block_delta 1 text_delta",
                "content_block_delta 1 text_delta",
                "content_block_stop 1",
                "content_block_start 2",
                "content_block_delta 2 input_json_delta",
                "content_block_delta 2 input_json_delta",
                "content_block_stop 2",
                "content_block_start 3",
                "content_block_stop 3",
                "message_delta",
                "message_stop",
            ]
        );
        let start = &events[0].1["message"];
        assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
        assert_eq!(start["usage"]["input_tokens"], 9);
        let message = writer.message();
        assert_eq!(message["content"][0]["thinking"], "hm");
        assert!(!message["content"][0]["signature"].as_str().unwrap().is_empty());
        assert_eq!(message["content"][1], json!({"type": "text", "text": "ab", "citations": []}));
        assert_eq!(message["content"][2]["input"], json!({"x": 1}));
        assert_eq!(
            (&message["content"][3]["id"], &message["content"][3]["input"]),
            (&json!("call_2"), &json!({}))
        );
        assert_eq!(message["stop_reason"], "tool_use");
        let usage = &events[16].1["usage"];
        assert_eq!((&usage["input_tokens"], &usage["cache_read_input_tokens"]), (&json!(5), &json!(4)));
        assert_eq!(usage["output_tokens_details"], json!({"thinking_tokens": 3}));
    }

    #[test]
    fn every_end_is_told() {
        for (finish, reason, sequence) in [
            (Finish::Stop, "end_turn", Value::Null),
            (Finish::Length, "max_tokens", Value::Null),
            (Finish::StopString("END".into()), "stop_sequence", json!("END")),
        ] {
            let mut writer = writer(Thinking::Unasked);
            let events = run(&mut writer, vec![end(finish)]);
            let (_, last) = &events[events.len() - 2];
            let expected = json!({"stop_reason": reason, "stop_sequence": sequence, "stop_details": null, "container": null});
            assert_eq!(last["delta"], expected);
            assert_eq!(writer.message()["content"], json!([{"type": "text", "text": "", "citations": []}]));
        }
        let mut failed = writer(Thinking::Unasked);
        let events = run(
            &mut failed,
            vec![parts(vec![Part::Text("a".into())]), end(Finish::Failed(ApiError::internal("no")))],
        );
        assert_eq!(events.last().unwrap().1["error"], json!({"type": "api_error", "message": "no"}));
        assert!(events.iter().all(|(name, _)| *name != "message_stop"));
        assert_eq!(failed.failure().unwrap().message, "no");
    }

    #[test]
    fn thoughts_nobody_asked_for_are_kept_back() {
        let thought = || {
            vec![
                parts(vec![Part::Reasoning("hm".into())]),
                parts(vec![Part::Text("a".into())]),
                end(Finish::Stop),
            ]
        };
        let mut unasked = writer(Thinking::Unasked);
        run(&mut unasked, thought());
        assert_eq!(unasked.message()["content"].as_array().unwrap().len(), 1);
        let mut omitted = writer(Thinking::Omitted);
        let events = run(&mut omitted, thought());
        assert!(names(&events).iter().all(|name| !name.contains("thinking_delta")));
        let block = &omitted.message()["content"][0];
        assert_eq!((&block["type"], &block["thinking"]), (&json!("thinking"), &json!("")));
        assert!(!block["signature"].as_str().unwrap().is_empty());
    }

    #[test]
    fn who_marks_nothing_hears_nothing_of_the_cache() {
        let mut writer = Writer::new("m".into(), Thinking::Unasked, false, 9);
        run(&mut writer, vec![end(Finish::Stop)]);
        let usage = &writer.message()["usage"];
        assert_eq!((&usage["input_tokens"], &usage["cache_read_input_tokens"]), (&json!(9), &json!(0)));
    }

    #[test]
    fn a_call_that_is_cut_off_is_none() {
        let start = || Part::CallStart { index: 0, id: "c".into(), name: "f".into() };
        let arguments = |text: &str| Part::CallArguments { index: 0, delta: text.into() };
        for (parts_, content) in [
            (vec![start(), arguments("{\"x")], json!([{"type": "text", "text": "", "citations": []}])),
            (
                vec![Part::Text("a".into()), start(), arguments("{\"x")],
                json!([{"type": "text", "text": "a", "citations": []}]),
            ),
        ] {
            let mut writer = writer(Thinking::Unasked);
            run(&mut writer, vec![parts(parts_), end(Finish::Length)]);
            let message = writer.message();
            assert_eq!((&message["content"], &message["stop_reason"]), (&content, &json!("max_tokens")));
        }
        let mut whole = writer(Thinking::Unasked);
        run(&mut whole, vec![parts(vec![start(), arguments("{\"x\":1}")]), end(Finish::ToolCalls)]);
        assert_eq!(whole.message()["content"][0]["input"], json!({"x": 1}));
    }
}
