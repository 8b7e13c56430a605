//! Sends batches along their schedule. Nothing here waits, but for a caller that asks for the next batch to land.

use std::sync::Arc;
use std::time::Duration;

use unicorn_core::{
    Batch, BlockId, Completion, CompletionQueue, Device, DeviceError, Fence, HeadOutput, ModelSpec,
    SharedBuffer, Signal, StateLayout, StreamId, Work,
};

use crate::Placement;
use crate::schedule::Schedule;
use crate::timeline::{Span, Timeline};

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
}

/// What a batch produced: nothing, when no row was read.
pub(crate) type BatchResult = Result<Option<HeadOutput>, Arc<DeviceError>>;

/// A batch whose last step has ended, well or not.
pub(crate) struct Landed {
    pub flight: u64,
    pub batch: Arc<Batch>,
    pub result: BatchResult,
}

/// A batch on its way.
struct Flight {
    id: u64,
    stream: StreamId,
    batch: Arc<Batch>,
    /// One per step.
    fences: Vec<Fence>,
}

/// Devices with the loaded blocks of one model.
pub(crate) struct Executor {
    spec: Arc<ModelSpec>,
    placement: Placement,
    /// The ways of batches that read no row and of those that do.
    schedules: [Schedule; 2],
    devices: Vec<Arc<dyn Device>>,
    blocks: Vec<BlockId>,
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
}

impl Executor {
    /// `blocks[i]` is block `i` of the model as loaded on the device that the placement names. At most `flights_max` batches are in flight.
    pub fn new(
        spec: Arc<ModelSpec>,
        placement: Placement,
        devices: Vec<Arc<dyn Device>>,
        blocks: Vec<BlockId>,
        flights_max: usize,
    ) -> Executor {
        // Where the processor works on the model itself, its cores are not to be kept busy with waiting.
        let awake = placement.assignment().iter().all(|d| devices[*d].profile().wait_awake);
        let awake = if awake { AWAKE } else { Duration::ZERO };
        let schedules = [0, 1].map(|outputs| Schedule::new(&spec, &placement, outputs));
        Executor {
            spec,
            placement,
            schedules,
            devices,
            blocks,
            queue: CompletionQueue::new(),
            awake,
            free: (0..flights_max as u32).rev().map(StreamId).collect(),
            flights: Vec::new(),
            launched: 0,
            stats: RunStats::default(),
            timeline: None,
        }
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

    /// Adds the next block, just loaded on the device that the placement names.
    pub(crate) fn push_block(&mut self, block: BlockId) {
        self.blocks.push(block);
    }

    pub(crate) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The loaded blocks with their devices.
    pub(crate) fn loaded(&self) -> impl Iterator<Item = (usize, BlockId)> + '_ {
        self.placement.assignment().iter().copied().zip(self.blocks.iter().copied())
    }

    /// Gives every mixer its empty state, and every stream that crosses a buffer for up to `rows` rows.
    pub(crate) fn reserve(&self, layout: &StateLayout, rows: usize) -> Result<(), DeviceError> {
        let used = self.placement.used();
        used.iter().try_for_each(|device| self.devices[*device].reserve(layout))?;
        if used.len() < 2 {
            return Ok(());
        }
        for stream in &self.free {
            let width = self.spec.width;
            let buffer = SharedBuffer::new(rows, width).ok_or_else(|| DeviceError::OutOfMemory {
                device: "host".into(),
                what: "residual streams that cross between devices".into(),
                requested: (rows as u64).saturating_mul(width as u64 * 4),
                free: 0,
            })?;
            let buffer = Arc::new(buffer);
            for device in &used {
                self.devices[*device].attach(*stream, &buffer)?;
            }
        }
        Ok(())
    }

    /// Batches on their way.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = &Arc<Batch>> {
        self.flights.iter().map(|f| &f.batch)
    }

    /// True when another batch can be launched.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Submits all steps of a batch at once; what they wait for is said to the devices. In a step that mixes, a batch comes after the
    /// batches in flight that have tokens of the same sequences. Returns the flight's number; `None` when there is no room.
    pub(crate) fn launch(&mut self, batch: Arc<Batch>) -> Option<u64> {
        let stream = self.free.pop()?;
        let id = self.launched;
        self.launched += 1;
        let continued: Vec<&Flight> =
            self.flights.iter().filter(|f| f.batch.shares_sequence(&batch)).collect();
        let schedule = &self.schedules[usize::from(!batch.outputs().is_empty())];
        let row_bytes = (batch.rows() * self.spec.width * size_of::<f32>()) as u64;
        let mut fences: Vec<Fence> = Vec::with_capacity(schedule.steps.len());
        for (i, step) in schedule.steps.iter().enumerate() {
            let mut after: Vec<Fence> = fences.last().cloned().into_iter().collect();
            if step.mixes {
                after.extend(continued.iter().filter_map(|f| f.fences.get(i).cloned()));
            }
            let last = i + 1 == schedule.steps.len();
            let done = if last { self.queue.signal(id) } else { Signal::new() };
            fences.push(done.fence());
            self.stats.submits += 1;
            if step.crossing.import {
                self.stats.crossings += 1;
                self.stats.crossing_bytes += row_bytes;
            }
            let blocks = self.blocks[step.blocks.clone()].to_vec();
            let (batch, crossing) = (batch.clone(), step.crossing);
            self.devices[step.device].submit(Work { stream, blocks, batch, crossing, after, done });
        }
        self.flights.push(Flight { id, stream, batch, fences });
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
        let flight = self.flights.remove(at);
        self.free.push(flight.stream);
        self.note(&flight);
        let result = result.and_then(|output| self.checked(output, &flight.batch));
        Some(Landed { flight: tag, batch: flight.batch, result })
    }

    /// Keeps when each step of a landed flight ran.
    fn note(&mut self, flight: &Flight) {
        let Some(timeline) = &mut self.timeline else { return };
        let schedule = &self.schedules[usize::from(!flight.batch.outputs().is_empty())];
        for (step, fence) in schedule.steps.iter().zip(&flight.fences) {
            if let Some(ran) = fence.ran() {
                let (device, blocks) = (step.device, step.blocks.clone());
                let rows = flight.batch.rows();
                timeline.push(Span {
                    device,
                    flight: flight.id,
                    blocks,
                    rows,
                    start: ran.start,
                    end: ran.end,
                });
            }
        }
    }

    fn checked(&self, output: Option<HeadOutput>, batch: &Batch) -> BatchResult {
        let right = match &output {
            Some(output) => !batch.outputs().is_empty() && output.rows(batch).is_some(),
            None => batch.outputs().is_empty(),
        };
        let what = || DeviceError::Failed {
            device: self.devices[self.placement.device(self.blocks.len() - 1)].profile().name.clone(),
            what: "head".into(),
            reason: format!("the output is not what {} rows ask for", batch.outputs().len()),
        };
        if right { Ok(output) } else { Err(Arc::new(what())) }
    }
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
