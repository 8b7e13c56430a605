//! Sends batches along their schedule. Nothing here waits, but for a caller that asks for the next batch to land or gives up copies under
//! way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use unicorn_core::{
    Batch, Block, BlockId, Canary, Completion, CompletionQueue, Device, DeviceError, Fence, HeadOutput,
    ModelSpec, Outcome, PageId, SequenceId, SharedBuffer, Signal, StateCopy, StateLayout, StateWay, StreamId,
    Work,
};

use crate::Placement;
use crate::placement::{Phase, Placements};
use crate::schedule::Schedule;
use crate::taps::{Tap, Taps};
use crate::timeline::{Activity, Lane, Span, Timeline};

/// The length of a token of a large model.
const AWAKE: Duration = Duration::from_millis(10);

/// Counters since the executor was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RunStats {
    /// Work submitted to devices.
    pub submits: u64,
    /// Residual streams that crossed from one device to another.
    pub crossings: u64,
    /// Bytes of these, counted once per crossing, whether copied or shared.
    pub crossing_bytes: u64,
    /// Bytes of pages of state that went from the devices of one phase to those of the other.
    pub state_bytes: u64,
}

/// What a batch produced: nothing, when no row was read.
pub(crate) type BatchResult = Result<Option<HeadOutput>, Arc<DeviceError>>;

/// A batch whose last step has ended, well or not.
pub(crate) struct Landed {
    pub flight: u64,
    pub batch: Arc<Batch>,
    pub launched: Instant,
    pub result: BatchResult,
}

/// A batch on its way.
struct Flight {
    id: u64,
    way: usize,
    stream: StreamId,
    batch: Arc<Batch>,
    launched: Instant,
    /// One per step.
    fences: Vec<Fence>,
    /// What each step waits for, with the device that does it; kept for a timeline.
    after: Vec<Vec<(Fence, usize)>>,
    /// The copies of state that came before it; kept for a timeline.
    copies: Vec<StateMove>,
    /// A row that is copied out of it.
    tap: Option<Tap>,
}

/// A copy of a mixer's pages from the devices of one phase to those of the other.
pub(crate) struct StateMove {
    block: usize,
    pages: usize,
    launched: Instant,
    /// Out of the first device and into the second.
    devices: [usize; 2],
    saved: Fence,
    restored: Fence,
}

impl StateMove {
    /// Blocks until it has ended.
    pub(crate) fn wait(&self) -> Outcome {
        self.restored.wait()
    }
}

/// Where a phase runs.
struct Way {
    placement: Placement,
    /// The ways of batches that read no row and of those that do.
    schedules: [Schedule; 2],
    /// The model's blocks as loaded on the devices that the placement names.
    blocks: Vec<BlockId>,
}

impl Way {
    fn schedule(&self, batch: &Batch) -> &Schedule {
        &self.schedules[usize::from(!batch.outputs().is_empty())]
    }
}

/// Copies of state to one device under way at once: one is saved while another is restored, and few buffers are needed.
pub(crate) const COPIES_MAX: usize = 3;

/// Devices with the loaded blocks of one model.
pub(crate) struct Executor {
    spec: Arc<ModelSpec>,
    placements: Placements,
    /// Prefill's, then decode's where it is another.
    ways: Vec<Way>,
    devices: Vec<Arc<dyn Device>>,
    layout: Option<StateLayout>,
    queue: CompletionQueue,
    /// How long who waits for a batch stays awake.
    awake: Duration,
    /// Streams that no flight uses.
    free: Vec<StreamId>,
    /// In the order of their launch.
    flights: Vec<Flight>,
    launched: u64,
    stats: RunStats,
    timeline: Option<Timeline>,
    taps: Option<Taps>,
}

impl Executor {
    /// Devices without blocks. At most `flights_max` batches are in flight.
    pub fn new(
        spec: Arc<ModelSpec>,
        placements: Placements,
        devices: Vec<Arc<dyn Device>>,
        flights_max: usize,
    ) -> Executor {
        let way = |placement: &Placement| Way {
            schedules: [0, 1].map(|outputs| Schedule::new(&spec, placement, outputs)),
            placement: placement.clone(),
            blocks: Vec::with_capacity(spec.blocks.len()),
        };
        let ways: Vec<Way> = placements.ways().into_iter().map(way).collect();
        // Where the processor works on the model itself, its cores are not to be kept busy with waiting.
        let used = ways.iter().flat_map(|w| w.placement.assignment());
        let awake = used.into_iter().all(|d| devices[*d].profile().wait_awake);
        let awake = if awake { AWAKE } else { Duration::ZERO };
        Executor {
            spec,
            placements,
            ways,
            devices,
            layout: None,
            queue: CompletionQueue::new(),
            awake,
            free: (0..flights_max as u32).rev().map(StreamId).collect(),
            flights: Vec::new(),
            launched: 0,
            stats: RunStats::default(),
            timeline: None,
            taps: None,
        }
    }

    /// Lets a canary look at what is computed. To be called when all blocks are loaded, and before anything is reserved.
    pub(crate) fn watch(&mut self, canary: &Arc<dyn Canary>) {
        let of = |way: &Way| way.placement.assignment().iter().copied().zip(way.blocks.clone()).collect();
        let ways: Vec<Vec<(usize, BlockId)>> = self.ways.iter().map(of as fn(&Way) -> Vec<_>).collect();
        self.taps = Some(Taps::new(canary.clone(), &self.spec, &self.devices, &ways));
    }

    /// Keeps what the devices do and when from now on, or stops keeping it; returns what was kept.
    pub(crate) fn keep_timeline(&mut self, keep: bool) -> Option<Timeline> {
        std::mem::replace(&mut self.timeline, keep.then(Timeline::default))
    }

    /// Counters.
    pub fn stats(&self) -> RunStats {
        self.stats
    }

    pub(crate) fn devices(&self) -> &[Arc<dyn Device>] {
        &self.devices
    }

    pub(crate) fn spec(&self) -> &Arc<ModelSpec> {
        &self.spec
    }

    /// Loads the next block, on each device where a phase runs it. Returns these devices.
    ///
    /// Errors with what a device says; what it loaded before stays loaded.
    pub(crate) fn load_next(
        &mut self,
        load: impl Fn(&dyn Device, &Block) -> Result<BlockId, DeviceError>,
    ) -> Result<Vec<usize>, DeviceError> {
        let index = self.ways[0].blocks.len();
        let Some(block) = self.spec.blocks.get(index) else { return Ok(Vec::new()) };
        let mut loaded: Vec<(usize, BlockId)> = Vec::new();
        for way in &mut self.ways {
            let device = way.placement.device(index);
            let id = match loaded.iter().find(|l| l.0 == device) {
                Some((_, id)) => *id,
                None => load(&*self.devices[device], block)?,
            };
            if !loaded.iter().any(|l| l.0 == device) {
                loaded.push((device, id));
            }
            way.blocks.push(id);
        }
        Ok(loaded.into_iter().map(|l| l.0).collect())
    }

    pub(crate) fn placements(&self) -> &Placements {
        &self.placements
    }

    /// The loaded blocks with their devices, each once.
    pub(crate) fn loaded(&self) -> Vec<(usize, BlockId)> {
        let of = |way: &Way| way.placement.assignment().iter().copied().zip(way.blocks.clone()).collect();
        let mut loaded: Vec<(usize, BlockId)> = self.ways.iter().flat_map(of as fn(&Way) -> Vec<_>).collect();
        let mut seen = std::collections::HashSet::new();
        loaded.retain(|l| seen.insert(*l));
        loaded
    }

    /// Devices that a way uses.
    fn used(&self, way: &Way) -> Vec<usize> {
        let mut used = way.placement.assignment().to_vec();
        used.sort_unstable();
        used.dedup();
        used
    }

    /// Gives every mixer its empty state, and every stream that crosses a buffer for up to `rows` rows.
    pub(crate) fn reserve(&mut self, layout: &StateLayout, rows: usize) -> Result<(), DeviceError> {
        self.layout = Some(layout.clone());
        let mut used: Vec<usize> = self.ways.iter().flat_map(|w| self.used(w)).collect();
        used.sort_unstable();
        used.dedup();
        used.iter().try_for_each(|device| self.devices[*device].reserve(layout))?;
        if self.taps.is_none() && self.ways.iter().all(|w| self.used(w).len() < 2) {
            return Ok(());
        }
        for stream in &self.free {
            let width = self.spec.width;
            let buffer = Arc::new(host_buffer(rows, width, "residual streams that cross between devices")?);
            for device in &used {
                self.devices[*device].attach(*stream, &buffer)?;
            }
            if let Some(taps) = &mut self.taps {
                taps.attached(*stream, buffer);
            }
        }
        Ok(())
    }

    /// Number of batches on their way.
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Number of those of a phase, where the phases run at different places; of all elsewhere.
    pub(crate) fn in_flight_of(&self, phase: Phase) -> usize {
        let way = self.way(phase);
        self.flights.iter().filter(|f| f.way == way).count()
    }

    /// True when another batch can be launched.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn way(&self, phase: Phase) -> usize {
        (phase as usize).min(self.ways.len() - 1)
    }

    /// True when one device runs the whole model, in either phase.
    pub(crate) fn is_whole(&self) -> bool {
        self.ways.iter().all(|way| way.schedules[1].steps.len() == 1)
    }

    /// True when the phases run at different places.
    pub(crate) fn has_two_ways(&self) -> bool {
        self.ways.len() > 1
    }

    /// Brings pages of state, by group, from the devices of the other phase to those of `phase`, for a sequence whose next batch sees
    /// them. Returns what that batch has to wait for.
    ///
    /// Errors when there is no memory for them on the host.
    pub(crate) fn bring(
        &mut self,
        phase: Phase,
        sequence: SequenceId,
        pages: &[Vec<PageId>],
    ) -> Result<Vec<StateMove>, DeviceError> {
        let (Some(layout), [prefill, decode]) = (&self.layout, &self.ways[..]) else { return Ok(Vec::new()) };
        if pages.iter().all(Vec::is_empty) {
            return Ok(Vec::new());
        }
        let (from, to) = match phase {
            Phase::Prefill => (decode, prefill),
            Phase::Decode => (prefill, decode),
        };
        let (before, layout) = (self.fences_of(sequence), layout.clone());
        let mut moves: Vec<(usize, &[PageId], usize)> = Vec::new();
        for (index, block) in self.spec.blocks.iter().enumerate() {
            let group = block.state().and_then(|spec| layout.group(spec)).and_then(|g| pages.get(g));
            let apart = from.placement.device(index) != to.placement.device(index);
            if let Some(pages) = group.filter(|p| apart && !p.is_empty()) {
                let words = block.page_words(&layout).unwrap_or(usize::MAX);
                moves.push((index, pages, words));
            }
        }
        // Before the first copy begins: one that is under way cannot be called back.
        let buffer = |(_, pages, words): &(usize, &[PageId], usize)| {
            host_buffer(pages.len(), *words, "pages of state that go to another device").map(Arc::new)
        };
        let mut ring: Vec<Arc<SharedBuffer>> = Vec::new();
        for (i, one) in moves.iter().enumerate() {
            let last = i.checked_sub(COPIES_MAX).map(|last| ring[last].clone());
            let fits = last.filter(|b| b.rows() == one.1.len() && b.width() == one.2);
            ring.push(fits.map_or_else(|| buffer(one), Ok)?);
        }
        let mut brought: Vec<StateMove> = Vec::new();
        for ((index, pages, words), host) in moves.into_iter().zip(ring) {
            let copy = |mixer, way, after| {
                let (done, pages) = (Signal::new(), pages.to_vec());
                (done.fence(), StateCopy { mixer, pages, way, after, done })
            };
            let room = brought.len().checked_sub(COPIES_MAX).map(|i| brought[i].restored.clone());
            let after = before.iter().cloned().chain(room).collect();
            let (saved, save) = copy(from.blocks[index], StateWay::Save(host.clone()), after);
            let (restored, restore) = copy(to.blocks[index], StateWay::Restore(host), vec![saved.clone()]);
            self.stats.state_bytes += (pages.len() * words * 4) as u64;
            let devices = [from, to].map(|way| way.placement.device(index));
            let (pages, launched) = (pages.len(), Instant::now());
            brought.push(StateMove { block: index, pages, launched, devices, saved, restored });
            self.devices[devices[0]].copy_state(save);
            self.devices[devices[1]].copy_state(restore);
        }
        Ok(brought)
    }

    /// The ends of the batches in flight that have tokens of a sequence.
    fn fences_of(&self, sequence: SequenceId) -> Vec<Fence> {
        let has = |f: &&Flight| f.batch.slices().iter().any(|s| s.sequence == sequence);
        self.flights.iter().filter(has).filter_map(|f| f.fences.last().cloned()).collect()
    }

    /// Submits all steps of a batch at once; what they wait for is said to the devices. In a step that mixes, a batch comes after the
    /// batches in flight that have tokens of the same sequences; the first step comes after all of `copies`. Returns the flight's number;
    /// `None` when there is no room.
    pub(crate) fn launch(&mut self, batch: Arc<Batch>, phase: Phase, copies: Vec<StateMove>) -> Option<u64> {
        let stream = self.free.pop()?;
        let id = self.launched;
        self.launched += 1;
        let way = self.way(phase);
        let continued: Vec<&Flight> =
            self.flights.iter().filter(|f| f.batch.shares_sequence(&batch)).collect();
        let elsewhere = continued.iter().filter(|f| f.way != way);
        let elsewhere = elsewhere.filter_map(|f| Some((f.fences.last()?.clone(), self.head(f.way))));
        let mut before: Vec<(Fence, usize)> =
            copies.iter().map(|c| (c.restored.clone(), c.devices[1])).collect();
        before.extend(elsewhere);
        let (blocks, schedule) = (&self.ways[way].blocks, self.ways[way].schedule(&batch));
        // A timeline tells of whole steps.
        let taps = self.taps.as_ref().filter(|_| self.timeline.is_none());
        let needed = schedule.steps.last().map_or(0, |step| step.blocks.end);
        let mut tap = taps.and_then(|t| t.tap(&self.spec, self.layout.as_ref(), (way, needed), (id, &batch)));
        let row_bytes = (batch.rows() * self.spec.width * size_of::<f32>()) as u64;
        let (mut fences, mut waits): (Vec<Fence>, Vec<Vec<(Fence, usize)>>) = Default::default();
        let launched = Instant::now();
        for (i, step) in schedule.steps.iter().enumerate() {
            let mut after = std::mem::take(&mut before);
            if step.mixes {
                let same = continued.iter().filter(|f| f.way == way);
                after.extend(same.filter_map(|f| Some((f.fences.get(i)?.clone(), step.device))));
            }
            if i == 0 && !step.mixes && batch.feeds().next().is_some() {
                // The token is there once the head has kept it; where a step mixes, it comes behind that anyway.
                after.extend(
                    continued.iter().filter_map(|f| Some((f.fences.last()?.clone(), self.head(f.way)))),
                );
            }
            let last = i + 1 == schedule.steps.len();
            let done = if last { self.queue.signal(id) } else { Signal::new() };
            fences.push(done.fence());
            before.push((done.fence(), step.device));
            self.stats.submits += 1;
            if step.crossing.import {
                self.stats.crossings += 1;
                self.stats.crossing_bytes += row_bytes;
            }
            let blocks = blocks[step.blocks.clone()].to_vec();
            let (batch, crossing) = (batch.clone(), step.crossing);
            if self.timeline.is_some() {
                waits.push(after.clone());
            }
            let after = after.into_iter().map(|(fence, _)| fence).collect();
            let work = Work { stream, blocks, batch, crossing, after, done };
            let device = &self.devices[step.device];
            let cut = tap.as_mut().filter(|tap| step.blocks.contains(&tap.block()));
            match cut.zip(taps.and_then(|t| t.buffer(stream))) {
                Some((tap, buffer)) => {
                    tap.submit(&**device, buffer, tap.block() - step.blocks.start, work);
                }
                None => device.submit(work),
            }
        }
        let (after, copies) = (waits, if self.timeline.is_some() { copies } else { Vec::new() });
        self.flights.push(Flight { id, way, stream, batch, launched, fences, after, copies, tap });
        Some(id)
    }

    /// The next batch that has landed; `None` when none has, or, if `wait`, when none is in flight.
    pub(crate) fn landed(&mut self, wait: bool) -> Option<Landed> {
        if self.flights.is_empty() {
            return None;
        }
        let Completion { tag, result } =
            if wait { self.queue.next_awake(self.awake) } else { self.queue.try_next()? };
        let at = self.flights.iter().position(|f| f.id == tag)?;
        let mut flight = self.flights.remove(at);
        self.free.push(flight.stream);
        self.note(&flight);
        let result = result.and_then(|output| self.checked(output, &flight));
        if let (Some(taps), Some(tap)) = (&self.taps, flight.tap.take()) {
            taps.landed(tap, &flight.batch, &result);
        }
        Some(Landed { flight: tag, batch: flight.batch, launched: flight.launched, result })
    }

    /// Keeps when each step of a landed flight ran, and what came before it.
    fn note(&mut self, flight: &Flight) {
        let Some(timeline) = &mut self.timeline else { return };
        let of = |fence: &Fence, lane, activity, rows, launched, after: &[(Fence, usize)]| {
            let ran = fence.ran()?;
            let ended = after.iter().filter_map(|(fence, device)| Some((fence.ran()?.left, *device)));
            let (ready, flight) = (ended.max(), flight.id);
            Some(Span { lane, activity, flight, rows, launched, ready, start: ran.start, end: ran.end })
        };
        for copy in &flight.copies {
            let [from, to] = copy.devices;
            let waited = [(copy.saved.clone(), from)];
            for (fence, device, activity, after) in [
                (&copy.saved, from, Activity::Save(copy.block), &[][..]),
                (&copy.restored, to, Activity::Restore(copy.block), &waited[..]),
            ] {
                let span = of(fence, Lane::Copies(device), activity, copy.pages, copy.launched, after);
                span.into_iter().for_each(|span| timeline.push(span));
            }
        }
        let schedule = self.ways[flight.way].schedule(&flight.batch);
        let none = Vec::new();
        for (i, (step, fence)) in schedule.steps.iter().zip(&flight.fences).enumerate() {
            let after = flight.after.get(i).unwrap_or(&none);
            let (lane, activity) = (Lane::Device(step.device), Activity::Blocks(step.blocks.clone()));
            let Some(span) = of(fence, lane, activity, flight.batch.rows(), flight.launched, after) else {
                continue;
            };
            if let Some(ran) = fence.ran() {
                // Copies that are no part of the work, on queues of their own.
                let beside = |activity, start, end| Span {
                    lane: Lane::Copies(step.device),
                    activity,
                    start,
                    end,
                    ..span.clone()
                };
                if let (Some(arrived), Some((ready, _))) = (ran.arrived, span.ready) {
                    timeline.push(beside(Activity::In(step.blocks.start), ready, arrived));
                }
                if step.crossing.export {
                    timeline.push(beside(Activity::Out(step.blocks.end - 1), ran.end, ran.left));
                }
            }
            timeline.push(span);
        }
    }

    /// Keeps that the host chose tokens for a landed batch from `start` on until now.
    pub(crate) fn note_sampling(&mut self, flight: u64, rows: usize, start: Instant) {
        if let Some(timeline) = &mut self.timeline {
            let (lane, activity, launched, ready) = (Lane::Host, Activity::Sampling, start, None);
            let end = Instant::now();
            timeline.push(Span { lane, activity, flight, rows, launched, ready, start, end });
        }
    }

    /// The device of the head.
    fn head(&self, way: usize) -> usize {
        self.ways[way].placement.device(self.spec.blocks.len() - 1)
    }

    fn checked(&self, output: Option<HeadOutput>, flight: &Flight) -> BatchResult {
        let batch = &*flight.batch;
        let right = match &output {
            Some(output) => !batch.outputs().is_empty() && output.rows(batch).is_some(),
            None => batch.outputs().is_empty(),
        };
        let what = || DeviceError::Failed {
            device: self.devices[self.head(flight.way)].profile().name.clone(),
            what: "head".into(),
            reason: format!("the output is not what {} rows ask for", batch.outputs().len()),
        };
        if right { Ok(output) } else { Err(Arc::new(what())) }
    }
}

/// Memory of the host that devices copy to and from.
fn host_buffer(rows: usize, width: usize, what: &str) -> Result<SharedBuffer, DeviceError> {
    SharedBuffer::new(rows, width).ok_or_else(|| DeviceError::OutOfMemory {
        device: "host".into(),
        what: what.into(),
        requested: (rows as u64).saturating_mul(width as u64).saturating_mul(4),
        free: 0,
    })
}

impl Drop for Executor {
    fn drop(&mut self) {
        while self.landed(true).is_some() {}
        for (device, block) in self.loaded() {
            self.devices[device].unload(block);
        }
    }
}

#[cfg(test)]
mod tests;
