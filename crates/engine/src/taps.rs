//! Taps: a batch is cut before and after one block, and one row of what lies there is copied out for the canary. What is computed stays the
//! same; nothing waits for anybody but the parts of the batch for each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use unicorn_core::{
    Batch, Block, BlockId, BlockKind, CANARY_POSITIONS, Canary, Crossing, Device, DeviceError, Fence,
    HeadOutput, HeadRow, Launch, ModelSpec, PageId, Pick, RowOutput, Sample, SampleState, Select,
    SharedBuffer, Signal, StateCopy, StateLayout, StateWay, StreamId, Watched, Work,
};

/// What a canary may look at, and where residual streams are copied out.
pub(crate) struct Taps {
    canary: Arc<dyn Canary>,
    /// By way, in the order of the blocks.
    watched: Vec<Vec<Watched>>,
    buffers: HashMap<StreamId, Arc<SharedBuffer>>,
}

/// The row of the residual stream before and after the block.
#[derive(Default)]
struct Rows {
    before: Vec<f32>,
    after: Vec<f32>,
}

/// The state that a row of attention sees.
struct Seen {
    layout: StateLayout,
    first_page: usize,
    pages: Vec<PageId>,
    host: Arc<SharedBuffer>,
}

/// A row of a batch on its way that is copied out.
pub(crate) struct Tap {
    flight: u64,
    watched: Watched,
    kind: BlockKind,
    row: usize,
    position: usize,
    /// Number among the rows that are read, for a head.
    output: Option<usize>,
    seen: Option<Seen>,
    /// Given when the state is on the host.
    saved: Option<Fence>,
    rows: Arc<Mutex<Rows>>,
    /// The parts that the batch was cut into, in order.
    parts: Vec<Fence>,
}

impl Taps {
    /// Blocks that keep recurrent state are left out: what they start from is gone when they have run. So are those of encoders, which see
    /// all rows of a text.
    pub fn new(
        canary: Arc<dyn Canary>,
        spec: &ModelSpec,
        devices: &[Arc<dyn Device>],
        ways: &[Vec<(usize, BlockId)>],
    ) -> Taps {
        let tappable = |block: &Block| {
            matches!(
                block,
                Block::Embedding { .. } | Block::Attention { .. } | Block::Ffn { .. } | Block::Head { .. }
            )
        };
        let of = |way: &Vec<(usize, BlockId)>| {
            let blocks = spec.blocks.iter().zip(way).enumerate().filter(|(_, (block, _))| tappable(block));
            let watched = |(block, (_, (device, id))): (usize, (&Block, &(usize, BlockId)))| {
                let kernels = devices[*device].describe(*id).join("\n").into();
                Watched { block, device: *device, kernels }
            };
            blocks.map(watched).collect()
        };
        Taps { canary, watched: ways.iter().map(of).collect(), buffers: HashMap::new() }
    }

    /// A stream is copied out through this buffer.
    pub fn attached(&mut self, stream: StreamId, buffer: Arc<SharedBuffer>) {
        self.buffers.insert(stream, buffer);
    }

    /// What to look at in a batch that takes a way through `needed` blocks; for most batches nothing.
    pub fn tap(
        &self,
        spec: &ModelSpec,
        layout: Option<&StateLayout>,
        (way, needed): (usize, usize),
        (flight, batch): (u64, &Batch),
    ) -> Option<Tap> {
        let blocks = &self.watched[way];
        let blocks = &blocks[..blocks.partition_point(|w| w.block < needed)];
        let pick = self.canary.pick(&Launch { flight, batch, blocks })?;
        let watched = blocks.iter().find(|w| w.block == pick.block);
        let tap = watched.and_then(|w| Tap::new(w, &spec.blocks[w.block], layout, &pick, flight, batch));
        if tap.is_none() {
            self.canary.missed();
        }
        tap
    }

    /// The buffer of a stream.
    pub fn buffer(&self, stream: StreamId) -> Option<&Arc<SharedBuffer>> {
        self.buffers.get(&stream)
    }

    /// Hands over what was copied out of a batch that has ended.
    pub fn landed(&self, tap: Tap, batch: &Batch, result: &Result<Option<HeadOutput>, Arc<DeviceError>>) {
        match result.as_ref().ok().and_then(|output| tap.sample(batch, output.as_ref())) {
            Some(sample) => self.canary.sample(sample),
            None => self.canary.missed(),
        }
    }
}

/// `(first row, slice)` of the slice that has a row.
fn slice_of(batch: &Batch, row: usize) -> Option<(usize, &unicorn_core::Slice)> {
    let mut end = 0;
    batch.slices().iter().find_map(|slice| {
        let start = end;
        end += slice.tokens.len();
        (row < end).then_some((start, slice))
    })
}

/// The rows that a block's result can be looked at in.
fn rows_of(block: &Block, batch: &Batch) -> Vec<usize> {
    match block {
        Block::Embedding { .. } => {
            let fed: Vec<usize> = batch.feeds().map(|(row, _)| row).collect();
            (0..batch.rows()).filter(|row| !fed.contains(row)).collect()
        }
        Block::Head { .. } => {
            let logits = batch.outputs().iter().filter(|o| o.select != Select::Hidden);
            logits.map(|o| o.row as usize).collect()
        }
        Block::Ffn { .. } => (0..batch.rows()).collect(),
        Block::Attention { spec, .. } => {
            let state = spec.state();
            let seen = |p: usize| p + 1 - state.first_seen(p) <= CANARY_POSITIONS;
            let positions = batch.slices().iter().flat_map(|s| s.start as usize..s.end());
            positions.enumerate().filter(|(_, p)| seen(*p)).map(|(row, _)| row).collect()
        }
        _ => Vec::new(),
    }
}

impl Tap {
    fn new(
        watched: &Watched,
        block: &Block,
        layout: Option<&StateLayout>,
        pick: &Pick,
        flight: u64,
        batch: &Batch,
    ) -> Option<Tap> {
        let rows = rows_of(block, batch);
        let any = rows.get((pick.draw % rows.len().max(1) as u64) as usize).copied();
        let row = pick.row.filter(|row| rows.contains(row)).or(any)?;
        let (first, slice) = slice_of(batch, row)?;
        let position = slice.start as usize + row - first;
        let seen = match block {
            Block::Attention { spec, .. } => {
                let layout = layout?;
                let group = layout.group(spec.state())?;
                let first_page = spec.state().first_seen(position) / layout.page_tokens;
                let pages = slice.tables[group].get(first_page..=position / layout.page_tokens)?.to_vec();
                let host = Arc::new(SharedBuffer::new(pages.len(), block.page_words(layout)?)?);
                Some(Seen { layout: layout.clone(), first_page, pages, host })
            }
            _ => None,
        };
        Some(Tap {
            flight,
            watched: watched.clone(),
            kind: block.kind(),
            row,
            position,
            output: batch.outputs().iter().position(|o| o.row as usize == row),
            seen,
            saved: None,
            rows: Arc::default(),
            parts: Vec::new(),
        })
    }

    /// Index of the block.
    pub fn block(&self) -> usize {
        self.watched.block
    }

    /// Submits the work of a step in up to three parts; block `at` of it is the one that is looked at. Returns what ends when all of it has
    /// ended.
    pub fn submit(
        &mut self,
        device: &dyn Device,
        buffer: &Arc<SharedBuffer>,
        at: usize,
        work: Work,
    ) -> Fence {
        let Work { stream, blocks, batch, crossing, mut after, done } = work;
        let whole = done.fence();
        let part = |blocks: &[BlockId], crossing, after, done: Signal| {
            let fence = done.fence();
            let (blocks, batch) = (blocks.to_vec(), batch.clone());
            device.submit(Work { stream, blocks, batch, crossing, after, done });
            fence
        };
        let mut import = crossing.import;
        if at > 0 {
            let export = Crossing { import, export: true };
            let first = part(&blocks[..at], export, after, Signal::new());
            self.parts.push(first.clone());
            (import, after) = (false, vec![first]);
        }
        if self.kind != BlockKind::Embedding {
            // It lies in the buffer: of the part before, or of another device.
            let gate = Signal::new();
            let ready = gate.fence();
            self.copy(buffer, &after, None, gate, |rows| &mut rows.before);
            after = vec![ready];
        }
        if self.kind == BlockKind::Head {
            let last = part(&blocks[at..], Crossing { import, export: crossing.export }, after, done);
            self.parts.push(last);
            return whole;
        }
        let middle = part(&blocks[at..=at], Crossing { import, export: true }, after, Signal::new());
        self.parts.push(middle.clone());
        if let Some(seen) = &self.seen {
            let saved = Signal::new();
            self.saved = Some(saved.fence());
            device.copy_state(StateCopy {
                mixer: blocks[at],
                pages: seen.pages.clone(),
                way: StateWay::Save(seen.host.clone()),
                after: vec![middle.clone()],
                done: saved,
            });
        }
        let rest = &blocks[at + 1..];
        if rest.is_empty() {
            // Whoever goes on with the sequence waits for the copies too.
            self.copy(buffer, &[middle], self.saved.as_ref(), done, |rows| &mut rows.after);
            return whole;
        }
        let gate = Signal::new();
        let ready = gate.fence();
        self.copy(buffer, &[middle], self.saved.as_ref(), gate, |rows| &mut rows.after);
        let last = part(rest, Crossing { import: false, export: crossing.export }, vec![ready], done);
        self.parts.push(last);
        whole
    }

    /// Copies the row out of a stream's buffer once `after` have ended well, and `behind` has ended; then gives `done`.
    fn copy(
        &self,
        buffer: &Arc<SharedBuffer>,
        after: &[Fence],
        behind: Option<&Fence>,
        done: Signal,
        to: fn(&mut Rows) -> &mut Vec<f32>,
    ) {
        let (buffer, rows, row) = (buffer.clone(), self.rows.clone(), self.row);
        Fence::all(after, behind, move |outcome| {
            if outcome.is_ok() {
                let mut bytes = vec![0; buffer.width() * 4];
                buffer.read_part(row, 0, &mut bytes);
                let value = |b: &[u8]| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
                let values = bytes.chunks_exact(4).map(value).collect();
                *to(&mut rows.lock().unwrap_or_else(PoisonError::into_inner)) = values;
            }
            done.give(outcome.map(|()| None));
        });
    }

    /// What was copied out of a batch that has ended well; `None` where something of it was not.
    fn sample(self, batch: &Batch, output: Option<&HeadOutput>) -> Option<Sample> {
        let took = self.took();
        let (first, slice) = slice_of(batch, self.row)?;
        let token = slice.tokens.get(self.row - first).copied().filter(|_| slice.slot.is_none());
        let output = match self.kind {
            BlockKind::Head => {
                let index = self.output?;
                let row = match output?.rows(batch)?.get(index)? {
                    RowOutput::Logits(logits) => HeadRow::Logits(logits.to_vec()),
                    RowOutput::Top(top) => HeadRow::Top(top.to_vec()),
                    RowOutput::Hidden(_) => return None,
                };
                Some((batch.outputs().get(index)?.clone(), row))
            }
            _ => None,
        };
        let state = match (self.seen, self.saved) {
            (Some(Seen { layout, first_page, host, .. }), Some(saved)) => {
                saved.outcome()?.ok()?;
                Some(SampleState { layout, first_page, pages: host })
            }
            _ => None,
        };
        let Rows { before, after } =
            std::mem::take(&mut *self.rows.lock().unwrap_or_else(PoisonError::into_inner));
        Some(Sample {
            flight: self.flight,
            watched: self.watched,
            spans: batch.spans(),
            outputs: batch.outputs().len(),
            row: self.row,
            position: self.position,
            token,
            before,
            after,
            output,
            state,
            took,
        })
    }

    /// How long the device was without the parts that wait, at most: it may have had other work.
    fn took(&self) -> Duration {
        let between = |pair: &[Fence]| {
            let (before, after) = (pair[0].ran()?, pair[1].ran()?);
            Some(after.start.saturating_duration_since(before.end))
        };
        self.parts.windows(2).filter_map(between).sum()
    }
}
