//! Whether a device holds what it said that it would.

use std::sync::Arc;

use unicorn_core::{
    Batch, BatchError, BatchLimits, Block, Crossing, Device, DeviceError, KvType, MemoryNeed, MemoryUse,
    OutputRow, Select, SequenceId, SharedBuffer, Slice, StateGroup, StateLayout, StreamId, TensorType,
    WeightSource, Workload, run_to_end, state_groups,
};

use crate::synthetic::SyntheticSource;
use crate::{encoder, shapes, table};

/// Layers of the model that is loaded.
const LAYERS: usize = 2;
/// Positions that a mixer with a window sees.
const WINDOW: usize = 300;

/// What a device said and what it held.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Told before anything was loaded.
    pub need: MemoryNeed,
    /// Held at most while the largest batches ran.
    pub memory: MemoryUse,
}

/// What went wrong before anything could be compared.
#[derive(thiserror::Error, Debug)]
#[allow(missing_docs)]
pub enum NeedsError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("there is no such shape, or no memory for a stream")]
    Missing,
}

impl Held {
    /// Asks a device what it needs for two layers of a small model, one with a sliding window, the other with a short convolution in the place of its ffn, loads them, and runs the largest
    /// batches: prompts at the end of the context, also with all hidden states, many sequences, all logits and selected ones, on every stream.
    ///
    /// Errors where the device does.
    pub fn by(device: &dyn Device, ty: TensorType, kv: KvType, crosses: bool) -> Result<Held, NeedsError> {
        let (blocks, vocab, width) = blocks(ty)?;
        let groups = state_groups(&blocks).into_iter().map(|spec| StateGroup { spec, pages: 64 }).collect();
        let layout = StateLayout { page_tokens: 32, positions: 1024, ty: kv, groups };
        let workload =
            Workload { layout, rows: 256, sequences: 16, outputs: 16, top: 40, streams: 2, crosses };
        let batches = batches(&workload, vocab)?;
        Held::after(device, &blocks, &workload, width, batches)
    }

    /// The same of two layers of a small encoder: one text that fills a batch, then many.
    ///
    /// Errors where the device does.
    pub fn by_encoder(device: &dyn Device, ty: TensorType) -> Result<Held, NeedsError> {
        let (blocks, vocab, width) = encoder::blocks(ty, LAYERS);
        let layout = StateLayout { page_tokens: 32, positions: 256, ty: KvType::F16, groups: Vec::new() };
        let workload =
            Workload { layout, rows: 256, sequences: 16, outputs: 16, top: 0, streams: 2, crosses: false };
        let limits = Arc::new(BatchLimits { vocab, state: Some(workload.layout.clone()) });
        let batch = |texts: usize, tokens: usize| {
            let slice = |index: usize| Slice {
                sequence: SequenceId(index as u64),
                tokens: vec![1; tokens],
                start: 0,
                tables: Vec::new(),
                snapshots: Vec::new(),
                slot: None,
            };
            let rows = 0..(texts * tokens) as u32;
            let outputs = rows.map(|row| OutputRow::new(row, Select::Hidden)).collect();
            Batch::of_whole_sequences((0..texts).map(slice).collect(), outputs, &limits).map(Arc::new)
        };
        Held::after(device, &blocks, &workload, width, vec![batch(1, 256)?, batch(16, 16)?])
    }

    fn after(
        device: &dyn Device,
        blocks: &[Block],
        workload: &Workload,
        width: usize,
        batches: Vec<Arc<Batch>>,
    ) -> Result<Held, NeedsError> {
        let need = device.needs(&blocks.iter().collect::<Vec<&Block>>(), workload)?;
        let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(3));
        let loaded = blocks.iter().map(|block| device.load(block, &source)).collect::<Result<Vec<_>, _>>()?;
        device.reserve(&workload.layout)?;
        let streams = (0..workload.streams as u32).map(StreamId);
        for stream in streams.clone().filter(|_| workload.crosses) {
            let buffer = SharedBuffer::new(workload.rows, width).ok_or(NeedsError::Missing)?;
            device.attach(stream, &Arc::new(buffer))?;
        }
        let mut memory = MemoryUse::default();
        for batch in batches {
            for stream in streams.clone() {
                let crossing = Crossing { import: false, export: workload.crosses };
                run_to_end(device, stream, &loaded, &batch, crossing)?;
                let now = device.memory();
                // A device may give back what a smaller batch does not need.
                memory = MemoryUse { scratch: memory.scratch.max(now.scratch), ..now };
            }
        }
        loaded.into_iter().for_each(|block| device.unload(block));
        Ok(Held { need, memory })
    }

    /// Errors with the category where more is held than was told, or less than this share of it.
    pub fn judge(&self, share_min: f64) -> Result<(), String> {
        let told = self.need.scratch.saturating_add(self.need.host);
        let parts = [
            ("weights", self.memory.weights, self.need.weights),
            ("KV cache", self.memory.kv, self.need.kv),
            ("scratch", self.memory.scratch, told),
        ];
        for (what, held, told) in parts {
            if held > told || (held as f64) < told as f64 * share_min {
                return Err(format!("{what}: {held} bytes held, {told} told"));
            }
        }
        Ok(())
    }
}

/// Embedding, layers and head with the table of the embedding; vocabulary and width.
fn blocks(ty: TensorType) -> Result<(Vec<Block>, usize, usize), NeedsError> {
    let mut spec = shapes::model("smollm2-135m", ty).ok_or(NeedsError::Missing)?;
    let head = spec.blocks.pop().ok_or(NeedsError::Missing)?;
    spec.blocks.truncate(1 + 2 * LAYERS);
    spec.blocks.push(head);
    if let Some(Block::Attention { spec, .. }) = spec.blocks.get_mut(1) {
        spec.window = Some(WINDOW);
    }
    let whole = if ty.row_bytes(spec.width).is_some() { ty } else { TensorType::Q8_0 };
    let mixer = table::short_conv::block(whole, spec.width, 3);
    if let Some(last) = spec.blocks.get_mut(2 * LAYERS) {
        *last = mixer;
    }
    Ok((spec.blocks, spec.vocab, spec.width))
}

/// One prompt that ends the context, then short prompts of many sequences that read all logits, then few tokens of them that ask for
/// the best ones.
fn batches(workload: &Workload, vocab: usize) -> Result<Vec<Arc<Batch>>, BatchError> {
    let limits = Arc::new(BatchLimits { vocab, state: Some(workload.layout.clone()) });
    let (rows, sequences, positions) = (workload.rows, workload.sequences, workload.layout.positions);
    let pages = workload.layout.groups[0].pages;
    let tables = |table: &[u32], state: u32| {
        let of = |g: &StateGroup| if g.spec.is_recurrent() { vec![state; 2] } else { table.to_vec() };
        workload.layout.groups.iter().map(of).collect::<Vec<_>>()
    };
    let batch = |slices: usize, rows_each: usize, end: usize, select: Select| {
        let slice = |index: usize| {
            let length = end.div_ceil(workload.layout.page_tokens);
            // What lies before is never read as something in particular: only pages that are written must not be shared.
            let last = (pages - 1 - index) as u32;
            let table: Vec<u32> = (0..length).map(|page| if page + 1 == length { last } else { 0 }).collect();
            Slice {
                slot: None,
                sequence: SequenceId(index as u64),
                tokens: vec![1; rows_each],
                start: (end - rows_each) as u32,
                tables: tables(&table, last),
                snapshots: Vec::new(),
            }
        };
        let outputs = (1..=slices).map(|n| OutputRow::new((n * rows_each - 1) as u32, select));
        Batch::new((0..slices).map(slice).collect(), outputs.collect(), &limits).map(Arc::new)
    };
    let prompt = |select| {
        let table: Vec<u32> = (0..pages.min(positions.div_ceil(32)) as u32).collect();
        let slice = Slice {
            slot: None,
            sequence: SequenceId(0),
            tokens: vec![1; rows],
            start: (positions - rows) as u32,
            tables: tables(&table, 0),
            snapshots: Vec::new(),
        };
        let first = if select == Select::Hidden { 0 } else { rows as u32 - 1 };
        let outputs = (first..rows as u32).map(|row| OutputRow::new(row, select)).collect();
        Batch::new(vec![slice], outputs, &limits).map(Arc::new)
    };
    // Within a page, so that no two sequences write the same one.
    let each = (rows / sequences).min(workload.layout.page_tokens);
    Ok(vec![
        prompt(Select::Logits)?,
        prompt(Select::Hidden)?,
        batch(sequences, each, positions, Select::Logits)?,
        batch(sequences, 4, positions, Select::Top(workload.top))?,
    ])
}
