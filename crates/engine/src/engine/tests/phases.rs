//! Prompts read on one device and answers from another.

use super::*;

/// A conversation of several turns, whose prompts are read on one device and whose answers come from the other.
#[test]
fn state_follows_a_sequence_from_phase_to_phase() {
    for spec in [tiny_spec(3), sliding_spec(3, 40), recurrent_spec(3)] {
        let on = |device| Placement::new(&spec, 2, vec![device; spec.blocks.len()]).unwrap();
        let placements = Placements { prefill: on(0), decode: on(1) };
        let small = EngineOptions { prefill_chunk: 32, ..options() };
        for paces in [[LAZY; 2], [Pace::Eager, LAZY], [LAZY, Pace::Eager]] {
            let (mut engine, log) = engine_of_two(&spec, placements.clone(), paces, small.clone());
            let mut text = prompt(3, 100);
            let mut brought = 0;
            for turn in 0..3 {
                let request = Request { prompt: text.clone(), keep: true, ..request(turn, 0, 9) };
                let id = engine.add(request.clone()).unwrap();
                let answer = drain(&mut engine).remove(&id).unwrap();
                let mut one = engine_with(&spec, FakeDevice::plain(), options());
                let there = one.add(request).unwrap();
                assert_eq!(answer, drain(&mut one).remove(&there).unwrap(), "turn {turn}");
                text.extend(answer.0);
                text.extend(prompt(turn + 20, 45));
                let before = std::mem::replace(&mut brought, engine.stats().state_bytes);
                assert!(brought > before, "turn {turn} brings state");
            }
            // Of three turns: 3 layers of 4 words a position, there and back, but not everything in every turn.
            let all = 3 * 4 * 4 * text.len() as u64;
            assert!(brought < 5 * all / 2, "{brought} bytes for {all} of state");
            assert_eq!(engine.stats().crossings, 0);
            let log = log.lock().unwrap();
            assert!(["a", "b"].iter().all(|d| log.iter().any(|r| r.device == *d)));
        }
    }
}

/// An engine that reads prompts on the first of two eager devices and answers from the other.
fn apart(spec: &ModelSpec, options: EngineOptions) -> (Engine, [Arc<FakeDevice>; 2]) {
    let on = |device| Placement::new(spec, 2, vec![device; spec.blocks.len()]).unwrap();
    let devices = [FakeDevice::plain(), FakeDevice::plain()];
    let all = devices.iter().map(|d| d.clone() as Arc<dyn Device>).collect();
    let placements = Placements { prefill: on(0), decode: on(1) };
    let engine = Engine::new(spec, &zero_weights(), all, placements, options, &mut |_| {}).unwrap();
    (engine, devices)
}

const SLOW: std::time::Duration = std::time::Duration::from_millis(15);

#[test]
fn nobody_goes_on_from_state_that_is_still_on_its_way() {
    for spec in [tiny_spec(3), sliding_spec(3, 40), recurrent_spec(3)] {
        let (mut engine, devices) = apart(&spec, options());
        devices[1].set_faults(Faults { copy_time: SLOW, ..Faults::default() });
        // All but the last token are whole pages, which are known to others while they are brought for the first.
        let ids: Vec<SequenceId> = (0..3).map(|_| engine.add(request(1, 65, 9)).unwrap()).collect();
        let texts = drain(&mut engine);
        for id in ids {
            assert_eq!(texts[&id], alone_with(&spec, &request(1, 65, 9)));
        }
        // All of it was brought once.
        let all = 3 * 4 * 4 * 64;
        assert!(engine.stats().state_bytes <= all, "{} of {all} bytes", engine.stats().state_bytes);
        assert!(all_free(&engine));
    }
}

#[test]
fn state_that_did_not_arrive_is_not_taken_for_there() {
    for spec in [tiny_spec(3), sliding_spec(3, 40), recurrent_spec(3)] {
        let (mut engine, devices) = apart(&spec, options());
        devices[1].set_faults(Faults { copies: 1, ..Faults::default() });
        // Two in a batch, so that each is tried again.
        let both = [1, 2].map(|seed| Request { keep: true, ..request(seed, 65, 9) });
        let ids = both.clone().map(|r| engine.add(r).unwrap());
        let texts = drain(&mut engine);
        for (id, request) in ids.iter().zip(&both) {
            assert_eq!(texts[id], alone_with(&spec, request));
        }
        for request in both {
            let id = engine.add(request.clone()).unwrap();
            assert_eq!(drain(&mut engine)[&id], alone_with(&spec, &request));
        }
    }
}

#[test]
fn who_waits_for_state_that_is_brought_for_another_does_not_end_with_it() {
    let spec = tiny_spec(3);
    let (mut engine, devices) = apart(&spec, options());
    devices[1].set_faults(Faults { copies: 1, copy_time: SLOW, ..Faults::default() });
    let ids = [1, 1].map(|seed| engine.add(request(seed, 65, 9)).unwrap());
    let texts = drain(&mut engine);
    assert!(matches!(texts[&ids[0]].1, Some(FinishReason::Device(_))), "the first one's own copies failed");
    assert_eq!(texts[&ids[1]], alone_with(&spec, &request(1, 65, 9)));
}

/// Pages that two have in common are not written while either may read them.
#[test]
fn what_is_there_for_one_is_not_brought_for_another() {
    let spec = tiny_spec(3);
    let (mut engine, _) = apart(&spec, EngineOptions { prefill_chunk: 32, ..options() });
    let first = engine.add(request(1, 65, 60)).unwrap();
    let mut texts = Texts::new();
    // The second one begins from pages that lie on the devices of prefill alone by then, and reads a prompt of its own meanwhile.
    while engine.running.iter().all(|s| s.computed < 64) {
        collect(&mut texts, engine.step().unwrap());
    }
    let longer = Request { prompt: [prompt(1, 65), prompt(7, 95)].concat(), ..request(2, 0, 9) };
    let second = engine.add(longer.clone()).unwrap();
    for (id, (text, end)) in drain(&mut engine) {
        let entry = texts.entry(id).or_default();
        entry.0.extend(text);
        entry.1 = end;
    }
    assert_eq!(texts[&first], alone_with(&spec, &request(1, 65, 60)));
    assert_eq!(texts[&second], alone_with(&spec, &longer));
    // The two common pages once, and three of the second's own; of three layers, 4 words a position.
    assert_eq!(engine.stats().state_bytes, (2 + 3) * 32 * 3 * 4 * 4);
}

#[test]
fn a_cancelled_sequence_keeps_no_state_that_did_not_arrive() {
    for spec in [tiny_spec(3), sliding_spec(3, 40), recurrent_spec(3)] {
        let (mut engine, devices) = apart(&spec, options());
        devices[1].set_faults(Faults { copies: 1, copy_time: SLOW, ..Faults::default() });
        let request = Request { keep: true, ..request(1, 66, 9) };
        let id = engine.add(request.clone()).unwrap();
        let mut texts = Texts::new();
        // Until its first token is chosen, and the batch of the next one waits for the copies.
        while texts.get(&id).is_none_or(|t| t.0.is_empty()) {
            collect(&mut texts, engine.step().unwrap());
        }
        assert!(engine.cancel(id));
        drain(&mut engine);
        let again = engine.add(request.clone()).unwrap();
        assert_eq!(drain(&mut engine)[&again], alone_with(&spec, &request));
    }
}

#[test]
fn prompts_on_several_devices_of_their_own_keep_them_busy() {
    let spec = tiny_spec(4);
    let prefill = Placement::mixers_and_ffns(&spec).unwrap();
    let decode = Placement::new(&spec, 2, vec![1; spec.blocks.len()]).unwrap();
    let pace = Pace::Lazy(std::time::Duration::from_millis(2));
    let few = EngineOptions { prefill_chunk: 32, ..options() };
    let (mut engine, _) = engine_of_two(&spec, Placements { prefill, decode }, [pace; 2], few);
    let id = engine.add(request(1, 500, 3)).unwrap();
    let mut texts = Texts::new();
    collect(&mut texts, engine.step().unwrap());
    assert_eq!(engine.executor.in_flight(), 8, "as many as the planner counts on");
    for (id, text) in drain(&mut engine) {
        texts.insert(id, text);
    }
    assert_eq!(texts[&id], alone_with(&spec, &request(1, 500, 3)));
}

#[test]
fn a_failed_way_of_state_ends_the_request_with_the_device_named() {
    let spec = tiny_spec(2);
    let on = |device| Placement::new(&spec, 2, vec![device; spec.blocks.len()]).unwrap();
    let devices = [FakeDevice::plain(), FakeDevice::plain()];
    let all = devices.iter().map(|d| d.clone() as Arc<dyn Device>).collect();
    let placements = Placements { prefill: on(0), decode: on(1) };
    let mut engine = Engine::new(&spec, &zero_weights(), all, placements, options(), &mut |_| {}).unwrap();
    devices[1].set_faults(Faults { copies: usize::MAX, ..Faults::default() });
    let id = engine.add(request(1, 50, 9)).unwrap();
    let (text, reason) = drain(&mut engine).remove(&id).unwrap();
    // The first token needs no state of the other device.
    assert_eq!(text.len(), 1);
    assert!(
        matches!(&reason, Some(FinishReason::Device(f)) if f.to_string().contains("a copy")),
        "{reason:?}"
    );
    assert!(all_free(&engine));
    // It goes on when the device does.
    devices[1].set_faults(Faults::default());
    let again = engine.add(request(1, 50, 9)).unwrap();
    assert_eq!(drain(&mut engine).remove(&again).unwrap(), alone(&request(1, 50, 9)));
}

/// A prompt that departs from a kept one sees, at its last token, what lies before the window of the token that brought the state over.
#[test]
fn a_step_back_in_a_window_finds_its_page_on_both_devices() {
    let spec = sliding_spec(3, 40);
    let on = |device| Placement::new(&spec, 2, vec![device; spec.blocks.len()]).unwrap();
    let placements = Placements { prefill: on(0), decode: on(1) };
    let (mut engine, _) = engine_of_two(&spec, placements, [LAZY; 2], options());
    let text = prompt(3, 100);
    let first = Request { prompt: text.clone(), keep: true, ..request(0, 0, 2) };
    engine.add(first).unwrap();
    drain(&mut engine);
    let second = Request { prompt: text[..68].to_vec(), ..request(1, 0, 9) };
    let id = engine.add(second.clone()).unwrap();
    let got = drain(&mut engine).remove(&id).unwrap();
    let mut one = engine_with(&spec, FakeDevice::plain(), options());
    let there = one.add(second).unwrap();
    assert_eq!(got, drain(&mut one).remove(&there).unwrap());
}

/// One sequence makes its pages known while they are on their way to the other phase's devices: who begins alike brings them there itself.
#[test]
fn what_is_on_its_way_is_nowhere_yet() {
    for spec in [tiny_spec(2), recurrent_spec(2)] {
        let on = |device| Placement::new(&spec, 2, vec![device; spec.blocks.len()]).unwrap();
        let devices = [0, 1].map(|_| Arc::new(FakeDevice::new("fake", LAZY, Log::default())));
        let all = devices.iter().map(|d| d.clone() as Arc<dyn Device>).collect();
        let placements = Placements { prefill: on(0), decode: on(1) };
        let small = EngineOptions { prefill_chunk: 96, ..options() };
        let mut engine = Engine::new(&spec, &zero_weights(), all, placements, small, &mut |_| {}).unwrap();
        let late = Some(std::time::Duration::from_millis(200));
        devices[0].set_faults(Faults { late, ..Faults::default() });
        let first = request(1, 97, 9);
        let a = engine.add(first.clone()).unwrap();
        // Its last token is read where answers are.
        while engine.running.iter().all(|s| s.computed == 0) {
            engine.step().unwrap();
        }
        assert_eq!(engine.running.iter().map(|s| (s.computed, s.launched)).collect::<Vec<_>>(), [(96, 97)]);
        devices[0].set_faults(Faults::default());
        let second = Request { prompt: [&first.prompt[..], &prompt(3, 20)].concat(), ..request(2, 0, 9) };
        let b = engine.add(second.clone()).unwrap();
        let texts = drain(&mut engine);
        assert_eq!(texts[&b], alone_with(&spec, &second));
        assert_eq!(texts[&a], alone_with(&spec, &first));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    /// Copies of state are slow, and some fail: who does not end with such a failure has the text that it has alone, and so has everybody who
    /// begins alike afterwards.
    #[test]
    fn slow_and_failing_copies_change_no_text(
        kind in 0usize..3, seed in any::<u64>(), fails in 0usize..4, slow in any::<bool>(), pages in 12usize..40,
        lens in prop::collection::vec((0u64..3, 30usize..120, 1usize..20, any::<bool>()), 1..6), cancel in prop::option::of(0usize..6),
    ) {
        let spec = [tiny_spec(2), sliding_spec(2, 40), recurrent_spec(2)][kind].clone();
        let placement = |shift: u32| {
            let of = |block: usize| (seed.rotate_left(block as u32 * 5 + shift) & 1) as usize;
            Placement::new(&spec, 2, (0..spec.blocks.len()).map(of).collect()).unwrap()
        };
        let placements = Placements { prefill: placement(0), decode: placement(7) };
        let devices = [FakeDevice::plain(), FakeDevice::plain()];
        let copy_time = if slow { std::time::Duration::from_micros(300) } else { std::time::Duration::ZERO };
        for device in &devices {
            device.set_faults(Faults { copies: fails, copy_time, ..Faults::default() });
        }
        let few = EngineOptions { context: 160, kv_pages: Some(pages), prefill_chunk: 40, ..options() };
        let all = devices.iter().map(|d| d.clone() as Arc<dyn Device>).collect();
        let mut engine = Engine::new(&spec, &zero_weights(), all, placements, few, &mut |_| {}).unwrap();
        let requests: Vec<Request> = lens
            .iter()
            .map(|(seed, prompt, tokens, keep)| Request { keep: *keep, ..request(*seed, *prompt, *tokens) })
            .collect();
        for round in 0..3 {
            let ids: Vec<SequenceId> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
            let mut texts = Texts::new();
            for step in 0.. {
                prop_assert!(step < 20_000, "the engine does not come to an end");
                if cancel == Some(step) && round == 0 {
                    engine.cancel(ids[step % ids.len()]);
                }
                if engine.is_idle() {
                    break;
                }
                collect(&mut texts, engine.step().unwrap());
            }
            for (id, request) in ids.iter().zip(&requests) {
                let ((got, reason), (text, expected)) = (&texts[id], alone_with(&spec, request));
                match reason {
                    Some(FinishReason::Cancelled) => prop_assert!(text.starts_with(got)),
                    Some(FinishReason::Device(_)) => prop_assert!(fails > 0 && text.starts_with(got)),
                    _ => prop_assert_eq!((got, reason), (&text, &expected)),
                }
            }
        }
        engine.clear_kept();
        prop_assert!(all_free(&engine));
    }
}
