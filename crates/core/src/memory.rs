//! What a device is to be ready for, and the memory that it takes for that: known before anything is loaded.

use crate::StateLayout;

/// The largest work that a device is to be ready for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// The state of all mixers of the model, also of those on other devices.
    pub layout: StateLayout,
    /// Rows of a batch, at most.
    pub rows: usize,
    /// Sequences in a batch, at most.
    pub sequences: usize,
    /// Rows of a batch that a head reads, at most.
    pub outputs: usize,
    /// Entries that are selected for each of these, at most; 0 where all logits are always asked for.
    pub top: usize,
    /// Residual streams in use at once.
    pub streams: usize,
    /// The streams come from another device or go to one, through buffers that are not the device's own.
    pub crosses: bool,
}

/// Memory that can still be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryRoom {
    /// Bytes.
    pub bytes: u64,
    /// What sets this limit, for people: `cgroup /x memory.max`.
    pub origin: String,
}

/// Memory that a device will take at most, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryNeed {
    /// Weights as the device packs them, each once.
    pub weights: u64,
    /// KV cache.
    pub kv: u64,
    /// Everything else that stays, where the device computes.
    pub scratch: u64,
    /// What stays in the host's memory although the device computes in a memory of its own: outputs, buffers for copies.
    pub host: u64,
    /// What comes and goes in the host's memory: weights between file and device, outputs on their way to the caller.
    pub passing: u64,
}

impl MemoryNeed {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.local().saturating_add(self.host).saturating_add(self.passing)
    }

    /// What lies where the device computes.
    pub fn local(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.scratch)
    }
}
