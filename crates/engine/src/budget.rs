//! Devices are asked what a model will take of their memory before anything is loaded.

use std::sync::Arc;

use unicorn_core::{Block, Device, DeviceError, MemoryNeed, ModelSpec, Workload};

use crate::kv_store::chunk_bytes;
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
        let saving = options.store.as_ref().map_or(0, |_| chunk_bytes(spec, &sizes.layout));
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
                .saturating_add(tap_bytes(spec, options, &sizes.layout))
                .saturating_add(saving),
            context: options.context,
            kv_type: options.kv_type,
        })
    }
}

/// How far the KV cache may give way where memory is short.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leeway {
    /// Positions that the cache is to hold for all sequences together; fewer where they do not fit, but as many as one sequence may have.
    /// `None` for as many as all sequences may have, and no fewer.
    pub kv_tokens: Option<usize>,
    /// The context may become as short as this, in tokens, where the smallest cache for it does not fit; `None` for not shorter.
    pub context_min: Option<usize>,
}

impl Leeway {
    /// The options with a context of so many tokens and a cache as it is wished.
    pub fn wished(&self, options: &EngineOptions, context: usize) -> EngineOptions {
        let all = EngineOptions { context, kv_pages: None, ..options.clone() };
        let Some(tokens) = self.kv_tokens else {
            return EngineOptions { kv_pages: options.kv_pages, ..all };
        };
        let pages = tokens.max(context).div_ceil(options.page_tokens.max(1)).min(all.pages());
        EngineOptions { kv_pages: Some(pages), ..all }
    }

    /// The options with a context of so many tokens and the smallest cache for it.
    pub fn smallest(&self, options: &EngineOptions, context: usize) -> EngineOptions {
        Leeway { kv_tokens: self.kv_tokens.map(|_| context), ..*self }.wished(options, context)
    }

    /// The options once all has given way: where these do not fit, nothing does.
    pub fn least(&self, options: &EngineOptions) -> EngineOptions {
        let page = options.page_tokens.max(1);
        let shortest = self.context_min.map_or(options.context, |min| min.div_ceil(page).max(1) * page);
        self.smallest(options, shortest.min(options.context))
    }

    /// The options nearest to these with which something fits: first the cache becomes smaller, then the context shorter, whole pages then.
    /// `None` where nothing does.
    ///
    /// Errors as `fits` does.
    fn nearest<E>(
        &self,
        options: &EngineOptions,
        fits: impl Fn(&EngineOptions) -> Result<bool, E>,
    ) -> Result<Option<EngineOptions>, E> {
        let Some(context) = self.longest(options, |context| fits(&self.smallest(options, context)))? else {
            return Ok(None);
        };
        let (mut found, least) = (self.wished(options, context), self.smallest(options, context));
        while found.pages() > least.pages() && !fits(&found)? {
            found.kv_pages = Some((found.pages() / 2).max(least.pages()));
        }
        Ok(Some(found))
    }

    /// The longest context that fits.
    fn longest<E>(
        &self,
        options: &EngineOptions,
        fits: impl Fn(usize) -> Result<bool, E>,
    ) -> Result<Option<usize>, E> {
        if fits(options.context)? {
            return Ok(Some(options.context));
        }
        let Some(min) = self.context_min else { return Ok(None) };
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
}

/// The options nearest to these with which a model fits into their memory limits; `None` where none does.
///
/// Errors as [`MemoryPlan::new`].
pub fn fit(
    spec: &ModelSpec,
    devices: &[Arc<dyn Device>],
    placements: &Placements,
    options: &EngineOptions,
    leeway: &Leeway,
) -> Result<Option<EngineOptions>, EngineError> {
    leeway.nearest(options, |options| {
        Ok(MemoryPlan::new(spec, devices, placements, options)?.check(&options.memory_limits).is_ok())
    })
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
        let of = |index, bytes| limit(MemoryScope::Device(index), bytes);
        assert!(plan.check(&[of(2, 1230), of(0, 130)]).is_ok());
        assert_eq!(plan.check(&[of(2, 1229), of(0, 129)]).unwrap_err().excesses.len(), 2);
        // One that is not there takes nothing.
        assert!(plan.check(&[of(7, 0)]).is_ok());
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
            let leeway = Leeway { context_min: min, ..Leeway::default() };
            fit(&spec, &devices, &placement, &options, &leeway).unwrap().map(|o| o.context)
        };
        let of = |context| {
            let options = EngineOptions { context, ..options.clone() };
            MemoryPlan::new(&spec, &devices, &placement, &options).unwrap().host()
        };
        assert!(of(64) > spec.weight_bytes());
        assert_eq!(longest(of(4000), Some(64)), Some(4000));
        assert_eq!(longest(of(4000) - 1, Some(64)), Some(62 * 64));
        assert_eq!(longest(of(640), Some(64)), Some(640));
        assert_eq!(longest(of(640) + 1, Some(100)), Some(640));
        assert_eq!(longest(of(640), Some(641)), None);
        assert_eq!(longest(of(640), None), None);
        assert_eq!(longest(of(64) - 1, Some(1)), None);
    }

    /// Of a memory with room for so many positions beside the weights: context and positions in the cache.
    fn nearest(room: usize, options: &EngineOptions, leeway: &Leeway) -> Option<(usize, usize)> {
        let fits = |options: &EngineOptions| Ok::<_, ()>(options.pages() * options.page_tokens <= room);
        leeway.nearest(options, fits).unwrap().map(|o| (o.context, o.pages() * o.page_tokens))
    }

    #[test]
    fn the_cache_becomes_smaller_before_the_context_becomes_shorter() {
        // As a server asks: 16 sequences share 65,536 positions.
        let options = EngineOptions { context: 32_768, sequences_max: 16, ..EngineOptions::default() };
        let leeway = Leeway { kv_tokens: Some(65_536), context_min: Some(2048) };
        let of = |room| nearest(room, &options, &leeway);
        assert_eq!(of(65_536), Some((32_768, 65_536)));
        assert_eq!(of(65_535), Some((32_768, 32_768)));
        // A cache of a shorter context is none that the longer one would have.
        assert_eq!(of(32_767), Some((32_704, 32_704)));
        assert_eq!(of(8192), Some((8192, 8192)));
        assert_eq!(of(2048), Some((2048, 2048)));
        assert_eq!(of(2047), None);
        assert_eq!((leeway.least(&options).context, leeway.least(&options).pages()), (2048, 32));
        let odd = Leeway { context_min: Some(2000), ..leeway };
        assert_eq!(odd.least(&options), leeway.least(&options));
        assert_eq!(odd.least(&EngineOptions { context: 1000, ..options.clone() }).context, 1000);
        // A context that was asked for stays.
        let exact = Leeway { context_min: None, ..leeway };
        assert_eq!(nearest(32_768, &options, &exact), Some((32_768, 32_768)));
        assert_eq!(nearest(32_767, &options, &exact), None);
        // Few sequences need less than is wished; who wishes less than a context has one all the same.
        let two = EngineOptions { context: 4096, sequences_max: 2, ..EngineOptions::default() };
        assert_eq!(nearest(1 << 20, &two, &leeway), Some((4096, 8192)));
        let few = Leeway { kv_tokens: Some(100), context_min: None };
        assert_eq!(nearest(1 << 20, &two, &few), Some((4096, 4096)));
        // Without a wish every sequence has its whole context.
        let none = Leeway { kv_tokens: None, context_min: Some(100) };
        assert_eq!(nearest(8191, &two, &none), Some((4032, 8064)));
    }
}
