//! The engine over the fake device.

mod canary;
mod drafts;
mod embedding;
mod recurrent;

use std::collections::HashMap;

use proptest::prelude::*;
use unicorn_core::{BatchError, Canary, TokenMask};

use canary::Looker;

use super::queue::rank as queue_rank;
use super::*;
use crate::placement::Placements;
use crate::sampling::uniform;
use crate::testing::{
    FakeDevice, Faults, Log, Pace, VOCAB, engine_of, engine_on, engine_with, recurrent_spec, sliding_spec,
    tiny_spec, zero_weights,
};
use crate::{Drafter, DryOptions, OptionError, SamplingOptions};

fn prompt(seed: u64, n: usize) -> Vec<u32> {
    (0..n as u64).map(|i| (uniform(seed, i) * VOCAB as f64) as u32).collect()
}

fn request(seed: u64, n: usize, max_tokens: usize) -> Request {
    let sampling = SamplingOptions { seed, temperature: 1.0, top_k: 20, ..SamplingOptions::default() };
    Request { prompt: prompt(seed, n), max_tokens: Some(max_tokens), sampling, ..Request::default() }
}

/// The request with the likeliest tokens, and one of them at which the text may end.
fn greedy(request: Request) -> Request {
    let stop = request.prompt.iter().sum::<u32>() % VOCAB as u32;
    let sampling = SamplingOptions { temperature: 0.0, ..request.sampling };
    Request { sampling, stop_tokens: vec![stop], ..request }
}

fn options() -> EngineOptions {
    EngineOptions {
        context: 512,
        sequences_max: 4,
        page_tokens: 32,
        prefill_chunk: 64,
        // However busy the machine is that runs the tests.
        stall_ms_max: u64::MAX,
        ..EngineOptions::default()
    }
}

/// Tokens and end of every sequence.
type Texts = HashMap<SequenceId, (Vec<u32>, Option<FinishReason>)>;

fn collect(texts: &mut Texts, events: Vec<Event>) {
    for event in events {
        let entry = texts.entry(event.sequence()).or_default();
        assert_eq!(entry.1, None, "an event after the last one");
        match event {
            Event::Token { token, .. } => entry.0.push(token),
            Event::Embedding { .. } => panic!("a vector of a text that goes on"),
            Event::PromptLogprobs { .. } => {}
            Event::Finished { reason, .. } => entry.1 = Some(reason),
        }
    }
}

fn drain(engine: &mut Engine) -> Texts {
    let mut texts = Texts::new();
    for _ in 0..100_000 {
        if engine.is_idle() {
            return texts;
        }
        collect(&mut texts, engine.step().unwrap());
    }
    panic!("the engine does not come to an end");
}

/// The text of a request alone on a fresh engine with room for everything.
fn alone(request: &Request) -> (Vec<u32>, Option<FinishReason>) {
    alone_with(&tiny_spec(2), request)
}

/// The same with another model.
fn alone_with(spec: &ModelSpec, request: &Request) -> (Vec<u32>, Option<FinishReason>) {
    let options = EngineOptions { sequences_max: 1, prefill_chunk: 512, ..options() };
    let mut engine = engine_with(spec, FakeDevice::plain(), options);
    let id = engine.add(Request { keep: false, ..request.clone() }).unwrap();
    drain(&mut engine).remove(&id).unwrap()
}

/// Guesses from the text that is to come; now and then a guess is wrong, or there is none.
#[derive(Clone, Debug)]
struct Knowing {
    text: Vec<u32>,
    /// One in so many guesses is wrong; 0 makes all wrong.
    right: u32,
    asked: Arc<std::sync::atomic::AtomicUsize>,
}

impl Drafter for Knowing {
    fn draft(&mut self, tokens: &[u32], max: usize) -> Vec<u32> {
        let asked = self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) as u64;
        let coming = self.text.iter().skip(tokens.len()).take(max);
        let wrong = |i: u64| self.right == 0 || uniform(asked, i) * self.right as f64 <= 1.0;
        let guess = |(i, token): (u64, &u32)| if wrong(i) { (token + 1) % VOCAB as u32 } else { *token };
        (0..).zip(coming).map(guess).collect()
    }
}

impl Knowing {
    /// For a request whose answer is known.
    fn of(request: &Request, answer: &[u32], right: u32) -> Knowing {
        Knowing { text: [&request.prompt, answer].concat(), right, asked: Arc::default() }
    }
}

/// Guesses of a drafter alone.
fn drafts_of(drafter: Knowing) -> Guides {
    Guides { drafter: Some(Box::new(drafter)), constraint: None }
}

fn all_free(engine: &Engine) -> bool {
    let (free, all) = engine.state_pages();
    free == all
}

#[test]
fn batches_give_the_same_text_as_single_requests() {
    for prefill_chunk in [1, 7, 32, 64, 500] {
        let mut engine = engine_of(EngineOptions { prefill_chunk, ..options() });
        let requests: Vec<Request> =
            (0..9).map(|i| request(i, 1 + 23 * i as usize, 5 + i as usize * 3)).collect();
        let ids: Vec<SequenceId> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
        let texts = drain(&mut engine);
        for (id, request) in ids.iter().zip(&requests) {
            assert_eq!(texts[id], alone(request));
            assert_eq!(texts[id].0.len(), request.max_tokens.unwrap());
            assert_eq!(texts[id].1, Some(FinishReason::Length));
        }
        assert!(all_free(&engine));
    }
}

/// An engine with two fake devices.
fn engine_of_two(
    spec: &ModelSpec,
    placement: impl Into<Placements>,
    paces: [Pace; 2],
    options: EngineOptions,
) -> (Engine, Log) {
    engine_of_several(spec, placement, &paces, options)
}

/// An engine with a fake device for each pace.
fn engine_of_several(
    spec: &ModelSpec,
    placement: impl Into<Placements>,
    paces: &[Pace],
    options: EngineOptions,
) -> (Engine, Log) {
    let log = Log::default();
    let device = |(name, pace): (&str, &Pace)| -> Arc<dyn Device> {
        Arc::new(FakeDevice::new(name, *pace, log.clone()))
    };
    let devices = ["a", "b", "c", "d"].into_iter().zip(paces).map(device).collect();
    (Engine::new(spec, &zero_weights(), devices, placement, options, &mut |_| {}).unwrap(), log)
}

const LAZY: Pace = Pace::Lazy(std::time::Duration::ZERO);

#[test]
fn sliding_windows_free_their_pages_and_change_no_text() {
    let spec = sliding_spec(3, 40);
    let small = EngineOptions { prefill_chunk: 32, ..options() };
    let alone = |request: &Request| {
        let options = EngineOptions { sequences_max: 1, prefill_chunk: 512, ..options() };
        let mut engine = engine_with(&spec, FakeDevice::plain(), options);
        let id = engine.add(Request { keep: false, ..request.clone() }).unwrap();
        drain(&mut engine).remove(&id).unwrap()
    };
    let mut engine = engine_with(&spec, FakeDevice::plain(), small.clone());
    let (_, pages) = engine.state_pages();
    // The group that keeps everything has 4 times 512 positions, the window a fraction of that.
    assert!((65..=64 + 40).contains(&pages), "{pages}");
    let a = Request { keep: true, ..request(1, 300, 30) };
    let id = engine.add(a.clone()).unwrap();
    let answer = drain(&mut engine).remove(&id).unwrap();
    assert_eq!(answer, alone(&a));
    // The conversation goes on behind the answer, and departs far back: there is room for what the window had given up.
    for (depart, reused) in [(None, 329), (Some(100), 96)] {
        let mut text = [a.prompt.clone(), answer.0.clone()].concat();
        text.truncate(depart.unwrap_or(usize::MAX));
        text.extend(prompt(9, 50));
        let b = Request { prompt: text, ..request(2, 0, 12) };
        let id = engine.add(b.clone()).unwrap();
        let mut texts = Texts::new();
        let mut timings = None;
        while !engine.is_idle() {
            let events = engine.step().unwrap();
            timings = events.iter().find_map(|e| match e {
                Event::Finished { timings, .. } => Some(*timings),
                Event::Token { .. } | Event::Embedding { .. } | Event::PromptLogprobs { .. } => timings,
            });
            collect(&mut texts, events);
        }
        assert_eq!(texts[&id], alone(&b));
        assert_eq!(timings.unwrap().reused_tokens, reused);
    }
    engine.clear_kept();
    assert!(all_free(&engine));
}

proptest! {

    /// Whatever the placement, the pace of the devices, the chunks, the pages, the drafts and the canary: every request ends with the text that it has
    /// alone on one device, and all pages come back.
    #[test]
    fn any_placement_schedule_and_budget_gives_the_same_text(
        layers in 1usize..4, window in prop::option::of(0usize..60), seed in any::<u64>(), paces in prop::array::uniform4(any::<bool>()),
        prefill_chunk in 1usize..90, devices in 2usize..5, sequences_max in 1usize..5, pages in 6usize..40, keep in any::<bool>(),
        apart in any::<bool>(), lens in prop::collection::vec((1usize..150, 1usize..40), 1..7),
        (cancel, drafts) in (prop::option::of((0usize..7, 0usize..30)), prop::option::of(0u32..20)),
        looks in prop::option::of(1u64..6),
    ) {
        let spec = match window {
            None => tiny_spec(layers),
            Some(0..20) => recurrent_spec(layers),
            Some(window) => sliding_spec(layers, window),
        };
        // One device for the whole model may feed itself.
        let single = seed & 7 < 3;
        let bit = |i: usize| if single { 0 } else { seed.rotate_left(i as u32 * 5) as usize % devices };
        let placement = |shift| Placement::new(&spec, devices, (0..spec.blocks.len()).map(|i| bit(i + shift)).collect()).unwrap();
        let placement = Placements { prefill: placement(0), decode: placement(if apart { 7 } else { 0 }) };
        let paces = paces.map(|lazy| if lazy { LAZY } else { Pace::Eager });
        let looker = looks.map(|every| Arc::new(Looker::new(&spec, every, seed)));
        let overseer = Overseer(looker.clone().map(|looker| looker as Arc<dyn Canary>));
        let options = EngineOptions {
            context: 192, prefill_chunk, sequences_max, kv_pages: Some(pages), overseer, ..options()
        };
        let (mut engine, _) = engine_of_several(&spec, placement, &paces[..devices], options.clone());
        let requests: Vec<Request> = lens.iter().enumerate()
            .map(|(i, (prompt, tokens))| {
                let request = Request { keep, ..request(i as u64 % 3, *prompt, *tokens) };
                // Nobody is greedy, everybody is, or every other one.
                if seed >> 3 & 3 == 0 || (seed >> 3 & 3 == 1 && i % 2 == 0) { request } else { greedy(request) }
            }).collect();
        let single = |request: &Request| {
            let options = EngineOptions { context: 192, sequences_max: 1, prefill_chunk: 192, ..self::options() };
            let mut one = engine_with(&spec, FakeDevice::plain(), options);
            let there = one.add(Request { keep: false, ..request.clone() }).unwrap();
            drain(&mut one).remove(&there).unwrap()
        };
        let expected: Vec<_> = requests.iter().map(single).collect();
        let add = |(request, expected): (&Request, &(Vec<u32>, Option<FinishReason>))| match drafts {
            Some(right) => {
                let knowing = Knowing::of(request, &expected.0, right);
                engine.add_guided(request.clone(), drafts_of(knowing)).unwrap()
            }
            None => engine.add(request.clone()).unwrap(),
        };
        let ids: Vec<SequenceId> = requests.iter().zip(&expected).map(add).collect();
        let mut texts = Texts::new();
        for step in 0.. {
            prop_assert!(step < 20_000, "the engine does not come to an end");
            if let Some((which, when)) = cancel && when == step && which < ids.len() {
                engine.cancel(ids[which]);
            }
            if engine.is_idle() {
                break;
            }
            collect(&mut texts, engine.step().unwrap());
        }
        for (id, (text, reason)) in ids.iter().zip(&expected) {
            let got = &texts[id];
            if got.1 == Some(FinishReason::Cancelled) {
                prop_assert_eq!(&text[..got.0.len()], &got.0[..]);
            } else {
                prop_assert_eq!((&got.0, &got.1), (text, reason));
            }
        }
        engine.clear_kept();
        prop_assert!(all_free(&engine));
        if let Some(looker) = looker {
            prop_assert_eq!(looker.wrong(), Vec::<String>::new());
            prop_assert_eq!(looker.open(), 0);
        }
    }
}

#[test]
fn selection_on_the_device_changes_no_text() {
    for (temperature, adjusted, masked) in
        [(0.0, false, false), (0.9, false, true), (0.0, true, true), (0.9, true, false)]
    {
        let mut plain = request(5, 30, 20);
        plain.sampling.temperature = temperature;
        if adjusted {
            let (repeat_penalty, presence_penalty, logit_bias) =
                (1.3, 0.4, vec![(7, 2.0), (9, f32::NEG_INFINITY)]);
            let dry = DryOptions { multiplier: 0.8, ..DryOptions::default() };
            plain.sampling =
                SamplingOptions { repeat_penalty, presence_penalty, logit_bias, dry, ..plain.sampling };
        }
        let even = TokenMask::of(VOCAB, (0..VOCAB as u32).filter(|t| t % 2 == 0));
        plain.mask = masked.then(|| Arc::new(even));
        // Log probabilities need all logits.
        let whole = Request { logprobs: Some(0), ..plain.clone() };
        let text = alone(&plain);
        assert_eq!(text, alone(&whole));
        assert!(!masked || text.0.iter().all(|t| t % 2 == 0));
    }
}

#[test]
fn masks_for_another_vocabulary_are_refused() {
    let mut engine = engine_of(options());
    for words in [vec![1], vec![1; 3], vec![0; 2]] {
        let mask = Some(Arc::new(TokenMask::new(words)));
        let refused = engine.add(Request { mask, ..request(1, 5, 5) });
        assert!(matches!(refused, Err(AdmissionError::Mask { vocab: VOCAB, .. })), "{refused:?}");
    }
}

#[test]
fn prefix_reuse_changes_no_text() {
    for (first, second) in [(100, 140), (96, 97), (100, 100), (33, 300), (10, 20)] {
        let mut engine = engine_of(options());
        let a = Request { keep: true, ..request(1, first, 10) };
        let id = engine.add(a.clone()).unwrap();
        let answer = drain(&mut engine).remove(&id).unwrap().0;
        // The conversation goes on; in the second case the prompt departs in the middle.
        for depart in [false, true] {
            let mut text = [a.prompt.clone(), answer.clone(), prompt(9, second)].concat();
            if depart {
                text.truncate(first);
                text.extend(prompt(10, second));
            }
            let b = Request { prompt: text, keep: true, ..request(2, 0, 12) };
            let id = engine.add(b.clone()).unwrap();
            let mut reused = 0;
            let mut texts = Texts::new();
            while !engine.is_idle() {
                let events = engine.step().unwrap();
                if let Some(Event::Finished { timings, .. }) = events.last() {
                    reused = timings.reused_tokens;
                }
                collect(&mut texts, events);
            }
            assert_eq!(texts[&id], alone(&b));
            if !depart {
                assert_eq!(reused, first + 9, "all computed tokens of the kept sequence");
            } else {
                assert_eq!(reused, first / 32 * 32, "the full pages before the departure");
            }
        }
        engine.clear_kept();
        assert!(all_free(&engine));
    }
}

#[test]
fn parallel_requests_share_a_kept_prefix() {
    let mut engine = engine_of(EngineOptions { kv_pages: Some(20), ..options() });
    engine.add(Request { keep: true, ..request(1, 200, 0) }).unwrap();
    let kept = drain(&mut engine);
    assert_eq!(kept.values().next().unwrap(), &(vec![], Some(FinishReason::Length)));
    assert_eq!(engine.report().kept, 1);
    let branch = |i: u64| {
        let text = [prompt(1, 200), prompt(50 + i, 20)].concat();
        Request { prompt: text, ..request(i, 0, 30) }
    };
    let ids: Vec<SequenceId> = (0..4).map(|i| engine.add(branch(i)).unwrap()).collect();
    let texts = drain(&mut engine);
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(texts[id], alone(&branch(i as u64)));
    }
}

#[test]
fn preemption_changes_no_text() {
    // Four sequences grow to 6 pages each; there are 11.
    let mut engine = engine_of(EngineOptions { kv_pages: Some(11), context: 300, ..options() });
    let requests: Vec<Request> = (0..4).map(|i| request(i, 40 + i as usize, 140)).collect();
    let ids: Vec<SequenceId> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
    let mut preempted = false;
    let mut texts = Texts::new();
    let mut most = 0;
    while !engine.is_idle() {
        collect(&mut texts, engine.step().unwrap());
        let running = engine.sequences().1;
        let ended = texts.values().filter(|t| t.1.is_some()).count();
        most = most.max(running);
        preempted |= running + ended < most;
    }
    assert!(preempted);
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(texts[id], alone(request));
    }
    assert!(all_free(&engine));
}

#[test]
fn a_preempted_sequence_that_is_cancelled_keeps_nothing() {
    let mut engine = engine_of(EngineOptions { kv_pages: Some(4), context: 128, ..options() });
    let old = engine.add(request(1, 60, 68)).unwrap();
    let young = engine.add(Request { keep: true, ..request(2, 60, 68) }).unwrap();
    while engine.sequences() != (1, 1) {
        engine.step().unwrap();
    }
    assert!(engine.cancel(young) && engine.cancel(old));
    drain(&mut engine);
    assert_eq!(engine.report().kept, 0);
    assert!(all_free(&engine));
    let again = engine.add(request(2, 60, 20)).unwrap();
    assert_eq!(drain(&mut engine)[&again], alone(&request(2, 60, 20)));
}

#[test]
fn one_sequence_larger_than_the_pool_ends_with_a_reason() {
    let mut engine = engine_of(EngineOptions { kv_pages: Some(2), ..options() });
    let id = engine.add(request(1, 50, 100)).unwrap();
    let text = drain(&mut engine).remove(&id).unwrap();
    // 64 positions are computed; the token after the last of them is still chosen.
    assert_eq!((text.0.len(), text.1), (15, Some(FinishReason::OutOfKvPages)));
    assert_eq!(text.0, alone(&request(1, 50, 15)).0);
    assert!(all_free(&engine));
    assert_eq!(engine.add(request(1, 65, 1)), Err(AdmissionError::PromptTooLong { prompt: 65, context: 64 }));
}

#[test]
fn sequences_end_for_the_named_reason() {
    let free = alone(&request(3, 20, 40)).0;
    let mut engine = engine_of(EngineOptions { context: 30, ..options() });
    let full = engine.add(Request { max_tokens: None, ..request(3, 20, 0) }).unwrap();
    let stop = free[6];
    let end = free.iter().position(|t| *t == stop).unwrap();
    let stopped = engine.add(Request { stop_tokens: vec![stop], ..request(3, 20, 40) }).unwrap();
    let exact = engine.add(Request { max_tokens: None, ..request(3, 30, 0) }).unwrap();
    let texts = drain(&mut engine);
    assert_eq!(texts[&full], (free[..11].to_vec(), Some(FinishReason::Context)));
    assert_eq!(texts[&stopped], (free[..end].to_vec(), Some(FinishReason::Stop)));
    assert_eq!((texts[&exact].0.len(), &texts[&exact].1), (1, &Some(FinishReason::Context)));
}

#[test]
fn timings_and_logprobs_are_reported() {
    let mut engine = engine_of(options());
    engine.add(Request { logprobs: Some(3), ..request(1, 100, 5) }).unwrap();
    let mut tokens = 0;
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { token, logprobs, .. } => {
                    let logprobs = logprobs.unwrap();
                    assert_eq!(logprobs.top.len(), 3);
                    assert!(logprobs.logprob <= logprobs.top[0].1 && logprobs.top[0].1 < 0.0);
                    let listed = logprobs.top.iter().find(|t| t.0 == token);
                    assert!(listed.is_none_or(|t| t.1 == logprobs.logprob));
                    tokens += 1;
                }
                Event::Embedding { .. } | Event::PromptLogprobs { .. } => panic!("nobody asked"),
                Event::Finished { timings, .. } => {
                    assert_eq!((timings.prompt_tokens, timings.generated_tokens), (100, 5));
                    assert!(timings.prefill_seconds > 0.0 && timings.decode_seconds > 0.0);
                    assert!(
                        timings.prefill_tokens_per_second() > 0.0 && timings.decode_tokens_per_second() > 0.0
                    );
                }
            }
        }
    }
    assert_eq!(tokens, 5);
}

#[test]
fn bad_requests_are_refused_by_name() {
    let mut engine = engine_of(EngineOptions { sequences_max: 1, queue_max: 2, ..options() });
    let good = || request(1, 10, 3);
    let mut refuse = |request: Request| engine.add(request).unwrap_err();
    assert_eq!(refuse(Request { prompt: vec![], ..good() }), AdmissionError::EmptyPrompt);
    assert_eq!(refuse(request(1, 513, 3)), AdmissionError::PromptTooLong { prompt: 513, context: 512 });
    let out_of_range = |what| AdmissionError::TokenOutOfRange { what, token: 64, vocab: 64 };
    assert_eq!(refuse(Request { prompt: vec![1, 64], ..good() }), out_of_range("prompt"));
    assert_eq!(refuse(Request { stop_tokens: vec![64], ..good() }), out_of_range("stop"));
    let mut biased = good();
    biased.sampling.logit_bias = vec![(64, 1.0)];
    assert_eq!(refuse(biased), out_of_range("logit_bias"));
    let mut broken = good();
    broken.sampling.dry.breakers = vec![vec![1, 64]];
    assert_eq!(refuse(broken), out_of_range("dry breaker"));
    let mut hot = good();
    hot.sampling.temperature = f32::NAN;
    assert!(matches!(refuse(hot), AdmissionError::Option(OptionError { name: "temperature", .. })));
    for _ in 0..3 {
        engine.add(good()).unwrap();
    }
    assert_eq!(engine.add(good()), Err(AdmissionError::QueueFull { queued: 3 }));
    drain(&mut engine);
    assert!(engine.add(good()).is_ok());
}

#[test]
fn a_failing_device_ends_only_the_affected() {
    let device = FakeDevice::plain();
    let mut engine = engine_on(device.clone(), options());
    device.set_faults(Faults { token: Some(63), ..Faults::default() });
    let mut bad = request(1, 20, 5);
    bad.prompt[7] = 63;
    let good: Vec<Request> = (2..5)
        .map(|i| {
            let mut r = request(i, 30, 8);
            r.prompt.iter_mut().for_each(|t| *t %= 63);
            r.sampling.logit_bias = vec![(63, f32::NEG_INFINITY)];
            r
        })
        .collect();
    let ids: Vec<SequenceId> = good.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
    let bad = engine.add(Request { keep: true, ..bad }).unwrap();
    let texts = drain(&mut engine);
    assert!(
        matches!(&texts[&bad].1, Some(FinishReason::Device(what)) if what.to_string().contains("poisoned token"))
    );
    for (id, request) in ids.iter().zip(&good) {
        assert_eq!(texts[id], alone(request));
    }
    assert!(all_free(&engine));
}

#[test]
fn a_batch_too_large_for_the_device_is_run_one_by_one() {
    let device = FakeDevice::plain();
    let mut engine = engine_on(device.clone(), options());
    device.set_faults(Faults { rows: Some(20), ..Faults::default() });
    let ids: Vec<SequenceId> = (0..4).map(|i| engine.add(request(i, 16, 4)).unwrap()).collect();
    let texts = drain(&mut engine);
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(texts[id], alone(&request(i as u64, 16, 4)));
    }
    assert_eq!(device.rows_max(), 64);
}

#[test]
fn a_model_without_finite_logits_ends_the_sequence() {
    let device = FakeDevice::plain();
    let mut engine = engine_on(device.clone(), options());
    device.set_faults(Faults { nan: true, ..Faults::default() });
    let id = engine.add(request(1, 10, 5)).unwrap();
    assert_eq!(drain(&mut engine)[&id], (vec![], Some(FinishReason::NotFinite)));
}

#[test]
fn loading_reports_progress_and_cleans_up() {
    let spec = tiny_spec(2);
    let device = FakeDevice::plain();
    let build = |devices: Vec<Arc<dyn Device>>, placement, progress: &mut dyn FnMut(LoadProgress)| {
        Engine::new(&spec, &zero_weights(), devices, placement, options(), progress)
    };
    let single = || Placement::single(&spec).unwrap();
    let mut seen = Vec::new();
    let engine = build(vec![device.clone()], single(), &mut |p| seen.push(p)).unwrap();
    assert_eq!(seen.len(), 7);
    assert!(seen.windows(2).all(|w| w[0].loaded_bytes < w[1].loaded_bytes));
    assert_eq!(seen[6].loaded_bytes, spec.weight_bytes());
    assert_eq!(seen[0].total_bytes, spec.weight_bytes());
    let report = engine.report();
    assert_eq!(report.devices[0].memory.weights, spec.weight_bytes());
    assert_eq!(report.devices[0].kernels[1], ("Some(Mixer) fake".to_string(), 2));
    assert_eq!(report.placement, ["blocks 0..=5: fake"]);
    assert!(report.lines().iter().any(|l| l.contains("fake") && l.contains("6 blocks")));
    drop(engine);
    assert_eq!(device.loaded(), 0);
    device.set_faults(Faults { load: Some(3), ..Faults::default() });
    let failed = build(vec![device.clone()], single(), &mut |_| {});
    assert!(matches!(failed, Err(EngineError::Load { block: 3, .. })));
    assert_eq!(device.loaded(), 0);
    let missing = build(vec![device], Placement::mixers_and_ffns(&spec).unwrap(), &mut |_| {});
    assert!(matches!(
        missing,
        Err(EngineError::Placement(PlacementError::Device { device: 1, devices: 1, .. }))
    ));
}

#[test]
fn short_prompts_are_not_stuck_behind_long_ones() {
    let mut engine = engine_of(options());
    engine.add(request(1, 500, 1)).unwrap();
    let short = engine.add(request(2, 20, 1)).unwrap();
    let first = engine.step().unwrap();
    assert!(first.iter().any(|e| e.sequence() == short));
}

#[test]
fn evaluator_checks_its_input_and_rewinds() {
    let mut engine = engine_of(EngineOptions { context: 40, ..options() });
    let mut evaluator = engine.evaluator();
    let text = prompt(1, 40);
    let whole = evaluator.prefill(&text, true).unwrap().unwrap();
    assert!(matches!(
        evaluator.feed(&[1], &[], unicorn_core::Select::Logits),
        Err(EngineError::Context { .. })
    ));
    evaluator.rewind(10);
    assert_eq!(evaluator.position(), 10);
    assert!(matches!(
        evaluator.prefill(&[64], true),
        Err(EngineError::Batch(BatchError::Token { token: 64, .. }))
    ));
    let bad = evaluator.feed(&[1, 2], &[2], unicorn_core::Select::Logits);
    assert!(matches!(bad, Err(EngineError::Option { name: "outputs", .. })));
    assert_eq!(evaluator.prefill(&text[10..], true).unwrap().unwrap(), whole);
    drop(evaluator);
    assert!(all_free(&engine));
}

#[derive(Clone, Debug)]
enum Op {
    Add { seed: u64, len: usize, max: usize, keep: bool },
    Step(usize),
    Cancel(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0u64..6, 1usize..150, 0usize..60, any::<bool>()).prop_map(|(seed, len, max, keep)| Op::Add { seed, len, max, keep }),
        4 => (1usize..30).prop_map(Op::Step),
        1 => (0usize..20).prop_map(Op::Cancel),
    ]
}

proptest! {
    /// Whatever is added, cancelled, preempted, kept and reused in whatever order: every sequence ends once, uncancelled ones have the
    /// text they have alone, and no page is lost or written by two.
    #[test]
    fn any_interleaving_keeps_the_invariants(
        ops in prop::collection::vec(op(), 1..30), pages in 6usize..24, prefill_chunk in 1usize..100, kept_max in 0usize..4,
        sequences_max in 1usize..6, recurrent in any::<bool>(),
    ) {
        let spec = if recurrent { recurrent_spec(2) } else { tiny_spec(2) };
        let few = EngineOptions { kv_pages: Some(pages), prefill_chunk, kept_max, sequences_max, queue_max: 8, ..options() };
        let mut engine = engine_with(&spec, FakeDevice::plain(), few);
        let mut requests: Vec<(SequenceId, Request, bool)> = Vec::new();
        let mut texts = Texts::new();
        for op in ops {
            match op {
                Op::Add { seed, len, max, keep } => {
                    // Few seeds, so that prompts have prefixes in common.
                    let request = Request { keep, ..request(seed, len, max) };
                    let request = if seed < 4 { greedy(request) } else { request };
                    match engine.add(request.clone()) {
                        Ok(id) => requests.push((id, request, false)),
                        Err(error) => prop_assert!(matches!(error, AdmissionError::QueueFull { .. }), "{}", error),
                    }
                }
                Op::Step(n) => (0..n).for_each(|_| collect(&mut texts, engine.step().unwrap())),
                Op::Cancel(i) => {
                    if let Some((id, _, cancelled)) = requests.get_mut(i) {
                        let alive = texts.get(id).is_none_or(|t| t.1.is_none());
                        prop_assert_eq!(engine.cancel(*id), alive && !*cancelled);
                        *cancelled |= alive;
                    }
                }
            }
            prop_assert!(engine.running.len() <= sequences_max);
            for sequence in engine.running.iter().chain(&engine.ending) {
                prop_assert!(sequence.pending() + sequence.flights >= 1);
                prop_assert!(sequence.pages.capacity() >= sequence.computed);
                prop_assert!(sequence.pages.writable_from(sequence.computed));
            }
            prop_assert!(engine.running.windows(2).all(|w| queue_rank(&w[0]) < queue_rank(&w[1])));
        }
        for (id, (tokens, end)) in drain(&mut engine) {
            let entry = texts.entry(id).or_default();
            prop_assert_eq!(&entry.1, &None);
            entry.0.extend(tokens);
            entry.1 = end;
        }
        for (id, request, cancelled) in &requests {
            let (tokens, end) = &texts[id];
            let (expected, reason) = alone_with(&spec, request);
            prop_assert!(expected.starts_with(tokens));
            match end {
                Some(FinishReason::Cancelled) => prop_assert!(*cancelled),
                Some(FinishReason::OutOfKvPages) => prop_assert!(request.prompt.len() + tokens.len() > pages * 32),
                _ => {
                    prop_assert_eq!(tokens, &expected);
                    prop_assert_eq!(end, &reason);
                }
            }
        }
        engine.clear_kept();
        prop_assert!(all_free(&engine));
    }
}

mod constraints;
mod devices;
mod phases;
mod prefixes;
mod prompt_logprobs;
mod queue;
mod serving;
mod store;
mod survivors;
