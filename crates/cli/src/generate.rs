//! One answer: from prompt tokens to text that arrives piece by piece.

use std::io;

use anyhow::{Context, anyhow};
use unicorn_engine::{Drafter, Engine, EngineError, Event, FinishReason, Guides, Request, Timings};
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

/// Runs one request to its end, with guesses of the next tokens if there is a `drafter`, handing each piece of text to `sink`. Ctrl-C cancels the request, and what came so far is
/// the answer; a sink that fails cancels it too, and its error is returned.
pub fn generate(
    engine: &mut Engine,
    mut detokenizer: Detokenizer,
    request: Request,
    drafter: Option<Box<dyn Drafter>>,
    catch: &Catch,
    mut sink: impl FnMut(&str) -> io::Result<()>,
) -> anyhow::Result<Answer> {
    let sequence = engine.add_guided(request, Guides { drafter, ..Guides::default() })?;
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
                Event::Token { .. } | Event::Embedding { .. } | Event::PromptLogprobs { .. } => {}
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
        FinishReason::NoCandidate => Err(anyhow!("no token could be chosen: every one is ruled out")),
        FinishReason::NotFinite => Err(anyhow!(
            "the model's output is not finite: its file, a kernel or the driver is wrong; `unicorn selftest` looks for it"
        )),
        FinishReason::Constraint(message) => Err(anyhow!("the constraint of the answer: {message}")),
        _ => Ok(answer),
    }
}

/// The line of figures after an answer: `prompt: 12 tokens, 512 tok/s | answer: 34 tokens, 98.2 tok/s`, with what came of drafts.
pub fn figures(answer: &Answer) -> String {
    let t = &answer.timings;
    let reused = match (t.reused_tokens, t.restored_tokens) {
        (0, _) => String::new(),
        (reused, 0) => format!(" ({reused} reused)"),
        (reused, restored) => format!(" ({reused} reused, {restored} from disk)"),
    };
    let prompt =
        format!("prompt: {} tokens{reused}, {} tok/s", t.prompt_tokens, rate(t.prefill_tokens_per_second()));
    let drafts = match t.drafted_tokens {
        0 => String::new(),
        drafted => format!(" ({} of {drafted} drafted tokens accepted)", t.accepted_tokens),
    };
    let written = format!(
        "answer: {} tokens{drafts}, {} tok/s",
        t.generated_tokens,
        rate(t.decode_tokens_per_second())
    );
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
        FinishReason::NoCandidate
        | FinishReason::NotFinite
        | FinishReason::Constraint(_)
        | FinishReason::Device(_) => Some("failed"),
        FinishReason::Embedded => None,
    }
}

fn rate(tokens_per_second: f64) -> String {
    units::three_digits(tokens_per_second)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use unicorn_core::{
        Block, BlockId, Device, DeviceError, DeviceProfile, MemoryNeed, MemoryUse, SharedBuffer, Sharing,
        StateCopy, StateLayout, StreamId, WeightSource, Work, Workload,
    };
    use unicorn_cpu::ReferenceDevice;
    use unicorn_engine::{EngineOptions, Failure, Placement};

    use super::*;

    /// The reference, but the next work fails with this error.
    struct Failing {
        device: ReferenceDevice,
        next: Arc<Mutex<Option<DeviceError>>>,
    }

    impl Device for Failing {
        fn submit(&self, work: Work) {
            match self.next.lock().unwrap().take() {
                Some(error) => work.done.give(Err(Arc::new(error))),
                None => self.device.submit(work),
            }
        }

        fn profile(&self) -> &DeviceProfile {
            self.device.profile()
        }
        fn needs(&self, blocks: &[&Block], workload: &Workload) -> Result<MemoryNeed, DeviceError> {
            self.device.needs(blocks, workload)
        }
        fn load(&self, block: &Block, source: &Arc<dyn WeightSource>) -> Result<BlockId, DeviceError> {
            self.device.load(block, source)
        }
        fn unload(&self, block: BlockId) {
            self.device.unload(block);
        }
        fn reserve(&self, layout: &StateLayout) -> Result<(), DeviceError> {
            self.device.reserve(layout)
        }
        fn attach(&self, stream: StreamId, residual: &Arc<SharedBuffer>) -> Result<Sharing, DeviceError> {
            self.device.attach(stream, residual)
        }
        fn copy_state(&self, copy: StateCopy) {
            self.device.copy_state(copy);
        }
        fn memory(&self) -> MemoryUse {
            self.device.memory()
        }
        fn describe(&self, block: BlockId) -> Vec<String> {
            self.device.describe(block)
        }
    }

    #[test]
    fn a_failure_takes_one_request_and_a_lost_device_all() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny/qwen2.gguf");
        let model = unicorn_model::open(&model).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        let next = Arc::new(Mutex::new(None));
        let device = Arc::new(Failing { device: ReferenceDevice::new(), next: next.clone() });
        let options = EngineOptions { context: 64, ..EngineOptions::default() };
        let placement = Placement::single(&model.spec).unwrap();
        let source: Arc<dyn WeightSource> = model.source.clone();
        let mut engine =
            Engine::new(&model.spec, &source, vec![device], placement, options, &mut |_| {}).unwrap();
        let catch = Catch::new();
        let mut ask = |error: Option<DeviceError>| {
            *next.lock().unwrap() = error;
            let request = Request { prompt: vec![1, 2, 3], max_tokens: Some(2), ..Request::default() };
            let detokenizer = tokenizer.tokenizer.detokenizer_after(None, true);
            let answer = generate(&mut engine, detokenizer, request, None, &catch, |_| Ok(()));
            (answer.map(|a| a.timings.generated_tokens).map_err(|e| e.to_string()), is_stopped(&mut engine))
        };
        let (device, what) = ("d".to_owned(), "work".to_owned());
        let failed =
            DeviceError::Failed { device: device.clone(), what: what.clone(), reason: "no luck".into() };
        assert_eq!(ask(None), (Ok(2), false));
        let (error, stopped) = ask(Some(failed));
        assert!(error.unwrap_err().contains("no luck") && !stopped);
        assert_eq!(ask(None), (Ok(2), false));
        let (error, stopped) = ask(Some(DeviceError::Lost { device, what }));
        assert!(error.unwrap_err().contains("lost") && stopped);
        assert!(ask(None).1);
    }

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
        (answer.timings.drafted_tokens, answer.timings.accepted_tokens) = (7, 5);
        assert!(figures(&answer).ends_with("answer: 11 tokens (5 of 7 drafted tokens accepted), 100 tok/s"));
        answer.reason = FinishReason::Length;
        assert!(figures(&answer).ends_with("| cut at --max-tokens"));
    }

    #[test]
    fn device_failures_are_errors() {
        let answer = |reason| Answer { text: String::new(), reason, timings: Timings::default() };
        let lost = finished(answer(FinishReason::Device(Failure(Arc::new(DeviceError::Abandoned)))));
        assert_eq!(lost.unwrap_err().to_string(), "work was given up by its device");
        assert!(finished(answer(FinishReason::Cancelled)).is_ok());
    }
}
