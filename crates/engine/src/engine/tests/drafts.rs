//! Steps that bring several tokens, and steps that are launched before their token is known.

use super::*;
use crate::Timings;

/// Adds a request with drafts; its text, end and times, and how many batches ran.
fn drafted(
    engine: &mut Engine,
    request: &Request,
    drafter: Knowing,
) -> (Vec<u32>, FinishReason, Timings, u64) {
    let before = engine.stats().submits;
    engine.add_guided(request.clone(), drafts_of(drafter)).unwrap();
    let mut text = Vec::new();
    loop {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { token, .. } => text.push(token),
                Event::Embedding { .. } => panic!("a vector of a text that goes on"),
                Event::PromptLogprobs { .. } => {}
                Event::Finished { reason, timings, .. } => {
                    return (text, reason, timings, engine.stats().submits - before);
                }
            }
        }
    }
}

#[test]
fn right_drafts_save_batches_and_wrong_ones_change_nothing() {
    let request = Request {
        sampling: SamplingOptions { temperature: 0.7, ..request(3, 0, 0).sampling },
        ..request(3, 50, 60)
    };
    let (text, reason) = alone(&request);
    let mut engine = engine_of(options());
    let mut run = |right| drafted(&mut engine, &request, Knowing::of(&request, &text, right));
    let good = run(u32::MAX);
    assert_eq!((&good.0, Some(&good.1)), (&text, reason.as_ref()));
    assert!(good.2.drafted_tokens > 0 && good.2.accepted_tokens == good.2.drafted_tokens, "{:?}", good.2);
    // Batches for the prompt and the two tokens that are timed, then 57 tokens in drafts of 4, 8, 16 and more.
    assert!(good.3 <= 9, "{} batches", good.3);
    let bad = run(0);
    assert_eq!(bad.0, text);
    assert_eq!(bad.2.accepted_tokens, 0);
    assert!(bad.2.drafted_tokens > 0);
    assert_eq!(bad.3, 60);
    assert!(all_free(&engine));
}

#[test]
fn a_stop_token_among_accepted_drafts_ends_the_text_there() {
    let whole = request(4, 30, 40);
    let (text, _) = alone(&whole);
    let stop = text[17];
    let at = text.iter().position(|t| *t == stop).unwrap();
    let request = Request { stop_tokens: vec![stop], keep: true, ..whole };
    let mut engine = engine_of(options());
    let got = drafted(&mut engine, &request, Knowing::of(&request, &text, u32::MAX));
    assert_eq!((&got.0[..], got.1), (&text[..at], FinishReason::Stop));
    // What was kept serves a conversation that goes on.
    let next = Request {
        prompt: [&request.prompt[..], &text[..at], &[stop, 1, 2, 3]].concat(),
        ..self::request(5, 0, 9)
    };
    let id = engine.add(next.clone()).unwrap();
    assert_eq!(drain(&mut engine)[&id], alone(&next));
}

#[test]
fn a_batch_that_fails_for_its_drafts_is_tried_without() {
    let request = request(6, 30, 30);
    let (text, reason) = alone(&request);
    let poison = (0..VOCAB as u32).find(|t| !text.contains(t) && !request.prompt.contains(t));
    let device = FakeDevice::plain();
    let mut engine = engine_on(device.clone(), options());
    device.set_faults(Faults { token: poison, ..Faults::default() });
    let poisoned = [&text[..10], &[poison.unwrap()], &text[11..]].concat();
    let got = drafted(&mut engine, &request, Knowing::of(&request, &poisoned, u32::MAX));
    assert_eq!((got.0, Some(got.1)), (text, reason));
    assert!(got.2.accepted_tokens <= 9 && all_free(&engine));
}

#[test]
fn a_device_feeds_itself_where_the_likeliest_token_is_taken() {
    let request = Request { stop_tokens: vec![], ..greedy(request(7, 30, 12)) };
    let expected = {
        let mut engine = engine_of(EngineOptions { ahead: false, ..options() });
        let id = engine.add(request.clone()).unwrap();
        drain(&mut engine).remove(&id).unwrap()
    };
    let run = |request: Request| {
        let device = Arc::new(FakeDevice::new("fake", LAZY, Log::default()));
        let mut engine = engine_on(device, options());
        let id = engine.add(request).unwrap();
        let (mut texts, mut most) = (Texts::new(), 0);
        while !engine.is_idle() {
            collect(&mut texts, engine.step().unwrap());
            most = most.max(engine.executor.in_flight());
        }
        assert!(all_free(&engine));
        (texts.remove(&id).unwrap(), most, engine.stats().submits)
    };
    // The end is known beforehand: no step too many.
    assert_eq!(run(request.clone()), (expected.clone(), 2, 12));
    // It is not: one step was for nothing.
    let stop = *expected.0.iter().rev().find(|t| expected.0.iter().filter(|u| u == t).count() == 1).unwrap();
    let at = expected.0.iter().position(|t| *t == stop).unwrap();
    let (text, _, submits) = run(Request { stop_tokens: vec![stop], ..request.clone() });
    assert_eq!(text, (expected.0[..at].to_vec(), Some(FinishReason::Stop)));
    assert_eq!(submits, (at as u64 + 2).min(12));
    // What depends on chance or on the host's arithmetic waits for the host.
    for sampling in [
        SamplingOptions { temperature: 1.0, ..request.sampling.clone() },
        SamplingOptions { repeat_penalty: 1.1, ..request.sampling.clone() },
    ] {
        assert_eq!(run(Request { sampling, ..request.clone() }).1, 1);
    }
}

#[test]
fn steps_launched_ahead_penalize_what_the_text_repeats() {
    for seed in 0..20 {
        let base = greedy(request(seed, 60, 60));
        let dry = DryOptions { multiplier: 5.0, allowed_length: 1, ..DryOptions::default() };
        let request = Request { sampling: SamplingOptions { dry, ..base.sampling.clone() }, ..base };
        let run = |ahead| {
            let device = Arc::new(FakeDevice::new("fake", LAZY, Log::default()));
            let mut engine = engine_on(device, EngineOptions { ahead, ..options() });
            let id = engine.add(request.clone()).unwrap();
            drain(&mut engine).remove(&id).unwrap()
        };
        assert_eq!(run(true), run(false), "seed {seed}");
    }
}

/// Few pages: sequences are preempted and read their tokens again on the devices of the other phase, while drafts are on their way.
#[test]
fn drafts_belong_to_the_batch_that_they_are_in() {
    let spec = tiny_spec(2);
    let on = |device| Placement::new(&spec, 2, vec![device; spec.blocks.len()]).unwrap();
    for (chunk, seed) in
        [5usize, 8, 12, 32].into_iter().flat_map(|chunk| (0..4).map(move |seed| (chunk, 10 * seed)))
    {
        let placements = Placements { prefill: on(0), decode: on(1) };
        let few = EngineOptions { prefill_chunk: chunk, sequences_max: 4, kv_pages: Some(8), ..options() };
        let slow = Pace::Lazy(std::time::Duration::from_micros(200));
        let (mut engine, _) = engine_of_two(&spec, placements, [slow, LAZY], few);
        let requests: Vec<Request> = (0..6).map(|i| request(seed + i, 20 + 5 * i as usize, 60)).collect();
        let answers: Vec<_> = requests.iter().map(alone).collect();
        let add = |(r, a): (&Request, &(Vec<u32>, Option<FinishReason>))| {
            engine.add_guided(r.clone(), drafts_of(Knowing::of(r, &a.0, u32::MAX))).unwrap()
        };
        let ids: Vec<SequenceId> = requests.iter().zip(&answers).map(add).collect();
        let texts = drain(&mut engine);
        for (id, answer) in ids.iter().zip(&answers) {
            assert_eq!(&texts[id], answer);
        }
    }
}
