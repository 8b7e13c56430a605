//! Mixers whose state cannot be taken back: going on from snapshots changes no text.

use super::*;

fn small() -> EngineOptions {
    EngineOptions { prefill_chunk: 48, ..options() }
}

/// The text and the reused tokens of a request.
fn run(engine: &mut Engine, request: &Request) -> (Vec<u32>, usize) {
    let id = engine.add(request.clone()).unwrap();
    let (mut texts, mut reused) = (Texts::new(), 0);
    while !engine.is_idle() {
        let events = engine.step().unwrap();
        for event in &events {
            if let Event::Finished { timings, .. } = event {
                reused = timings.reused_tokens;
            }
        }
        collect(&mut texts, events);
    }
    (texts.remove(&id).unwrap().0, reused)
}

#[test]
fn prefixes_are_reused_where_there_is_a_state() {
    let spec = recurrent_spec(3);
    let mut engine = engine_with(&spec, FakeDevice::plain(), small());
    let first = Request { keep: true, ..request(1, 110, 20) };
    let (answer, reused) = run(&mut engine, &first);
    assert_eq!((&answer, reused), (&alone_with(&spec, &first).0, 0));
    let text = [&first.prompt[..], &answer].concat();
    // A conversation that goes on, from its last state; prompts that depart, from the end of a page before; one that departs before the
    // first snapshot.
    for (common, reused) in [(129, 129), (129, 128), (100, 96), (64, 64), (63, 32), (20, 0)] {
        let prompt = [&text[..common], &prompt(common as u64, 30)].concat();
        let next = Request { prompt, ..request(2, 0, 9) };
        assert_eq!(
            run(&mut engine, &next),
            (alone_with(&spec, &next).0, reused),
            "{common} tokens in common"
        );
    }
    engine.clear_kept();
    assert!(all_free(&engine));
}

#[test]
fn a_device_that_feeds_itself_leaves_the_state_before_its_last_step() {
    let spec = recurrent_spec(2);
    let request = Request { keep: true, stop_tokens: vec![], ..greedy(request(7, 30, 40)) };
    let (text, _) = alone_with(&spec, &request);
    let stop = *text.iter().rev().find(|t| text.iter().filter(|u| u == t).count() == 1).unwrap();
    let device = Arc::new(FakeDevice::new("fake", LAZY, Log::default()));
    let mut engine = engine_with(&spec, device, options());
    let stopped = Request { stop_tokens: vec![stop], ..request };
    let (answer, _) = run(&mut engine, &stopped);
    assert!(text.starts_with(&answer) && answer.len() < text.len());
    // It ends in another token than the one that a step was launched for already.
    let other = if stop == 1 { 2 } else { 1 };
    let prompt = [&stopped.prompt[..], &answer, &[other, 5, 6]].concat();
    let next = Request { prompt, ..self::request(3, 0, 9) };
    let reused = stopped.prompt.len() + answer.len();
    assert_eq!(run(&mut engine, &next), (alone_with(&spec, &next).0, reused));
}

proptest! {
    /// Drafts that are right or wrong, batches that fail, chunks and few pages: the text is that of the plain run.
    #[test]
    fn failed_batches_and_rejected_drafts_change_no_text(
        layers in 2usize..4, seed in any::<u64>(), prefill_chunk in 1usize..90, sequences_max in 1usize..5, pages in 6usize..40,
        apart in any::<bool>(), lens in prop::collection::vec((1usize..150, 1usize..40), 1..6), right in 0u32..20,
        drafts in any::<bool>(), left in prop::option::of(2usize..9), failing in prop::collection::vec(0usize..60, 0..4), kept_max in 0usize..3,
    ) {
        let spec = recurrent_spec(layers);
        let on = |device| Placement::new(&spec, 2, vec![device; spec.blocks.len()]).unwrap();
        let placements = Placements { prefill: on(0), decode: on(usize::from(apart)) };
        let devices = [FakeDevice::plain(), FakeDevice::plain()];
        let all = devices.iter().map(|d| d.clone() as Arc<dyn Device>).collect();
        let options = EngineOptions {
            context: 192, prefill_chunk, sequences_max, kv_pages: Some(pages), kept_max,
            outputs_max: Some(4 * sequences_max), ..options()
        };
        let mut engine = Engine::new(&spec, &zero_weights(), all, placements, options, &mut |_| {}).unwrap();
        engine.pools.shrink_states(left.unwrap_or(usize::MAX));
        engine.prefixes = PrefixCache::new(&engine.pools, kept_max, apart);
        let requests: Vec<Request> = lens.iter().enumerate().map(|(i, (prompt, tokens))| {
            let tokens = (*tokens).min(192 - prompt);
            let request = Request { keep: true, ..request(i as u64 % 2, *prompt, tokens) };
            if seed >> i & 1 == 0 { request } else { greedy(request) }
        }).collect();
        let expected: Vec<_> = requests.iter().map(|r| alone_with(&spec, r)).collect();
        let mut ids = Vec::new();
        for (request, expected) in requests.iter().zip(&expected) {
            ids.push(match drafts {
                true => engine.add_guided(request.clone(), drafts_of(Knowing::of(request, &expected.0, right))).unwrap(),
                false => engine.add(request.clone()).unwrap(),
            });
        }
        let mut texts = Texts::new();
        for step in 0.. {
            prop_assert!(step < 20_000, "the engine does not come to an end");
            if engine.is_idle() {
                break;
            }
            if failing.contains(&step) {
                devices.iter().for_each(|d| d.set_faults(Faults { next: 1, ..Faults::default() }));
            }
            collect(&mut texts, engine.step().unwrap());
        }
        for (id, (text, reason)) in ids.iter().zip(&expected) {
            let got = &texts[id];
            if matches!(got.1, Some(FinishReason::Device(_))) {
                prop_assert!(!failing.is_empty() && text.starts_with(&got.0));
            } else {
                prop_assert_eq!((&got.0, &got.1), (text, reason));
            }
        }
        engine.clear_kept();
        prop_assert!(all_free(&engine));
    }
}
