//! Residual streams, and the buffers that submissions reuse.

use std::sync::Arc;

use unicorn_core::{DeviceError, SharedBuffer};

use super::blocks::{Needs, SharedActivations, ThreadScratch};
use super::errors::out_of_memory;
use super::shared::{PerThread, SharedSlice};

/// A residual stream `[rows, width]`: in memory of its own, or where other devices see it too.
#[derive(Default)]
pub(super) struct Stream {
    pub(super) width: usize,
    pub(super) rows: usize,
    own: Vec<f32>,
    pub(super) shared: Option<Arc<SharedBuffer>>,
}

impl Stream {
    /// Gives the stream this shape; the content is lost where it is not shared.
    pub(super) fn reshape(&mut self, rows: usize, width: usize) -> Result<(), DeviceError> {
        if self.shared.is_none() {
            grow(&mut self.own, rows * width, "a residual stream")?;
        }
        (self.rows, self.width) = (rows, width);
        Ok(())
    }

    /// The elements.
    pub(super) fn x(&mut self) -> SharedSlice<'_, f32> {
        let len = self.rows * self.width;
        match &self.shared {
            None => SharedSlice::new(&mut self.own[..len]),
            Some(shared) => {
                let len = len.min(shared.rows() * shared.width());
                // SAFETY: the buffer has these elements and outlives the borrow; who else may touch them waits for this work.
                unsafe { SharedSlice::from_raw(shared.address().cast_mut().cast(), len) }
            }
        }
    }

    /// Bytes of the device's own memory.
    pub(super) fn bytes(&self) -> usize {
        self.own.capacity() * 4
    }
}

/// Buffers that submissions reuse.
#[derive(Default)]
pub(super) struct Workspace {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    pub(super) attended: Vec<f32>,
    pub(super) y: Vec<f32>,
    pub(super) hidden: Vec<f32>,
    pub(super) partials: Vec<f32>,
    pub(super) logits: Vec<f32>,
    pub(super) ropes: Vec<Vec<f32>>,
    pub(super) activations: SharedActivations,
    pub(super) threads: Option<PerThread<ThreadScratch>>,
}

impl Workspace {
    /// Bytes held.
    pub(super) fn bytes(&mut self) -> usize {
        let buffers =
            [&self.q, &self.k, &self.v, &self.attended, &self.y, &self.hidden, &self.partials, &self.logits];
        let floats: usize = buffers.into_iter().chain(&self.ropes).map(Vec::capacity).sum();
        let threads: usize = self.threads.iter_mut().flat_map(PerThread::iter_mut).map(|t| t.bytes()).sum();
        floats * 4 + threads + self.activations.bytes()
    }

    pub(super) fn grow(&mut self, needs: &Needs) -> Result<(), DeviceError> {
        let Workspace { q, k, v, attended, y, hidden, partials, logits, .. } = self;
        let wanted = [
            (q, needs.q),
            (k, needs.kv),
            (v, needs.kv),
            (attended, needs.q),
            (y, needs.y),
            (hidden, needs.hidden),
            (partials, needs.partials),
            (logits, needs.logits),
        ];
        wanted.into_iter().try_for_each(|(buffer, floats)| grow(buffer, floats, "activations"))
    }
}

/// Makes a buffer at least this long; the content is lost.
pub(super) fn grow(buffer: &mut Vec<f32>, floats: usize, what: &str) -> Result<(), DeviceError> {
    if buffer.len() < floats {
        buffer.clear();
        let full = buffer.try_reserve_exact(floats);
        full.map_err(|_| out_of_memory(what, floats as u64 * 4))?;
        buffer.resize(floats, 0.0);
    }
    Ok(())
}
