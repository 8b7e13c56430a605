//! Residual streams, and the buffers that submissions reuse.

use unicorn_core::{DeviceError, HeadOutput};

use super::blocks::{Needs, SharedActivations, ThreadScratch};
use super::errors::out_of_memory;
use super::shared::PerThread;

/// A residual stream `[x.len() / width, width]` and what its last head produced.
#[derive(Default)]
pub(super) struct Stream {
    pub(super) width: usize,
    pub(super) x: Vec<f32>,
    pub(super) output: Option<HeadOutput>,
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
    /// For each page the slice that writes it, plus one; only marks of the current batch are set.
    pub(super) writers: Vec<u32>,
}

impl Workspace {
    /// Bytes held.
    pub(super) fn bytes(&mut self) -> usize {
        let buffers =
            [&self.q, &self.k, &self.v, &self.attended, &self.y, &self.hidden, &self.partials, &self.logits];
        let floats: usize = buffers.into_iter().chain(&self.ropes).map(Vec::capacity).sum();
        let threads: usize = self.threads.iter_mut().flat_map(PerThread::iter_mut).map(|t| t.bytes()).sum();
        (floats + self.writers.capacity()) * 4 + threads + self.activations.bytes()
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
