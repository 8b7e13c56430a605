//! The devices that are open as the planner's machine.

use unicorn_core::{ModelSpec, TensorType};
use unicorn_engine::planner::{Figure, Machine, Memory, Origin};

use super::calibrate::calibrate;
use super::figures::Calibration;
use crate::config::Config;
use crate::devices::cache::{DeviceCache, Key};
use crate::exit::describe;
use crate::open_device::Opened;
use crate::output::say;

/// Where figures come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// What was measured before, or nothing.
    Kept,
    /// What was measured before; what is missing is measured now.
    Missing,
    /// Everything is measured now.
    Anew,
}

/// This machine's devices, as far as they are open.
pub struct Here {
    /// In the order of the open devices.
    pub machine: Machine,
    /// Under which findings about each device are kept.
    pub keys: Vec<Key>,
}

/// A type of weights counts where this share of a model's matrices has it.
const SHARE_MIN: f64 = 0.02;

/// The types of a model's matrices, the one with the most elements first; rare ones are left out.
pub fn types(spec: &ModelSpec) -> Vec<TensorType> {
    let mut sums: Vec<(TensorType, u64)> = Vec::new();
    for weight in spec.distinct_weights().into_iter().filter(|w| w.rows > 1) {
        match sums.iter_mut().find(|s| s.0 == weight.ty) {
            Some(sum) => sum.1 += weight.elements() as u64,
            None => sums.push((weight.ty, weight.elements() as u64)),
        }
    }
    let all: u64 = sums.iter().map(|s| s.1).sum();
    sums.retain(|s| s.1 as f64 >= SHARE_MIN * all as f64);
    sums.sort_by_key(|s| std::cmp::Reverse(s.1));
    sums.into_iter().map(|s| s.0).collect()
}

impl Here {
    /// The figures of these devices for a model's types of weights. `None` where figures of one are missing and none are to be measured.
    ///
    /// Errors when measuring fails.
    pub fn of(
        opened: &[Opened],
        spec: &ModelSpec,
        want: Want,
        config: &Config,
    ) -> anyhow::Result<Option<Here>> {
        let cache = DeviceCache::new(config.cache_dir.as_deref());
        let types = types(spec);
        let mut figures = Vec::new();
        for device in opened {
            match one(device, &types, want, &cache, config)? {
                Some(found) => figures.push(found),
                None => return Ok(None),
            }
        }
        Ok(machine(opened, &figures).map(|machine| {
            let keys = opened.iter().map(|o| o.key.clone()).collect();
            Here { machine, keys }
        }))
    }
}

/// The figures of one device.
fn one(
    opened: &Opened,
    types: &[TensorType],
    want: Want,
    cache: &DeviceCache,
    config: &Config,
) -> anyhow::Result<Option<Calibration>> {
    let device = &*opened.device;
    let name = &device.profile().name;
    let kept = cache.calibration(&opened.key).map(|found| found.finding).filter(|_| want != Want::Anew);
    // What no model can be made of counts as absent.
    let kept = kept.filter(|k| k.model(device.profile(), 0, 0).is_some());
    let lacking = |kept: &Calibration| types.iter().any(|ty| !kept.types().any(|known| known == *ty));
    match (kept, want) {
        (Some(kept), _) if !lacking(&kept) => Ok(Some(kept)),
        // A type that was not timed is taken to be like the nearest.
        (Some(kept), Want::Kept) => Ok(Some(kept)),
        (None, Want::Kept) => Ok(None),
        (kept, Want::Missing | Want::Anew) => {
            if config.talks() {
                let missing =
                    types.iter().filter(|ty| !kept.iter().any(|k| k.types().any(|known| known == **ty)));
                let missing: Vec<&str> = missing.map(|ty| ty.name()).collect();
                say!("measuring {name} with {} (kept for later)", missing.join(", "));
            }
            if want == Want::Anew {
                cache.forget_grades(&opened.key);
            }
            let calibration = calibrate(device, &opened.limits(config)?, kept, types)?;
            // Keeping it is a convenience: what was measured counts all the same.
            if let Err(error) = cache.keep_calibration(&opened.key, &calibration)
                && config.explains()
            {
                say!("{}", describe(&error));
            }
            Ok(Some(calibration))
        }
    }
}

/// Devices that work from the host's memory share it; each other one has its own.
fn machine(opened: &[Opened], figures: &[Calibration]) -> Option<Machine> {
    let mut machine = Machine::default();
    let shared = opened.iter().filter(|o| o.device.profile().unified_memory);
    let bytes = shared.clone().map(Opened::capacity_bytes).max();
    let read = opened.iter().zip(figures).filter(|(o, _)| o.device.profile().unified_memory);
    let read = read.map(|(_, f)| f.read_bytes_per_second).fold(0.0, f64::max);
    if let Some(bytes) = bytes {
        let read = Figure { value: read, origin: Origin::Measured };
        machine.memories.push(Memory {
            name: "host memory".to_owned(),
            bytes,
            read_bytes_per_second: (shared.count() > 1).then_some(read),
        });
    }
    for (number, (opened, figures)) in opened.iter().zip(figures).enumerate() {
        let profile = opened.device.profile();
        let memory = if profile.unified_memory {
            0
        } else {
            machine.memories.push(Memory {
                name: format!("memory of {}", profile.name),
                bytes: opened.capacity_bytes(),
                read_bytes_per_second: None,
            });
            machine.memories.len() - 1
        };
        let hardware = if opened.device.profile().on_host { 0 } else { number + 1 };
        machine.devices.push(figures.model(profile, memory, hardware)?);
    }
    machine.check().is_ok().then_some(machine)
}

#[cfg(test)]
mod tests {
    use unicorn_cases::shapes;

    use super::*;

    #[test]
    fn the_most_common_type_comes_first_and_rare_ones_do_not_count() {
        let spec = shapes::model("llama-8b", TensorType::Q4_K).unwrap();
        assert_eq!(types(&spec), [TensorType::Q4_K, TensorType::Q6_K]);
        let spec = shapes::model("llama-1b", TensorType::F16).unwrap();
        assert_eq!(types(&spec), [TensorType::F16]);
    }
}
