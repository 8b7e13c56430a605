//! The [`Device`] trait over the fast kernels.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unicorn_core::{
    Block, BlockId, Device, DeviceError, DeviceKind, DeviceProfile, HeadOutput, KernelTime, KvLayout,
    MemoryUse, NormSpec, RateKind, Roofline, RopeSpec, StreamId, TensorType, Ticket, Weight, WeightSource,
    Work,
};

use super::blocks::{AttentionBlock, EmbeddingBlock, FfnBlock, HeadBlock, Loaded, Norm, QkNorm};
use super::kv::{KvCache, KvGeometry};
use super::level::SimdLevel;
use super::linear::PackedMatrix;
use super::pool::Pool;
use super::submit::{Memory, Stream};
use super::topology::{brand, free_bytes, memory_bytes, physical_cores};
use super::weights::WeightStore;
use super::{linear, roofline};
use crate::reference::{check_block, check_layout};

/// Name of the device in messages and on the command line.
pub(super) const NAME: &str = "cpu";
/// More threads than this are refused: surely a mistake.
const THREADS_MAX: usize = 1024;

/// How to open the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the caller's included. `None` takes one per physical core that the process may use.
    pub threads: Option<usize>,
    /// SIMD level. `None` takes the widest that the processor has.
    pub level: Option<SimdLevel>,
}

/// The processor as a device: packed weights, SIMD kernels, a thread pool. Work is done when [`Device::submit`] returns; the
/// submitting thread takes part in it. Results do not depend on the number of threads, the batch or the cut of a prompt.
pub struct SimdDevice {
    profile: DeviceProfile,
    level: SimdLevel,
    pool: Pool,
    state: Mutex<State>,
}

/// Everything that submissions and loads change.
#[derive(Default)]
pub(super) struct State {
    pub(super) weights: WeightStore,
    pub(super) blocks: HashMap<BlockId, Loaded>,
    next_block: u32,
    pub(super) layout: Option<KvLayout>,
    pub(super) streams: HashMap<StreamId, Stream>,
    /// Distinct rope specs of the loaded blocks.
    pub(super) ropes: Vec<RopeSpec>,
    pub(super) memory: Memory,
    tickets: u64,
    /// Per kernel, while profiling is on.
    pub(super) times: Option<HashMap<String, KernelTime>>,
}

pub(super) fn invalid(what: impl Into<String>) -> DeviceError {
    DeviceError::Invalid { device: NAME.to_owned(), what: what.into() }
}

pub(super) fn out_of_memory(what: impl Into<String>, requested: u64) -> DeviceError {
    DeviceError::OutOfMemory { device: NAME.to_owned(), what: what.into(), requested, free: free_bytes() }
}

fn unsupported(what: impl Into<String>) -> DeviceError {
    DeviceError::Unsupported { device: NAME.to_owned(), what: what.into() }
}

impl SimdDevice {
    /// Starts the thread pool.
    ///
    /// Errors when the processor lacks the level or the number of threads is absurd. More threads than the system grants or than
    /// there are CPUs to run them do not work: `profile().workers` is the number that does.
    pub fn open(options: CpuOptions) -> Result<SimdDevice, DeviceError> {
        let level = options.level.unwrap_or_else(SimdLevel::detect);
        if !level.is_available() {
            return Err(unsupported(format!("SIMD level {level} on this processor")));
        }
        let threads = options.threads.unwrap_or_else(physical_cores);
        if threads == 0 || threads > THREADS_MAX {
            return Err(invalid(format!("{threads} threads")));
        }
        let pool = Pool::new(threads);
        let profile = DeviceProfile {
            name: NAME.to_owned(),
            kind: DeviceKind::Cpu,
            description: brand(),
            memory_bytes: memory_bytes(),
            unified_memory: true,
            workers: pool.team(),
            features: level.features().iter().map(|f| (*f).to_owned()).collect(),
        };
        Ok(SimdDevice { profile, level, pool, state: Mutex::new(State::default()) })
    }

    /// The level whose kernels run.
    pub fn level(&self) -> SimdLevel {
        self.level
    }

    /// A panic inside the lock is a bug that was reported as an error already; the state behind it is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load_block(
        &self,
        state: &mut State,
        block: &Block,
        source: &dyn WeightSource,
    ) -> Result<Loaded, DeviceError> {
        let level = self.level;
        let mut loader = Loader { store: &mut state.weights, source, level, pool: &self.pool };
        Ok(match block {
            Block::Embedding { spec, table } => {
                let [table] = loader.matrices([table])?;
                Loaded::Embedding(EmbeddingBlock::new(spec, table))
            }
            Block::Attention { spec, weights: w } => {
                let matrices = loader.matrices([&w.q, &w.k, &w.v, &w.o])?;
                let norm = loader.norm(&spec.norm, &w.norm)?;
                let post_norm = loader.optional_norm(&spec.post_norm, &w.post_norm)?;
                let mut biases = [None, None, None, None];
                for (bias, weight) in biases.iter_mut().zip([&w.q_bias, &w.k_bias, &w.v_bias, &w.o_bias]) {
                    *bias = weight.as_ref().map(|b| loader.vector(b, 0.0)).transpose()?;
                }
                let qk_norm = match (&spec.qk_norm, &w.q_norm, &w.k_norm) {
                    (Some(norm), Some(q), Some(k)) => {
                        let offset = norm.weight_offset;
                        Some(QkNorm {
                            q: loader.vector(q, offset)?,
                            k: loader.vector(k, offset)?,
                            eps: norm.eps,
                        })
                    }
                    _ => None,
                };
                let known = state.ropes.iter().position(|r| *r == spec.rope);
                let rope = known.unwrap_or_else(|| {
                    state.ropes.push(spec.rope.clone());
                    state.ropes.len() - 1
                });
                let mut block =
                    AttentionBlock::new(spec, rope, norm, matrices, biases, qk_norm, post_norm, level);
                if let Some(layout) = state.layout {
                    block.set_cache(Some(new_cache(&block, layout)?), level);
                }
                Loaded::Attention(Box::new(block))
            }
            Block::Ffn { spec, weights: w } => {
                let matrices = loader.matrices([&w.gate, &w.up, &w.down])?;
                let norm = loader.norm(&spec.norm, &w.norm)?;
                let post_norm = loader.optional_norm(&spec.post_norm, &w.post_norm)?;
                Loaded::Ffn(FfnBlock::new(spec, norm, matrices, post_norm))
            }
            Block::Head { spec, norm, weight } => {
                let [matrix] = loader.matrices([weight])?;
                let norm = loader.norm(&spec.norm, norm)?;
                Loaded::Head(HeadBlock::new(spec, norm, matrix, level))
            }
        })
    }
}

fn new_cache(block: &AttentionBlock, layout: KvLayout) -> Result<KvCache, DeviceError> {
    let (kv_heads, dim) = (block.spec.kv_heads, block.spec.head_dim);
    check_layout(&layout, dim).map_err(unsupported)?;
    let absurd = || out_of_memory(format!("a KV cache of {} pages", layout.pages), u64::MAX);
    let geometry = KvGeometry::new(layout, kv_heads, dim).ok_or_else(absurd)?;
    let what = || format!("the KV cache of a block, {} pages", layout.pages);
    KvCache::new(geometry).ok_or_else(|| out_of_memory(what(), geometry.bytes() as u64))
}

/// Reads the weights of one block.
struct Loader<'a> {
    store: &'a mut WeightStore,
    source: &'a dyn WeightSource,
    level: SimdLevel,
    pool: &'a Pool,
}

impl Loader<'_> {
    fn matrices<const N: usize>(
        &mut self,
        weights: [&Weight; N],
    ) -> Result<[Arc<PackedMatrix>; N], DeviceError> {
        let loaded = self.store.load_matrices(&weights, self.source, self.level, self.pool, NAME)?;
        loaded.try_into().map_err(|_| invalid("a block with another number of matrices"))
    }

    fn vector(&mut self, weight: &Weight, offset: f32) -> Result<Arc<[f32]>, DeviceError> {
        self.store.load_vector(weight, offset, self.source)
    }

    fn norm(&mut self, spec: &NormSpec, weight: &Weight) -> Result<Norm, DeviceError> {
        Ok(Norm::new(spec, self.vector(weight, spec.weight_offset)?))
    }

    fn optional_norm(
        &mut self,
        spec: &Option<NormSpec>,
        weight: &Option<Weight>,
    ) -> Result<Option<Norm>, DeviceError> {
        match (spec, weight) {
            (Some(spec), Some(weight)) => self.norm(spec, weight).map(Some),
            _ => Ok(None),
        }
    }
}

impl Device for SimdDevice {
    fn profile(&self) -> &DeviceProfile {
        &self.profile
    }

    fn measure(&self) -> Result<Roofline, DeviceError> {
        // Other work would only disturb the measurement.
        let _state = self.lock();
        Ok(roofline::measure(self.level, self.pool.team()))
    }

    fn rate_kind(&self, ty: TensorType) -> RateKind {
        linear::select(ty, self.level).rate()
    }

    fn load(&self, block: &Block, source: &dyn WeightSource) -> Result<BlockId, DeviceError> {
        check_block(block).map_err(invalid)?;
        let mut state = self.lock();
        match self.load_block(&mut state, block, source) {
            Ok(loaded) => {
                let id = BlockId(state.next_block);
                state.next_block += 1;
                state.blocks.insert(id, loaded);
                Ok(id)
            }
            Err(error) => {
                state.weights.sweep();
                Err(error)
            }
        }
    }

    fn unload(&self, block: BlockId) {
        let mut state = self.lock();
        state.blocks.remove(&block);
        state.weights.sweep();
        if state.blocks.is_empty() {
            state.ropes.clear();
        }
    }

    fn reserve_kv(&self, layout: KvLayout) -> Result<(), DeviceError> {
        let mut state = self.lock();
        let attention = |loaded: &Loaded| match loaded {
            Loaded::Attention(block) => check_layout(&layout, block.spec.head_dim),
            _ => Ok(()),
        };
        state.blocks.values().try_for_each(attention).map_err(unsupported)?;
        // Free the old caches first: both together may not fit.
        state.layout = None;
        let mixers =
            |state: &mut State, f: &mut dyn FnMut(&mut AttentionBlock) -> Result<(), DeviceError>| {
                state
                    .blocks
                    .values_mut()
                    .try_for_each(|b| if let Loaded::Attention(b) = b { f(b) } else { Ok(()) })
            };
        mixers(&mut state, &mut |block| {
            block.set_cache(None, self.level);
            Ok(())
        })?;
        mixers(&mut state, &mut |block| {
            let cache = new_cache(block, layout)?;
            block.set_cache(Some(cache), self.level);
            Ok(())
        })?;
        state.layout = Some(layout);
        Ok(())
    }

    fn submit(&self, work: &Work) -> Result<Ticket, DeviceError> {
        let mut state = self.lock();
        state.run(work, &self.pool, self.level)?;
        state.tickets += 1;
        Ok(Ticket(state.tickets))
    }

    fn wait(&self, ticket: Ticket) -> Result<(), DeviceError> {
        if ticket.0 == 0 || ticket.0 > self.lock().tickets {
            return Err(invalid(format!("no ticket {}", ticket.0)));
        }
        Ok(())
    }

    fn read_residual(&self, stream: StreamId, first: usize, out: &mut [f32]) -> Result<(), DeviceError> {
        let state = self.lock();
        let held = state.streams.get(&stream).ok_or_else(|| invalid(format!("no stream {}", stream.0)))?;
        let range = first.checked_mul(held.width).and_then(|s| Some(s..s.checked_add(out.len())?));
        let rows = range.and_then(|r| held.x.get(r));
        let rows = rows.ok_or_else(|| {
            invalid(format!("{} values at row {first} of {} in all", out.len(), held.x.len()))
        })?;
        out.copy_from_slice(rows);
        Ok(())
    }

    fn write_residual(&self, stream: StreamId, width: usize, rows: &[f32]) -> Result<(), DeviceError> {
        if width == 0 || !rows.len().is_multiple_of(width) {
            return Err(invalid(format!("{} values in rows of {width}", rows.len())));
        }
        let mut state = self.lock();
        let held = state.streams.entry(stream).or_default();
        held.width = width;
        held.x.clear();
        held.x.extend_from_slice(rows);
        held.output = None;
        Ok(())
    }

    fn take_output(&self, stream: StreamId) -> Result<HeadOutput, DeviceError> {
        let output = self.lock().streams.get_mut(&stream).and_then(|s| s.output.take());
        output.ok_or_else(|| invalid(format!("stream {} has no output", stream.0)))
    }

    fn memory(&self) -> MemoryUse {
        let mut state = self.lock();
        let kv = state.blocks.values().filter_map(|b| match b {
            Loaded::Attention(block) => block.kv.as_ref().map(|kv| kv.geometry().bytes() as u64),
            _ => None,
        });
        let kv = kv.sum();
        let streams: usize = state.streams.values().map(|s| s.x.capacity() * 4).sum();
        MemoryUse {
            weights: state.weights.bytes(),
            kv,
            scratch: (streams + state.memory.bytes()) as u64,
            copied: state.weights.copied,
        }
    }

    fn describe(&self, block: BlockId) -> Vec<String> {
        self.lock().blocks.get(&block).map(Loaded::describe).unwrap_or_default()
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
