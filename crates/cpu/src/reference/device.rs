//! The [`Device`] trait over the reference ops.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use unicorn_core::{
    Batch, Block, BlockId, Device, DeviceError, DeviceKind, DeviceProfile, HeadOutput, KernelTime, KvLayout,
    MemoryUse, RateKind, Roofline, StreamId, TensorType, Ticket, WeightSource, Work,
};

use super::{
    ActivationRounding, Attention, Embedding, Ffn, Head, KvCache, Weights, check_block, check_layout,
    check_outputs, check_pages, check_tokens, dot, widen,
};

/// The oracle: runs every block in f64 on one thread. Work is done when [`Device::submit`] returns.
pub struct ReferenceDevice {
    profile: DeviceProfile,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    weights: Weights,
    blocks: HashMap<BlockId, Loaded>,
    next_block: u32,
    layout: Option<KvLayout>,
    streams: HashMap<StreamId, Stream>,
    tickets: u64,
    /// Per kernel name, while profiling is on.
    times: Option<HashMap<&'static str, KernelTime>>,
}

struct Loaded {
    op: Op,
    bytes: u64,
    flops_per_row: u64,
}

enum Op {
    Embedding(Embedding),
    Attention { block: Box<Attention>, kv: Option<KvCache> },
    Ffn(Ffn),
    Head(Head),
}

/// A residual stream `[x.len() / width, width]`.
#[derive(Default)]
struct Stream {
    width: usize,
    x: Vec<f32>,
    output: Option<HeadOutput>,
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
            workers: 1,
            features: Vec::new(),
        };
        ReferenceDevice { profile, state: Mutex::default() }
    }

    /// The oracle of kernels that multiply quantized weights with 8-bit activations: what they are off by beside this rounding is that
    /// of their sums.
    pub fn with_rounding(rounding: ActivationRounding) -> ReferenceDevice {
        let mut device = ReferenceDevice::new();
        device.state.get_mut().unwrap_or_else(PoisonError::into_inner).weights.rounding = Some(rounding);
        device
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn invalid(&self, what: impl Into<String>) -> DeviceError {
        DeviceError::Invalid { device: self.profile.name.clone(), what: what.into() }
    }

    fn unsupported(&self, what: impl Into<String>) -> DeviceError {
        DeviceError::Unsupported { device: self.profile.name.clone(), what: what.into() }
    }
}

impl Device for ReferenceDevice {
    fn profile(&self) -> &DeviceProfile {
        &self.profile
    }

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

    fn load(&self, block: &Block, source: &dyn WeightSource) -> Result<BlockId, DeviceError> {
        check_block(block).map_err(|what| self.invalid(what))?;
        let mut state = self.lock();
        let mut op = match state.weights.load_block(block, source) {
            Ok(op) => op,
            Err(error) => {
                state.weights.sweep();
                return Err(error);
            }
        };
        if let (Op::Attention { block, kv }, Some(layout)) = (&mut op, state.layout) {
            check_layout(&layout, block.spec.head_dim).map_err(|what| self.unsupported(what))?;
            *kv = Some(KvCache::new(layout, block.spec.kv_heads * block.spec.head_dim));
        }
        let id = BlockId(state.next_block);
        state.next_block += 1;
        let (bytes, flops_per_row) = (block.bytes_per_row(), block.flops_per_row());
        state.blocks.insert(id, Loaded { op, bytes, flops_per_row });
        Ok(id)
    }

    fn unload(&self, block: BlockId) {
        let mut state = self.lock();
        state.blocks.remove(&block);
        state.weights.sweep();
    }

    fn reserve_kv(&self, layout: KvLayout) -> Result<(), DeviceError> {
        let mut state = self.lock();
        for loaded in state.blocks.values() {
            if let Op::Attention { block, .. } = &loaded.op {
                check_layout(&layout, block.spec.head_dim).map_err(|what| self.unsupported(what))?;
            }
        }
        for loaded in state.blocks.values_mut() {
            if let Op::Attention { block, kv } = &mut loaded.op {
                *kv = Some(KvCache::new(layout, block.spec.kv_heads * block.spec.head_dim));
            }
        }
        state.layout = Some(layout);
        Ok(())
    }

    fn submit(&self, work: &Work) -> Result<Ticket, DeviceError> {
        let mut state = self.lock();
        let State { blocks, streams, times, .. } = &mut *state;
        let stream = streams.entry(work.stream).or_default();
        for id in &work.blocks {
            let loaded = blocks.get_mut(id).ok_or_else(|| self.invalid(format!("no block {}", id.0)))?;
            let started = Instant::now();
            loaded.op.run(stream, &work.batch).map_err(|what| self.invalid(what))?;
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
                entry.calls += 1;
                entry.seconds += started.elapsed().as_secs_f64();
                entry.bytes += loaded.bytes;
                entry.flops += loaded.flops_per_row * work.batch.rows() as u64;
            }
        }
        state.tickets += 1;
        Ok(Ticket(state.tickets))
    }

    fn wait(&self, ticket: Ticket) -> Result<(), DeviceError> {
        if ticket.0 == 0 || ticket.0 > self.lock().tickets {
            return Err(self.invalid(format!("no ticket {}", ticket.0)));
        }
        Ok(())
    }

    fn read_residual(&self, stream: StreamId, first: usize, out: &mut [f32]) -> Result<(), DeviceError> {
        let state = self.lock();
        let held =
            state.streams.get(&stream).ok_or_else(|| self.invalid(format!("no stream {}", stream.0)))?;
        let start = first * held.width;
        let rows = held.x.get(start..start + out.len()).ok_or_else(|| {
            self.invalid(format!("{} values at row {first} of {} in all", out.len(), held.x.len()))
        })?;
        out.copy_from_slice(rows);
        Ok(())
    }

    fn write_residual(&self, stream: StreamId, width: usize, rows: &[f32]) -> Result<(), DeviceError> {
        if width == 0 || !rows.len().is_multiple_of(width) {
            return Err(self.invalid(format!("{} values in rows of {width}", rows.len())));
        }
        self.lock().streams.insert(stream, Stream { width, x: rows.to_vec(), output: None });
        Ok(())
    }

    fn take_output(&self, stream: StreamId) -> Result<HeadOutput, DeviceError> {
        let output = self.lock().streams.get_mut(&stream).and_then(|s| s.output.take());
        output.ok_or_else(|| self.invalid(format!("stream {} has no output", stream.0)))
    }

    fn memory(&self) -> MemoryUse {
        let state = self.lock();
        let kv = state.blocks.values().filter_map(|b| match &b.op {
            Op::Attention { kv, .. } => kv.as_ref().map(KvCache::bytes),
            _ => None,
        });
        MemoryUse {
            weights: state.weights.bytes(),
            kv: kv.sum(),
            scratch: state.streams.values().map(|s| s.x.len() as u64 * 4).sum(),
            copied: state.weights.bytes_read,
        }
    }

    fn describe(&self, block: BlockId) -> Vec<String> {
        self.lock().blocks.get(&block).map(|b| format!("{} float64", b.op.name())).into_iter().collect()
    }

    fn set_profiling(&self, on: bool) {
        self.lock().times = on.then(HashMap::new);
    }

    fn kernel_times(&self) -> Vec<KernelTime> {
        let mut times: Vec<KernelTime> = self.lock().times.iter().flat_map(|t| t.values().cloned()).collect();
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        times
    }
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
        })
    }
}

impl Op {
    fn name(&self) -> &'static str {
        match self {
            Op::Embedding(_) => "embedding",
            Op::Attention { .. } => "attention",
            Op::Ffn(_) => "ffn",
            Op::Head(_) => "head",
        }
    }

    /// Runs the block over a stream; the message names a broken precondition.
    fn run(&mut self, stream: &mut Stream, batch: &Batch) -> Result<(), String> {
        match self {
            Op::Embedding(block) => {
                check_tokens(batch, block.spec.vocab)?;
                stream.width = block.spec.width;
                let tokens = batch.slices.iter().flat_map(|s| &s.tokens).copied();
                stream.x = block.forward(tokens).into_iter().map(|v| v as f32).collect();
                stream.output = None;
            }
            Op::Attention { block, kv } => {
                stream.expect(block.spec.width, batch)?;
                let kv = kv.as_mut().ok_or("no KV cache was reserved")?;
                check_pages(batch, kv.layout())?;
                let y = block.forward(&widen(&stream.x), batch, kv);
                stream.add(&y);
            }
            Op::Ffn(block) => {
                stream.expect(block.spec.width, batch)?;
                let y = block.forward(&widen(&stream.x));
                stream.add(&y);
            }
            Op::Head(block) => {
                stream.expect(block.spec.width, batch)?;
                check_outputs(batch)?;
                stream.output = Some(block.forward(&widen(&stream.x), batch));
            }
        }
        Ok(())
    }
}

impl Stream {
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
