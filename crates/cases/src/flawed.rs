//! A device that is wrong on purpose: it shows that a test notices.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unicorn_core::{
    Batch, Block, BlockId, Device, DeviceError, DeviceOptions, DeviceProfile, HeadOutput, KernelTime,
    KvLayout, MemoryUse, RateKind, Roofline, StreamId, TensorType, Ticket, WeightSource, Work,
};

/// Another device with edits to what it is given or returns; without any it is that device.
pub struct Flawed<D> {
    inner: D,
    block: fn(&mut Block),
    batch: fn(&mut Batch),
    residual: fn(&mut [f32]),
    kernels: Option<fn(&Block) -> Vec<String>>,
    /// Names by `kernels` since profiling was switched on.
    ran: Mutex<Option<Vec<String>>>,
}

impl<D: Device> Flawed<D> {
    /// The device as it is.
    pub fn new(inner: D) -> Flawed<D> {
        let ran = Mutex::new(None);
        Flawed { inner, block: |_| {}, batch: |_| {}, residual: |_| {}, kernels: None, ran }
    }

    /// Edits every block before it is loaded.
    pub fn block(self, edit: fn(&mut Block)) -> Flawed<D> {
        Flawed { block: edit, ..self }
    }

    /// Edits every batch before it is submitted.
    pub fn batch(self, edit: fn(&mut Batch)) -> Flawed<D> {
        Flawed { batch: edit, ..self }
    }

    /// Edits the rows of the residual stream that are read back.
    pub fn residual(self, edit: fn(&mut [f32])) -> Flawed<D> {
        Flawed { residual: edit, ..self }
    }

    /// Names the kernels that run a block, in the place of the device's own: [`Device::kernel_times`] lists those of the blocks loaded
    /// since profiling was switched on.
    pub fn kernels(self, names: fn(&Block) -> Vec<String>) -> Flawed<D> {
        Flawed { kernels: Some(names), ..self }
    }

    fn ran(&self) -> MutexGuard<'_, Option<Vec<String>>> {
        self.ran.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Device> Device for Flawed<D> {
    fn load(&self, block: &Block, source: &dyn WeightSource) -> Result<BlockId, DeviceError> {
        if let (Some(names), Some(ran)) = (self.kernels, self.ran().as_mut()) {
            ran.extend(names(block));
        }
        let mut block = block.clone();
        (self.block)(&mut block);
        self.inner.load(&block, source)
    }

    fn submit(&self, work: &Work) -> Result<Ticket, DeviceError> {
        let mut batch = Batch::clone(&work.batch);
        (self.batch)(&mut batch);
        self.inner.submit(&Work { batch: Arc::new(batch), ..work.clone() })
    }

    fn read_residual(&self, stream: StreamId, first: usize, out: &mut [f32]) -> Result<(), DeviceError> {
        self.inner.read_residual(stream, first, out)?;
        (self.residual)(out);
        Ok(())
    }

    fn set_profiling(&self, on: bool) {
        *self.ran() = on.then(Vec::new);
        self.inner.set_profiling(on);
    }

    fn kernel_times(&self) -> Vec<KernelTime> {
        if self.kernels.is_none() {
            return self.inner.kernel_times();
        }
        let time =
            |kernel| KernelTime { kernel, calls: 1, seconds: 0.0, bytes: 0, flops: 0, rate: RateKind::Float };
        self.ran().clone().unwrap_or_default().into_iter().map(time).collect()
    }

    fn profile(&self) -> &DeviceProfile {
        self.inner.profile()
    }

    fn measure(&self) -> Result<Roofline, DeviceError> {
        self.inner.measure()
    }

    fn rate_kind(&self, ty: TensorType) -> RateKind {
        self.inner.rate_kind(ty)
    }

    fn configure(&self, options: &DeviceOptions) -> Result<(), DeviceError> {
        self.inner.configure(options)
    }

    fn unload(&self, block: BlockId) {
        self.inner.unload(block)
    }

    fn reserve_kv(&self, layout: KvLayout) -> Result<(), DeviceError> {
        self.inner.reserve_kv(layout)
    }

    fn wait(&self, ticket: Ticket) -> Result<(), DeviceError> {
        self.inner.wait(ticket)
    }

    fn write_residual(&self, stream: StreamId, width: usize, rows: &[f32]) -> Result<(), DeviceError> {
        self.inner.write_residual(stream, width, rows)
    }

    fn take_output(&self, stream: StreamId) -> Result<HeadOutput, DeviceError> {
        self.inner.take_output(stream)
    }

    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }

    fn describe(&self, block: BlockId) -> Vec<String> {
        self.inner.describe(block)
    }
}
