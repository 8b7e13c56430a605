//! The [`Device`] trait over the fast kernels.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use unicorn_core::{
    Block, BlockId, Device, DeviceError, DeviceKind, DeviceProfile, HeadOutput, KernelTime, KvLayout,
    MemoryUse, RateKind, Roofline, StreamId, TensorType, Ticket, WeightSource, Work,
};

use super::blocks::Loaded;
use super::errors::{NAME, invalid, unsupported};
use super::level::SimdLevel;
use super::load::{load_block, reserve_kv};
use super::pool::Pool;
use super::state::State;
use super::topology::{brand, memory_bytes, physical_cores};
use super::{linear, roofline, submit};
use crate::reference::check_block;

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
        match load_block(&mut state, block, source, self.level, &self.pool) {
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
        reserve_kv(&mut self.lock(), layout, self.level)
    }

    fn submit(&self, work: &Work) -> Result<Ticket, DeviceError> {
        let mut state = self.lock();
        submit::run(&mut state, work, &self.pool, self.level)?;
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
            scratch: (streams + state.workspace.bytes()) as u64,
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
