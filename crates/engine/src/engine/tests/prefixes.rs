//! Prompts with a common beginning that arrive together.

use super::*;

/// Requests that begin with the same tokens.
fn alike(common: usize, own: usize, count: u64) -> Vec<Request> {
    let request = |i: u64| {
        let text = [prompt(1, common), prompt(100 + i, own)].concat();
        Request { prompt: text, ..request(i, 0, 12) }
    };
    (0..count).map(request).collect()
}

/// Runs requests that arrive together; the rows that were computed.
fn rows_of(spec: &ModelSpec, options: EngineOptions, requests: &[Request]) -> usize {
    let device = FakeDevice::plain();
    let mut engine = engine_with(spec, device.clone(), options);
    let ids: Vec<_> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
    let texts = drain(&mut engine);
    for (id, request) in ids.iter().zip(requests) {
        let mut one =
            engine_with(spec, FakeDevice::plain(), EngineOptions { sequences_max: 1, ..self::options() });
        let there = one.add(request.clone()).unwrap();
        assert_eq!(texts[id], drain(&mut one)[&there]);
    }
    assert!(all_free(&engine));
    device.rows_read()
}

#[test]
fn a_common_beginning_is_computed_once() {
    for spec in [tiny_spec(2), sliding_spec(3, 40)] {
        let options = EngineOptions { sequences_max: 16, ..options() };
        // Sixteen users of one system prompt of 200 tokens, of which six pages are full.
        let requests = alike(200, 30, 16);
        assert_eq!(rows_of(&spec, options.clone(), &requests), 192 + 16 * (8 + 30 + 11));
        // Four answers to one prompt.
        let same: Vec<_> =
            (0..4).map(|i| Request { sampling: request(i, 0, 0).sampling, ..requests[0].clone() }).collect();
        assert_eq!(rows_of(&spec, options.clone(), &same), 224 + 4 * (6 + 11));
        // Nothing in common but what no page holds.
        assert_eq!(rows_of(&spec, options.clone(), &alike(31, 30, 4)), 4 * (61 + 11));
        // Another scope computes its own.
        let apart: Vec<_> = (0..).zip(&same).map(|(i, r)| Request { scope: i / 2, ..r.clone() }).collect();
        assert_eq!(rows_of(&spec, options, &apart), 2 * 224 + 4 * (6 + 11));
    }
}

#[test]
fn who_waits_for_a_beginning_holds_up_nobody_else() {
    let mut engine = engine_of(EngineOptions { sequences_max: 3, ..options() });
    let requests = alike(300, 10, 3);
    let ids: Vec<_> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
    let other = engine.add(request(9, 20, 4)).unwrap();
    let mut texts = Texts::new();
    collect(&mut texts, engine.step().unwrap());
    let runs = |engine: &Engine| engine.running.iter().map(|s| s.id).collect::<Vec<_>>();
    assert_eq!(runs(&engine), [ids[0], other]);
    // The first is given up half way: the second goes on from there, and the third waits for it.
    (0..2).for_each(|_| collect(&mut texts, engine.step().unwrap()));
    assert!(engine.cancel(ids[0]));
    while !texts.contains_key(&ids[1]) {
        collect(&mut texts, engine.step().unwrap());
    }
    let reused: Vec<_> = engine.running.iter().filter(|s| s.id == ids[1]).map(|s| s.reused_tokens).collect();
    assert!(reused.iter().all(|reused| (64..300).contains(reused)), "{reused:?}");
    for (id, text) in drain(&mut engine) {
        let entry = texts.entry(id).or_default();
        entry.0.extend(text.0);
        entry.1 = text.1;
    }
    for (id, request) in ids.iter().zip(&requests).skip(1) {
        assert_eq!(texts[id], alone(request));
    }
    assert_eq!(texts[&other], alone(&request(9, 20, 4)));
    assert!(all_free(&engine));
}

#[test]
fn a_preempted_sequence_starts_again_from_what_is_left_of_it() {
    let device = FakeDevice::plain();
    let mut engine =
        engine_on(device.clone(), EngineOptions { kv_pages: Some(11), context: 300, ..options() });
    let requests: Vec<Request> = (0..4).map(|i| request(i, 40 + i as usize, 140)).collect();
    let ids: Vec<SequenceId> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
    let texts = drain(&mut engine);
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(texts[id], alone(request));
    }
    let needed: usize = requests.iter().map(|r| r.prompt.len() + 139).sum();
    let preemptions = engine.counters().preemptions as usize;
    assert!(preemptions > 0);
    // Each would compute at least its prompt again.
    assert!(
        device.rows_read() < needed + preemptions * 64,
        "{} of {needed}, {preemptions}",
        device.rows_read()
    );
}
