//! Sends batches along their schedule. Nothing here waits, but for a caller that asks for the next batch to land.

pub(crate) mod storing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use unicorn_core::{
    Batch, Block, BlockId, Canary, Completion, CompletionQueue, Device, DeviceError, Fence, HeadOutput,
    ModelSpec, PageId, SequenceId, SharedBuffer, Signal, Slice, StateCopy, StateLayout, StateWay, StreamId,
    WOKEN, Waker, Work,
};

use crate::Placement;
use crate::host_buffer::host_buffer;
use crate::pages::{Page, Whereabouts};
use crate::placement::{Phase, Placements};
use crate::schedule::Schedule;
use crate::store_copies::{Copied, StoreCopies};
use crate::taps::{Tap, Taps};
use crate::timeline::{Activity, Lane, Span, Timeline};

/// The length of a token of a large model.
const AWAKE: Duration = Duration::from_millis(10);

/// Counters since the executor was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RunStats {
    /// Tokens whose rows went through the model.
    pub tokens: u64,
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
    /// Where it ran, if the phases run at different places.
    pub phase: Option<Phase>,
    /// It waited for what was done for others: where it failed, its sequences may not be the cause.
    pub leans: bool,
    pub result: BatchResult,
}

/// What has ended next.
pub(crate) enum Ended {
    /// A batch.
    Batch(Landed),
    /// Copies of pages from or to a store.
    Copies(Copied),
    /// Nothing: somebody wants to be heard while nothing but copies is under way.
    Woken,
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
    /// It waits for copies of state that were begun for others.
    leans: bool,
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

/// What a batch has to wait for before it sees all of its state.
#[derive(Default)]
pub(crate) struct Brought {
    /// Copies for this batch.
    moves: Vec<StateMove>,
    /// Copies that other batches wait for too, with the devices that they go into.
    others: Vec<(Fence, usize)>,
    /// Something is waited for that was begun for others.
    leans: bool,
}

impl Brought {
    /// True for a page that has to be brought; notes what to wait for where that is done already.
    fn lacks(&mut self, page: &Page, phase: Phase) -> bool {
        match page.on_devices_of(phase) {
            Whereabouts::Elsewhere => return true,
            Whereabouts::Coming(copies) => {
                let known = |copy: &&(Fence, usize)| self.others.iter().any(|o| o.0.id() == copy.0.id());
                let new: Vec<_> = copies.iter().filter(|copy| !known(copy)).cloned().collect();
                self.others.extend(new);
                self.leans = true;
            }
            Whereabouts::Here => {}
        }
        false
    }

    /// Adds what is brought for another sequence of the batch.
    pub fn add(&mut self, other: Brought) {
        self.moves.extend(other.moves);
        self.others.extend(other.others);
        self.leans |= other.leans;
    }
}

/// Host memory through which pages of one size go from device to device, in turn.
struct Ring {
    /// Words of a page.
    words: usize,
    /// Pages at once.
    rows: usize,
    /// Each with the end of the copy that used it last.
    buffers: Vec<(Arc<SharedBuffer>, Option<Fence>)>,
}

impl Ring {
    /// The buffer that has been in use longest, with what has to end before it can be used.
    fn next(&mut self) -> (Arc<SharedBuffer>, &mut Option<Fence>) {
        self.buffers.rotate_left(1);
        let (buffer, room) = &mut self.buffers[COPIES_MAX - 1];
        (buffer.clone(), room)
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

/// Copies of state under way at once: one is saved while another is restored, and few buffers are needed.
pub(crate) const COPIES_MAX: usize = 3;
/// Bytes of state that a copy has at most, but for a single page: enough that beginning one takes no time worth counting.
const COPY_BYTES_MAX: usize = 16 << 20;

/// The buffers of each ring through which pages of state go where the phases have different devices, as `(words of a page, pages)`.
pub(crate) fn rings(spec: &ModelSpec, placements: &Placements, layout: &StateLayout) -> Vec<(usize, usize)> {
    let mut rings: Vec<(usize, usize)> = Vec::new();
    for (index, block) in spec.blocks.iter().enumerate() {
        let apart = placements.prefill.device(index) != placements.decode.device(index);
        let Some(state) = block.state().filter(|_| apart) else { continue };
        // What cannot be counted cannot be had either.
        let words = block.page_words(layout).unwrap_or(usize::MAX).max(1);
        let rows = (COPY_BYTES_MAX / 4 / words).min(layout.pages(state)).max(1);
        match rings.iter_mut().find(|ring| ring.0 == words) {
            Some(ring) => ring.1 = ring.1.max(rows),
            None => rings.push((words, rows)),
        }
    }
    rings
}

/// Devices with the loaded blocks of one model.
pub(crate) struct Executor {
    spec: Arc<ModelSpec>,
    placements: Placements,
    /// Prefill's, then decode's where it is another.
    ways: Vec<Way>,
    devices: Vec<Arc<dyn Device>>,
    layout: Option<StateLayout>,
    rings: Vec<Ring>,
    queue: CompletionQueue,
    /// How long who waits for a batch stays awake.
    awake: Duration,
    /// Streams that no flight uses.
    free: Vec<StreamId>,
    /// In the order of their launch.
    flights: Vec<Flight>,
    launched: u64,
    /// Beside the flights: pages on their way from and to a store.
    store_copies: StoreCopies,
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
            rings: Vec::new(),
            queue: CompletionQueue::new(),
            awake,
            free: (0..flights_max as u32).rev().map(StreamId).collect(),
            flights: Vec::new(),
            launched: 0,
            store_copies: StoreCopies::default(),
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

    /// Gives every mixer its empty state, and every stream that crosses a buffer for up to `rows` rows; state that goes from the devices of
    /// one phase to those of the other has buffers too.
    ///
    /// Errors when a device or the host has no memory for it.
    pub(crate) fn reserve(&mut self, layout: &StateLayout, rows: usize) -> Result<(), DeviceError> {
        self.layout = Some(layout.clone());
        let mut used: Vec<usize> = self.ways.iter().flat_map(|w| self.used(w)).collect();
        used.sort_unstable();
        used.dedup();
        used.iter().try_for_each(|device| self.devices[*device].reserve(layout))?;
        let ring = |(words, rows): (usize, usize)| {
            let buffer = || host_buffer(rows, words, "pages of state that go to another device");
            let buffers =
                (0..COPIES_MAX).map(|_| Ok((Arc::new(buffer()?), None))).collect::<Result<_, _>>()?;
            Ok(Ring { words, rows, buffers })
        };
        let rings = rings(&self.spec, &self.placements, layout).into_iter().map(ring);
        self.rings = rings.collect::<Result<_, DeviceError>>()?;
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
    pub(crate) fn in_flight_of(&self, phase: Option<Phase>) -> usize {
        let way = self.way(phase);
        self.flights.iter().filter(|f| f.way == way).count()
    }

    /// True when another batch can be launched.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn way(&self, phase: Option<Phase>) -> usize {
        phase.map_or(0, |phase| phase as usize).min(self.ways.len() - 1)
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
    /// them. What others bring already is waited for. Returns what that batch has to wait for.
    pub(crate) fn bring(&mut self, phase: Phase, sequence: SequenceId, pages: &[Vec<Arc<Page>>]) -> Brought {
        let mut brought = Brought::default();
        let missing: Vec<Vec<&Arc<Page>>> = pages
            .iter()
            .map(|group| group.iter().filter(|page| brought.lacks(page, phase)).collect())
            .collect();
        let (Some(layout), [prefill, decode]) = (&self.layout, &self.ways[..]) else { return brought };
        let (from, to) = match phase {
            Phase::Prefill => (decode, prefill),
            Phase::Decode => (prefill, decode),
        };
        let before = self.fences_of(sequence);
        let written =
            missing.iter().enumerate().flat_map(|(g, pages)| pages.iter().map(move |p| (g, p.id())));
        let left = self.store_copies.reading(written);
        let mut copies: Vec<Vec<(Fence, usize)>> = vec![Vec::new(); missing.len()];
        for (index, block) in self.spec.blocks.iter().enumerate() {
            let devices = [from, to].map(|way| way.placement.device(index));
            let Some(group) = block.state().and_then(|spec| layout.group(spec)) else { continue };
            let words = block.page_words(layout).unwrap_or(usize::MAX);
            let Some(ring) = self.rings.iter_mut().find(|ring| ring.words == words) else { continue };
            if devices[0] == devices[1] {
                continue;
            }
            for part in missing.get(group).map_or(&[][..], |pages| pages).chunks(ring.rows) {
                let part: Vec<PageId> = part.iter().map(|page| page.id()).collect();
                let copy = |mixer, way, after| {
                    let (done, pages) = (Signal::new(), part.clone());
                    (done.fence(), StateCopy { mixer, pages, way, after, done })
                };
                let (host, room) = ring.next();
                // One that ended badly has left the buffer too.
                let busy = room.take().filter(|last| last.outcome().is_none());
                let own = |last: &Fence| brought.moves.iter().any(|m| m.restored.id() == last.id());
                brought.leans |= busy.as_ref().is_some_and(|last| !own(last));
                let after = before.iter().cloned().chain(busy).collect();
                let (saved, save) = copy(from.blocks[index], StateWay::Save(host.clone()), after);
                let after = left.iter().cloned().chain([saved.clone()]).collect();
                let (restored, restore) = copy(to.blocks[index], StateWay::Restore(host.clone()), after);
                *room = Some(restored.clone());
                copies[group].push((restored.clone(), devices[1]));
                self.stats.state_bytes += (part.len() * words * 4) as u64;
                let (pages, launched) = (part.len(), Instant::now());
                brought.moves.push(StateMove { block: index, pages, launched, devices, saved, restored });
                self.devices[devices[0]].copy_state(save);
                self.devices[devices[1]].copy_state(restore);
            }
        }
        for (pages, copies) in missing.iter().zip(copies).filter(|(_, copies)| !copies.is_empty()) {
            let copies = Arc::new(copies);
            pages.iter().for_each(|page| page.place(phase, Whereabouts::Coming(copies.clone())));
        }
        brought
    }

    /// The ends of the batches in flight that have tokens of a sequence.
    fn fences_of(&self, sequence: SequenceId) -> Vec<Fence> {
        let has = |f: &&Flight| f.batch.slices().iter().any(|s| s.sequence == sequence);
        self.flights.iter().filter(has).filter_map(|f| f.fences.last().cloned()).collect()
    }

    /// The pages that a batch writes, by group.
    fn written<'a>(&'a self, batch: &'a Batch) -> impl Iterator<Item = (usize, PageId)> + 'a {
        let groups = self.layout.iter().flat_map(|layout| layout.groups.iter().enumerate());
        groups.flat_map(move |(g, group)| {
            let recurrent = group.spec.is_recurrent();
            let size = self.layout.as_ref().map_or(1, |layout| layout.page_tokens);
            batch.slices().iter().flat_map(move |slice: &Slice| {
                let first = if recurrent { 1 } else { slice.start as usize / size };
                slice.tables[g].iter().skip(first).map(move |page| (g, *page))
            })
        })
    }

    /// Submits all steps of a batch at once; what they wait for is said to the devices. In a step that mixes, a batch comes after the
    /// batches in flight that have tokens of the same sequences; the first step comes after all that is brought. `phase` is `None` where the
    /// phases run at the same place. Returns the flight's number; `None` when there is no room.
    pub(crate) fn launch(
        &mut self,
        batch: Arc<Batch>,
        phase: Option<Phase>,
        brought: Brought,
    ) -> Option<u64> {
        let stream = self.free.pop()?;
        let id = self.launched;
        self.launched += 1;
        let way = self.way(phase);
        let continued: Vec<&Flight> =
            self.flights.iter().filter(|f| f.batch.shares_sequence(&batch)).collect();
        let elsewhere = continued.iter().filter(|f| f.way != way);
        let elsewhere = elsewhere.filter_map(|f| Some((f.fences.last()?.clone(), self.head(f.way))));
        let Brought { moves: copies, others, leans } = brought;
        let mut before: Vec<(Fence, usize)> =
            copies.iter().map(|c| (c.restored.clone(), c.devices[1])).chain(others).collect();
        before.extend(elsewhere);
        if !self.store_copies.is_empty() {
            let device = self.ways[way].schedule(&batch).steps.first().map_or(0, |step| step.device);
            let left = self.store_copies.reading(self.written(&batch));
            before.extend(left.into_iter().map(|fence| (fence, device)));
        }
        let (blocks, schedule) = (&self.ways[way].blocks, self.ways[way].schedule(&batch));
        // A timeline tells of whole steps.
        let taps = self.taps.as_ref().filter(|_| self.timeline.is_none());
        let needed = schedule.steps.last().map_or(0, |step| step.blocks.end);
        let mut tap = taps.and_then(|t| t.tap(&self.spec, self.layout.as_ref(), (way, needed), (id, &batch)));
        let row_bytes = (batch.rows() * self.spec.width * size_of::<f32>()) as u64;
        let (mut fences, mut waits): (Vec<Fence>, Vec<Vec<(Fence, usize)>>) = Default::default();
        let launched = Instant::now();
        self.stats.tokens += batch.rows() as u64;
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
        self.flights.push(Flight { id, way, stream, batch, launched, fences, after, copies, leans, tap });
        Some(id)
    }

    /// What has ended next; `None` when nothing has, or, if `wait`, when nothing is under way.
    pub(crate) fn ended(&mut self, wait: bool) -> Option<Ended> {
        while !self.flights.is_empty() || !self.store_copies.is_empty() {
            // Copies alone are nothing to stay awake for.
            let awake = if self.flights.is_empty() { Duration::ZERO } else { self.awake };
            let Completion { tag, result } =
                if wait { self.queue.next_awake(awake) } else { self.queue.try_next()? };
            if tag == WOKEN {
                // Who waits for a batch is heard when it lands.
                if self.flights.is_empty() { return Some(Ended::Woken) } else { continue }
            }
            if let Some(copied) = self.store_copies.end(tag, result.as_ref().map(|_| ()).map_err(Arc::clone))
            {
                self.note_copied(&copied);
                return Some(Ended::Copies(copied));
            }
            let at = self.flights.iter().position(|f| f.id == tag)?;
            let mut flight = self.flights.remove(at);
            self.free.push(flight.stream);
            self.note(&flight);
            let result = result.and_then(|output| self.checked(output, &flight));
            if let (Some(taps), Some(tap)) = (&self.taps, flight.tap.take()) {
                taps.landed(tap, &flight.batch, &result);
            }
            let Flight { way, batch, launched, leans, .. } = flight;
            let phase = [Phase::Prefill, Phase::Decode].get(way).copied().filter(|_| self.has_two_ways());
            return Some(Ended::Batch(Landed { flight: tag, batch, launched, phase, leans, result }));
        }
        None
    }

    /// The next batch that has landed; `None` when none has, or, if `wait`, when none is in flight.
    #[cfg(test)]
    pub(crate) fn landed(&mut self, wait: bool) -> Option<Landed> {
        match self.ended(wait)? {
            Ended::Batch(landed) => Some(landed),
            Ended::Copies(_) | Ended::Woken => None,
        }
    }

    /// Ends a wait for nothing but copies, from any thread.
    pub(crate) fn waker(&self) -> Waker {
        self.queue.waker()
    }

    /// Keeps when pages were copied from or to a store.
    fn note_copied(&mut self, copied: &Copied) {
        let Some(timeline) = &mut self.timeline else { return };
        for copy in &copied.copies {
            let Some(ran) = copy.done.ran() else { continue };
            timeline.push(Span {
                lane: Lane::Copies(copy.device),
                activity: if copied.saved {
                    Activity::Save(copy.block)
                } else {
                    Activity::Restore(copy.block)
                },
                flight: self.launched,
                rows: copied.pages,
                launched: copied.launched,
                ready: None,
                start: ran.start,
                end: ran.end,
            });
        }
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

impl Drop for Executor {
    fn drop(&mut self) {
        // What copies pages reads and writes the state of what is unloaded here.
        while self.ended(true).is_some() {}
        for (device, block) in self.loaded() {
            self.devices[device].unload(block);
        }
    }
}

#[cfg(test)]
mod tests;
