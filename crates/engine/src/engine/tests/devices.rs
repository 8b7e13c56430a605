//! Models on several devices, all of which work at once.

use super::*;
use crate::testing::Ran;

#[test]
fn two_devices_give_the_same_text() {
    let spec = tiny_spec(2);
    for placement in
        [Placement::mixers_and_ffns(&spec).unwrap(), Placement::by_layers(&spec, &[1, 1]).unwrap()]
    {
        for paces in [[LAZY; 2], [Pace::Eager, LAZY]] {
            let (mut engine, _) = engine_of_two(&spec, placement.clone(), paces, options());
            let requests: Vec<Request> = (0..5).map(|i| request(i, 1 + 40 * i as usize, 9)).collect();
            let ids: Vec<SequenceId> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
            let texts = drain(&mut engine);
            for (id, request) in ids.iter().zip(&requests) {
                assert_eq!(texts[id], alone(request));
            }
            assert!(engine.stats().crossing_bytes > 0);
            assert!(all_free(&engine));
        }
    }
}

/// Share of the wall time in which both devices worked.
fn overlap(log: &Log) -> f64 {
    let log = log.lock().unwrap();
    let (a, b): (Vec<_>, Vec<_>) = log.iter().partition(|r| r.device == "a");
    let common = |x: &Ran, y: &Ran| x.end.min(y.end).saturating_duration_since(x.start.max(y.start));
    let both: f64 = a.iter().flat_map(|x| b.iter().map(move |y| common(x, y).as_secs_f64())).sum();
    let start = log.iter().map(|r| r.start).min().unwrap();
    both / log.iter().map(|r| r.end).max().unwrap().duration_since(start).as_secs_f64()
}

#[test]
fn both_devices_work_at_once_in_prefill_and_in_decode() {
    // What no row reads ends in the last mixer: of 8 layers one device has 8 steps, the other 7.
    let spec = tiny_spec(8);
    let pace = Pace::Lazy(std::time::Duration::from_millis(4));
    let placement = Placement::mixers_and_ffns(&spec).unwrap();
    let overlap_of = |requests: &[Request]| {
        let (mut engine, log) = engine_of_two(&spec, placement.clone(), [pace; 2], options());
        for request in requests {
            engine.add(request.clone()).unwrap();
        }
        drain(&mut engine);
        overlap(&log)
    };
    // The best of some: another process may have had the processor meanwhile.
    let best = |requests: &[Request]| {
        let mut tries = (0..8).map(|_| overlap_of(requests));
        tries.find(|overlap| *overlap > 0.7)
    };
    assert!(best(&[Request { max_tokens: Some(1), ..request(1, 400, 1) }]).is_some(), "prefill");
    let answers: Vec<Request> = (0..4).map(|i| request(i, 1, 20)).collect();
    assert!(best(&answers).is_some(), "decode");
}

/// Wall time of eight answers of one token and several more, on so many devices that take turns by layers, as a multiple of the time
/// that rows take on all devices one after the other.
#[test]
fn as_many_devices_as_a_placement_uses_work_at_once_in_decode() {
    let spec = tiny_spec(4);
    let row = std::time::Duration::from_millis(2);
    let pace = Pace::Rows { work: std::time::Duration::from_micros(100), row };
    let time = || {
        let placement = Placement::by_layers(&spec, &[1; 4]).unwrap();
        let many = EngineOptions { sequences_max: 8, ..options() };
        let (mut engine, _) = engine_of_several(&spec, placement, &[pace; 4], many);
        let ids: Vec<SequenceId> = (0..8).map(|i| engine.add(request(i, 1, 11)).unwrap()).collect();
        let start = std::time::Instant::now();
        let texts = drain(&mut engine);
        let took = start.elapsed();
        for (i, id) in ids.iter().enumerate() {
            assert_eq!(texts[id], alone_with(&spec, &request(i as u64, 1, 11)));
        }
        took
    };
    // 11 tokens of 8 sequences on 4 devices are 704 ms of work: 176 ms where all four work, 352 ms where two do. The best of some, as
    // another process may have had the processor meanwhile.
    let mut tries = (0..8).map(|_| time());
    let limit = std::time::Duration::from_millis(270);
    assert!(tries.any(|took| took < limit), "no better than {limit:?}");
}

#[test]
fn what_is_fed_by_hand_comes_in_the_batches_of_a_request() {
    let spec = tiny_spec(4);
    // Ten batches of 30: in two waves of five, not eight and two.
    let few = EngineOptions { prefill_chunk: 32, ..options() };
    let pace = Pace::Lazy(std::time::Duration::from_millis(2));
    let engine =
        || engine_of_two(&spec, Placement::mixers_and_ffns(&spec).unwrap(), [pace; 2], few.clone()).0;
    // The most batches on their way at once.
    let most = |engine: &mut Engine| {
        let timeline = engine.keep_timeline(false).unwrap();
        let mut flights: HashMap<u64, (std::time::Instant, std::time::Instant)> = HashMap::new();
        for span in timeline.spans() {
            let flight = flights.entry(span.flight).or_insert((span.launched, span.end));
            flight.1 = flight.1.max(span.end);
        }
        let at_once = |now: std::time::Instant| flights.values().filter(|f| f.0 <= now && now < f.1).count();
        (flights.len(), flights.values().map(|f| at_once(f.0)).max().unwrap_or(0))
    };
    let mut asked = engine();
    asked.keep_timeline(true);
    asked.add(request(1, 300, 1)).unwrap();
    drain(&mut asked);
    let mut fed = engine();
    fed.keep_timeline(true);
    fed.evaluator().prefill(&prompt(1, 300), true).unwrap();
    assert_eq!((most(&mut asked), most(&mut fed)), ((10, 5), (10, 5)));
}

#[test]
fn a_preempted_answer_is_read_again_in_chunks() {
    // A split placement with pages for one of the two.
    let spec = tiny_spec(2);
    let few = EngineOptions { kv_pages: Some(12), context: 352, ..options() };
    let placement = Placement::mixers_and_ffns(&spec).unwrap();
    let (mut engine, _) = engine_of_two(&spec, placement, [LAZY; 2], few);
    let requests = [1, 2].map(|seed| request(seed, 150, 150));
    let ids = requests.clone().map(|r| engine.add(r).unwrap());
    let mut texts = Texts::new();
    let mut most = 0;
    while !engine.is_idle() {
        let again = engine.counters().preemptions > 0;
        collect(&mut texts, engine.step().unwrap());
        let rereads = |s: &Sequence| s.generated() > 0;
        let of = |s: &Sequence| s.launched - s.computed;
        most = most.max(engine.running.iter().filter(|s| again && rereads(s)).map(of).max().unwrap_or(0));
    }
    assert!(engine.counters().preemptions > 0);
    // Two batches of a chunk in flight at least, not of 32 tokens.
    assert!(most >= 128, "{most}");
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(texts[id], alone(request));
    }
}
