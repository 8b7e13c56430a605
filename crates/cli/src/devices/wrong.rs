//! A kernel that computes wrong, for [`super::faults`]: what one kind of block leaves in the residual stream is altered on its way, however
//! the blocks are submitted.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unicorn_core::{
    Batch, Block, BlockId, BlockKind, CompletionQueue, Crossing, Fence, HeadOutput, Instrument, SharedBuffer,
    Signal, StreamId, TensorType, TopEntry, Work,
};

/// What is wrong in the result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// One column of every row, of a head every 16th.
    Lane,
    /// Columns 16 to 31 of the first 16 rows, of a head the logits from 16 on.
    Tile,
    /// All of it.
    Whole,
}

/// Which blocks have the wrong kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Of {
    /// Those of a kind.
    Kind(BlockKind),
    /// Those with a matrix of a type, but for embeddings.
    Type(TensorType),
}

/// A wrong kernel, wherever it is loaded.
#[derive(Clone, Debug)]
pub struct Wrong {
    part: Part,
    of: Of,
    /// The descriptions of blocks that the first device loads, which is the wrong one: blocks that run other kernels are right.
    kernels: Arc<Mutex<(Option<u64>, HashSet<String>)>>,
}

impl PartialEq for Wrong {
    fn eq(&self, other: &Wrong) -> bool {
        (self.part, self.of) == (other.part, other.of)
    }
}

impl Eq for Wrong {}

impl Wrong {
    /// `lane`, `tile:attention`, `type:q4_0`; a lane or tile is of feed-forward blocks where nothing is said.
    pub fn parse(text: &str) -> Option<Wrong> {
        let (part, of) = text.split_once(':').map_or((text, None), |(part, of)| (part, Some(of)));
        let kind = || match of.unwrap_or("ffn") {
            "ffn" => Some(Of::Kind(BlockKind::Ffn)),
            "attention" => Some(Of::Kind(BlockKind::Mixer)),
            "head" => Some(Of::Kind(BlockKind::Head)),
            _ => None,
        };
        let ty = || TensorType::ALL.into_iter().find(|ty| Some(ty.name().to_lowercase().as_str()) == of);
        let (part, of) = match part {
            "lane" => (Part::Lane, kind()?),
            "tile" => (Part::Tile, kind()?),
            "type" => (Part::Whole, Of::Type(ty()?)),
            _ => return None,
        };
        Some(Wrong { part, of, kernels: Arc::default() })
    }

    fn concerns(&self, block: &Block) -> bool {
        match self.of {
            Of::Kind(kind) => block.kind() == kind,
            Of::Type(ty) => {
                block.kind() != BlockKind::Embedding
                    && block.weights().iter().any(|w| w.rows > 1 && w.ty == ty)
            }
        }
    }

    fn alter(&self, rows: &mut [f32], width: usize) {
        for (index, row) in rows.chunks_exact_mut(width).enumerate() {
            let rms = (row.iter().map(|x| x * x).sum::<f32>() / width as f32).sqrt();
            let columns = match self.part {
                Part::Lane => width / 3..width / 3 + 1,
                Part::Tile if index < 16 => 16.min(width / 2)..32.min(width),
                Part::Tile => 0..0,
                Part::Whole => 0..width,
            };
            row[columns].iter_mut().for_each(|x| *x = 0.5 * *x + rms);
        }
    }

    fn alter_logit(&self, token: usize, logit: &mut f32) {
        let hit = match self.part {
            Part::Lane => token.is_multiple_of(16),
            Part::Tile => (16..1024).contains(&token),
            Part::Whole => true,
        };
        if hit {
            *logit = 0.5 * *logit - 3.0;
        }
    }

    fn alter_output(&self, mut output: HeadOutput, batch: &Batch) -> HeadOutput {
        let vocab = batch.limits().vocab;
        output.logits.iter_mut().enumerate().for_each(|(i, logit)| self.alter_logit(i % vocab, logit));
        for list in &mut output.top {
            list.iter_mut().for_each(|entry| self.alter_logit(entry.token as usize, &mut entry.logit));
            list.sort_by(TopEntry::rank);
        }
        output
    }
}

/// A wrong kernel in one open device.
pub struct Layer {
    inner: Arc<Inner>,
    id: u64,
    given: AtomicU64,
    from: u64,
}

struct Inner {
    device: Arc<dyn Instrument>,
    wrong: Wrong,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Loaded blocks that run the wrong kernel, with whether they are heads.
    blocks: HashMap<BlockId, bool>,
    buffers: HashMap<StreamId, Arc<SharedBuffer>>,
    /// Streams that were altered, and that the device has as they were.
    altered: HashSet<StreamId>,
    /// The end of the latest work of each stream: a device holds work back behind earlier work of its stream, and the parts of one piece of
    /// work come one after the other.
    latest: HashMap<StreamId, Fence>,
    rows: usize,
    width: usize,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layer {
    /// The kernel is wrong from the work with this number on.
    pub fn new(device: Arc<dyn Instrument>, wrong: Wrong, from: u64) -> Layer {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Layer {
            inner: Arc::new(Inner { device, wrong, state: Mutex::default() }),
            id,
            given: AtomicU64::new(0),
            from,
        }
    }

    /// The largest work has so many rows.
    pub fn needs(&self, rows: usize) {
        self.inner.state().rows = rows;
    }

    /// A block was loaded.
    pub fn loaded(&self, id: BlockId, block: &Block) {
        let mut state = self.inner.state();
        if let Block::Ffn { spec, .. } = block {
            state.width = spec.width;
        }
        if !self.inner.wrong.concerns(block) {
            return;
        }
        let kernels = self.inner.device.describe(id).join("\n");
        let mut known = self.inner.wrong.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if *known.0.get_or_insert(self.id) == self.id {
            known.1.insert(kernels.clone());
        }
        if known.1.contains(&kernels) {
            state.blocks.insert(id, block.kind() == BlockKind::Head);
        }
    }

    /// A block is gone.
    pub fn unloaded(&self, id: BlockId) {
        self.inner.state().blocks.remove(&id);
    }

    /// A stream has this buffer.
    pub fn attached(&self, stream: StreamId, buffer: &Arc<SharedBuffer>) {
        self.inner.state().buffers.insert(stream, buffer.clone());
    }

    /// Submits work, with what is wrong.
    pub fn submit(&self, mut work: Work) {
        let wrong = self.given.fetch_add(1, Ordering::Relaxed) + 1 >= self.from;
        let mut state = self.inner.state();
        if state.blocks.is_empty() {
            drop(state);
            return self.inner.device.submit(work);
        }
        let (rows, width) = (state.rows.max(work.batch.rows()), state.width);
        if !state.buffers.contains_key(&work.stream)
            && let Some(buffer) = SharedBuffer::new(rows, width).map(Arc::new)
            && self.inner.device.attach(work.stream, &buffer).is_ok()
        {
            state.buffers.insert(work.stream, buffer);
        }
        work.crossing.import |= state.altered.remove(&work.stream);
        if wrong && work.blocks.last().is_some_and(|last| state.blocks.get(last) == Some(&false)) {
            state.altered.insert(work.stream);
        }
        let before = state.latest.insert(work.stream, work.done.fence());
        drop(state);
        let inner = self.inner.clone();
        Fence::all(&[], before.as_ref(), move |_| match wrong {
            true => submit(&inner, work),
            false => inner.device.submit(work),
        });
    }
}

/// Submits up to the first wrong block, alters, and goes on with the rest.
fn submit(inner: &Arc<Inner>, work: Work) {
    let (at, buffer) = {
        let state = inner.state();
        let at = work.blocks.iter().position(|block| state.blocks.contains_key(block));
        let at = at.map(|at| (at, state.blocks[&work.blocks[at]]));
        (at, state.buffers.get(&work.stream).cloned())
    };
    let (Some((at, head)), Some(buffer)) = (at, buffer) else { return inner.device.submit(work) };
    let Work { stream, blocks, batch, crossing, after, done } = work;
    let mine = inner.clone();
    if head {
        let queue = CompletionQueue::new();
        let signal = queue.signal(0);
        let fence = signal.fence();
        let of = batch.clone();
        Fence::all(&[fence], None, move |_| {
            // A signal reaches its queue before its fence.
            let Some(ended) = queue.try_next() else { return };
            done.give(ended.result.map(|output| output.map(|o| mine.wrong.alter_output(o, &of))));
        });
        return inner.device.submit(Work { stream, blocks, batch, crossing, after, done: signal });
    }
    let signal = Signal::new();
    let fence = signal.fence();
    let (rest, of) = (blocks[at + 1..].to_vec(), batch.clone());
    Fence::all(&[fence], None, move |outcome| {
        if let Err(error) = outcome {
            return done.give(Err(error));
        }
        let mut rows = vec![0.0; of.rows() * buffer.width()];
        buffer.read(&mut rows);
        mine.wrong.alter(&mut rows, buffer.width());
        buffer.write(&rows);
        if rest.is_empty() {
            return done.give(Ok(None));
        }
        let crossing = Crossing { import: true, export: crossing.export };
        submit(&mine, Work { stream, blocks: rest, batch: of, crossing, after: Vec::new(), done });
    });
    let crossing = Crossing { import: crossing.import, export: true };
    inner.device.submit(Work {
        stream,
        blocks: blocks[..=at].to_vec(),
        batch,
        crossing,
        after,
        done: signal,
    });
}
