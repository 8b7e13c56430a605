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

#[test]
fn a_failed_way_of_state_ends_the_request_with_the_device_named() {
    let spec = tiny_spec(2);
    let on = |device| Placement::new(&spec, 2, vec![device; spec.blocks.len()]).unwrap();
    let devices = [FakeDevice::plain(), FakeDevice::plain()];
    let all = devices.iter().map(|d| d.clone() as Arc<dyn Device>).collect();
    let placements = Placements { prefill: on(0), decode: on(1) };
    let mut engine = Engine::new(&spec, &zero_weights(), all, placements, options(), &mut |_| {}).unwrap();
    devices[1].set_faults(Faults { copies: true, ..Faults::default() });
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
