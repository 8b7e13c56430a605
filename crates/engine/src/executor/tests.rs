use unicorn_core::{SequenceId, Slice};

use super::*;
use crate::testing::{FakeDevice, Faults, Log, ZeroWeights, tiny_spec};

fn executor(placement: Placement, devices: Vec<Arc<FakeDevice>>) -> Executor {
    let spec = tiny_spec(2);
    let load =
        |(block, device): (&unicorn_core::Block, &usize)| devices[*device].load(block, &ZeroWeights).unwrap();
    let blocks = spec.blocks.iter().zip(placement.assignment()).map(load).collect();
    let devices = devices.into_iter().map(|d| d as Arc<dyn Device>).collect();
    let executor = Executor::new(Arc::new(spec), placement, devices, blocks);
    let ty = unicorn_core::KvType::F16;
    executor.reserve_kv(unicorn_core::KvLayout { page_tokens: 32, pages: 16, positions: 512, ty }).unwrap();
    executor
}

fn pair(lazy: bool) -> (Vec<Arc<FakeDevice>>, Log) {
    let log = Log::default();
    let device = |name| Arc::new(FakeDevice::new(name, lazy, log.clone()));
    (vec![device("a"), device("b")], log)
}

fn part(sequence: u64, start: u32, tokens: &[u32]) -> Arc<Batch> {
    let slice =
        Slice { sequence: SequenceId(sequence), tokens: tokens.into(), start, pages: vec![sequence as u32] };
    Arc::new(Batch { slices: vec![slice], outputs: vec![tokens.len() as u32 - 1], select: Select::Logits })
}

fn run(executor: &mut Executor, parts: &[Arc<Batch>]) -> Vec<Option<HeadOutput>> {
    executor.run(parts).into_iter().map(Result::unwrap).collect()
}

#[test]
fn any_placement_gives_the_same_logits() {
    let spec = tiny_spec(2);
    let whole = [part(0, 0, &[1, 2, 3, 4])];
    let mut single = executor(Placement::single(&spec).unwrap(), vec![FakeDevice::plain()]);
    let expected = run(&mut single, &whole);
    let chunks = [part(0, 0, &[1, 2]), part(0, 2, &[3, 4])];
    for lazy in [false, true] {
        for placement in
            [Placement::mixers_and_ffns(&spec).unwrap(), Placement::by_layers(&spec, &[1, 1]).unwrap()]
        {
            let crossings = placement.segments().len() as u64 - 1;
            let mut executor = executor(placement, pair(lazy).0);
            assert_eq!(run(&mut executor, &whole), expected);
            let stats = executor.stats();
            assert_eq!((stats.crossings, stats.crossing_bytes), (crossings, crossings * 4 * 4 * 4));
            assert_eq!(run(&mut executor, &chunks)[1], expected[0]);
        }
    }
}

#[test]
fn two_devices_hold_work_at_once() {
    let (devices, log) = pair(true);
    let mut executor = executor(Placement::mixers_and_ffns(&tiny_spec(2)).unwrap(), devices);
    run(&mut executor, &[part(0, 0, &[1]), part(1, 0, &[2])]);
    let mut flying: Vec<(String, u32)> = Vec::new();
    let mut overlaps = 0;
    for (device, step, stream) in log.lock().unwrap().iter() {
        match *step {
            "submit" => {
                overlaps += usize::from(flying.iter().any(|(d, s)| d != device && s != stream));
                flying.push((device.clone(), *stream));
            }
            _ => flying.retain(|f| *f != (device.clone(), *stream)),
        }
    }
    assert!(overlaps >= 3, "{overlaps} of 8 submits found the other device busy");
    assert!(flying.is_empty());
}

#[test]
fn a_failure_stays_with_its_sequences() {
    for lazy in [false, true] {
        let (devices, _) = pair(lazy);
        devices[1].set_faults(Faults { token: Some(9), ..Faults::default() });
        let mut executor = executor(Placement::mixers_and_ffns(&tiny_spec(2)).unwrap(), devices);
        let parts = [part(0, 0, &[1, 9]), part(1, 0, &[2]), part(0, 2, &[3])];
        let results = executor.run(&parts);
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
        assert!(results[0].as_ref().unwrap_err().to_string().contains("poisoned token"));
    }
}

#[test]
fn blocks_are_unloaded_on_drop() {
    let device = FakeDevice::plain();
    let executor = executor(Placement::single(&tiny_spec(2)).unwrap(), vec![device.clone()]);
    assert_eq!(device.loaded(), 6);
    drop(executor);
    assert_eq!(device.loaded(), 0);
}
