//! Runs a schedule on devices.

use std::sync::Arc;

use unicorn_core::{
    Batch, BlockId, BlockKind, Device, DeviceError, HeadOutput, ModelSpec, Select, StreamId, Ticket, Work,
};

use crate::Placement;
use crate::schedule::{Item, Kind, Schedule, share_sequence};

/// Counters since the executor was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RunStats {
    /// Work submitted to devices.
    pub submits: u64,
    /// Residual streams copied from one device to another.
    pub crossings: u64,
    /// Bytes of these, counted once per crossing.
    pub crossing_bytes: u64,
}

/// What a batch part produced: nothing, when no row was read.
pub(crate) type PartResult = Result<Option<HeadOutput>, Arc<DeviceError>>;

/// Devices with the loaded blocks of one model.
pub struct Executor {
    spec: Arc<ModelSpec>,
    placement: Placement,
    devices: Vec<Arc<dyn Device>>,
    blocks: Vec<BlockId>,
    stats: RunStats,
    crossing: Vec<f32>,
}

/// One run in flight.
struct Run<'a> {
    items: &'a [Item],
    parts: &'a [Arc<Batch>],
    pending: Vec<Option<(usize, Ticket)>>,
    failed: Vec<Option<Arc<DeviceError>>>,
}

impl Executor {
    /// `blocks[i]` is block `i` of the model as loaded on the device that the placement names.
    pub fn new(
        spec: Arc<ModelSpec>,
        placement: Placement,
        devices: Vec<Arc<dyn Device>>,
        blocks: Vec<BlockId>,
    ) -> Executor {
        Executor { spec, placement, devices, blocks, stats: RunStats::default(), crossing: Vec::new() }
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

    /// Runs batch parts through all blocks; results in the order of `parts`. Nothing is in flight any more when it returns. A failure
    /// ends the part it happened in and the later parts of the same sequences; the others go on.
    pub(crate) fn run(&mut self, parts: &[Arc<Batch>]) -> Vec<PartResult> {
        let schedule = Schedule::new(&self.spec, &self.placement, parts);
        let items = &schedule.items;
        let mut run = Run { items, parts, pending: vec![None; items.len()], failed: vec![None; parts.len()] };
        for (i, item) in items.iter().enumerate() {
            for &earlier in &item.after {
                self.wait(&mut run, earlier);
            }
            if run.failed[item.part].is_none()
                && let Err(error) = self.start(&mut run, i)
            {
                run.fail(item.part, Arc::new(error));
            }
        }
        for i in 0..items.len() {
            self.wait(&mut run, i);
        }
        let failed = run.failed;
        failed.into_iter().zip(parts).enumerate().map(|(i, (f, part))| self.output(i, f, part)).collect()
    }

    fn wait(&self, run: &mut Run, item: usize) {
        if let Some((device, ticket)) = run.pending[item].take()
            && let Err(error) = self.devices[device].wait(ticket)
        {
            run.fail(run.items[item].part, Arc::new(error));
        }
    }

    fn start(&mut self, run: &mut Run, index: usize) -> Result<(), DeviceError> {
        let item = &run.items[index];
        let stream = StreamId(item.part as u32);
        let batch = &run.parts[item.part];
        match &item.kind {
            Kind::Run { blocks, device } => {
                let work =
                    Work { stream, blocks: self.blocks[blocks.clone()].to_vec(), batch: batch.clone() };
                let ticket = self.devices[*device].submit(&work)?;
                run.pending[index] = Some((*device, ticket));
                self.stats.submits += 1;
            }
            Kind::Cross { from, to, bytes } => {
                self.crossing.resize(batch.rows() * self.spec.width, 0.0);
                self.devices[*from].read_residual(stream, 0, &mut self.crossing)?;
                self.devices[*to].write_residual(stream, self.spec.width, &self.crossing)?;
                self.stats.crossings += 1;
                self.stats.crossing_bytes += bytes;
            }
        }
        Ok(())
    }

    fn output(&self, part: usize, failed: Option<Arc<DeviceError>>, batch: &Batch) -> PartResult {
        if let Some(error) = failed {
            return Err(error);
        }
        if batch.outputs.is_empty() {
            return Ok(None);
        }
        let head = &self.devices[self.placement.device(self.blocks.len() - 1)];
        let output = head.take_output(StreamId(part as u32)).map_err(Arc::new)?;
        let rows = batch.outputs.len();
        let right = match (&output, batch.select) {
            (HeadOutput::Logits(l), Select::Logits) => l.len() == rows * self.spec.vocab,
            (HeadOutput::Top(t), Select::Top(k)) => {
                t.len() == rows && t.iter().all(|list| list.len() == k.min(self.spec.vocab))
            }
            _ => false,
        };
        let what = || DeviceError::Failed {
            device: head.profile().name.clone(),
            what: "head".into(),
            reason: format!("output does not have the shape of {rows} rows of {:?}", batch.select),
        };
        if right { Ok(Some(output)) } else { Err(Arc::new(what())) }
    }

    /// Gives every mixer an empty KV cache.
    pub(crate) fn reserve_kv(&self, layout: unicorn_core::KvLayout) -> Result<(), DeviceError> {
        let mut used: Vec<usize> = (0..self.blocks.len())
            .filter(|b| self.spec.blocks[*b].kind() == BlockKind::Mixer)
            .map(|b| self.placement.device(b))
            .collect();
        used.sort_unstable();
        used.dedup();
        used.into_iter().try_for_each(|device| self.devices[device].reserve_kv(layout))
    }
}

impl Run<'_> {
    /// Marks a part and the later parts of its sequences as failed.
    fn fail(&mut self, part: usize, error: Arc<DeviceError>) {
        for later in part + 1..self.parts.len() {
            if share_sequence(&self.parts[part], &self.parts[later]) && self.failed[later].is_none() {
                self.failed[later] = Some(error.clone());
            }
        }
        self.failed[part].get_or_insert(error);
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        for (device, block) in self.loaded() {
            self.devices[device].unload(block);
        }
    }
}

#[cfg(test)]
mod tests;
