//! Whether placements fit on open devices: asked of them as it is before weights are loaded.

use std::sync::Arc;

use unicorn_core::{Device, ModelSpec};
use unicorn_engine::planner::Misfit;
use unicorn_engine::{EngineOptions, Excess, Leeway, MemoryLimit, MemoryPlan, MemoryScope, Placements};

use crate::exit::describe;
use crate::memory::{self, FLAG};
use crate::memory_max::MemoryMax;
use crate::open_device::Opened;

/// Open devices with the limits of their memory.
pub struct Room {
    devices: Vec<Arc<dyn Device>>,
    limits: Vec<MemoryLimit>,
}

impl Room {
    /// What there is now of the memory of these devices, and what `--memory-max` allows of it.
    pub fn of(opened: &[Opened], max: Option<&MemoryMax>) -> Room {
        let devices = opened.iter().map(|o| o.device.clone() as Arc<dyn Device>).collect();
        Room { devices, limits: memory::limits(opened, max) }
    }

    /// What of a placement over these devices does not fit; `None` where an engine will take it.
    pub fn misfit(
        &self,
        spec: &ModelSpec,
        placements: &Placements,
        options: &EngineOptions,
    ) -> Option<Misfit> {
        let plan = match MemoryPlan::new(spec, &self.devices, placements, options) {
            Ok(plan) => plan,
            Err(error) => return Some(Misfit::Refused(describe(&error.into()))),
        };
        let excesses = plan.check(&self.limits).err()?.excesses;
        excesses.into_iter().map(|excess| misfit(excess, &plan)).max_by_key(Misfit::lacking)
    }

    /// What of a placement does not fit even where everything has given way that may; `None` where an engine will take it.
    pub fn misfit_at_best(
        &self,
        spec: &ModelSpec,
        placements: &Placements,
        options: &EngineOptions,
        leeway: &Leeway,
    ) -> Option<Misfit> {
        self.misfit(spec, placements, &leeway.least(options))
    }
}

fn misfit(Excess { limit, wanted }: Excess, plan: &MemoryPlan) -> Misfit {
    let name = match limit.scope {
        MemoryScope::Host => "host memory".to_owned(),
        MemoryScope::Device(index) => plan.devices.get(index).map_or_else(String::new, |d| d.device.clone()),
    };
    Misfit::Memory { name, needed: wanted, available: limit.bytes, budget: limit.origin == FLAG }
}
