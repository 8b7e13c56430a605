use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use unicorn_core::Device;

use super::*;
use crate::planner::testing::{device, figure, machine};
use crate::testing::{FakeDevice, Log, Pace, tiny_spec, zero_weights};
use crate::{Engine, Request};

/// Two devices that take this long for work over so many rows.
fn paced(paces: [Pace; 2]) -> (Machine, impl Fn(usize, &Range<usize>, &BatchShape, Crossing) -> Piece) {
    let machine = machine(vec![device("a", 0), device("b", 1)], 1 << 40);
    let piece = move |device: usize, _: &Range<usize>, shape: &BatchShape, _| {
        let seconds = paces[device].time(shape.rows()).as_secs_f64();
        Piece { seconds, ..Piece::default() }
    };
    (machine, piece)
}

fn simulated(
    spec: &ModelSpec,
    placement: &Placement,
    paces: [Pace; 2],
    options: &EngineOptions,
    sequences: usize,
    task: Task,
) -> Simulated {
    let (machine, piece) = paced(paces);
    run(spec, placement, &Devices { machine: &machine, piece: &piece }, options, sequences, task)
}

/// What the engine itself takes on two fake devices, with the number of pieces of work.
fn measured(
    spec: &ModelSpec,
    placement: &Placement,
    paces: [Pace; 2],
    options: &EngineOptions,
    sequences: usize,
    (prompt, tokens): (usize, usize),
) -> (f64, u64) {
    let log = Log::default();
    let fake = |(name, pace)| Arc::new(FakeDevice::new(name, pace, log.clone())) as Arc<dyn Device>;
    let devices = ["a", "b"].into_iter().zip(paces).map(fake).collect();
    let mut engine =
        Engine::new(spec, &zero_weights(), devices, placement.clone(), options.clone(), &mut |_| {}).unwrap();
    for sequence in 0..sequences {
        let prompt = (0..prompt).map(|t| ((t + 7 * sequence) % 60) as u32).collect();
        engine.add(Request { prompt, max_tokens: Some(tokens), ..Request::default() }).unwrap();
    }
    let start = Instant::now();
    while !engine.is_idle() {
        engine.step().unwrap();
    }
    (start.elapsed().as_secs_f64(), engine.stats().submits)
}

fn pace() -> impl Strategy<Value = Pace> {
    let micros = Duration::from_micros;
    prop_oneof![
        4 => (1000u64..4000, 0u64..40)
            .prop_map(move |(work, row)| Pace::Rows { work: micros(work), row: micros(row) }),
        1 => Just(Pace::Eager),
    ]
}

/// Runs of which the shortest counts: another process may have had the processor meanwhile.
const RUNS: usize = 12;

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn simulated_time_is_what_the_engine_takes(
        layers in 1usize..4,
        seed in any::<u64>(),
        paces in [pace(), pace()],
        chunk in prop_oneof![Just(16usize), Just(32), Just(48)],
        sequences in 1usize..4,
        prompt in 1usize..120,
        tokens in 1usize..5,
    ) {
        let spec = tiny_spec(layers);
        let assignment =
            (0..spec.blocks.len()).map(|i| (seed.rotate_left(i as u32 * 5) as usize) % 2).collect();
        let placement = Placement::new(&spec, 2, assignment).unwrap();
        let options =
            EngineOptions { prefill_chunk: chunk, sequences_max: 4, context: 256, ..EngineOptions::default() };
        let task = Task::Answer { past: 0, prompt, tokens };
        let expected = simulated(&spec, &placement, paces, &options, sequences, task);
        let allowed = 0.15 * expected.seconds + 0.005;
        let mut took = f64::INFINITY;
        for _ in 0..RUNS {
            let (seconds, submits) =
                measured(&spec, &placement, paces, &options, sequences, (prompt, tokens));
            // Which batches several sequences come in depends on which of two that land at almost the same time is seen first.
            prop_assert!(sequences > 1 || submits == expected.submits, "{submits} {}", expected.submits);
            took = took.min(seconds);
            if (took - expected.seconds).abs() <= allowed {
                break;
            }
        }
        prop_assert!(
            (took - expected.seconds).abs() <= allowed,
            "simulated {:.1} ms, took {:.1} ms", expected.seconds * 1e3, took * 1e3
        );
    }
}

proptest! {
    #[test]
    fn every_simulation_ends_and_no_device_does_two_things_at_once(
        layers in 1usize..5,
        seed in any::<u64>(),
        sequences in 1usize..6,
        prompt in 1usize..400,
        tokens in 1usize..6,
        chunk in 1usize..200,
        contended in any::<bool>(),
    ) {
        let spec = tiny_spec(layers);
        let assignment =
            (0..spec.blocks.len()).map(|i| (seed.rotate_left(i as u32 * 7) as usize) % 3).collect();
        let placement = Placement::new(&spec, 3, assignment).unwrap();
        let options = EngineOptions { prefill_chunk: chunk, ..EngineOptions::default() };
        let mut machine = machine(vec![device("a", 0), device("b", 0), device("c", 2)], 1 << 40);
        machine.memories[0].read_bytes_per_second = contended.then_some(figure(3.0));
        let done = std::cell::RefCell::new(vec![0.0; 3]);
        let piece = |device: usize, blocks: &Range<usize>, shape: &BatchShape, _: Crossing| {
            let seconds = (device + 1) as f64 * blocks.len() as f64 + shape.rows() as f64 / 10.0;
            done.borrow_mut()[device] += seconds;
            Piece { seconds, bytes: 2.0 * seconds, ..Piece::default() }
        };
        let devices = Devices { machine: &machine, piece: &piece };
        let task = Task::Answer { past: 0, prompt, tokens };
        let out = run(&spec, &placement, &devices, &options, sequences, task);
        prop_assert!(out.seconds.is_finite());
        // Every token of every sequence passed every mixer once, whatever the cut: the pieces have all been done.
        let least: f64 = done.borrow().iter().cloned().fold(0.0, f64::max);
        let most: f64 = done.borrow().iter().sum();
        prop_assert!(out.seconds >= least * 0.999, "{} s, one device has {least} s of work", out.seconds);
        // Two devices that want 2 + 2 of the 3 that a memory gives take 4/3 as long, while both work.
        prop_assert!(out.seconds <= most * 1.34, "{} s of {most} s of work", out.seconds);
        for (busy, done) in out.busy.iter().zip(&*done.borrow()) {
            prop_assert!(*busy <= out.seconds * 1.001 && *busy >= done * 0.999, "{busy} {done}");
            prop_assert!(contended || *busy <= done * 1.001);
        }
        prop_assert!(out.several <= out.seconds * 1.001);
    }
}

/// Embedding and mixers on one device, ffns and head on the other, a second for each work of a batch.
fn seconds(options: &EngineOptions, sequences: usize, task: Task, change: &dyn Fn(&mut Machine)) -> f64 {
    let spec = tiny_spec(2);
    let placement = Placement::mixers_and_ffns(&spec).unwrap();
    let mut machine = machine(vec![device("a", 0), device("b", 1)], 1 << 40);
    change(&mut machine);
    let piece = |_: usize, _: &Range<usize>, _: &BatchShape, _: Crossing| Piece {
        seconds: 1.0,
        bytes: 1.0,
        ..Piece::default()
    };
    run(&spec, &placement, &Devices { machine: &machine, piece: &piece }, options, sequences, task).seconds
}

#[test]
fn pipelines_by_hand() {
    let options = EngineOptions { prefill_chunk: 32, ..EngineOptions::default() };
    let time = |sequences, task| seconds(&options, sequences, task, &|_| {});
    // One batch of four steps; two chunks, the first of which ends after three, overlap in all but the first and the last of four.
    assert_eq!(time(1, Task::Answer { past: 0, prompt: 16, tokens: 1 }), 4.0);
    assert_eq!(time(1, Task::Answer { past: 0, prompt: 64, tokens: 1 }), 5.0);
    // One sequence takes four steps a token; two in two groups overlap.
    assert_eq!(time(1, Task::Decode { past: 9, tokens: 5 }), 20.0);
    assert_eq!(time(2, Task::Decode { past: 9, tokens: 5 }), 21.0);
    assert_eq!(time(4, Task::Decode { past: 9, tokens: 5 }), 21.0);
}

#[test]
fn latency_comes_with_each_hop_and_keeps_nothing_else_waiting() {
    let options = EngineOptions { prefill_chunk: 32, ..EngineOptions::default() };
    let late = |machine: &mut Machine| {
        machine.devices[0].latency_seconds = figure(0.25);
        machine.devices[1].latency_seconds = figure(0.75);
    };
    // Three hops of half of both, and the host learns of the end.
    let one = seconds(&options, 1, Task::Decode { past: 9, tokens: 4 }, &late);
    assert_eq!(one, 4.0 * (4.0 + 3.0 * 0.5 + 0.75));
    // Of two groups one has the devices while the other is on its way.
    let two = seconds(&options, 2, Task::Decode { past: 9, tokens: 4 }, &late);
    assert!(two < one + 3.0, "{two}");
}

#[test]
fn streams_cross_beside_the_work_of_others() {
    let spec = tiny_spec(2);
    let placement = Placement::mixers_and_ffns(&spec).unwrap();
    let machine = machine(vec![device("a", 0), device("b", 1)], 1 << 40);
    let time = |prompt: usize| {
        let piece = |_: usize, _: &Range<usize>, _: &BatchShape, crossing: Crossing| {
            let hop = |crosses| if crosses { 0.5 } else { 0.0 };
            let (import, export) = (hop(crossing.import), hop(crossing.export));
            Piece { seconds: 1.0, import, export, ..Piece::default() }
        };
        let devices = Devices { machine: &machine, piece: &piece };
        let options = EngineOptions { prefill_chunk: 32, ..EngineOptions::default() };
        let task = Task::Answer { past: 0, prompt, tokens: 1 };
        run(&spec, &placement, &devices, &options, 1, task).seconds
    };
    // One batch has four steps and three hops, out and in. Of many batches, each of which has a second for each of its mixers and is
    // followed at once, only the first and the last one's hops are seen.
    assert_eq!(time(16), 7.0);
    let many = 10;
    assert!(time(32 * many) < 2.0 * many as f64 + 7.0, "{}", time(32 * many));
}

#[test]
fn what_devices_share_slows_them_down_while_both_use_it() {
    let options = EngineOptions { prefill_chunk: 32, ..EngineOptions::default() };
    let task = Task::Answer { past: 0, prompt: 64, tokens: 1 };
    let shared = |total| {
        seconds(&options, 1, task, &|machine| {
            machine.devices[1].memory = 0;
            machine.memories[0].read_bytes_per_second = Some(figure(total));
        })
    };
    // Seven pieces of work that want a byte a second each; two seconds have both devices at work.
    assert_eq!(shared(2.0), 5.0);
    assert_eq!(shared(1.0), 7.0);
    // Alone a device has what was measured for it alone, whatever the memory is said to give.
    let taking_turns = seconds(&options, 1, task, &|m| m.devices[1].hardware = m.devices[0].hardware);
    assert_eq!(taking_turns, 7.0);
}
