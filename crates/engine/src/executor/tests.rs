use std::collections::HashMap;
use std::time::{Duration, Instant};

use unicorn_core::{BatchLimits, KvType, OutputRow, Select, SequenceId, Slice};

use super::*;
use crate::testing::{FakeDevice, Faults, Log, Pace, Ran, VOCAB, tiny_spec, zero_weights};

fn layout() -> StateLayout {
    StateLayout::paged(32, 16, 512, KvType::F16)
}

fn executor(placement: Placement, devices: Vec<Arc<FakeDevice>>) -> Executor {
    let devices = devices.into_iter().map(|d| d as Arc<dyn Device>).collect();
    let mut executor = Executor::new(Arc::new(tiny_spec(2)), placement.into(), devices, 3);
    while !executor.load_next(|device, block| device.load(block, &zero_weights())).unwrap().is_empty() {}
    executor.reserve(&layout(), 64).unwrap();
    executor
}

fn pair(paces: [Pace; 2]) -> (Vec<Arc<FakeDevice>>, Log) {
    let log = Log::default();
    let device = |(name, pace)| Arc::new(FakeDevice::new(name, pace, log.clone()));
    (["a", "b"].into_iter().zip(paces).map(device).collect(), log)
}

impl Executor {
    /// Runs batches one behind the other, as many at once as there is room for; results in their order. What was in flight before is
    /// left in flight only if it is awaited first: call it with nothing in flight.
    pub(crate) fn run(&mut self, batches: Vec<Arc<Batch>>) -> Vec<BatchResult> {
        debug_assert!(self.flights.is_empty());
        let mut order: HashMap<u64, usize> = HashMap::new();
        let mut results: Vec<Option<BatchResult>> = batches.iter().map(|_| None).collect();
        let mut waiting = batches.into_iter().enumerate();
        loop {
            while self.has_room() {
                let Some((i, batch)) = waiting.next() else { break };
                order.extend(self.launch(batch, None, Brought::default()).map(|flight| (flight, i)));
            }
            let Some(landed) = self.landed(true) else { break };
            if let Some(i) = order.get(&landed.flight) {
                results[*i] = Some(landed.result);
            }
        }
        results.into_iter().map(|r| r.unwrap_or_else(|| Err(Arc::new(DeviceError::Abandoned)))).collect()
    }
}

const LAZY: Pace = Pace::Lazy(Duration::ZERO);

fn batch(sequence: u64, start: u32, tokens: &[u32]) -> Arc<Batch> {
    let tables = vec![vec![sequence as u32]];
    let (sequence, tokens) = (SequenceId(sequence), tokens.to_vec());
    let slice = Slice { sequence, tokens, start, tables, snapshots: vec![], slot: None };
    let outputs = vec![OutputRow::new(slice.tokens.len() as u32 - 1, Select::Logits)];
    let limits = Arc::new(BatchLimits { vocab: VOCAB, state: Some(layout()) });
    Arc::new(Batch::new(vec![slice], outputs, &limits).unwrap())
}

fn run(executor: &mut Executor, batches: &[Arc<Batch>]) -> Vec<Option<HeadOutput>> {
    executor.run(batches.to_vec()).into_iter().map(Result::unwrap).collect()
}

#[test]
fn any_placement_gives_the_same_logits() {
    let spec = tiny_spec(2);
    let whole = [batch(0, 0, &[1, 2, 3, 4])];
    let mut single = executor(Placement::single(&spec).unwrap(), vec![FakeDevice::plain()]);
    let expected = run(&mut single, &whole);
    let chunks = [batch(0, 0, &[1]), batch(0, 1, &[2]), batch(0, 2, &[3]), batch(0, 3, &[4])];
    for paces in [[Pace::Eager; 2], [LAZY; 2], [LAZY, Pace::Eager], [Pace::Eager, LAZY]] {
        for placement in
            [Placement::mixers_and_ffns(&spec).unwrap(), Placement::by_layers(&spec, &[1, 1]).unwrap()]
        {
            let crossings = placement.segments().len() as u64 - 1;
            let mut executor = executor(placement, pair(paces).0);
            assert_eq!(run(&mut executor, &whole), expected);
            let stats = executor.stats();
            assert_eq!((stats.crossings, stats.crossing_bytes), (crossings, crossings * 4 * 4 * 4));
            assert_eq!(run(&mut executor, &chunks)[3], expected[0]);
        }
    }
}

/// Time in which both devices worked.
fn overlap(log: &[Ran]) -> Duration {
    let (a, b): (Vec<&Ran>, Vec<&Ran>) = log.iter().partition(|r| r.device == "a");
    let common = |x: &Ran, y: &Ran| x.end.min(y.end).saturating_duration_since(x.start.max(y.start));
    a.iter().flat_map(|x| b.iter().map(move |y| common(x, y))).sum()
}

#[test]
fn neither_device_is_held_back_because_the_other_is_busy() {
    // Two prompts of other sequences; 4 steps of 20 ms each. One after the other they take 160 ms; a device alone works 80 ms.
    let time = Duration::from_millis(20);
    let (devices, log) = pair([Pace::Lazy(time); 2]);
    let mut both = executor(Placement::mixers_and_ffns(&tiny_spec(2)).unwrap(), devices);
    let start = Instant::now();
    run(&mut both, &[batch(0, 0, &[1, 2]), batch(1, 0, &[3])]);
    let took = start.elapsed();
    assert!(
        overlap(&log.lock().unwrap()) >= 3 * time / 2,
        "{:?} of 60 ms overlapped",
        overlap(&log.lock().unwrap())
    );
    assert!(took < 7 * time, "took {took:?}, one step after the other 160 ms");

    // An eager device works on the thread that makes its work ready: the lazy one must not stand still meanwhile.
    let (devices, log) = pair([Pace::Lazy(time), Pace::Eager]);
    let mut mixed = executor(Placement::mixers_and_ffns(&tiny_spec(2)).unwrap(), devices);
    run(&mut mixed, &[batch(0, 0, &[1, 2]), batch(1, 0, &[3])]);
    let log = log.lock().unwrap();
    let lazy: Vec<&Ran> = log.iter().filter(|r| r.device == "a").collect();
    assert_eq!(lazy.len(), 4);
    for pair in lazy.windows(2) {
        let idle = pair[1].start.saturating_duration_since(pair[0].end);
        assert!(idle < time / 2, "the lazy device stood still for {idle:?}");
    }
}

#[test]
fn launching_waits_for_nothing() {
    let (devices, _) = pair([Pace::Lazy(Duration::from_millis(50)); 2]);
    let mut executor = executor(Placement::mixers_and_ffns(&tiny_spec(2)).unwrap(), devices);
    let start = Instant::now();
    for sequence in 0..3 {
        assert!(executor.launch(batch(sequence, 0, &[1]), None, Brought::default()).is_some());
    }
    assert!(start.elapsed() < Duration::from_millis(40), "{:?}", start.elapsed());
    assert_eq!(executor.launch(batch(3, 0, &[1]), None, Brought::default()), None, "no room for a fourth");
    assert!(executor.landed(false).is_none());
    assert_eq!(executor.in_flight(), 3);
    let landed = executor.landed(true).unwrap();
    assert_eq!((landed.flight, landed.result.is_ok()), (0, true));
    assert!(executor.launch(batch(3, 0, &[1]), None, Brought::default()).is_some());
}

#[test]
fn a_failure_stays_with_its_sequences_and_names_both_devices() {
    for paces in [[Pace::Eager; 2], [LAZY; 2]] {
        let (devices, log) = pair(paces);
        devices[0].set_faults(Faults { token: Some(9), ..Faults::default() });
        let mut executor = executor(Placement::mixers_and_ffns(&tiny_spec(2)).unwrap(), devices);
        let results = executor.run(vec![batch(0, 0, &[1, 9]), batch(1, 0, &[2]), batch(0, 2, &[3])]);
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
        let error = results[0].as_ref().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("poisoned token") && text.starts_with("b: not run"), "{text}");
        assert!(matches!(error.root(), DeviceError::Failed { device, .. } if device == "a"));
        // The other device was stopped cleanly: it ran the second sequence's two steps alone.
        assert_eq!(log.lock().unwrap().iter().filter(|r| r.device == "b").count(), 2);
    }
}

#[test]
fn blocks_are_unloaded_on_drop_behind_what_is_in_flight() {
    for pace in [Pace::Eager, Pace::Lazy(Duration::from_millis(20))] {
        let device = Arc::new(FakeDevice::new("a", pace, Log::default()));
        let mut executor = executor(Placement::single(&tiny_spec(2)).unwrap(), vec![device.clone()]);
        assert_eq!(device.loaded(), 6);
        executor.launch(batch(0, 0, &[1]), None, Brought::default());
        drop(executor);
        assert_eq!(device.loaded(), 0);
    }
}

#[test]
fn a_timeline_shows_copies_beside_the_work() {
    let (devices, _) = pair([LAZY; 2]);
    let mut executor = executor(Placement::mixers_and_ffns(&tiny_spec(2)).unwrap(), devices);
    executor.keep_timeline(true);
    run(&mut executor, &[batch(0, 0, &[1, 2])]);
    let timeline = executor.keep_timeline(false).unwrap();
    let has = |lane, activity| timeline.spans().iter().any(|s| s.lane == lane && s.activity == activity);
    for (lane, activity) in [
        (Lane::Device(0), Activity::Blocks(0..2)),
        (Lane::Copies(0), Activity::Out(1)),
        (Lane::Copies(1), Activity::In(2)),
        (Lane::Device(1), Activity::Blocks(2..3)),
        (Lane::Copies(1), Activity::Out(2)),
    ] {
        assert!(has(lane, activity.clone()), "{lane:?} {activity:?} in {:?}", timeline.spans());
    }
    // Nothing leaves behind the head.
    assert!(!has(Lane::Copies(1), Activity::Out(5)));
}

#[test]
fn state_goes_through_a_few_buffers_whatever_its_size_and_none_is_had_later() {
    let spec = tiny_spec(2);
    let on = |device| Placement::new(&spec, 2, vec![device; spec.blocks.len()]).unwrap();
    let placements = Placements { prefill: on(0), decode: on(1) };
    let (devices, _) = pair([LAZY; 2]);
    let all = devices.iter().map(|d| d.clone() as Arc<dyn Device>).collect();
    let mut executor = Executor::new(Arc::new(spec.clone()), placements.clone(), all, 3);
    while !executor.load_next(|device, block| device.load(block, &zero_weights())).unwrap().is_empty() {}
    // What no host has room for is refused before anything runs.
    let absurd = StateLayout { page_tokens: 1 << 56, ..layout() };
    assert!(
        matches!(executor.reserve(&absurd, 64), Err(DeviceError::OutOfMemory { device, .. }) if device == "host")
    );
    executor.reserve(&layout(), 64).unwrap();
    assert_eq!(rings(&spec, &placements, &layout()), [(2 * 4 * 32 / 2, 16)]);
    let long = StateLayout {
        groups: vec![unicorn_core::StateGroup { spec: unicorn_core::StateSpec::Paged, pages: 1 << 30 }],
        ..layout()
    };
    assert_eq!(rings(&spec, &placements, &long), [(128, COPY_BYTES_MAX / 512)]);
    // Twice the pages of a ring's buffer, in pieces one behind the other.
    executor.rings[0].rows = 4;
    let pool = crate::pages::PagePool::new(16, 32);
    let pages = [pool.take(16).unwrap()];
    let brought = executor.bring(Phase::Decode, SequenceId(1), &pages);
    assert_eq!((brought.moves.len(), brought.others.len()), (2 * 4, 0));
    // Another one that has these pages waits for the same copies.
    let again = executor.bring(Phase::Decode, SequenceId(2), &pages);
    assert_eq!((again.moves.len(), again.others.len()), (0, 2 * 4));
    for (copy, _) in &again.others {
        copy.wait().unwrap();
    }
    let there = executor.bring(Phase::Decode, SequenceId(3), &pages);
    assert_eq!((there.moves.len(), there.others.len()), (0, 0));
    pages[0][0].displace();
    assert_eq!(executor.bring(Phase::Decode, SequenceId(3), &pages).moves.len(), 2);
}
