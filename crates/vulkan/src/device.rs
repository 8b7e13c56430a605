//! The `Device` of a GPU.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use unicorn_core::{
    Block, BlockId, Device, DeviceError, DeviceKind, DeviceOptions, DeviceProfile, Instrument, KernelTime,
    MemoryNeed, MemoryRoom, MemoryUse, RateKind, Roofline, SLOTS, SharedBuffer, Sharing, StateCopy,
    StateLayout, StreamId, TensorType, WeightSource, Work, Workload,
};

use crate::context::Context;
use crate::cut::{self, Pace};
use crate::error::VulkanError;
use crate::lane::Lane;
use crate::load::{self, Loader};
use crate::memory::Buffer;
use crate::pipeline::Pipelines;
use crate::place::Place;
use crate::profile::GpuProfile;
use crate::replay::Bound;
use crate::scratch::Sizes;
use crate::select::{self, BlockShape, Router};
use crate::state::{Inner, State};
use crate::stream::Shared;
use crate::timing::Timings;
use crate::waiter::Submissions;

/// A GPU through Vulkan compute shaders.
pub struct VulkanDevice {
    inner: Arc<Inner>,
    /// Tells the end of work; without it whoever submits work waits for it.
    waiter: Option<JoinHandle<()>>,
}

/// Options of [`VulkanDevice::open`].
#[derive(Clone, PartialEq, Debug, Default)]
pub struct VulkanOptions {
    /// Folder for compiled pipelines; without one each start compiles them anew.
    pub cache_folder: Option<PathBuf>,
    /// GPU seconds that one submission may take; without it bounded on integrated GPUs alone.
    pub submit_seconds_max: Option<f64>,
}

impl VulkanDevice {
    /// Takes an open GPU with default options.
    #[cfg(test)]
    pub(crate) fn new(context: Context, name: &str) -> Result<VulkanDevice, VulkanError> {
        VulkanDevice::open(context, name, &VulkanOptions::default())
    }

    /// Takes an open GPU, with options. `name` is its name on the command line.
    pub fn open(context: Context, name: &str, options: &VulkanOptions) -> Result<VulkanDevice, VulkanError> {
        let context = Arc::new(context);
        let gpu = context.profile();
        let local = gpu.heaps.iter().filter(|h| h.device_local || gpu.integrated);
        let mut features = vec![gpu.driver.clone(), format!("subgroup {}", select::subgroup(gpu))];
        features.extend(gpu.integer_dot.then(|| "integer dot".to_string()));
        features.extend(gpu.matrices.iter().map(|m| format!("matrix {}x{}x{} {:?}", m.m, m.n, m.k, m.types)));
        features.extend(gpu.matrix2.then(|| "NV cooperative matrix 2".to_string()));
        let profile = DeviceProfile {
            name: name.to_string(),
            kind: DeviceKind::Vulkan,
            description: gpu.name.clone(),
            memory_bytes: local.map(|h| h.bytes).sum(),
            unified_memory: gpu.integrated || gpu.software,
            on_host: gpu.software,
            workers: gpu.cores.unwrap_or(1) as usize,
            wait_awake: !gpu.integrated && !gpu.software,
            features,
        };
        let pipelines = Pipelines::new(&context, options.cache_folder.as_deref())?;
        let seconds_max = options.submit_seconds_max.or_else(|| cut::seconds_max(context.profile()));
        let slots = Buffer::new(&context, Place::Near, 4 * SLOTS as u64, "tokens that heads keep")?;
        // Whatever is read from there is a token.
        slots.write(0, &[0; 4 * SLOTS]);
        let state = State {
            streams: HashMap::new(),
            shared: HashMap::new(),
            blocks: HashMap::new(),
            turns: Vec::new(),
            slots,
            loader: Loader::new(&context),
            pipelines,
            sizes: Sizes::default(),
            layout: None,
            kv_bytes: 0,
            next_block: 0,
            timings: None,
            options: DeviceOptions::default(),
            gpu: context.profile().clone(),
            bound: Bound { seconds_max, pace: Pace::default() },
        };
        let inner = Arc::new(Inner {
            profile,
            context,
            state: Mutex::new(state),
            submissions: Submissions::new(),
            last: Mutex::default(),
            shared: AtomicU64::new(0),
            waits_itself: AtomicBool::new(false),
        });
        let serving = inner.clone();
        let name = format!("{}-waiter", inner.profile.name);
        let serve = move || {
            let gpu = serving.context.profile();
            // A discrete GPU's next token comes sooner than a sleeping thread wakes.
            let eager = !gpu.integrated && !gpu.software;
            serving.serve(eager);
        };
        let waiter = std::thread::Builder::new().name(name).spawn(serve).ok();
        inner.waits_itself.store(waiter.is_none(), Ordering::Relaxed);
        Ok(VulkanDevice { inner, waiter })
    }

    /// What went wrong without stopping anything, for people: so far, a pipeline cache that could not be used.
    pub fn notes(&self) -> Vec<String> {
        self.inner.lock().pipelines.notes()
    }

    /// Sees that the validation layer tells a mistake made on purpose, synchronization included; the message is taken back.
    ///
    /// Errors where validation was not asked for or the mistake is not told.
    pub fn prove_validation(&self) -> Result<(), VulkanError> {
        crate::prove::prove_validation(&self.inner.context)
    }

    /// The open GPU.
    pub fn context(&self) -> &Arc<Context> {
        &self.inner.context
    }
}

impl Drop for VulkanDevice {
    fn drop(&mut self) {
        self.inner.submissions.close();
        if let Some(waiter) = self.waiter.take() {
            // It ends once the end of all submitted work was told. On this very thread it cannot be waited for.
            if waiter.thread().id() != std::thread::current().id() {
                let _ = waiter.join();
            }
        }
    }
}

impl Device for VulkanDevice {
    fn profile(&self) -> &DeviceProfile {
        &self.inner.profile
    }

    fn needs(&self, blocks: &[&Block], workload: &Workload) -> Result<MemoryNeed, DeviceError> {
        crate::needs::needs(&self.inner, &self.inner.lock(), blocks, workload)
    }

    fn load(&self, block: &Block, source: &Arc<dyn WeightSource>) -> Result<BlockId, DeviceError> {
        let inner = &self.inner;
        block.check().map_err(|e| inner.invalid(e.to_string()))?;
        let mut state = inner.lock();
        if let Some(what) = load::unsupported(block) {
            return Err(inner.unsupported(what));
        }
        inner.require_kernels(state.router(), &BlockShape::of(block))?;
        let loaded = state.loader.load(block, &**source)?;
        state.sizes = state.sizes.max(load::sizes(&loaded));
        let id = BlockId(state.next_block);
        state.next_block += 1;
        state.blocks.insert(id, loaded);
        Ok(id)
    }

    fn unload(&self, block: BlockId) {
        let mut state = self.inner.lock();
        // Recordings hold addresses of what is freed now. On a lost device nothing runs any more.
        if self.inner.forget_recordings(&mut state).is_err() {
            state.streams.values_mut().for_each(|s| s.recordings.clear());
        }
        state.blocks.remove(&block);
        if state.blocks.is_empty() {
            // The next model may be of another width.
            state.streams.clear();
            state.shared.clear();
        }
        state.sizes = state.blocks.values().map(load::sizes).fold(Sizes::default(), Sizes::max);
    }

    fn reserve(&self, layout: &StateLayout) -> Result<(), DeviceError> {
        self.inner.reserve(layout)
    }

    fn attach(&self, stream: StreamId, residual: &Arc<SharedBuffer>) -> Result<Sharing, DeviceError> {
        let inner = &self.inner;
        let mut state = inner.lock();
        if let Some(held) = state.streams.get(&stream) {
            let idle = inner.context.has_reached(held.pending, "a stream").map_err(|e| inner.fail(e))?;
            if !idle {
                return Err(inner.invalid("a stream with work under way gets another shared buffer"));
            }
        }
        // Its recordings have the addresses of the buffer before.
        state.streams.remove(&stream);
        state.shared.remove(&stream);
        let shared = Shared::new(&inner.context, residual).map_err(|e| inner.fail(e))?;
        let sharing = shared.sharing;
        state.shared.insert(stream, Arc::new(shared));
        Ok(sharing)
    }

    fn crosses_by(&self) -> Option<String> {
        let by = match (self.inner.context.lane(Lane::Inward), self.inner.context.lane(Lane::Outward)) {
            (Some(_), Some(_)) => "two transfer queues, one for each way",
            (Some(_), None) => "a transfer queue on their way in, the compute queue on their way out",
            _ if self.inner.profile.unified_memory => return None,
            _ => "the compute queue",
        };
        Some(by.to_string())
    }

    fn submit(&self, work: Work) {
        self.inner.submit(work);
    }

    fn copy_state(&self, copy: StateCopy) {
        self.inner.copy_state(copy);
    }

    fn memory(&self) -> MemoryUse {
        let inner = &self.inner;
        let state = inner.lock();
        // Everything that the driver was asked for, so that the parts add up to what is resident.
        let resident = inner.context.resident();
        let (weights, kv) = (state.loader.matrix_bytes(), state.kv_bytes);
        MemoryUse {
            weights,
            kv,
            scratch: resident.saturating_sub(weights + kv),
            copied: inner.context.copied(),
            shared: inner.shared.load(Ordering::Relaxed),
        }
    }

    fn describe(&self, block: BlockId) -> Vec<String> {
        let state = self.inner.lock();
        state.blocks.get(&block).map(|b| state.router().describe(&b.shape())).unwrap_or_default()
    }
}

impl Instrument for VulkanDevice {
    fn measure(&self) -> Result<Roofline, DeviceError> {
        let state = self.inner.lock();
        crate::roofline::measure(&self.inner.context, &state.pipelines).map_err(|e| self.inner.fail(e))
    }

    fn room(&self) -> Option<MemoryRoom> {
        self.inner.context.room()
    }

    fn configure(&self, options: &DeviceOptions) -> Result<(), DeviceError> {
        let mut state = self.inner.lock();
        let gpu = GpuProfile { avoid: options.avoid.clone(), ..state.gpu.clone() };
        let router = Router { gpu: &gpu, options, ..state.router() };
        state.blocks.values().try_for_each(|block| self.inner.require_kernels(router, &block.shape()))?;
        self.inner.forget_recordings(&mut state)?;
        state.gpu = gpu;
        state.options = options.clone();
        Ok(())
    }

    fn rate_kind(&self, ty: TensorType) -> RateKind {
        if ty.is_quantized() { RateKind::Integer } else { RateKind::Float }
    }

    fn set_profiling(&self, on: bool) {
        self.inner.lock().timings = on.then(Timings::default);
    }

    fn kernel_times(&self) -> Vec<KernelTime> {
        self.inner.lock().timings.as_ref().map(Timings::list).unwrap_or_default()
    }
}
