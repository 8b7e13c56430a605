//! One answer: from prompt tokens to text that arrives piece by piece.

use std::io;

use anyhow::{Context, anyhow};
use unicorn_engine::{Engine, EngineError, Event, FinishReason, Request, Timings};
use unicorn_text::Detokenizer;

use crate::interrupt::Catch;
use crate::units;

/// What came of a request.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The text, as streamed.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// Where the time went.
    pub timings: Timings,
}

/// Runs one request to its end, handing each piece of text to `sink`. Ctrl-C cancels the request, and what came so far is
/// the answer; a sink that fails cancels it too, and its error is returned.
pub fn generate(
    engine: &mut Engine,
    mut detokenizer: Detokenizer,
    request: Request,
    catch: &Catch,
    mut sink: impl FnMut(&str) -> io::Result<()>,
) -> anyhow::Result<Answer> {
    let sequence = engine.add(request)?;
    let mut text = String::new();
    let mut failed: Option<io::Error> = None;
    let mut cancelled = false;
    loop {
        if !cancelled && (catch.pressed() || failed.is_some()) {
            engine.cancel(sequence);
            cancelled = true;
        }
        let mut emit = |piece: String| {
            if failed.is_none() && !piece.is_empty() {
                failed = sink(&piece).err();
                text.push_str(&piece);
            }
        };
        for event in engine.step()? {
            match event {
                Event::Token { token, .. } if !cancelled => emit(detokenizer.push(token)),
                Event::Token { .. } => {}
                Event::Finished { reason, timings, .. } => {
                    emit(detokenizer.finish());
                    if let Some(error) = failed {
                        return Err(error).context("writing the answer");
                    }
                    return finished(Answer { text, reason, timings });
                }
            }
        }
        if engine.is_idle() {
            return Err(anyhow!("the engine lost the request"));
        }
    }
}

/// True where the engine can answer nothing any more, because a device was lost. Meant for an engine without requests.
pub fn is_stopped(engine: &mut Engine) -> bool {
    matches!(engine.step(), Err(EngineError::Stopped { .. }))
}

/// Endings that are failures become errors.
fn finished(answer: Answer) -> anyhow::Result<Answer> {
    match &answer.reason {
        FinishReason::Device(message) => Err(anyhow!("{message}")),
        FinishReason::NoCandidate => {
            Err(anyhow!("no token could be chosen: the model's output is not finite"))
        }
        _ => Ok(answer),
    }
}

/// The line of figures after an answer: `prompt: 12 tokens, 512 tok/s | answer: 34 tokens, 98.2 tok/s`.
pub fn figures(answer: &Answer) -> String {
    let t = &answer.timings;
    let reused = if t.reused_tokens > 0 { format!(" ({} reused)", t.reused_tokens) } else { String::new() };
    let prompt =
        format!("prompt: {} tokens{reused}, {} tok/s", t.prompt_tokens, rate(t.prefill_tokens_per_second()));
    let written =
        format!("answer: {} tokens, {} tok/s", t.generated_tokens, rate(t.decode_tokens_per_second()));
    match ending(&answer.reason) {
        Some(why) => format!("{prompt} | {written} | {why}"),
        None => format!("{prompt} | {written}"),
    }
}

/// Why an answer ended, where it did not end by itself.
fn ending(reason: &FinishReason) -> Option<&'static str> {
    match reason {
        FinishReason::Stop => None,
        FinishReason::Length => Some("cut at --max-tokens"),
        FinishReason::Context => Some("cut: the context is full, see --ctx"),
        FinishReason::Cancelled => Some("interrupted"),
        FinishReason::OutOfKvPages => Some("cut: the KV cache is full"),
        FinishReason::NoCandidate | FinishReason::Device(_) => Some("failed"),
    }
}

fn rate(tokens_per_second: f64) -> String {
    units::three_digits(tokens_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_name_both_rates_and_the_ending() {
        let timings = Timings {
            prompt_tokens: 12,
            reused_tokens: 2,
            prefill_seconds: 0.02,
            generated_tokens: 11,
            decode_seconds: 0.1,
            ..Timings::default()
        };
        let mut answer = Answer { text: String::new(), reason: FinishReason::Stop, timings };
        assert_eq!(
            figures(&answer),
            "prompt: 12 tokens (2 reused), 500 tok/s | answer: 11 tokens, 100 tok/s"
        );
        answer.reason = FinishReason::Length;
        assert!(figures(&answer).ends_with("| cut at --max-tokens"));
    }

    #[test]
    fn device_failures_are_errors() {
        let answer = |reason| Answer { text: String::new(), reason, timings: Timings::default() };
        let lost = finished(answer(FinishReason::Device("cpu: lost".into())));
        assert_eq!(lost.unwrap_err().to_string(), "cpu: lost");
        assert!(finished(answer(FinishReason::Cancelled)).is_ok());
    }
}
