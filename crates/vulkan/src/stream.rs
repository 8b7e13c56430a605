//! One residual stream: its buffers, its recordings, and the host memory through which it crosses to other devices.

use std::sync::Arc;

use unicorn_core::{Batch, BlockId, Crossing, PageId, Select, SharedBuffer, Sharing, Slice};

use crate::context::Context;
use crate::edits::{EditShape, mask_table, scored, take_list};
use crate::error::VulkanError;
use crate::ferry::Ferry;
use crate::lane::{Lane, Point};
use crate::lru::Lru;
use crate::memory::Buffer;
use crate::place::Place;
use crate::recording::{Copy, Recording};
use crate::replay::Recorded;
use crate::scratch::Scratch;
use crate::select::{FlashTile, FlashTiling, SliceShape};

/// Dispatches of all recordings that a stream keeps: some tens of megabytes of command buffers.
pub(crate) const RECORDED_DISPATCHES_MAX: usize = 1 << 16;

/// One residual stream with its recordings.
pub(crate) struct Stream {
    /// Dropped first: its copies use the buffers.
    pub(crate) ferry: Ferry,
    pub(crate) recordings: Lru<Shape, Recorded>,
    pub(crate) scratch: Scratch,
    pub(crate) rows: usize,
    /// Behind everything submitted on it.
    pub(crate) pending: Point,
    /// What lies in `scratch.batch`, and whether tiles of flash attention do.
    pub(crate) written: Option<(Arc<Batch>, bool)>,
}

impl Stream {
    pub(crate) fn new(context: &Arc<Context>, scratch: Scratch, rows: usize) -> Stream {
        Stream {
            ferry: Ferry::new(context),
            recordings: Lru::new(RECORDED_DISPATCHES_MAX),
            scratch,
            rows,
            pending: Point::default(),
            written: None,
        }
    }

    /// True when the batch is the one that the kernels under way read.
    pub(crate) fn holds(&self, batch: &Arc<Batch>) -> bool {
        self.written.as_ref().is_some_and(|(held, _)| Arc::ptr_eq(held, batch))
    }

    /// Writes the batch where the kernels read it; what is there already stays. For another batch nothing may be under way.
    pub(crate) fn write(&mut self, batch: &Arc<Batch>, flash: Option<&FlashTiling>) {
        let held = if self.holds(batch) { self.written.take() } else { None };
        let tiled = held.as_ref().is_some_and(|h| h.1);
        if held.is_none() {
            write_batch(&self.scratch, batch);
        }
        if let Some(flash) = flash.filter(|_| !tiled) {
            let tiles: Vec<u8> = flash.tiles.iter().flat_map(FlashTile::bytes).collect();
            self.scratch.batch.write(self.scratch.tiles_address() - self.scratch.batch.address(), &tiles);
        }
        self.written = Some((batch.clone(), tiled || flash.is_some()));
    }
}

/// What a recording depends on.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) rows: usize,
    pub(crate) outputs: usize,
    pub(crate) hidden: usize,
    pub(crate) wanted: Wanted,
    pub(crate) edits: EditShape,
    /// Rows whose tokens come from slots, and output rows whose best tokens go there.
    pub(crate) feeds: Vec<(usize, u32)>,
    pub(crate) keeps: Vec<(usize, u32)>,
    /// Ways that the recording itself copies.
    pub(crate) crossing: Crossing,
    /// Positions that its sequences may have, 0 where that does not matter.
    pub(crate) positions: usize,
    /// The outputs are all rows in order.
    pub(crate) all_outputs: bool,
    /// No row reads a position that another row writes.
    pub(crate) alone: bool,
    /// Slices, where blocks have recurrent state, which each slice leaves; 0 elsewhere.
    pub(crate) slices: usize,
    /// Tiles and key splits of flash attention; `None` where the decode kernels run.
    pub(crate) flash: Option<(usize, usize)>,
    /// Whether dispatches are timed.
    pub(crate) timed: bool,
    /// First position and rows of every sequence, where dispatches are timed: their work is counted from them.
    pub(crate) spans: Vec<(usize, usize)>,
}

/// What the output rows of a batch ask for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Wanted {
    /// All logits of every row.
    Logits,
    /// The best ones of every row, at most this many.
    Top(usize),
    /// The best ones of some rows, at most this many, and all logits of others, numbered among the output rows.
    Mixed(usize, Vec<u32>),
}

impl Wanted {
    pub(crate) fn of(batch: &Batch) -> Wanted {
        let logits = (0..).zip(scored(batch)).filter(|(_, o)| o.select == Select::Logits).map(|(i, _)| i);
        match (batch.top(), batch.logit_rows()) {
            (None, _) => Wanted::Logits,
            (Some(k), 0) => Wanted::Top(k),
            (Some(k), _) => Wanted::Mixed(k, logits.collect()),
        }
    }
}

/// Who copies a stream that crosses; nobody where blocks work in the shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ways {
    /// Bytes each way.
    pub(crate) bytes: u64,
    /// Ways that the recording copies.
    pub(crate) recorded: Crossing,
    /// Ways that are copied on queues of their own.
    pub(crate) apart: Crossing,
}

/// Host memory through which a stream crosses, as this device sees it. The memory outlives the buffer that lies on it.
pub(crate) struct Shared {
    /// The memory itself where the driver imports it, else memory of the driver that the host copies from and to.
    pub(crate) buffer: Arc<Buffer>,
    pub(crate) imported: bool,
    pub(crate) sharing: Sharing,
    pub(crate) memory: Arc<SharedBuffer>,
}

impl Shared {
    /// Imports the memory where the driver can, and works in it where the GPU shares the host's memory.
    pub(crate) fn new(context: &Arc<Context>, memory: &Arc<SharedBuffer>) -> Result<Shared, VulkanError> {
        let gpu = context.profile();
        let unified = (gpu.integrated || gpu.software) && !context.crosses_apart();
        let memory = memory.clone();
        if let Some(buffer) = Buffer::import(context, &memory) {
            let sharing = if unified { Sharing::InPlace } else { Sharing::Copied };
            return Ok(Shared { buffer: Arc::new(buffer), imported: true, sharing, memory });
        }
        let what = "a residual stream that crosses";
        let buffer = Buffer::new_crossing(context, Place::Readback, memory.bytes() as u64, what)?;
        Ok(Shared { buffer: Arc::new(buffer), imported: false, sharing: Sharing::Copied, memory })
    }

    /// The buffer that takes the place of the stream's own, where blocks work in the shared memory.
    pub(crate) fn in_place(&self) -> Option<Arc<Buffer>> {
        (self.sharing == Sharing::InPlace).then(|| self.buffer.clone())
    }

    /// How a stream of `bytes` bytes crosses.
    pub(crate) fn ways(&self, context: &Context, crossing: Crossing, bytes: u64) -> Ways {
        if self.sharing == Sharing::InPlace || bytes == 0 {
            return Ways { bytes, ..Ways::default() };
        }
        let apart = |lane| context.lane(lane).is_some() && bytes >= context.apart_bytes_min;
        let (inward, outward) = (apart(Lane::Inward), apart(Lane::Outward));
        Ways {
            bytes,
            recorded: Crossing { import: crossing.import && !inward, export: crossing.export && !outward },
            apart: Crossing { import: crossing.import && inward, export: crossing.export && outward },
        }
    }

    /// The copy that brings `bytes` bytes of a stream to the device.
    pub(crate) fn copy_in(&self, residual: &Buffer, bytes: u64) -> Copy {
        Copy { from: (self.buffer.handle, 0), to: (residual.handle, 0), bytes }
    }

    /// The copy that takes them to where others see them.
    pub(crate) fn copy_out(&self, residual: &Buffer, bytes: u64) -> Copy {
        Copy { from: (residual.handle, 0), to: (self.buffer.handle, 0), bytes }
    }

    /// Adds the copies that a crossing needs around a recording.
    pub(crate) fn record(&self, recording: &mut Recording, residual: &Buffer, ways: Ways) {
        if ways.recorded.import {
            recording.before.push(self.copy_in(residual, ways.bytes));
        }
        if ways.recorded.export {
            recording.after.push(self.copy_out(residual, ways.bytes));
        }
    }

    /// Brings a stream that comes from elsewhere to where the GPU copies it from. Takes as long as the host copies; the copy over the bus
    /// is what counts as copied.
    pub(crate) fn bring(&self, context: &Context, bytes: usize) -> Result<(), VulkanError> {
        self.with_staged(context, bytes, |staged| self.memory.read_bytes(staged))
    }

    /// Takes what the GPU copied to where others read it, as [`Shared::bring`].
    pub(crate) fn take(&self, context: &Context, bytes: usize) -> Result<(), VulkanError> {
        self.with_staged(context, bytes, |staged| self.memory.write_bytes(staged))
    }

    /// Calls `f` with the memory of the driver where the stream's own was not imported.
    fn with_staged(
        &self,
        context: &Context,
        bytes: usize,
        f: impl FnOnce(&mut [u8]),
    ) -> Result<(), VulkanError> {
        if self.imported || bytes == 0 {
            return Ok(());
        }
        // SAFETY: before work that imports and after work that exports nothing of the stream is under way.
        let staged = unsafe { self.buffer.mapped_slice(0, bytes) };
        let outside = || VulkanError::Limit {
            device: context.profile().name.clone(),
            what: "a residual stream that crosses".into(),
            asked: format!("{bytes} bytes that the host sees"),
            most: self.buffer.bytes(),
        };
        staged.map(f).ok_or_else(outside)
    }
}

/// What attention kernels are chosen by.
pub(crate) fn slice_shapes(batch: &Batch) -> Vec<SliceShape> {
    let shape = |s: &Slice| SliceShape {
        start: s.start as usize,
        rows: s.tokens.len(),
        pages: positions_table(batch, s).len(),
    };
    batch.slices().iter().map(shape).collect()
}

/// A slice's pages of positions: the tables of all such groups are equally long.
fn positions_table<'a>(batch: &Batch, slice: &'a Slice) -> &'a [PageId] {
    let groups = batch.limits().state.iter().flat_map(|layout| &layout.groups);
    let mut tables = groups.zip(&slice.tables).filter(|(group, _)| !group.spec.is_recurrent());
    tables.next().map_or(&[], |(_, table)| table)
}

/// Words in which `slices` slices name their recurrent states, which keep so many within them.
pub(crate) fn state_words(slices: usize, within: usize) -> usize {
    (STATE_RECORD + 2) * slices + 2 * within
}

/// Words of the page tables of a batch, in the state group that has most.
pub(crate) fn table_words(batch: &Batch) -> usize {
    let positions: usize = batch.slices().iter().map(|s| positions_table(batch, s).len()).sum();
    let recurrent = batch.limits().state.iter().flat_map(|l| &l.groups).any(|g| g.spec.is_recurrent());
    let within = batch.slices().iter().map(|s| s.snapshots.len()).sum();
    let states = if recurrent { state_words(batch.slices().len(), within) } else { 0 };
    positions.max(states).max(1)
}

/// Words of a slice's record before the states that are written: see `short_conv.comp`.
const STATE_RECORD: usize = 4;

/// The records of all slices in a group of recurrent state, then the states that they write, as `short_conv.comp` reads them.
fn state_records(batch: &Batch, group: usize) -> Vec<u32> {
    let slices = batch.slices();
    let (mut records, mut writes) = (Vec::new(), Vec::new());
    let mut row = 0;
    for slice in slices {
        let before = slice.state_before(group).unwrap_or(u32::MAX);
        // Counted in pairs from the first record on.
        let first = (slices.len() * STATE_RECORD + writes.len()) / 2;
        let after = slice.states_after(group).map(|(rows, page)| [rows as u32, page]);
        let known = writes.len();
        writes.extend(after.flatten());
        records.extend([row, before, first as u32, ((writes.len() - known) / 2) as u32]);
        row += slice.tokens.len() as u32;
    }
    [records, writes].concat()
}

/// Writes rows, output rows with their edits, and page tables.
fn write_batch(scratch: &Scratch, batch: &Batch) {
    let mut rows = Vec::with_capacity(batch.rows() * Scratch::ROW_BYTES);
    let mut first_page = 0u32;
    for (slice, s) in batch.slices().iter().enumerate() {
        // Whole sequences have no pages: their rows tell how many they are.
        let third = if batch.whole().is_some() { s.tokens.len() as u32 } else { first_page };
        for (i, token) in s.tokens.iter().enumerate() {
            for word in [*token, s.start + i as u32, third, slice as u32] {
                rows.extend(word.to_le_bytes());
            }
        }
        first_page += positions_table(batch, s).len() as u32;
    }
    let hidden = batch.outputs().iter().filter(|o| o.select == Select::Hidden);
    let outputs: Vec<u8> = scored(batch).chain(hidden).flat_map(|o| o.row.to_le_bytes()).collect();
    let base = scratch.batch.address();
    scratch.batch.write(0, &rows);
    scratch.batch.write(scratch.outputs_address() - base, &outputs);
    for (buffer, words) in [(&scratch.masks, mask_table(batch)), (&scratch.take_list, take_list(batch))] {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        if !bytes.is_empty() {
            buffer.write(0, &bytes);
        }
    }
    for (group, of) in batch.limits().state.iter().flat_map(|layout| &layout.groups).enumerate() {
        let table = match of.spec.is_recurrent() {
            true => state_records(batch, group),
            false => batch.slices().iter().flat_map(|s| s.tables[group].iter().copied()).collect(),
        };
        let pages: Vec<u8> = table.iter().flat_map(|p| p.to_le_bytes()).collect();
        scratch.batch.write(scratch.pages_address(group) - base, &pages);
    }
}
