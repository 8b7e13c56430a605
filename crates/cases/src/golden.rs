//! Whole tiny models against known logits: the same run on every device.
//!
//! `tests/data/tiny` holds a random model of every architecture, as GGUF and as safetensors, and the logits that `transformers` computes
//! for it in float64 (`xtask/golden/tiny_models.py`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use unicorn_core::{
    Batch, BatchError, BatchLimits, Block, BlockId, CompletionQueue, Crossing, Device, DeviceError, Fence,
    KvType, OutputRow, Select, SequenceId, Slice, StateGroup, StateLayout, StreamId, WeightSource, Work,
    run_to_end, state_groups,
};

use crate::states;

/// The models of `tests/data/tiny`.
pub const GOLDEN_MODELS: [&str; 7] =
    ["llama-linear", "llama-llama3", "qwen2", "qwen2-yarn", "qwen3", "gemma3", "lfm2"];

/// Models of `tests/data/tiny` with quantized matrices, as GGUF alone; the logits are those of the weights as they expand. All quantized
/// types occur.
pub const QUANTIZED_MODELS: [&str; 5] =
    ["qwen3-q4_0", "qwen3-q8_0", "qwen3-mixed32", "qwen3-q4_k", "qwen3-mixed256"];

const PAGE_TOKENS: usize = 32;
const STREAM: StreamId = StreamId(2);

/// A model with what it must compute.
#[derive(Clone, Debug)]
pub struct Golden {
    /// One of [`GOLDEN_MODELS`] or [`QUANTIZED_MODELS`].
    pub name: &'static str,
    /// The model as a GGUF file, and as a safetensors folder where there is one.
    pub files: Vec<PathBuf>,
    /// One sequence.
    pub tokens: Vec<u32>,
    /// `[tokens, vocab]`.
    pub logits: Vec<f32>,
}

impl Golden {
    /// Reads tokens and logits of a model in `folder`.
    ///
    /// Errors when a file cannot be read, or does not hold as many logits for every token.
    pub fn read(folder: &Path, name: &'static str) -> io::Result<Golden> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let text = std::fs::read_to_string(folder.join("tokens.txt"))?;
        let tokens: Result<Vec<u32>, _> = text.split_whitespace().map(str::parse).collect();
        let tokens = tokens.map_err(|e| invalid(format!("tokens.txt: {e}")))?;
        let bytes = std::fs::read(folder.join(format!("{name}.logits")))?;
        if tokens.is_empty() || bytes.is_empty() || bytes.len() % (4 * tokens.len()) != 0 {
            return Err(invalid(format!("{name}: {} bytes for {} tokens", bytes.len(), tokens.len())));
        }
        let logits = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let mut files = vec![folder.join(format!("{name}.gguf"))];
        files.extend(Some(folder.join(name)).filter(|folder| folder.is_dir()));
        Ok(Golden { name, files, tokens, logits })
    }
}

/// How tokens are cut into batches: for each sequence the sizes of its chunks, the last repeated as often as needed.
///
/// Every sequence is given the same tokens. A batch holds the next chunk of each that is not through.
pub type Chunks<'a> = &'a [&'a [usize]];

/// The logits of every token, `[tokens, vocab]` for each sequence of `chunks`, computed from nothing by blocks loaded for the purpose.
///
/// Pages are given to the sequences in no order. Errors when the device refuses or fails.
pub fn logits(
    device: &dyn Device,
    blocks: &[Block],
    source: &Arc<dyn WeightSource>,
    tokens: &[u32],
    chunks: Chunks<'_>,
    kv: KvType,
) -> Result<Vec<Vec<f32>>, DeviceError> {
    let loaded = Loaded::new(device, blocks, source)?;
    let each = tokens.len().div_ceil(PAGE_TOKENS);
    let pages = each * chunks.len();
    let limits = reserve(device, blocks, each * PAGE_TOKENS, 2 * pages, kv)?;
    // Odd pages from the last down: no sequence has neighbours, nor begins with page 0.
    let pages_of = |s: usize| (0..each).map(|i| (2 * (pages - s - i * chunks.len()) - 1) as u32).collect();
    let mut sequences: Vec<Sequence<'_>> =
        chunks.iter().enumerate().map(|(s, sizes)| Sequence::new(s, tokens, sizes, pages_of(s))).collect();
    while sequences.iter().any(|s| s.done < tokens.len()) {
        loaded.step(&mut sequences, &limits)?;
    }
    Ok(sequences.into_iter().map(|s| s.logits).collect())
}

/// The `count` likeliest tokens after `prompt`, one a step. With `ahead` a step is submitted before the one before has ended, and takes its
/// token from where the device keeps it.
pub fn greedy(
    device: &dyn Device,
    blocks: &[Block],
    source: &Arc<dyn WeightSource>,
    prompt: &[u32],
    count: usize,
    ahead: bool,
) -> Result<Vec<u32>, DeviceError> {
    let loaded = Loaded::new(device, blocks, source)?;
    let pages = (prompt.len() + count).div_ceil(PAGE_TOKENS);
    let limits = reserve(device, blocks, pages * PAGE_TOKENS, pages, KvType::F32)?;
    let (queue, slot) = (CompletionQueue::new(), 5);
    let mut tokens = prompt.to_vec();
    let mut after: Vec<Fence> = Vec::new();
    for step in 0..count {
        let unknown = ahead && step > 0;
        let start = if step == 0 { 0 } else { prompt.len() + step - 1 };
        let fed = if unknown { vec![0] } else { tokens[start..].to_vec() };
        let pages: Vec<u32> = (0..(start + fed.len()).div_ceil(PAGE_TOKENS) as u32).collect();
        let output = OutputRow { keep: Some(slot), ..OutputRow::new(fed.len() as u32 - 1, Select::Top(1)) };
        let slice = Slice {
            sequence: SequenceId(1),
            start: start as u32,
            tokens: fed,
            tables: states::tables(&limits, &pages),
            snapshots: Vec::new(),
            slot: unknown.then_some(slot),
        };
        let batch = loaded.batch(vec![slice], vec![output], &limits)?;
        let done = queue.signal(step as u64);
        let fences = vec![done.fence()];
        let (blocks, crossing) = (loaded.blocks.clone(), Crossing::default());
        let stream = StreamId(step as u32 % 2);
        device.submit(Work { stream, blocks, batch, crossing, after, done });
        after = fences;
        // At most two steps are in flight, each on a stream of its own.
        if unknown || !ahead {
            tokens.push(best(&queue)?);
        }
    }
    if ahead && count > 0 {
        tokens.push(best(&queue)?);
    }
    Ok(tokens.split_off(prompt.len()))
}

/// Waits for a step, and takes the token that it brings.
fn best(queue: &CompletionQueue) -> Result<u32, DeviceError> {
    let result = queue.next().result;
    let output = result.map_err(|e| Arc::try_unwrap(e).unwrap_or_else(DeviceError::Reported))?;
    Ok(output.and_then(|o| o.top.first()?.first().map(|best| best.token)).unwrap_or(u32::MAX))
}

/// Gives the mixers their state: `pages` pages in each group.
fn reserve(
    device: &dyn Device,
    blocks: &[Block],
    positions: usize,
    pages: usize,
    ty: KvType,
) -> Result<Arc<BatchLimits>, DeviceError> {
    let groups = state_groups(blocks).into_iter().map(|spec| StateGroup { spec, pages }).collect();
    let layout = StateLayout { page_tokens: PAGE_TOKENS, positions, ty, groups };
    device.reserve(&layout)?;
    let vocab =
        blocks.iter().find_map(|b| if let Block::Head { spec, .. } = b { Some(spec.vocab) } else { None });
    Ok(Arc::new(BatchLimits { vocab: vocab.unwrap_or(1), state: Some(layout) }))
}

/// Largest difference, relative to the largest wanted value; infinite where something is not finite or missing.
pub fn relative_error(got: &[f32], want: &[f32]) -> f32 {
    if got.len() != want.len() {
        return f32::INFINITY;
    }
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let difference = |(g, w): (&f32, &f32)| if g.is_finite() { (g - w).abs() } else { f32::INFINITY };
    got.iter().zip(want).map(difference).fold(0f32, f32::max) / largest
}

/// One sequence on its way.
struct Sequence<'a> {
    id: SequenceId,
    tokens: &'a [u32],
    sizes: std::slice::Iter<'a, usize>,
    size: usize,
    pages: Vec<u32>,
    done: usize,
    logits: Vec<f32>,
}

impl<'a> Sequence<'a> {
    fn new(number: usize, tokens: &'a [u32], sizes: &'a [usize], pages: Vec<u32>) -> Sequence<'a> {
        let id = SequenceId(1 + number as u64);
        Sequence { id, tokens, sizes: sizes.iter(), size: 1, pages, done: 0, logits: Vec::new() }
    }

    /// The next chunk, if there is one.
    fn next(&mut self, limits: &BatchLimits) -> Option<Slice> {
        self.size = (*self.sizes.next().unwrap_or(&self.size)).max(1);
        let end = self.tokens.len().min(self.done + self.size);
        let tokens = self.tokens[self.done..end].to_vec();
        let pages = self.pages[..self.pages.len().min(end.div_ceil(PAGE_TOKENS))].to_vec();
        let tables = states::tables(limits, &pages);
        let (sequence, start, snapshots) = (self.id, self.done as u32, Vec::new());
        let slice = Slice { sequence, start, tokens, tables, snapshots, slot: None };
        self.done = end;
        (!slice.tokens.is_empty()).then_some(slice)
    }
}

/// Blocks on a device; unloaded on drop.
pub(crate) struct Loaded<'a> {
    device: &'a dyn Device,
    pub(crate) blocks: Vec<BlockId>,
}

impl<'a> Loaded<'a> {
    pub(crate) fn new(
        device: &'a dyn Device,
        blocks: &[Block],
        source: &Arc<dyn WeightSource>,
    ) -> Result<Loaded<'a>, DeviceError> {
        let mut loaded = Loaded { device, blocks: Vec::new() };
        for block in blocks {
            loaded.blocks.push(device.load(block, source)?);
        }
        Ok(loaded)
    }

    fn batch(
        &self,
        slices: Vec<Slice>,
        outputs: Vec<OutputRow>,
        limits: &Arc<BatchLimits>,
    ) -> Result<Arc<Batch>, DeviceError> {
        let device = || self.device.profile().name.clone();
        let wrong = |e: BatchError| DeviceError::Invalid { device: device(), what: e.to_string() };
        Batch::new(slices, outputs, limits).map(Arc::new).map_err(wrong)
    }

    /// One batch with the next chunk of each sequence.
    fn step(&self, sequences: &mut [Sequence<'_>], limits: &Arc<BatchLimits>) -> Result<(), DeviceError> {
        let slices: Vec<Slice> = sequences.iter_mut().filter_map(|s| s.next(limits)).collect();
        let counts: Vec<(SequenceId, usize)> = slices.iter().map(|s| (s.sequence, s.tokens.len())).collect();
        let rows: usize = counts.iter().map(|c| c.1).sum();
        let outputs = (0..rows as u32).map(|row| OutputRow::new(row, Select::Logits)).collect();
        let batch = self.batch(slices, outputs, limits)?;
        let output = run_to_end(self.device, STREAM, &self.blocks, &batch, Crossing::default())?;
        // What is no logits leaves them missing, which no comparison passes.
        let Some(logits) = output.map(|o| o.logits) else { return Ok(()) };
        let vocab = limits.vocab;
        let mut rest = &logits[..];
        for (id, count) in counts {
            let (mine, others) = rest.split_at(rest.len().min(count * vocab));
            rest = others;
            if let Some(sequence) = sequences.iter_mut().find(|s| s.id == id) {
                sequence.logits.extend(mine);
            }
        }
        Ok(())
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        self.blocks.drain(..).for_each(|block| self.device.unload(block));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_tokens_in_order() {
        let mut sequence = Sequence::new(0, &[1, 2, 3, 4, 5], &[2, 1], vec![0]);
        let limits = BatchLimits { vocab: 9, state: None };
        let parts: Vec<_> =
            std::iter::from_fn(|| sequence.next(&limits)).map(|s| (s.start, s.tokens)).collect();
        assert_eq!(parts, [(0, vec![1, 2]), (2, vec![3]), (3, vec![4]), (4, vec![5])]);
    }

    #[test]
    fn errors_are_relative_and_nothing_passes_for_nothing() {
        assert_eq!(relative_error(&[1.0, -3.0], &[1.0, -4.0]), 0.25);
        assert_eq!(relative_error(&[1.0], &[1.0, -4.0]), f32::INFINITY);
        assert_eq!(relative_error(&[1.0, f32::NAN], &[1.0, -4.0]), f32::INFINITY);
    }
}
