//! Devices are asked what a model will take of their memory before anything is loaded.

use std::sync::Arc;

use unicorn_core::{Block, Device, DeviceError, MemoryNeed, ModelSpec, Workload};

use crate::memory::{DeviceMemory, MemoryPlan};
use crate::need::{Reservation, moving_bytes, tap_bytes};
use crate::{EngineError, EngineOptions, Placements};

impl MemoryPlan {
    /// Asks every device what it will take for its part of a model.
    ///
    /// Errors where a device could not load a block or keep its state; nothing is read.
    pub fn new(
        spec: &ModelSpec,
        devices: &[Arc<dyn Device>],
        placements: &Placements,
        options: &EngineOptions,
    ) -> Result<MemoryPlan, EngineError> {
        let sizes = Reservation::of(spec, placements, options);
        let crosses = placements.cross() || options.overseer.looking().is_some();
        let workload = sizes.workload(options, crosses);
        let of = |(index, device): (usize, &Arc<dyn Device>)| {
            let here = |block: usize| placements.ways().iter().any(|p| p.device(block) == index);
            let blocks: Vec<(usize, &Block)> =
                spec.blocks.iter().enumerate().filter(|(block, _)| here(*block)).collect();
            let need = if blocks.is_empty() {
                Ok(MemoryNeed::default())
            } else {
                ask(&**device, &blocks, &workload)
            };
            let profile = device.profile();
            Ok(DeviceMemory { device: profile.name.clone(), unified: profile.unified_memory, need: need? })
        };
        Ok(MemoryPlan {
            devices: devices.iter().enumerate().map(of).collect::<Result<_, EngineError>>()?,
            crossing: (if crosses { sizes.stream_bytes(spec.width) } else { 0 })
                .saturating_add(moving_bytes(spec, placements, &sizes.layout))
                .saturating_add(tap_bytes(spec, options, &sizes.layout)),
            context: options.context,
            kv_type: options.kv_type,
        })
    }
}

/// The longest context, of at least `min` tokens and at most that of the options, with which a model fits into the options' memory
/// limits; `None` where none does. Whole pages, unless it is that of the options.
///
/// Errors as [`MemoryPlan::new`].
pub fn longest_context(
    spec: &ModelSpec,
    devices: &[Arc<dyn Device>],
    placements: &Placements,
    options: &EngineOptions,
    min: usize,
) -> Result<Option<usize>, EngineError> {
    let fits = |context: usize| -> Result<bool, EngineError> {
        let options = EngineOptions { context, ..options.clone() };
        Ok(MemoryPlan::new(spec, devices, placements, &options)?.check(&options.memory_limits).is_ok())
    };
    if fits(options.context)? {
        return Ok(Some(options.context));
    }
    let page = options.page_tokens.max(1);
    // In pages: the longest that is known to fit, and the shortest that is known not to.
    let (mut fit, mut misfit) = (min.div_ceil(page).max(1), options.context.div_ceil(page));
    if fit >= misfit || !fits(fit * page)? {
        return Ok(None);
    }
    while misfit - fit > 1 {
        let middle = fit + (misfit - fit) / 2;
        if fits(middle * page)? { fit = middle } else { misfit = middle }
    }
    Ok(Some(fit * page))
}

/// Asks a device about its blocks; where it refuses, finds out which one.
fn ask(
    device: &dyn Device,
    blocks: &[(usize, &Block)],
    workload: &Workload,
) -> Result<MemoryNeed, EngineError> {
    let all: Vec<&Block> = blocks.iter().map(|(_, block)| *block).collect();
    let error = match device.needs(&all, workload) {
        Ok(need) => return Ok(need),
        Err(error) => error,
    };
    let refused = |(index, block): &(usize, &Block)| {
        let source: DeviceError = device.needs(&[block], workload).err()?;
        Some(EngineError::load(*index, block, source))
    };
    Err(blocks.iter().find_map(refused).unwrap_or(EngineError::Device(error)))
}

#[cfg(test)]
mod tests {
    use unicorn_core::{KvType, TensorType};

    use super::*;
    use crate::memory::{Excess, MemoryLimit, MemoryScope};
    use crate::testing::{FakeDevice, Faults, Log, Pace, tiny_spec, zero_weights};
    use crate::{Engine, Placement, testing};

    fn plan_of(devices: Vec<DeviceMemory>, crossing: u64) -> MemoryPlan {
        MemoryPlan { devices, crossing, context: 1, kv_type: KvType::F16 }
    }

    fn limit(scope: MemoryScope, bytes: u64) -> MemoryLimit {
        MemoryLimit { scope, bytes, origin: "somebody".into() }
    }

    #[test]
    fn state_that_changes_devices_needs_room_on_its_way() {
        let spec = tiny_spec(2);
        let on = |device| Placement::new(&spec, 2, vec![device; spec.blocks.len()]).unwrap();
        let devices: Vec<Arc<dyn Device>> = vec![FakeDevice::plain(), FakeDevice::plain()];
        let options = EngineOptions { context: 320, page_tokens: 32, ..EngineOptions::default() };
        let crossing = |decode| {
            let placements = Placements { prefill: on(0), decode: on(decode) };
            MemoryPlan::new(&spec, &devices, &placements, &options).unwrap().crossing
        };
        // Three mixers at a time, twice each: 320 positions of a key and a value of 4 half floats.
        assert_eq!((crossing(0), crossing(1)), (0, 2 * 3 * 320 * 2 * 4 * 2));
    }

    #[test]
    fn devices_on_the_hosts_memory_share_it() {
        let need = MemoryNeed { weights: 100, kv: 20, scratch: 3, host: 0, passing: 7 };
        let card = MemoryNeed { weights: 1000, kv: 200, scratch: 30, host: 40, passing: 5 };
        let device = |unified, need| DeviceMemory { device: "d".into(), unified, need };
        let plan = plan_of(vec![device(true, need), device(true, need), device(false, card)], 9);
        assert_eq!(plan.host(), 2 * 130 + 45 + 9);
        let host = |bytes| limit(MemoryScope::Host, bytes);
        assert!(plan.check(&[host(314)]).is_ok());
        let error = plan.check(&[host(313), host(400)]).unwrap_err();
        assert_eq!(error.excesses, [Excess { limit: host(313), wanted: 314 }]);
        for part in ["314", "313", "somebody"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        let of = |list: &[usize], bytes| limit(MemoryScope::Devices(list.to_vec()), bytes);
        assert!(plan.check(&[of(&[2], 1230), of(&[0], 130), of(&[0, 1], 260)]).is_ok());
        assert_eq!(
            plan.check(&[of(&[2], 1229), of(&[0], 129), of(&[0, 1], 259)]).unwrap_err().excesses.len(),
            3
        );
        // One that is not there takes nothing.
        assert!(plan.check(&[of(&[7], 0)]).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_told_before_anything_is_loaded() {
        let spec = tiny_spec(2);
        let placement = Placements::from(Placement::single(&spec).unwrap());
        let devices: Vec<Arc<dyn Device>> = vec![FakeDevice::plain()];
        let options = EngineOptions { context: 256, ..EngineOptions::default() };
        let need = MemoryPlan::new(&spec, &devices, &placement, &options).unwrap().host();
        let with =
            |bytes| EngineOptions { memory_limits: vec![limit(MemoryScope::Host, bytes)], ..options.clone() };
        let engine = testing::engine_of(with(need));
        let held: u64 = engine.devices().iter().map(|d| d.memory().weights + d.memory().kv).sum();
        assert_eq!(held, need);
        let device = FakeDevice::plain();
        let made =
            Engine::new(&spec, &zero_weights(), vec![device.clone()], placement, with(need - 1), &mut |_| {
                panic!("loading began")
            });
        let Err(EngineError::Memory(short)) = made else { panic!("it fits") };
        assert_eq!((short.excesses[0].wanted, short.plan.context), (need, 256));
        assert_eq!(device.loaded(), 0);
    }

    #[test]
    fn a_missing_kernel_names_its_block_before_anything_is_read() {
        let mut spec = tiny_spec(2);
        let Block::Ffn { weights, .. } = &mut spec.blocks[4] else { panic!("the second ffn") };
        weights.up.ty = TensorType::F16;
        let device = FakeDevice::plain();
        device.set_faults(Faults { lacks: Some(TensorType::F16), ..Faults::default() });
        let placement = Placement::single(&spec).unwrap();
        let (options, source) = (EngineOptions::default(), zero_weights());
        let made = Engine::new(&spec, &source, vec![device.clone()], placement, options, &mut |_| {});
        let Err(EngineError::Load { block: 4, what, source: DeviceError::NoKernel { .. } }) = made else {
            panic!("a kernel for F16")
        };
        assert_eq!((what.as_str(), device.loaded()), ("ffn_norm", 0));
    }

    #[test]
    fn the_longest_context_that_fits_is_found() {
        let spec = tiny_spec(2);
        let placement = Placements::from(Placement::by_layers(&spec, &[1, 1]).unwrap());
        let fake = |name| Arc::new(FakeDevice::new(name, Pace::Eager, Log::default()));
        let devices: Vec<Arc<dyn Device>> = vec![fake("a"), fake("b")];
        let options = EngineOptions { context: 4000, prefill_chunk: 32, ..EngineOptions::default() };
        let longest = |bytes, min| {
            let memory_limits = vec![limit(MemoryScope::Host, bytes)];
            let options = EngineOptions { memory_limits, ..options.clone() };
            longest_context(&spec, &devices, &placement, &options, min).unwrap()
        };
        let of = |context| {
            let options = EngineOptions { context, ..options.clone() };
            MemoryPlan::new(&spec, &devices, &placement, &options).unwrap().host()
        };
        assert!(of(64) > spec.weight_bytes());
        assert_eq!(longest(of(4000), 64), Some(4000));
        assert_eq!(longest(of(4000) - 1, 64), Some(62 * 64));
        assert_eq!(longest(of(640), 64), Some(640));
        assert_eq!(longest(of(640) + 1, 100), Some(640));
        assert_eq!(longest(of(640), 641), None);
        assert_eq!(longest(of(64) - 1, 1), None);
    }
}
