//! The [`Device`] trait over the reference ops.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use unicorn_core::{
    Batch, Block, BlockId, Device, DeviceError, DeviceKind, DeviceProfile, HeadOutput, Instrument,
    KernelTime, LayerNormWeights, MemoryNeed, MemoryUse, RateKind, Roofline, SLOTS, SharedBuffer, Sharing,
    StateCopy, StateLayout, StreamId, TensorType, WeightSource, Work, Workload,
};

use super::{
    ActivationRounding, Attention, Embedding, EncoderAttention, EncoderEmbedding, EncoderFfn, Ffn, Head,
    KvCache, KvLayout, LayerNorm, ShortConv, States, StatesLayout, Weights, dot, encoder_head, widen,
};
use crate::submitter::{Job, Submitter};

/// The oracle: runs every block in f64 on one thread of its own.
pub struct ReferenceDevice {
    // Its thread ends before the rest goes.
    submitter: Submitter,
    inner: Arc<Inner>,
}

/// What the device's handle and its thread share.
struct Inner {
    profile: DeviceProfile,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    weights: Weights,
    blocks: HashMap<BlockId, Loaded>,
    next_block: u32,
    layout: Option<StateLayout>,
    streams: HashMap<StreamId, Stream>,
    /// Tokens that the head kept.
    slots: Vec<u32>,
    copied: u64,
    /// Per kernel name, while profiling is on.
    times: Option<HashMap<&'static str, KernelTime>>,
}

struct Loaded {
    op: Op,
    block: Block,
}

enum Op {
    Embedding(Embedding),
    Attention { block: Box<Attention>, kv: Option<KvCache> },
    ShortConv { block: Box<ShortConv>, states: Option<States> },
    Ffn(Ffn),
    Head(Head),
    EncoderEmbedding(Box<EncoderEmbedding>),
    EncoderAttention(Box<EncoderAttention>),
    EncoderFfn(Box<EncoderFfn>),
    EncoderHead { width: usize },
}

/// A residual stream `[x.len() / width, width]`.
#[derive(Default)]
struct Stream {
    width: usize,
    x: Vec<f32>,
    /// Through which it crosses.
    shared: Option<Arc<SharedBuffer>>,
}

impl Default for ReferenceDevice {
    fn default() -> ReferenceDevice {
        ReferenceDevice::new()
    }
}

impl ReferenceDevice {
    /// A device with nothing loaded.
    pub fn new() -> ReferenceDevice {
        let profile = DeviceProfile {
            name: "reference".into(),
            kind: DeviceKind::Cpu,
            description: "plain loops in float64, one thread".into(),
            memory_bytes: u64::MAX,
            unified_memory: true,
            on_host: true,
            workers: 1,
            wait_awake: false,
            features: Vec::new(),
        };
        ReferenceDevice::with_state(profile, State::default())
    }

    /// The oracle of kernels that multiply quantized weights with 8-bit activations: what they are off by beside this rounding is that
    /// of their sums.
    pub fn with_rounding(rounding: ActivationRounding) -> ReferenceDevice {
        let mut state = State::default();
        state.weights.rounding = Some(rounding);
        ReferenceDevice::with_state(ReferenceDevice::new().profile().clone(), state)
    }

    fn with_state(profile: DeviceProfile, state: State) -> ReferenceDevice {
        let inner = Arc::new(Inner { profile, state: Mutex::new(state) });
        let running = inner.clone();
        let submitter = Submitter::start(&inner.profile.name, move |job| match job {
            Job::Work(work) => running.run(work),
            Job::Copy(copy) => running.copy(copy).map(|()| None),
        });
        ReferenceDevice { submitter, inner }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn invalid(&self, what: impl Into<String>) -> DeviceError {
        DeviceError::Invalid { device: self.profile.name.clone(), what: what.into() }
    }

    fn unsupported(&self, what: impl Into<String>) -> DeviceError {
        DeviceError::Unsupported { device: self.profile.name.clone(), what: what.into() }
    }

    fn run(&self, work: &Work) -> Result<Option<HeadOutput>, DeviceError> {
        let mut state = self.lock();
        let State { blocks, streams, slots, times, layout, copied, .. } = &mut *state;
        slots.resize(SLOTS, 0);
        let stream = streams.entry(work.stream).or_default();
        let batch = &*work.batch;
        if work.crossing.import {
            *copied += stream.import(batch).map_err(|what| self.invalid(what))?;
        }
        let mut output = None;
        for id in &work.blocks {
            let loaded = blocks.get_mut(id).ok_or_else(|| self.invalid(format!("no block {}", id.0)))?;
            if loaded.block.state().is_some() && batch.limits().state != *layout {
                return Err(self.invalid("the batch was made for other state than is reserved"));
            }
            let started = Instant::now();
            output = loaded.op.run(stream, batch, slots).map_err(|what| self.invalid(what))?;
            if let Some(times) = times {
                let name = loaded.op.name();
                let entry = times.entry(name).or_insert_with(|| KernelTime {
                    kernel: name.into(),
                    calls: 0,
                    seconds: 0.0,
                    bytes: 0,
                    flops: 0,
                    rate: RateKind::Float,
                });
                let kv = layout.as_ref().map(|l| l.ty).unwrap_or_default();
                let cost = loaded.block.cost(&batch.into(), kv);
                entry.calls += 1;
                entry.seconds += started.elapsed().as_secs_f64();
                entry.bytes += cost.bytes();
                entry.flops += cost.flops();
            }
        }
        if let Some(output) = &output {
            output.kept(batch).for_each(|(slot, token)| slots[slot] = token);
        }
        if work.crossing.export {
            *copied += stream.export(batch).map_err(|what| self.invalid(what))?;
        }
        Ok(output.filter(|_| !batch.outputs().is_empty()))
    }
}

impl Inner {
    fn copy(&self, copy: &StateCopy) -> Result<(), DeviceError> {
        let mut state = self.lock();
        let State { blocks, copied, .. } = &mut *state;
        let bytes = match blocks.get_mut(&copy.mixer).map(|b| &mut b.op) {
            Some(Op::Attention { block, kv: Some(kv) }) => kv.copy(block.spec.head_dim, copy),
            Some(Op::ShortConv { states: Some(states), .. }) => states.layout.copy(&mut states.values, copy),
            _ => return Err(self.invalid(format!("block {} has no state", copy.mixer.0))),
        };
        *copied += bytes.map_err(|what| self.invalid(what))?;
        Ok(())
    }
}

impl Device for ReferenceDevice {
    fn profile(&self) -> &DeviceProfile {
        &self.inner.profile
    }

    fn needs(&self, blocks: &[&Block], workload: &Workload) -> Result<MemoryNeed, DeviceError> {
        let mut weights: HashMap<_, u64> = HashMap::new();
        let (mut kv, mut width, mut passing) = (0u64, 0, 0);
        for block in blocks {
            block.check().map_err(|what| self.inner.invalid(what.to_string()))?;
            weights.extend(block.weights().into_iter().map(|w| ((w.span, w.ty), w.elements() as u64 * 4)));
            let bytes = kv_bytes(block, &workload.layout).map_err(|what| self.inner.unsupported(what))?;
            kv = kv.saturating_add(bytes);
            width = width.max(block_width(block));
            passing = passing.max(passing_bytes(block, workload));
        }
        let stream = (workload.rows as u64).saturating_mul(width as u64 * 4);
        Ok(MemoryNeed {
            weights: weights.into_values().fold(0, u64::saturating_add),
            kv,
            scratch: stream.saturating_mul(workload.streams as u64),
            host: 0,
            passing,
        })
    }

    fn load(&self, block: &Block, source: &Arc<dyn WeightSource>) -> Result<BlockId, DeviceError> {
        block.check().map_err(|what| self.inner.invalid(what.to_string()))?;
        let mut state = self.inner.lock();
        let mut op = match state.weights.load_block(block, &**source) {
            Ok(op) => op,
            Err(error) => {
                state.weights.sweep();
                return Err(error);
            }
        };
        if let Some(layout) = &state.layout {
            op.reserve(layout).map_err(|what| self.inner.unsupported(what))?;
        }
        let id = BlockId(state.next_block);
        state.next_block += 1;
        state.blocks.insert(id, Loaded { op, block: block.clone() });
        Ok(id)
    }

    fn unload(&self, block: BlockId) {
        let mut state = self.inner.lock();
        state.blocks.remove(&block);
        state.weights.sweep();
        if state.blocks.is_empty() {
            // The next model may be of another width.
            state.streams.clear();
        }
    }

    fn reserve(&self, layout: &StateLayout) -> Result<(), DeviceError> {
        let mut state = self.inner.lock();
        state.layout = None;
        for loaded in state.blocks.values_mut() {
            loaded.op.reserve(layout).map_err(|what| self.inner.unsupported(what))?;
        }
        state.layout = Some(layout.clone());
        Ok(())
    }

    fn attach(&self, stream: StreamId, residual: &Arc<SharedBuffer>) -> Result<Sharing, DeviceError> {
        self.inner.lock().streams.entry(stream).or_default().shared = Some(residual.clone());
        Ok(Sharing::Copied)
    }

    fn submit(&self, work: Work) {
        self.submitter.submit(Job::Work(work));
    }

    fn copy_state(&self, copy: StateCopy) {
        self.submitter.submit(Job::Copy(copy));
    }

    fn memory(&self) -> MemoryUse {
        let state = self.inner.lock();
        let kv = state.blocks.values().filter_map(|b| match &b.op {
            Op::Attention { kv, .. } => kv.as_ref().map(KvCache::bytes),
            Op::ShortConv { states, .. } => states.as_ref().map(|s| s.values.len() as u64 * 4),
            _ => None,
        });
        MemoryUse {
            weights: state.weights.bytes(),
            kv: kv.sum(),
            scratch: state.streams.values().map(|s| s.x.len() as u64 * 4).sum(),
            copied: state.weights.bytes_read + state.copied,
            shared: 0,
        }
    }

    fn describe(&self, block: BlockId) -> Vec<String> {
        let state = self.inner.lock();
        state.blocks.get(&block).map(|b| format!("{} float64", b.op.name())).into_iter().collect()
    }
}

impl Instrument for ReferenceDevice {
    fn measure(&self) -> Result<Roofline, DeviceError> {
        // The device's own product is its roof: 64 MiB of weights against one row that stays in the cache.
        let (weight, x) = (vec![1.0f32; 16 << 20], vec![1.0; 4096]);
        let started = Instant::now();
        let sum: f64 = weight.chunks_exact(x.len()).map(|row| dot(row, &x)).sum();
        std::hint::black_box(sum);
        let per_second = weight.len() as f64 / started.elapsed().as_secs_f64();
        Ok(Roofline {
            read_bytes_per_second: 4.0 * per_second,
            integer_ops_per_second: 2.0 * per_second,
            float_ops_per_second: 2.0 * per_second,
            matrix_ops_per_second: None,
            copy_bytes_per_second: None,
        })
    }

    fn rate_kind(&self, _ty: TensorType) -> RateKind {
        RateKind::Float
    }

    fn set_profiling(&self, on: bool) {
        self.inner.lock().times = on.then(HashMap::new);
    }

    fn kernel_times(&self) -> Vec<KernelTime> {
        let state = self.inner.lock();
        let mut times: Vec<KernelTime> = state.times.iter().flat_map(|t| t.values().cloned()).collect();
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        times
    }
}

fn kv_bytes(block: &Block, layout: &StateLayout) -> Result<u64, String> {
    if let Block::ShortConv { spec, .. } = block {
        let states = StatesLayout::of(layout, spec.state(), spec.state_floats())?;
        return Ok(states.bytes().map_or(u64::MAX, |bytes| bytes as u64));
    }
    let Block::Attention { spec, .. } = block else { return Ok(0) };
    let layout = KvLayout::of(layout, spec.state(), spec.head_dim)?;
    Ok(KvCache::bytes_of(&layout, spec.kv_heads * spec.head_dim))
}

fn block_width(block: &Block) -> usize {
    match block {
        Block::Embedding { spec, .. } => spec.width,
        Block::Attention { spec, .. } => spec.width,
        Block::ShortConv { spec, .. } => spec.width,
        Block::Ffn { spec, .. } => spec.width,
        Block::Head { spec, .. } => spec.width,
        Block::EncoderEmbedding { spec, .. } => spec.width,
        Block::EncoderAttention { spec, .. } => spec.width,
        Block::EncoderFfn { spec, .. } => spec.width,
        Block::EncoderHead { spec } => spec.width,
    }
}

/// Bytes of what a block computes on its way, all of it in float64.
fn passing_bytes(block: &Block, workload: &Workload) -> u64 {
    let per_row = match block {
        Block::Embedding { spec, .. } => spec.width,
        Block::Attention { spec, .. } => {
            3 * spec.width + 3 * (spec.heads + spec.kv_heads) * spec.head_dim + workload.layout.positions
        }
        Block::ShortConv { spec, .. } => 9 * spec.width,
        Block::Ffn { spec, .. } => 3 * spec.width + 3 * spec.hidden,
        Block::EncoderEmbedding { spec, .. } => spec.width,
        Block::EncoderAttention { spec, .. } => {
            3 * spec.width + 4 * spec.heads * spec.head_dim + workload.layout.positions
        }
        Block::EncoderFfn { spec, .. } => 3 * spec.width + 3 * spec.hidden,
        Block::EncoderHead { spec } => spec.width,
        Block::Head { spec, .. } => {
            return (workload.outputs as u64).saturating_mul((spec.vocab as u64 + spec.width as u64) * 12);
        }
    };
    (workload.rows as u64).saturating_mul(per_row as u64 * 8)
}

impl Weights {
    /// Reads all tensors of a block, whose shapes have been checked.
    fn load_block(&mut self, block: &Block, source: &dyn WeightSource) -> Result<Op, DeviceError> {
        Ok(match block {
            Block::Embedding { spec, table } => {
                Op::Embedding(Embedding { spec: spec.clone(), table: self.load(table, source)? })
            }
            Block::Attention { spec, weights: w } => Op::Attention {
                block: Box::new(Attention {
                    spec: spec.clone(),
                    norm: self.load(&w.norm, source)?,
                    q: self.load(&w.q, source)?,
                    k: self.load(&w.k, source)?,
                    v: self.load(&w.v, source)?,
                    o: self.load(&w.o, source)?,
                    q_bias: self.load_optional(&w.q_bias, source)?,
                    k_bias: self.load_optional(&w.k_bias, source)?,
                    v_bias: self.load_optional(&w.v_bias, source)?,
                    o_bias: self.load_optional(&w.o_bias, source)?,
                    q_norm: self.load_optional(&w.q_norm, source)?,
                    k_norm: self.load_optional(&w.k_norm, source)?,
                    post_norm: self.load_optional(&w.post_norm, source)?,
                }),
                kv: None,
            },
            Block::ShortConv { spec, weights: w } => Op::ShortConv {
                block: Box::new(ShortConv {
                    spec: spec.clone(),
                    norm: self.load(&w.norm, source)?,
                    input: self.load(&w.input, source)?,
                    conv: self.load(&w.conv, source)?,
                    output: self.load(&w.output, source)?,
                }),
                states: None,
            },
            Block::Ffn { spec, weights: w } => Op::Ffn(Ffn {
                spec: spec.clone(),
                norm: self.load(&w.norm, source)?,
                gate: self.load(&w.gate, source)?,
                up: self.load(&w.up, source)?,
                down: self.load(&w.down, source)?,
                post_norm: self.load_optional(&w.post_norm, source)?,
            }),
            Block::Head { spec, norm, weight } => Op::Head(Head {
                spec: spec.clone(),
                norm: self.load(norm, source)?,
                weight: self.load(weight, source)?,
            }),
            Block::EncoderEmbedding { spec, weights: w } => {
                Op::EncoderEmbedding(Box::new(EncoderEmbedding {
                    spec: spec.clone(),
                    table: self.load(&w.table, source)?,
                    positions: self.load(&w.positions, source)?,
                    token_types: self.load(&w.token_types, source)?,
                    norm: self.layer_norm(&w.norm, spec.norm_eps, source)?,
                }))
            }
            Block::EncoderAttention { spec, weights: w } => {
                Op::EncoderAttention(Box::new(EncoderAttention {
                    spec: spec.clone(),
                    q: self.load(&w.q, source)?,
                    k: self.load(&w.k, source)?,
                    v: self.load(&w.v, source)?,
                    o: self.load(&w.o, source)?,
                    q_bias: self.load(&w.q_bias, source)?,
                    k_bias: self.load(&w.k_bias, source)?,
                    v_bias: self.load(&w.v_bias, source)?,
                    o_bias: self.load(&w.o_bias, source)?,
                    norm: self.layer_norm(&w.norm, spec.norm_eps, source)?,
                }))
            }
            Block::EncoderFfn { spec, weights: w } => Op::EncoderFfn(Box::new(EncoderFfn {
                spec: spec.clone(),
                up: self.load(&w.up, source)?,
                down: self.load(&w.down, source)?,
                up_bias: self.load(&w.up_bias, source)?,
                down_bias: self.load(&w.down_bias, source)?,
                norm: self.layer_norm(&w.norm, spec.norm_eps, source)?,
            })),
            Block::EncoderHead { spec } => Op::EncoderHead { width: spec.width },
        })
    }

    fn layer_norm(
        &mut self,
        weights: &LayerNormWeights,
        eps: f32,
        source: &dyn WeightSource,
    ) -> Result<LayerNorm, DeviceError> {
        let (weight, bias) = (self.load(&weights.weight, source)?, self.load(&weights.bias, source)?);
        Ok(LayerNorm { weight, bias, eps })
    }
}

impl Op {
    fn name(&self) -> &'static str {
        match self {
            Op::Embedding(_) => "embedding",
            Op::Attention { .. } => "attention",
            Op::ShortConv { .. } => "short_conv",
            Op::Ffn(_) => "ffn",
            Op::Head(_) => "head",
            Op::EncoderEmbedding(_) => "encoder_embedding",
            Op::EncoderAttention(_) => "encoder_attention",
            Op::EncoderFfn(_) => "encoder_ffn",
            Op::EncoderHead { .. } => "encoder_head",
        }
    }

    /// Gives a mixer its empty state.
    fn reserve(&mut self, layout: &StateLayout) -> Result<(), String> {
        match self {
            Op::Attention { block, kv } => {
                *kv = None;
                let layout = KvLayout::of(layout, block.spec.state(), block.spec.head_dim)?;
                *kv = Some(KvCache::new(layout, block.spec.kv_heads * block.spec.head_dim));
            }
            Op::ShortConv { block, states } => {
                *states = None;
                let spec = &block.spec;
                *states = Some(States::new(StatesLayout::of(layout, spec.state(), spec.state_floats())?));
            }
            Op::Embedding(_) | Op::Ffn(_) | Op::Head(_) => {}
            Op::EncoderEmbedding(_) | Op::EncoderAttention(_) => {}
            Op::EncoderFfn(_) | Op::EncoderHead { .. } => {}
        }
        Ok(())
    }

    /// Runs the block over a stream; the message names a broken precondition.
    fn run(
        &mut self,
        stream: &mut Stream,
        batch: &Batch,
        slots: &[u32],
    ) -> Result<Option<HeadOutput>, String> {
        match self {
            Op::Embedding(block) => {
                if batch.limits().vocab > block.spec.vocab {
                    return Err(format!(
                        "a batch for {} tokens of {}",
                        batch.limits().vocab,
                        block.spec.vocab
                    ));
                }
                stream.width = block.spec.width;
                stream.x = block
                    .forward(batch.row_tokens(slots).into_iter())
                    .into_iter()
                    .map(|v| v as f32)
                    .collect();
            }
            Op::Attention { block, kv } => {
                stream.expect(block.spec.width, batch)?;
                let kv = kv.as_mut().ok_or("no state was reserved")?;
                let y = block.forward(&widen(&stream.x), batch, kv);
                stream.add(&y);
            }
            Op::ShortConv { block, states } => {
                stream.expect(block.spec.width, batch)?;
                let states = states.as_mut().ok_or("no state was reserved")?;
                let y = block.forward(&widen(&stream.x), batch, states);
                stream.add(&y);
            }
            Op::Ffn(block) => {
                stream.expect(block.spec.width, batch)?;
                let y = block.forward(&widen(&stream.x));
                stream.add(&y);
            }
            Op::Head(block) => {
                stream.expect(block.spec.width, batch)?;
                return Ok(Some(block.forward(&widen(&stream.x), batch)));
            }
            Op::EncoderEmbedding(block) => {
                let (vocab, positions) = (block.spec.vocab, block.spec.positions);
                if batch.limits().vocab > vocab || batch.whole().is_none_or(|longest| longest > positions) {
                    return Err(format!(
                        "no batch of whole sequences of {positions} tokens at most, of {vocab}"
                    ));
                }
                stream.width = block.spec.width;
                stream.x = block.forward(batch).into_iter().map(|v| v as f32).collect();
            }
            Op::EncoderAttention(block) => {
                stream.expect(block.spec.width, batch)?;
                batch.whole().ok_or("an encoder's attention over a batch of parts of sequences")?;
                stream.x = block.forward(&widen(&stream.x), batch).into_iter().map(|v| v as f32).collect();
            }
            Op::EncoderFfn(block) => {
                stream.expect(block.spec.width, batch)?;
                stream.x = block.forward(&widen(&stream.x)).into_iter().map(|v| v as f32).collect();
            }
            Op::EncoderHead { width } => {
                stream.expect(*width, batch)?;
                if batch.hidden_rows() != batch.outputs().len() {
                    return Err("logits of an encoder, which has none".into());
                }
                return Ok(Some(encoder_head(*width, &stream.x, batch)));
            }
        }
        Ok(None)
    }
}

impl Stream {
    fn shared(&self, batch: &Batch) -> Result<&Arc<SharedBuffer>, String> {
        let shared = self.shared.as_ref().ok_or("a stream that crosses has no shared buffer")?;
        if batch.rows() > shared.rows() {
            return Err(format!("{} rows in a shared buffer of {}", batch.rows(), shared.rows()));
        }
        Ok(shared)
    }

    /// Takes the residual stream from another device; returns the bytes copied.
    fn import(&mut self, batch: &Batch) -> Result<u64, String> {
        let shared = self.shared(batch)?;
        let (width, mut x) = (shared.width(), vec![0.0; batch.rows() * shared.width()]);
        shared.read(&mut x);
        (self.width, self.x) = (width, x);
        Ok(self.x.len() as u64 * 4)
    }

    /// Leaves the residual stream to another device; returns the bytes copied.
    fn export(&self, batch: &Batch) -> Result<u64, String> {
        let shared = self.shared(batch)?;
        self.expect(shared.width(), batch)?;
        shared.write(&self.x);
        Ok(self.x.len() as u64 * 4)
    }

    fn expect(&self, width: usize, batch: &Batch) -> Result<(), String> {
        if self.width != width || self.x.len() != width * batch.rows() {
            return Err(format!(
                "a stream of {} values in rows of {} for a batch of {} rows of {width}",
                self.x.len(),
                self.width,
                batch.rows()
            ));
        }
        Ok(())
    }

    /// The residual add.
    fn add(&mut self, y: &[f64]) {
        for (x, y) in self.x.iter_mut().zip(y) {
            *x = (*x as f64 + y) as f32;
        }
    }
}
