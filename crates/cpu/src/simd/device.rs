//! The [`Device`] trait over the fast kernels.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unicorn_core::{
    Block, BlockId, Device, DeviceError, DeviceKind, DeviceProfile, Instrument, KernelTime, MemoryNeed,
    MemoryUse, RateKind, Roofline, SharedBuffer, Sharing, StateCopy, StateLayout, StreamId, TensorType,
    WeightSource, Work, Workload,
};

use super::blocks::Loaded;
use super::errors::{NAME, invalid, unsupported};
use super::level::SimdLevel;
use super::load::{load_block, reserve};
use super::needs::needs;
use super::pool::Pool;
use super::state::State;
use super::topology::{brand, memory_bytes, physical_cores};
use super::{linear, pages, roofline, submit};
use crate::submitter::{Job, Submitter};

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

/// The processor as a device: packed weights, SIMD kernels, a thread pool whose first thread is the device's own and takes work as it
/// becomes ready. Results do not depend on the number of threads, the batch or the cut of a prompt.
pub struct SimdDevice {
    // Its thread ends before the rest goes.
    submitter: Submitter,
    inner: Arc<Inner>,
}

/// What the device's handle and its thread share.
struct Inner {
    profile: DeviceProfile,
    level: SimdLevel,
    pool: Pool,
    state: Mutex<State>,
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
            on_host: true,
            workers: pool.team(),
            wait_awake: false,
            features: level.features().iter().map(|f| (*f).to_owned()).collect(),
        };
        let inner = Arc::new(Inner { profile, level, pool, state: Mutex::new(State::default()) });
        let running = inner.clone();
        let submitter = Submitter::start(NAME, move |job| match job {
            Job::Work(work) => submit::run(&mut running.lock(), work, &running.pool, running.level),
            Job::Copy(copy) => pages::copy(&mut running.lock(), copy, &running.pool).map(|()| None),
        });
        Ok(SimdDevice { submitter, inner })
    }

    /// The level whose kernels run.
    pub fn level(&self) -> SimdLevel {
        self.inner.level
    }
}

impl Inner {
    /// A panic inside the lock is a bug that was reported as an error already; the state behind it is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for SimdDevice {
    fn profile(&self) -> &DeviceProfile {
        &self.inner.profile
    }

    fn needs(&self, blocks: &[&Block], workload: &Workload) -> Result<MemoryNeed, DeviceError> {
        needs(blocks, workload, self.inner.level, self.inner.pool.threads())
    }

    fn load(&self, block: &Block, source: &Arc<dyn WeightSource>) -> Result<BlockId, DeviceError> {
        block.check().map_err(|e| invalid(e.to_string()))?;
        let mut state = self.inner.lock();
        match load_block(&mut state, block, &**source, self.inner.level, &self.inner.pool) {
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
        let mut state = self.inner.lock();
        state.blocks.remove(&block);
        state.weights.sweep();
        if state.blocks.is_empty() {
            // The next model may be of another width.
            state.streams.clear();
            state.ropes.clear();
        }
    }

    fn reserve(&self, layout: &StateLayout) -> Result<(), DeviceError> {
        reserve(&mut self.inner.lock(), layout, self.inner.level)
    }

    fn attach(&self, stream: StreamId, residual: &Arc<SharedBuffer>) -> Result<Sharing, DeviceError> {
        let mut state = self.inner.lock();
        let held = state.streams.entry(stream).or_default();
        (held.rows, held.width) = (0, residual.width());
        held.shared = Some(residual.clone());
        Ok(Sharing::InPlace)
    }

    fn submit(&self, work: Work) {
        self.submitter.submit(Job::Work(work));
    }

    fn copy_state(&self, copy: StateCopy) {
        self.submitter.submit(Job::Copy(copy));
    }

    fn memory(&self) -> MemoryUse {
        let mut state = self.inner.lock();
        let kv = state.blocks.values().filter_map(|b| match b {
            Loaded::Attention(block) => block.kv.as_ref().map(|kv| kv.geometry().bytes() as u64),
            Loaded::ShortConv(block) => block.states.as_ref()?.layout().bytes().map(|bytes| bytes as u64),
            _ => None,
        });
        let kv = kv.sum();
        let streams: usize = state.streams.values().map(|s| s.bytes()).sum();
        MemoryUse {
            weights: state.weights.bytes(),
            kv,
            scratch: (streams + state.workspace.bytes()) as u64,
            copied: state.weights.copied + state.copied,
            shared: state.shared,
        }
    }

    fn describe(&self, block: BlockId) -> Vec<String> {
        self.inner.lock().blocks.get(&block).map(Loaded::describe).unwrap_or_default()
    }
}

impl Instrument for SimdDevice {
    fn measure(&self) -> Result<Roofline, DeviceError> {
        // Other work would only disturb the measurement.
        let _state = self.inner.lock();
        Ok(roofline::measure(self.inner.level, self.inner.pool.team()))
    }

    fn rate_kind(&self, ty: TensorType) -> RateKind {
        linear::select(ty, self.inner.level).rate()
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
