//! Devices that are lost, and devices without memory: neither costs a text.

use super::*;
use crate::NgramDrafter;

const LOST: Faults = Faults {
    token: None,
    rows: None,
    memory: None,
    next: 0,
    lost: true,
    load: None,
    nan: false,
    lacks: None,
    copies: 0,
    copy_time: std::time::Duration::ZERO,
    late: None,
};

/// Steps until the engine has stopped.
fn stopped(engine: &mut Engine, texts: &mut Texts) -> Failure {
    for _ in 0..1000 {
        match engine.step() {
            Ok(events) => collect(texts, events),
            Err(EngineError::Stopped { reason }) => return reason,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the engine does not stop");
}

#[test]
fn a_lost_device_stops_the_engine_and_nobody_is_lost() {
    let device = FakeDevice::plain();
    let mut engine = engine_on(device.clone(), options());
    let ids: Vec<SequenceId> = (0..6).map(|i| engine.add(request(i, 10, 50)).unwrap()).collect();
    engine.step().unwrap();
    device.set_faults(LOST);
    let mut texts = Texts::new();
    let reason = stopped(&mut engine, &mut texts);
    assert!(reason.to_string().contains("device lost"));
    assert!(texts.values().all(|t| t.1.is_none()), "nobody ends");
    assert!(matches!(engine.step(), Err(EngineError::Stopped { .. })));
    assert!(matches!(engine.add(request(1, 5, 5)), Err(AdmissionError::Stopped { .. })));
    assert!(matches!(engine.evaluator().prefill(&[1], true), Err(EngineError::Stopped { .. })));
    assert!(engine_of(options()).survivors().is_none());
    let mut survivors = engine.survivors().unwrap();
    assert_eq!(*survivors.reason(), reason);
    assert!(all_free(&engine) && engine.is_idle());
    assert_eq!((survivors.len(), survivors.losses()), (6, 1));
    // Four ran, two waited: only those that ran may be the cause.
    let gone = survivors.cancel(ids[5]).unwrap();
    assert!(matches!(gone, Event::Finished { reason: FinishReason::Cancelled, .. }));
    let ended = survivors.end_beyond(0);
    assert_eq!((ended.len(), survivors.len()), (4, 1));
    assert!(
        ended.iter().all(
            |e| matches!(e, Event::Finished { reason: FinishReason::Device(what), .. } if *what == reason)
        )
    );
    let mut other = engine_of(options());
    other.adopt(survivors);
    assert_eq!(drain(&mut other)[&ids[4]], alone(&request(4, 10, 50)));
    assert_ne!(other.add(request(1, 5, 5)).unwrap(), ids[1], "numbers are not given twice");
}

#[test]
fn what_an_engine_has_no_room_for_ends() {
    let device = FakeDevice::plain();
    let mut engine = engine_on(device.clone(), options());
    let long = engine.add(request(1, 200, 50)).unwrap();
    let short = engine.add(request(2, 20, 50)).unwrap();
    device.set_faults(LOST);
    stopped(&mut engine, &mut Texts::new());
    let mut small = engine_of(EngineOptions { context: 128, ..options() });
    small.adopt(engine.survivors().unwrap());
    let texts = drain(&mut small);
    assert_eq!(texts[&long], (vec![], Some(FinishReason::Context)));
    assert_eq!(texts[&short], alone(&request(2, 20, 50)));
}

#[test]
fn batches_become_smaller_where_memory_is_short() {
    for most in [16, 20, 33, 60] {
        let device = FakeDevice::plain();
        let mut engine = engine_on(device.clone(), options());
        device.set_faults(Faults { memory: Some(most), ..Faults::default() });
        let requests: Vec<Request> = (0..4).map(|i| request(i, 100 + 30 * i as usize, 30)).collect();
        let ids: Vec<SequenceId> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
        let texts = drain(&mut engine);
        for (id, request) in ids.iter().zip(&requests) {
            assert_eq!(texts[id], alone(request), "{most} rows at most");
        }
        assert!(engine.counters().batches_cut > 0 && all_free(&engine));
    }
    // What has no memory for the smallest batch has none for the request.
    let device = FakeDevice::plain();
    let mut engine = engine_on(device.clone(), options());
    device.set_faults(Faults { memory: Some(3), ..Faults::default() });
    let id = engine.add(request(1, 100, 5)).unwrap();
    let texts = drain(&mut engine);
    assert!(matches!(&texts[&id].1, Some(FinishReason::Device(what)) if what.to_string().contains("memory")));
}

/// An engine on devices of its own, which are returned to be lost.
fn fresh(spec: &ModelSpec, two: bool, options: &EngineOptions) -> (Engine, Vec<Arc<FakeDevice>>) {
    let placement = match two {
        true => Placement::by_layers(spec, &[1, 1]).unwrap(),
        false => Placement::single(spec).unwrap(),
    };
    let devices: Vec<Arc<FakeDevice>> = (0..placement.devices())
        .map(|name| Arc::new(FakeDevice::new(&name.to_string(), Pace::Eager, Log::default())))
        .collect();
    let all = devices.iter().map(|d| d.clone() as Arc<dyn Device>).collect();
    let engine = Engine::new(spec, &zero_weights(), all, placement, options.clone(), &mut |_| {}).unwrap();
    (engine, devices)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// Devices are lost again and again: all texts are those of an engine that lost none.
    #[test]
    fn losses_change_no_text(
        seed in 0u64..10_000,
        kind in 0usize..3,
        two in any::<bool>(),
        drafts in any::<bool>(),
        steps in prop::collection::vec(1usize..40, 0..5),
        chunk in 5usize..64,
        pages in 12usize..40,
    ) {
        let spec = [tiny_spec(2), sliding_spec(2, 40), recurrent_spec(2)][kind].clone();
        let few = EngineOptions {
            context: 160,
            kv_pages: Some(pages),
            prefill_chunk: chunk,
            ..options()
        };
        let draw = |i: u64, of: u64, below: usize| (uniform(seed * 100 + i, of) * below as f64) as usize;
        let requests: Vec<Request> = (0..7)
            .map(|i| Request {
                keep: draw(i, 1, 2) == 0,
                priority: draw(i, 2, 2) as i32,
                prompt_logprobs: (draw(i, 5, 4) == 0).then_some(1),
                ..request(seed + i % 4, 1 + draw(i, 3, 90), 1 + draw(i, 4, 40))
            })
            .collect();
        let (mut engine, mut devices) = fresh(&spec, two, &few);
        let guides = |request: &Request| {
            let guess = drafts && request.prompt_logprobs.is_none();
            Guides { drafter: guess.then(|| Box::new(NgramDrafter) as Box<dyn Drafter>), constraint: None }
        };
        let ids: Vec<SequenceId> =
            requests.iter().map(|r| engine.add_guided(r.clone(), guides(r)).unwrap()).collect();
        let (mut texts, mut lost) = (Texts::new(), 0);
        for (at, until) in steps.iter().enumerate() {
            for _ in 0..*until {
                collect(&mut texts, engine.step().unwrap());
            }
            if engine.is_idle() {
                break;
            }
            devices[at % devices.len()].set_faults(LOST);
            while !engine.is_idle() {
                match engine.step() {
                    Ok(events) => collect(&mut texts, events),
                    Err(EngineError::Stopped { .. }) => break,
                    Err(other) => panic!("{other}"),
                }
            }
            // Nothing that was left to do needed that device.
            let Some(survivors) = engine.survivors() else { break };
            lost += 1;
            prop_assert!(survivors.losses() <= lost);
            engine.clear_kept();
            prop_assert!(all_free(&engine));
            (engine, devices) = fresh(&spec, two, &few);
            engine.adopt(survivors);
        }
        let rest = drain(&mut engine);
        for (id, (tokens, end)) in rest {
            let entry = texts.entry(id).or_default();
            prop_assert_eq!(&entry.1, &None);
            entry.0.extend(tokens);
            entry.1 = end;
        }
        for (id, request) in ids.iter().zip(&requests) {
            prop_assert_eq!(&texts[id], &alone_with(&spec, &Request { prompt_logprobs: None, ..request.clone() }));
        }
    }
}
