//! A residual stream that the caller fills and reads, one piece of work at a time.

use std::cell::RefCell;
use std::sync::Arc;

use unicorn_core::{
    Batch, BlockId, Crossing, Device, DeviceError, HeadOutput, SharedBuffer, StreamId, run_to_end,
};

/// See the module's documentation. The stream crosses from and to the caller as it does between devices.
pub struct Feed<'a> {
    device: &'a dyn Device,
    stream: StreamId,
    buffer: RefCell<Option<Arc<SharedBuffer>>>,
}

impl<'a> Feed<'a> {
    /// Nobody else uses the stream meanwhile.
    pub fn new(device: &'a dyn Device, stream: StreamId) -> Feed<'a> {
        Feed { device, stream, buffer: RefCell::new(None) }
    }

    /// The shared buffer, with room for `rows` rows of `width`.
    fn buffer(&self, rows: usize, width: usize) -> Result<Arc<SharedBuffer>, DeviceError> {
        let mut held = self.buffer.borrow_mut();
        if let Some(buffer) = held.as_ref().filter(|b| b.width() == width && b.rows() >= rows) {
            return Ok(buffer.clone());
        }
        let short = || DeviceError::OutOfMemory {
            device: "host".into(),
            what: "a residual stream".into(),
            requested: (rows * width * 4) as u64,
            free: 0,
        };
        let buffer = Arc::new(SharedBuffer::new(rows, width).ok_or_else(short)?);
        self.device.attach(self.stream, &buffer)?;
        *held = Some(buffer.clone());
        Ok(buffer)
    }

    /// Runs blocks over `x`, `[rows, width]`, or over tokens where the first is an embedding; what they leave is read with
    /// [`Feed::residual`].
    pub fn run(
        &self,
        blocks: &[BlockId],
        batch: &Arc<Batch>,
        x: Option<&[f32]>,
        width: usize,
    ) -> Result<Option<HeadOutput>, DeviceError> {
        let buffer = self.buffer(batch.rows(), width)?;
        x.into_iter().for_each(|x| buffer.write(x));
        let crossing = Crossing { import: x.is_some(), export: true };
        run_to_end(self.device, self.stream, blocks, batch, crossing)
    }

    /// Runs blocks over what the device holds, which stays there.
    pub fn again(&self, blocks: &[BlockId], batch: &Arc<Batch>) -> Result<Option<HeadOutput>, DeviceError> {
        run_to_end(self.device, self.stream, blocks, batch, Crossing::default())
    }

    /// The first `values` elements that the last [`Feed::run`] left.
    pub fn residual(&self, values: usize) -> Vec<f32> {
        let mut out = vec![0.0; values];
        if let Some(buffer) = &*self.buffer.borrow() {
            buffer.read(&mut out);
        }
        out
    }
}
