//! What the engine decided, for people.

use unicorn_core::{DeviceKind, MemoryUse};

use super::Engine;
use crate::placement::Placements;
use crate::{Placement, RunStats};

/// A device as the engine uses it.
#[derive(Clone, PartialEq, Debug)]
pub struct DeviceReport {
    /// Name on the command line.
    pub name: String,
    /// Kind.
    pub kind: DeviceKind,
    /// For people.
    pub description: String,
    /// Memory held.
    pub memory: MemoryUse,
    /// What copies residual streams that cross.
    pub crosses_by: Option<String>,
    /// Blocks placed here.
    pub blocks: usize,
    /// Selected kernels, in order of first use, each with the number of blocks that use it.
    pub kernels: Vec<(String, usize)>,
}

/// Placement, devices, kernels and memory.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// One line per run of blocks on one device.
    pub placement: Vec<String>,
    /// Every device.
    pub devices: Vec<DeviceReport>,
    /// Pages of state that nobody holds.
    pub pages_free: usize,
    /// Pages of state in all.
    pub pages: usize,
    /// Positions per page.
    pub page_tokens: usize,
    /// Kept sequences.
    pub kept: usize,
    /// Submits and crossings so far.
    pub stats: RunStats,
}

impl Report {
    /// Several lines for a terminal.
    pub fn lines(&self) -> Vec<String> {
        const MIB: f64 = (1 << 20) as f64;
        let mut lines = self.placement.clone();
        for device in &self.devices {
            let m = &device.memory;
            lines.push(format!(
                "{}: {} ({} blocks; weights {:.1} MiB, KV {:.1} MiB, scratch {:.1} MiB, together {:.1} MiB; copied {:.1} MiB, shared {:.1} MiB)",
                device.name,
                device.description,
                device.blocks,
                m.weights as f64 / MIB,
                m.kv as f64 / MIB,
                m.scratch as f64 / MIB,
                (m.weights + m.kv + m.scratch) as f64 / MIB,
                m.copied as f64 / MIB,
                m.shared as f64 / MIB
            ));
            if let Some(by) = device.crosses_by.as_ref().filter(|_| self.stats.crossings > 0) {
                lines.push(format!("  residual streams cross by {by}"));
            }
            lines.extend(
                device.kernels.iter().map(|(kernel, blocks)| format!("  {kernel} ({blocks} blocks)")),
            );
        }
        lines.push(format!(
            "state: {} of {} pages of {} tokens free; crossings {} ({:.1} MiB)",
            self.pages_free,
            self.pages,
            self.page_tokens,
            self.stats.crossings,
            self.stats.crossing_bytes as f64 / MIB
        ));
        if self.stats.state_bytes > 0 {
            let mib = self.stats.state_bytes as f64 / MIB;
            lines.push(format!("state from one phase's devices to the other's: {mib:.1} MiB"));
        }
        lines
    }
}

impl Engine {
    fn placement_lines(&self, names: &[String]) -> Vec<String> {
        let Placements { prefill, decode } = self.executor.placements();
        if prefill == decode {
            return prefill.describe(names);
        }
        let of = |phase: &str, placement: &Placement| -> Vec<String> {
            placement.describe(names).into_iter().map(|line| format!("{phase}: {line}")).collect()
        };
        [of("prefill", prefill), of("decode", decode)].concat()
    }

    /// What was decided and what is held now.
    pub fn report(&self) -> Report {
        let names: Vec<String> = self.devices().iter().map(|d| d.profile().name.clone()).collect();
        let device = |index: usize| {
            let device = &self.devices()[index];
            let mut kernels: Vec<(String, usize)> = Vec::new();
            let mut blocks = 0;
            for (_, id) in self.executor.loaded().into_iter().filter(|(d, _)| *d == index) {
                blocks += 1;
                for line in device.describe(id) {
                    match kernels.iter_mut().find(|k| k.0 == line) {
                        Some(known) => known.1 += 1,
                        None => kernels.push((line, 1)),
                    }
                }
            }
            let profile = device.profile();
            let (name, description) = (profile.name.clone(), profile.description.clone());
            DeviceReport {
                name,
                kind: profile.kind,
                description,
                memory: device.memory(),
                crosses_by: device.crosses_by(),
                blocks,
                kernels,
            }
        };
        Report {
            placement: self.placement_lines(&names),
            devices: (0..names.len()).map(device).collect(),
            pages_free: self.pools.pages().0,
            pages: self.pools.pages().1,
            page_tokens: self.pools.page_tokens(),
            kept: self.prefixes.len(),
            stats: self.executor.stats(),
        }
    }
}
