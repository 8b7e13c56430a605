//! What answers cost, and how they ended, in OpenAI's words.

use serde_json::{Value, json};
use unicorn_engine::Timings;

use crate::generation::{End, Finish, Scored, Spelled};

/// What answers with the same seed should have in common. OpenAI's specification has no null here.
pub(crate) const FINGERPRINT: &str = concat!("unicorn-", env!("CARGO_PKG_VERSION"));

/// The `usage` of answers to one prompt.
pub(crate) fn usage(ends: &[End]) -> Value {
    let prompt = ends.first().map_or(0, |end| end.timings.prompt_tokens);
    let cached = ends.first().map_or(0, |end| end.timings.reused_tokens);
    let completion: usize = ends.iter().map(|end| end.timings.generated_tokens).sum();
    let reasoning: usize = ends.iter().map(|end| end.reasoning_tokens).sum();
    let accepted: usize = ends.iter().map(|end| end.timings.accepted_tokens).sum();
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning, "audio_tokens": 0,
            "accepted_prediction_tokens": accepted, "rejected_prediction_tokens": 0,
        },
    })
}

/// Where the time went.
pub(crate) fn timings(timings: &Timings) -> Value {
    json!({
        "prompt_tokens": timings.prompt_tokens, "cached_tokens": timings.reused_tokens,
        "completion_tokens": timings.generated_tokens, "queue_seconds": timings.queue_seconds,
        "prefill_seconds": timings.prefill_seconds, "decode_seconds": timings.decode_seconds,
        "prompt_tokens_per_second": timings.prefill_tokens_per_second(),
        "tokens_per_second": timings.decode_tokens_per_second(),
        "drafted_tokens": timings.drafted_tokens, "accepted_tokens": timings.accepted_tokens,
    })
}

/// OpenAI's `finish_reason`. One that failed has none.
pub(crate) fn finish_reason(finish: &Finish) -> Option<&'static str> {
    match finish {
        Finish::Stop | Finish::StopString(_) => Some("stop"),
        Finish::Length => Some("length"),
        Finish::ToolCalls => Some("tool_calls"),
        Finish::Failed(_) => None,
    }
}

/// The chat API's `logprobs`.
pub(crate) fn logprobs(tokens: &[Scored]) -> Value {
    let one = |spelled: &Spelled, logprob: f32| json!({"token": spelled.text, "logprob": finite(logprob), "bytes": spelled.bytes});
    let scored = |scored: &Scored| {
        let mut value = one(&scored.token, scored.logprob);
        value["top_logprobs"] = scored.top.iter().map(|(token, logprob)| one(token, *logprob)).collect();
        value
    };
    json!({"content": tokens.iter().map(scored).collect::<Vec<_>>(), "refusal": null})
}

/// JSON has no infinity: what cannot be is OpenAI's -9999.
pub(crate) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
