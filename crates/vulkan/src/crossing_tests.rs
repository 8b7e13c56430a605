//! Residual streams that cross on queues of their own: the same values, in the right order, each copy counted once. On devices without
//! such queues the compute queue stands in for them, which then runs everything in order: what waits for what is checked on its own.

use std::sync::Arc;

use unicorn_cases::synthetic::SyntheticSource;
use unicorn_core::{
    Batch, BatchLimits, Block, BlockId, CompletionQueue, Crossing, Device, Fence, KvType, OutputRow, Select,
    SequenceId, SharedBuffer, Sharing, Signal, Slice, StateGroup, StateLayout, StreamId, TensorType,
    WeightSource, Work, run_to_end, state_groups,
};

use crate::context::Context;
use crate::device::{VulkanDevice, VulkanOptions};
use crate::driver_tests::{open_context, open_context_on};
use crate::invariance_tests::{VOCABULARY, blocks};
use crate::lane::{Crossings, Lane, Point};

const WIDTH: usize = 576;
const IN: Crossing = Crossing { import: true, export: false };
const OUT: Crossing = Crossing { import: false, export: true };
const BOTH: Crossing = Crossing { import: true, export: true };
const NEITHER: Crossing = Crossing { import: false, export: false };

/// A device that copies on lanes of their own; `imports`: from and to the host's memory itself.
fn apart(imports: bool) -> Option<VulkanDevice> {
    let mut context: Context = open_context_on(Crossings::Apart)?;
    if !imports {
        context.host_import = None;
    }
    Some(VulkanDevice::open(context, "apart", &VulkanOptions::default()).unwrap())
}

/// A model of two layers on some devices, by turns.
struct Placed<'d> {
    devices: Vec<&'d VulkanDevice>,
    blocks: Vec<(usize, BlockId)>,
    limits: Arc<BatchLimits>,
}

impl<'d> Placed<'d> {
    /// `place`: the device of each block.
    fn new(devices: Vec<&'d VulkanDevice>, place: impl Fn(&Block) -> usize) -> Placed<'d> {
        let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(3));
        let model = blocks(TensorType::F16);
        let groups = state_groups(&model).into_iter().map(|spec| StateGroup { spec, pages: 4 }).collect();
        let loaded = model.iter().map(|b| (place(b), devices[place(b)].load(b, &source).unwrap())).collect();
        let layout = StateLayout { page_tokens: 32, positions: 64, ty: KvType::F16, groups };
        devices.iter().for_each(|d| d.reserve(&layout).unwrap());
        let limits = Arc::new(BatchLimits { vocab: VOCABULARY, state: Some(layout) });
        Placed { devices, blocks: loaded, limits }
    }

    /// `rows` tokens of a sequence from `start` on.
    fn batch(&self, sequence: u64, start: u32, rows: u32) -> Arc<Batch> {
        let tokens = (start..start + rows).map(|i| (i * 37 + 11) % VOCABULARY as u32).collect();
        let groups = self.limits.state.as_ref().map_or(0, |s| s.groups.len());
        let tables = vec![vec![sequence as u32]; groups];
        let slice =
            Slice { sequence: SequenceId(sequence), start, tokens, tables, snapshots: vec![], slot: None };
        let outputs = (0..rows).map(|row| OutputRow::new(row, Select::Logits)).collect();
        Arc::new(Batch::new(vec![slice], outputs, &self.limits).unwrap())
    }

    /// Gives streams memory to cross through.
    fn attach(&self, streams: u32, rows: usize, wanted: Sharing) -> Vec<Arc<SharedBuffer>> {
        let one = |stream| {
            let memory = Arc::new(SharedBuffer::new(rows, WIDTH).unwrap());
            for device in &self.devices {
                assert_eq!(device.attach(StreamId(stream), &memory).unwrap(), wanted);
            }
            memory
        };
        (0..streams).map(one).collect()
    }

    /// The logits of batches that are all in flight at once, each on a stream of its own, block by block. A batch follows the ones before
    /// it in blocks that mix.
    fn run(&self, batches: &[Arc<Batch>]) -> Vec<Vec<f32>> {
        let queue = CompletionQueue::new();
        let mut flights: Vec<Vec<Fence>> = Vec::new();
        for (n, batch) in batches.iter().enumerate() {
            let mut fences: Vec<Fence> = Vec::new();
            for (i, (device, block)) in self.blocks.iter().enumerate() {
                let elsewhere = |other: Option<&(usize, BlockId)>| other.is_some_and(|o| o.0 != *device);
                let mut after: Vec<Fence> = fences.last().cloned().into_iter().collect();
                after.extend(flights.iter().map(|f| f[i].clone()));
                let last = i + 1 == self.blocks.len();
                let done = if last { queue.signal(n as u64) } else { Signal::new() };
                fences.push(done.fence());
                let before = i.checked_sub(1).and_then(|i| self.blocks.get(i));
                let crossing =
                    Crossing { import: elsewhere(before), export: elsewhere(self.blocks.get(i + 1)) };
                self.devices[*device].submit(Work {
                    stream: StreamId(n as u32),
                    blocks: vec![*block],
                    batch: batch.clone(),
                    crossing,
                    after,
                    done,
                });
            }
            flights.push(fences);
        }
        let mut out = vec![Vec::new(); batches.len()];
        for _ in batches {
            let completion = queue.next();
            out[completion.tag as usize] = completion.result.unwrap().unwrap().logits;
        }
        out
    }

    /// Runs one block on a stream and waits.
    fn block(&self, block: usize, stream: u32, batch: &Arc<Batch>, crossing: Crossing) {
        let (device, id) = self.blocks[block];
        run_to_end(self.devices[device], StreamId(stream), &[id], batch, crossing).unwrap();
    }
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        self.blocks.iter().for_each(|(device, block)| self.devices[*device].unload(*block));
    }
}

#[test]
fn two_devices_that_copy_compute_what_one_computes() {
    let Some(context) = open_context() else { return };
    let one = VulkanDevice::open(context, "one", &VulkanOptions::default()).unwrap();
    let chunks =
        |placed: &Placed<'_>| [(0, 12), (12, 9), (21, 1), (22, 10)].map(|(s, n)| placed.batch(1, s, n));
    let alone = Placed::new(vec![&one], |_| 0);
    let want = alone.run(&chunks(&alone));
    assert!(want.iter().flatten().all(|v| v.is_finite()));
    for imports in [true, false] {
        let (Some(a), Some(b)) = (apart(imports), apart(imports)) else { return };
        let mixers_here = |block: &Block| usize::from(!matches!(block, Block::Attention { .. }));
        let placed = Placed::new(vec![&a, &b], mixers_here);
        placed.attach(4, 16, Sharing::Copied);
        // More than once: recordings and copies are replayed.
        for _ in 0..3 {
            let got = placed.run(&chunks(&placed));
            for (n, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!(got.iter().map(|v| v.to_bits()).eq(want.iter().map(|v| v.to_bits())), "batch {n}");
            }
        }
    }
}

#[test]
fn copies_wait_for_what_they_need_and_for_nothing_else() {
    let Some(device) = apart(true) else { return };
    let placed = Placed::new(vec![&device], |_| 0);
    let memory = placed.attach(2, 16, Sharing::Copied);
    let (first, second) = (placed.batch(1, 0, 9), placed.batch(2, 0, 9));
    let submit = |block: usize, stream: u32, batch: &Arc<Batch>, crossing| {
        let done = Signal::new();
        let fence = done.fence();
        let (blocks, batch) = (vec![placed.blocks[block].1], batch.clone());
        device.submit(Work { stream: StreamId(stream), blocks, batch, crossing, after: Vec::new(), done });
        fence
    };
    let log = || std::mem::take(&mut *device.context().log.lock().unwrap());
    // Streams are made by their first work.
    placed.block(0, 0, &first, NEITHER);
    placed.block(0, 1, &second, NEITHER);
    let made = log().last().unwrap().2;
    // Out, then kernels on the same stream, which must not write what is still read; and in and out beside them on another stream.
    let mut fences = vec![submit(0, 0, &first, OUT), submit(2, 0, &first, NEITHER)];
    memory[1].write(&[0.5; 9 * WIDTH]);
    fences.push(submit(2, 1, &second, BOTH));
    fences.iter().for_each(|f| f.wait().unwrap());
    let all = log();
    let [(Lane::Compute, start, a), out, next, arrival, other, leaves] = all[..] else { panic!("{all:?}") };
    assert_eq!(start, Point::default());
    assert_eq!(out, (Lane::Outward, Point::from(a), 1));
    assert_eq!(next, (Lane::Compute, Point::at(Lane::Outward, 1), a + 1));
    assert_eq!(arrival, (Lane::Inward, Point::from(made), 1));
    assert_eq!(other, (Lane::Compute, Point::at(Lane::Inward, 1), a + 2));
    assert_eq!(leaves, (Lane::Outward, Point::from(a + 2), 2));
    // What comes in waits for all that was done with its stream, kernels and copies.
    fences = vec![submit(2, 1, &second, OUT), submit(2, 1, &second, IN)];
    fences.iter().for_each(|f| f.wait().unwrap());
    let all = log();
    let [(_, _, b), (Lane::Outward, _, c), arrival, kernels] = all[..] else { panic!("{all:?}") };
    // The point of a stream is behind its earlier arrivals too.
    let behind = Point::from(b).with(Lane::Outward, c).with(Lane::Inward, 1);
    assert_eq!(arrival, (Lane::Inward, behind, 2));
    assert_eq!(kernels.1.get(Lane::Inward), 2);
}

#[test]
fn few_rows_cross_on_the_compute_queue() {
    let Some(mut context) = open_context_on(Crossings::Apart) else { return };
    context.apart_bytes_min = 10 * WIDTH as u64 * 4;
    let device = VulkanDevice::open(context, "apart", &VulkanOptions::default()).unwrap();
    let placed = Placed::new(vec![&device], |_| 0);
    placed.attach(1, 16, Sharing::Copied);
    placed.block(0, 0, &placed.batch(1, 0, 16), NEITHER);
    let lanes = |rows| {
        device.context().log.lock().unwrap().clear();
        placed.block(0, 0, &placed.batch(1, 0, rows), OUT);
        placed.block(2, 0, &placed.batch(1, 0, rows), BOTH);
        device.context().log.lock().unwrap().iter().map(|s| s.0).collect::<Vec<_>>()
    };
    assert_eq!(lanes(9), [Lane::Compute; 2]);
    assert_eq!(lanes(10), [Lane::Compute, Lane::Outward, Lane::Inward, Lane::Compute, Lane::Outward]);
}

#[test]
fn each_crossing_is_counted_once() {
    let bytes = 9 * WIDTH as u64 * 4;
    let counts = |device: &VulkanDevice, sharing: Sharing| {
        let placed = Placed::new(vec![device], |_| 0);
        let memory = placed.attach(1, 16, sharing);
        let batch = placed.batch(1, 0, 9);
        // The batch and the arguments of kernels are written once.
        placed.block(0, 0, &batch, NEITHER);
        placed.block(2, 0, &batch, NEITHER);
        let counted = |crossing| {
            let before = device.memory();
            memory[0].write(&[0.25; 9 * WIDTH]);
            placed.block(2, 0, &batch, crossing);
            let after = device.memory();
            (after.copied - before.copied, after.shared - before.shared)
        };
        [NEITHER, IN, OUT, BOTH].map(counted)
    };
    for imports in [true, false] {
        let Some(device) = apart(imports) else { return };
        let copied = [(0, 0), (bytes, 0), (bytes, 0), (2 * bytes, 0)];
        assert_eq!(counts(&device, Sharing::Copied), copied, "imports {imports}");
        assert!(device.crosses_by().is_some_and(|by| by.starts_with("two transfer queues")));
    }
    let Some(context) = open_context() else { return };
    let unified = context.profile().software || context.profile().integrated;
    if !unified || context.host_import.is_none() {
        return;
    }
    let device = VulkanDevice::open(context, "in place", &VulkanOptions::default()).unwrap();
    assert_eq!(counts(&device, Sharing::InPlace), [(0, 0), (0, bytes), (0, 0), (0, bytes)]);
    assert_eq!(device.crosses_by(), None);
}

#[test]
fn what_crosses_is_what_the_host_sees() {
    for imports in [true, false] {
        let Some(device) = apart(imports) else { return };
        let placed = Placed::new(vec![&device], |_| 0);
        let memory = placed.attach(2, 16, Sharing::Copied);
        let batch = placed.batch(1, 0, 9);
        let crossed = |stream: usize, block: usize, crossing: Crossing| {
            placed.block(block, stream as u32, &batch, crossing);
            let mut out = vec![0f32; 9 * WIDTH];
            memory[stream].read(&mut out);
            out
        };
        let embedded = crossed(0, 0, OUT);
        assert!(embedded.iter().any(|v| *v != 0.0));
        let fed = crossed(0, 2, BOTH);
        assert!(fed != embedded && fed.iter().all(|v| v.is_finite()));
        // The same rows through the other stream, from the host.
        memory[1].write(&embedded);
        assert_eq!(crossed(1, 2, BOTH), fed);
    }
}

#[test]
fn kernels_count_what_blocks_cost() {
    let Some(device) = apart(true) else { return };
    unicorn_cases::costs::check(&device).unwrap();
}

#[test]
fn pages_of_state_keep_their_bytes() {
    let Some(device) = apart(true) else { return };
    let device: Arc<dyn Device> = Arc::new(device);
    unicorn_cases::pages::check(&device).unwrap();
}

#[test]
fn a_device_that_goes_ends_what_it_has() {
    for imports in [true, false] {
        let Some(device) = apart(imports) else { return };
        let mut placed = Placed::new(vec![&device], |_| 0);
        placed.attach(3, 16, Sharing::Copied);
        let mut fences = Vec::new();
        for stream in 0..3 {
            let batch = placed.batch(1 + stream, 0, 16);
            for (block, crossing) in [(0, OUT), (1, BOTH), (2, BOTH)] {
                let done = Signal::new();
                fences.push(done.fence());
                let (blocks, stream) = (vec![placed.blocks[block].1], StreamId(stream as u32));
                let after = fences.len().checked_sub(2).filter(|_| block > 0).map(|i| fences[i].clone());
                let (after, batch) = (after.into_iter().collect(), batch.clone());
                device.submit(Work { stream, blocks, batch, crossing, after, done });
            }
        }
        // Blocks stay loaded: the device goes with everything under way.
        placed.blocks.clear();
        drop(placed);
        drop(device);
        for fence in fences {
            // What was not handed over when the device went may be refused, but never left open.
            fence.wait().unwrap();
        }
    }
}
