//! A device that is wrong on purpose: it shows that a test notices.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unicorn_core::{
    Batch, BatchLimits, Block, BlockId, Device, DeviceError, DeviceOptions, DeviceProfile, Instrument,
    KernelTime, KvType, MemoryNeed, MemoryUse, RateKind, Roofline, SharedBuffer, Sharing, Slice, StateCopy,
    StateLayout, StateSpec, StreamId, TensorType, WeightSource, Work, Workload, run_to_end,
};

/// Another device with edits to what it is given or returns; without any it is that device. One block is loaded at a time, and work is
/// done when [`Device::submit`] returns.
pub struct Flawed<D> {
    inner: D,
    block: fn(&mut Block),
    slice: fn(&mut Slice),
    residual: fn(&mut [f32]),
    kernels: Option<fn(&Block) -> Vec<String>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the block at hand keeps, its flaw included.
    keeps: Option<StateSpec>,
    shared: Option<Arc<SharedBuffer>>,
    /// Names by `kernels` since profiling was switched on.
    ran: Option<Vec<String>>,
}

impl<D: Device> Flawed<D> {
    /// The device as it is.
    pub fn new(inner: D) -> Flawed<D> {
        let state = Mutex::default();
        Flawed { inner, block: |_| {}, slice: |_| {}, residual: |_| {}, kernels: None, state }
    }

    /// Edits every block before it is loaded.
    pub fn block(self, edit: fn(&mut Block)) -> Flawed<D> {
        Flawed { block: edit, ..self }
    }

    /// Edits every slice of a batch before it is submitted.
    pub fn slice(self, edit: fn(&mut Slice)) -> Flawed<D> {
        Flawed { slice: edit, ..self }
    }

    /// Edits the rows of the residual stream that come back.
    pub fn residual(self, edit: fn(&mut [f32])) -> Flawed<D> {
        Flawed { residual: edit, ..self }
    }

    /// Names the kernels that run a block, in the place of the device's own: [`Instrument::kernel_times`] lists those of the blocks loaded
    /// since profiling was switched on.
    pub fn kernels(self, names: fn(&Block) -> Vec<String>) -> Flawed<D> {
        Flawed { kernels: Some(names), ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layout as the flawed block needs it.
    fn layout(&self, layout: &StateLayout) -> StateLayout {
        let mut layout = layout.clone();
        if let Some(spec) = self.state().keeps {
            layout.groups.iter_mut().for_each(|g| g.spec = spec);
        }
        layout
    }

    fn flawed(&self, batch: &Batch) -> Result<Arc<Batch>, DeviceError> {
        let mut slices = batch.slices().to_vec();
        slices.iter_mut().for_each(self.slice);
        let state = batch.limits().state.as_ref().map(|layout| self.layout(layout));
        let limits = Arc::new(BatchLimits { state, vocab: batch.limits().vocab });
        let device = || self.inner.profile().name.clone();
        let make = if batch.whole().is_some() { Batch::of_whole_sequences } else { Batch::new };
        make(slices, batch.outputs().to_vec(), &limits)
            .map(Arc::new)
            .map_err(|e| DeviceError::Invalid { device: device(), what: e.to_string() })
    }
}

impl<D: Device> Device for Flawed<D> {
    fn needs(&self, blocks: &[&Block], workload: &Workload) -> Result<MemoryNeed, DeviceError> {
        self.inner.needs(blocks, workload)
    }

    fn load(&self, block: &Block, source: &Arc<dyn WeightSource>) -> Result<BlockId, DeviceError> {
        if let (Some(names), Some(ran)) = (self.kernels, self.state().ran.as_mut()) {
            ran.extend(names(block));
        }
        let mut block = block.clone();
        (self.block)(&mut block);
        self.state().keeps = block.state();
        // What was reserved before was for a block without the flaw.
        if let Some(spec) = block.state() {
            let mut layout = StateLayout::paged(32, 1, 32, KvType::F16);
            layout.groups[0].spec = spec;
            self.inner.reserve(&layout)?;
        }
        self.inner.load(&block, source)
    }

    fn submit(&self, work: Work) {
        let ran = self
            .flawed(&work.batch)
            .and_then(|batch| run_to_end(&self.inner, work.stream, &work.blocks, &batch, work.crossing));
        if let Some(shared) = &self.state().shared {
            let mut rows = vec![0.0; work.batch.rows() * shared.width()];
            shared.read(&mut rows);
            (self.residual)(&mut rows);
            shared.write(&rows);
        }
        work.done.give(ran.map_err(Arc::new));
    }

    fn attach(&self, stream: StreamId, residual: &Arc<SharedBuffer>) -> Result<Sharing, DeviceError> {
        self.state().shared = Some(residual.clone());
        self.inner.attach(stream, residual)
    }

    fn profile(&self) -> &DeviceProfile {
        self.inner.profile()
    }

    fn unload(&self, block: BlockId) {
        self.inner.unload(block)
    }

    fn reserve(&self, layout: &StateLayout) -> Result<(), DeviceError> {
        self.inner.reserve(&self.layout(layout))
    }

    fn copy_state(&self, copy: StateCopy) {
        self.inner.copy_state(copy);
    }

    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }

    fn describe(&self, block: BlockId) -> Vec<String> {
        self.inner.describe(block)
    }
}

impl<D: Instrument> Instrument for Flawed<D> {
    fn measure(&self) -> Result<Roofline, DeviceError> {
        self.inner.measure()
    }

    fn rate_kind(&self, ty: TensorType) -> RateKind {
        self.inner.rate_kind(ty)
    }

    fn configure(&self, options: &DeviceOptions) -> Result<(), DeviceError> {
        self.inner.configure(options)
    }

    fn set_profiling(&self, on: bool) {
        self.state().ran = on.then(Vec::new);
        self.inner.set_profiling(on);
    }

    fn kernel_times(&self) -> Vec<KernelTime> {
        if self.kernels.is_none() {
            return self.inner.kernel_times();
        }
        let time =
            |kernel| KernelTime { kernel, calls: 1, seconds: 0.0, bytes: 0, flops: 0, rate: RateKind::Float };
        self.state().ran.clone().unwrap_or_default().into_iter().map(time).collect()
    }
}
