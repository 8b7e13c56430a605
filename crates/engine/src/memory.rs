//! What a model takes of every memory, and what there is of each: plain figures.

use unicorn_core::{KvType, MemoryNeed};

/// Whose memory a limit is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryScope {
    /// The host's: what all devices have there, and the buffers between them.
    Host,
    /// That in which a device computes, by its number in the placement.
    Device(usize),
}

/// Memory that may be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryLimit {
    /// Of which memory.
    pub scope: MemoryScope,
    /// Bytes.
    pub bytes: u64,
    /// Who says so, for people: `cgroup /x memory.max`.
    pub origin: String,
}

/// What a device will take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceMemory {
    /// Name on the command line.
    pub device: String,
    /// The host's memory is the device's.
    pub unified: bool,
    /// Bytes.
    pub need: MemoryNeed,
}

/// What a model will take on all devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryPlan {
    /// In the order of the placement.
    pub devices: Vec<DeviceMemory>,
    /// Buffers in the host's memory through which residual streams and pages of state cross or are saved, in bytes.
    pub crossing: u64,
    /// Tokens of context that this is for.
    pub context: usize,
    /// Type of the KV cache that this is for.
    pub kv_type: KvType,
}

/// A limit that is too small.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Excess {
    /// The limit.
    pub limit: MemoryLimit,
    /// Bytes that would be taken where it holds.
    pub wanted: u64,
}

/// A model does not fit into memory.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("not enough memory{}", .excesses.first().map(Excess::in_words).unwrap_or_default())]
pub struct MemoryShort {
    /// Who wanted how much.
    pub plan: MemoryPlan,
    /// All limits that are too small.
    pub excesses: Vec<Excess>,
}

impl Excess {
    fn in_words(&self) -> String {
        format!(": {} bytes wanted, {} there ({})", self.wanted, self.limit.bytes, self.limit.origin)
    }
}

impl MemoryPlan {
    /// Bytes that will be taken of the host's memory.
    pub fn host(&self) -> u64 {
        let part = |device: &DeviceMemory| {
            let need = &device.need;
            if device.unified { need.total() } else { need.host.saturating_add(need.passing) }
        };
        self.devices.iter().map(part).fold(self.crossing, u64::saturating_add)
    }

    /// Bytes that a device will take where it computes.
    fn local(&self, index: usize) -> u64 {
        self.devices.get(index).map_or(0, |d| match d.unified {
            true => d.need.total(),
            false => d.need.local(),
        })
    }

    /// Errors where one of the limits is too small.
    pub fn check(&self, limits: &[MemoryLimit]) -> Result<(), MemoryShort> {
        let wanted = |scope: &MemoryScope| match scope {
            MemoryScope::Host => self.host(),
            MemoryScope::Device(index) => self.local(*index),
        };
        let excess = |limit: &MemoryLimit| {
            let wanted = wanted(&limit.scope);
            (wanted > limit.bytes).then(|| Excess { limit: limit.clone(), wanted })
        };
        let excesses: Vec<Excess> = limits.iter().filter_map(excess).collect();
        if excesses.is_empty() { Ok(()) } else { Err(MemoryShort { plan: self.clone(), excesses }) }
    }
}
