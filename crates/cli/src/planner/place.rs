//! From what `--place` says, or does not say, to open devices and a placement; and predictions for it that are graded.

use unicorn_core::{DeviceKind, ModelSpec};
use unicorn_engine::planner::{Ask, Candidate, Check, Plan, Prediction, Reason, plan};
use unicorn_engine::{EngineOptions, Leeway, Placement, Placements, Timings};

use super::choice::{Load, Place};
use super::figures::Phase;
use super::grades::{Grades, in_words};
use super::here::{Here, Want};
use super::room::Room;
use crate::args::DeviceArgs;
use crate::config::Config;
use crate::devices::cache::DeviceCache;
use crate::devices::unasked;
use crate::exit::{describe, usage};
use crate::memory;
use crate::memory_max::MemoryMax;
use crate::open_device::{self, Opened};
use crate::output::say;

/// Open devices with what each is to run.
pub struct Placed {
    /// In the order of the placement.
    pub opened: Vec<Opened>,
    /// Over them.
    pub placements: Placements,
}

impl Placed {
    /// All of a model on one device.
    pub fn one(opened: Opened, spec: &ModelSpec) -> anyhow::Result<Placed> {
        Ok(Placed { opened: vec![opened], placements: Placement::single(spec)?.into() })
    }
}

/// What is asked of a placement.
#[derive(Clone, Copy)]
pub struct Wish<'a> {
    /// The device that was named, and threads.
    pub device: &'a DeviceArgs,
    /// Which device runs which part.
    pub place: &'a Place,
    /// How the engine will be set up.
    pub options: &'a EngineOptions,
    /// What of that may give way where it does not fit.
    pub leeway: Leeway,
    /// What it shall be fast at.
    pub load: Load,
    /// Memory that may be taken; `None` is all that there is.
    pub memory: Option<&'a MemoryMax>,
}

impl Wish<'_> {
    /// What may give way with the whole context.
    fn whole(&self) -> Leeway {
        Leeway { context_min: None, ..self.leeway }
    }
}

/// A placement with a shorter context is taken where it is so many times faster than what has room for all of it.
const WORTH: f64 = 2.0;

/// Opens the devices for a model and places it on them as it is wished.
///
/// Errors when a device cannot be opened, rules do not fit the model, or a limit is for a device that is not used.
pub fn place(wish: &Wish<'_>, spec: &ModelSpec, config: &Config) -> anyhow::Result<Placed> {
    let (opened, placements) = match wish.place {
        Place::Rules(rules) => {
            let placements = rules.resolve(spec).map_err(|e| usage(format!("--place: {e}")))?;
            (open_device::open_all(wish.device, Some(rules), config)?, placements)
        }
        Place::Auto if wish.device.device.is_none() => return automatic(wish, spec, config),
        _ => (open_device::open_all(wish.device, None, config)?, Placement::single(spec)?.into()),
    };
    memory::check_names(&opened, &[], wish.memory)?;
    Ok(Placed { opened, placements })
}

/// The fastest device alone, unless it cannot hold the model, or there are several and their figures say that another placement is faster.
/// With one device nothing is planned, and nothing is measured here.
fn automatic(wish: &Wish<'_>, spec: &ModelSpec, config: &Config) -> anyhow::Result<Placed> {
    let choices: Vec<_> = unasked().collect();
    let mut opened = open_device::open_all(wish.device, None, config)?;
    memory::check_names(&opened, &choices, wish.memory)?;
    let known = choices.len() > 1 && Here::of(&opened, spec, Want::Kept, config)?.is_some();
    if choices.len() < 2 || (!known && alone(&opened, wish, spec)?.is_some()) {
        return Placed::one(opened.swap_remove(0), spec);
    }
    let first = opened[0].device.profile().name.clone();
    for choice in choices.into_iter().filter(|choice| choice.to_string() != first) {
        let named = wish.device.on(choice.clone());
        match open_device::open(&named, config) {
            Ok(device) => opened.push(device),
            // It was not asked for.
            Err(error) if config.explains() => say!("{choice} is left out: {}", describe(&error)),
            Err(_) => {}
        }
    }
    if known
        && let Some(here) = Here::of(&opened, spec, Want::Kept, config)?
        && let Some((candidate, reason)) = best(&here, &opened, wish, spec, &cache(config))?
    {
        if config.explains() || (config.talks() && candidate.devices().len() > 1) {
            say!("placement {}: {reason}", candidate.rules);
        }
        // Only what is used stays open.
        let used = candidate.devices();
        let placements = among(&candidate.placements, &used, spec)?;
        let kept = opened.into_iter().enumerate().filter(|(i, _)| used.contains(i)).map(|(_, o)| o);
        return Ok(Placed { opened: kept.collect(), placements });
    }
    // Where nothing fits, what is missing is told of the first.
    let index = alone(&opened, wish, spec)?.unwrap_or(0);
    let taken = opened.swap_remove(index);
    if index > 0 && config.talks() {
        say!("{first} cannot hold the model: {} runs it", taken.device.profile().name);
    }
    Placed::one(taken, spec)
}

/// The first of these devices that can hold all of a model.
fn alone(opened: &[Opened], wish: &Wish<'_>, spec: &ModelSpec) -> anyhow::Result<Option<usize>> {
    let room = Room::of(opened, wish.memory);
    let kinds: Vec<DeviceKind> = opened.iter().map(|o| o.device.profile().kind).collect();
    first(
        &kinds,
        |index, leeway| {
            let placement = Placement::new(spec, opened.len(), vec![index; spec.blocks.len()])?;
            Ok(room.misfit_at_best(spec, &placement.into(), wish.options, leeway).is_none())
        },
        [wish.whole(), wish.leeway],
    )
}

/// The first device that fits. Devices of one kind are about as fast, so that one of them with more room comes before one that needs a shorter
/// context; another kind may be many times slower, and comes after both.
fn first(
    kinds: &[DeviceKind],
    fits: impl Fn(usize, &Leeway) -> anyhow::Result<bool>,
    leeways: [Leeway; 2],
) -> anyhow::Result<Option<usize>> {
    let mut start = 0;
    for alike in kinds.chunk_by(|a, b| a == b) {
        for leeway in &leeways {
            for index in start..start + alike.len() {
                if fits(index, leeway)? {
                    return Ok(Some(index));
                }
            }
        }
        start += alike.len();
    }
    Ok(None)
}

/// What is predicted to be best of what fits on these devices, and why; `None` where nothing does.
fn best(
    here: &Here,
    opened: &[Opened],
    wish: &Wish<'_>,
    spec: &ModelSpec,
    cache: &DeviceCache,
) -> anyhow::Result<Option<(Candidate, Reason)>> {
    let room = Room::of(opened, wish.memory);
    let with = |leeway: Leeway| {
        let plan = predict(here, spec, wish.options, wish.load, Scope::Fitting(&room, leeway), cache)?;
        let tight = plan.ranked.iter().any(|p| p.misfit.is_some());
        let chosen = plan.chosen.map(|chosen| (plan.ranked[chosen].clone(), plan.reason));
        anyhow::Ok((chosen, tight))
    };
    let (whole, tight) = with(wish.whole())?;
    let shorter = if tight && wish.leeway.context_min.is_some() { with(wish.leeway)?.0 } else { None };
    let seconds = |of: &Option<(Prediction, Reason)>| of.as_ref().map(|(p, _)| p.seconds());
    let taken = if is_worth(seconds(&whole), seconds(&shorter)) { shorter } else { whole };
    Ok(taken.map(|(prediction, reason)| (prediction.candidate, reason)))
}

/// True where a placement with a shorter context is to be taken, by the seconds that it and the best with the whole context would take.
fn is_worth(whole: Option<f64>, shorter: Option<f64>) -> bool {
    match (whole, shorter) {
        (Some(whole), Some(shorter)) => shorter * WORTH < whole,
        (None, shorter) => shorter.is_some(),
        (Some(_), None) => false,
    }
}

/// The same placements over the devices that they use alone, which are renumbered in their order.
fn among(placements: &Placements, used: &[usize], spec: &ModelSpec) -> anyhow::Result<Placements> {
    let number = |device: usize| used.iter().position(|u| *u == device).unwrap_or(0);
    let renumbered = |placement: &Placement| {
        let assignment = (0..spec.blocks.len()).map(|b| number(placement.device(b))).collect();
        Placement::new(spec, used.len(), assignment)
    };
    Ok(Placements { prefill: renumbered(&placements.prefill)?, decode: renumbered(&placements.decode)? })
}

fn cache(config: &Config) -> DeviceCache {
    DeviceCache::new(config.cache_dir.as_deref())
}

/// Which placements are predicted.
enum Scope<'a> {
    /// All, and those are chosen from that fit here once that has given way.
    Fitting(&'a Room, Leeway),
    /// This one, beside every device alone.
    Only(&'a Candidate),
}

/// What the planner says about these devices, with what earlier runs say about its predictions.
fn predict(
    here: &Here,
    spec: &ModelSpec,
    options: &EngineOptions,
    load: Load,
    scope: Scope<'_>,
    cache: &DeviceCache,
) -> anyhow::Result<Plan> {
    let (room, only) = match scope {
        Scope::Fitting(room, leeway) => (Some((room, leeway)), None),
        Scope::Only(candidate) => (None, Some(vec![candidate.clone()])),
    };
    let check = room.map(|(room, leeway)| {
        move |placements: &Placements| room.misfit_at_best(spec, placements, options, &leeway)
    });
    let grades = Grades::read(cache, &here.keys);
    Ok(plan(&Ask {
        spec,
        machine: &here.machine,
        options,
        past: load.past,
        prompt: load.prompt,
        decode: load.decode,
        sequences: load.sequences,
        // Devices that are asked know them.
        budgets: &[],
        check: check.as_ref().map(|check| check as &Check<'_>),
        corrections: &|candidate| grades.corrections(candidate, spec),
        only,
    })?)
}

/// Predicts what was measured, tells both, and keeps the error.
pub struct Grader {
    here: Here,
    candidate: Candidate,
}

impl Grader {
    /// For a model as it is placed; `None` where the devices' figures are not known.
    ///
    /// Errors as [`Here::of`] does.
    pub fn new(placed: &Placed, spec: &ModelSpec, config: &Config) -> anyhow::Result<Option<Grader>> {
        let Some(here) = Here::of(&placed.opened, spec, Want::Kept, config)? else {
            if config.explains() {
                say!("no prediction: `unicorn plan` was not yet here to measure what runs the model");
            }
            return Ok(None);
        };
        let candidate = Candidate { rules: String::new(), placements: placed.placements.clone() };
        Ok(Some(Grader { here, candidate }))
    }

    /// What a request is predicted to take.
    pub fn predict(
        &self,
        spec: &ModelSpec,
        options: &EngineOptions,
        load: Load,
        config: &Config,
    ) -> anyhow::Result<Option<Prediction>> {
        let plan = predict(&self.here, spec, options, load, Scope::Only(&self.candidate), &cache(config))?;
        let this = |p: &Prediction| p.candidate.placements == self.candidate.placements;
        Ok(plan.ranked.into_iter().find(this))
    }

    /// Keeps a measured rate beside what was predicted; returns both in words.
    pub fn grade(
        &self,
        spec: &ModelSpec,
        phase: Phase,
        prediction: &Prediction,
        measured_tokens_per_second: f64,
        config: &Config,
    ) -> Option<String> {
        let predicted = match phase {
            Phase::Prefill => prediction.prefill.as_ref(),
            Phase::Decode => prediction.decode.as_ref(),
        }?;
        if !(measured_tokens_per_second.is_finite() && measured_tokens_per_second > 0.0) {
            return None;
        }
        let raw = predicted.tokens as f64 / predicted.raw_seconds;
        let cache = cache(config);
        let mut grades = Grades::read(&cache, &self.here.keys);
        let ratio = raw / measured_tokens_per_second;
        // Keeping it is a convenience: what is told counts all the same.
        if let Err(error) = grades.keep(&self.candidate, spec, phase, ratio)
            && config.explains()
        {
            say!("{}", describe(&error));
        }
        Some(in_words(phase, predicted, measured_tokens_per_second))
    }

    /// Tells what was predicted for a request beside what it took. Prompts that were partly reused and answers of a few tokens say nothing.
    pub fn tell(
        &self,
        spec: &ModelSpec,
        options: &EngineOptions,
        timings: &Timings,
        config: &Config,
    ) -> anyhow::Result<()> {
        let prompt = if timings.reused_tokens == 0 { timings.prompt_tokens } else { 0 };
        let decode = timings.generated_tokens.saturating_sub(1);
        let load = Load { past: 0, prompt, decode, sequences: 1 };
        let Some(prediction) = self.predict(spec, options, load, config)? else { return Ok(()) };
        let rates = [
            (Phase::Prefill, timings.prefill_tokens_per_second()),
            (Phase::Decode, timings.decode_tokens_per_second()),
        ];
        for (phase, rate) in rates {
            // Drafts make several tokens of a step, which the prediction knows nothing of.
            let few = phase == Phase::Decode && (decode < DECODE_MIN || timings.drafted_tokens > 0);
            if let Some(line) = (!few).then(|| self.grade(spec, phase, &prediction, rate, config)).flatten() {
                say!("{line}");
            }
        }
        Ok(())
    }
}

/// Tokens of an answer from which on its rate says something.
const DECODE_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use unicorn_cases::shapes;
    use unicorn_core::{Block, DeviceOptions, Instrument, TensorType};
    use unicorn_cpu::ReferenceDevice;
    use unicorn_engine::PlaceRules;
    use unicorn_engine::planner::Misfit;

    use super::*;
    use crate::devices::cache::Key;
    use crate::planner::machine_file;

    /// A CPU and a GPU by their figures, which are devices of the host in truth.
    struct Pair {
        here: Here,
        opened: [Opened; 2],
        spec: ModelSpec,
        args: DeviceArgs,
    }

    impl Pair {
        fn new() -> Pair {
            let opened = ["cpu", "vulkan:0"].map(|choice| {
                let device: Arc<dyn Instrument> = Arc::new(ReferenceDevice::new());
                let (key, options) = (Key::new(device.profile(), 0), DeviceOptions::default());
                Opened { device, key, options, choice: choice.parse().unwrap() }
            });
            let mut machine = machine_file::read("phoenix").unwrap().machine;
            machine.devices.truncate(2);
            machine.devices.reverse();
            // An estimate of what fits would say that nothing does.
            machine.memories[0].bytes = 1;
            let keys = opened.iter().map(|o| o.key.clone()).collect();
            let spec = shapes::model("smollm2-135m", TensorType::Q8_0).unwrap();
            Pair { here: Here { machine, keys }, opened, spec, args: DeviceArgs::any(None) }
        }

        /// Calls with what is wished under a limit.
        fn with<T>(&self, max: &str, shortest: Option<usize>, f: impl FnOnce(&Wish<'_>) -> T) -> T {
            self.asked(max, Leeway { kv_tokens: None, context_min: shortest }, 1, f)
        }

        /// The same with more sequences, and a cache that they share.
        fn asked<T>(&self, max: &str, leeway: Leeway, sequences: usize, f: impl FnOnce(&Wish<'_>) -> T) -> T {
            let options =
                EngineOptions { context: 8192, sequences_max: sequences, ..EngineOptions::default() };
            let options = leeway.wished(&options, 8192);
            let max = max.parse().unwrap();
            let (load, memory) = (Load::default(), Some(&max));
            f(&Wish { device: &self.args, place: &Place::Auto, options: &options, leeway, load, memory })
        }

        /// The devices of the best placement, which the engine would take.
        fn best(&self, max: &str, shortest: Option<usize>) -> Option<Vec<usize>> {
            self.with(max, shortest, |wish| {
                let found = best(&self.here, &self.opened, wish, &self.spec, &DeviceCache::new(None));
                let (candidate, _) = found.unwrap()?;
                let room = Room::of(&self.opened, wish.memory);
                let misfit =
                    room.misfit_at_best(&self.spec, &candidate.placements, wish.options, &wish.leeway);
                assert!(misfit.is_none(), "{}", candidate.rules);
                Some(candidate.devices())
            })
        }

        fn alone(&self, max: &str, shortest: Option<usize>) -> Option<usize> {
            self.with(max, shortest, |wish| alone(&self.opened, wish, &self.spec).unwrap())
        }

        /// Bytes that one device needs for all of the model.
        fn need(&self, context: usize) -> u64 {
            let one = &self.opened[..1];
            let room = Room::of(one, Some(&"1kB".parse().unwrap()));
            let options = EngineOptions { context, ..EngineOptions::default() };
            let whole = Placement::single(&self.spec).unwrap().into();
            let Some(Misfit::Memory { name, needed, available: 1000, budget: true }) =
                room.misfit(&self.spec, &whole, &options)
            else {
                panic!("no misfit")
            };
            assert_eq!(name, "reference");
            needed
        }
    }

    #[test]
    fn what_is_chosen_is_what_the_engine_takes() {
        let pair = Pair::new();
        let kb = |bytes: u64, by: f64| format!("{}kB", (bytes as f64 * by / 1000.0).ceil());
        let (long, short) = (pair.need(8192), pair.need(2048));
        assert!(long as f64 > 1.2 * short as f64, "{long} {short}");
        // The GPU is the faster one; where it may not hold the model, the CPU has it or a part of it.
        assert_eq!(pair.best("1TB", None), Some(vec![1]));
        let small = pair.best(&format!("vulkan={}", kb(long, 0.02)), None);
        assert_eq!(small, Some(vec![0]));
        assert_eq!(pair.best("cpu=1kB", None), Some(vec![1]));
        assert_eq!(pair.best(&kb(long, 0.7), None), Some(vec![0, 1]), "each has room for a part");
        // A context that may be shorter is, before anything is given up; one that may not stays.
        assert_eq!(pair.best("1kB", Some(2048)), None);
        let room_for_short = format!("vulkan={},cpu=1kB", kb(short, 1.01));
        assert_eq!(pair.best(&room_for_short, None), None);
        assert_eq!(pair.best(&room_for_short, Some(2048)), Some(vec![1]));
    }

    #[test]
    fn without_figures_the_first_that_can_hold_the_model_has_it() {
        let pair = Pair::new();
        let short = pair.need(2048).div_ceil(1000) + 1;
        assert_eq!(pair.alone("1TB", None), Some(0));
        assert_eq!(pair.alone("cpu=1kB", None), Some(1));
        assert_eq!(pair.alone("1kB", Some(2048)), None);
        assert_eq!(pair.alone(&format!("cpu=1kB,vulkan:0={short}kB"), None), None);
        assert_eq!(pair.alone(&format!("cpu=1kB,vulkan:0={short}kB"), Some(2048)), Some(1));
    }

    #[test]
    fn a_cache_that_may_be_smaller_keeps_no_device_from_having_the_model() {
        let pair = Pair::new();
        // Eight sequences that share a cache of 65,536 positions; the GPU has room for that of one.
        let room_for_one = format!("vulkan={}kB", pair.need(8192) / 1000 * 12 / 10);
        let leeway = Leeway { kv_tokens: Some(65_536), context_min: None };
        let best = |max: &str| {
            pair.asked(max, leeway, 8, |wish| {
                let found = best(&pair.here, &pair.opened, wish, &pair.spec, &DeviceCache::new(None));
                found.unwrap().map(|(candidate, _)| candidate.devices())
            })
        };
        assert_eq!(best(&room_for_one), Some(vec![1]));
        assert_eq!(best(&format!("vulkan={}kB", pair.need(8192) / 50_000)), Some(vec![0]), "nor for a part");
        let first = |max: &str| pair.asked(max, leeway, 8, |wish| alone(&pair.opened, wish, &pair.spec));
        let one = pair.need(8192) / 1000 * 12 / 10;
        assert_eq!(first(&format!("cpu={one}kB,vulkan=1kB")).unwrap(), Some(0));
        let none = Leeway { kv_tokens: None, context_min: None };
        let first = pair.asked(&format!("cpu={one}kB,vulkan=1kB"), none, 8, |wish| {
            alone(&pair.opened, wish, &pair.spec).unwrap()
        });
        assert_eq!(first, None, "the whole cache does not fit");
    }

    #[test]
    fn a_fast_device_with_a_shorter_context_comes_before_a_slow_one() {
        use DeviceKind::{Cpu, Vulkan};
        let leeways = [None, Some(2048)].map(|context_min| Leeway { kv_tokens: None, context_min });
        // What each has room for: nothing, a shorter context, all of it.
        let taken = |kinds: &[DeviceKind], rooms: &[usize]| {
            let fits = |index: usize, leeway: &Leeway| {
                Ok(rooms[index] >= if leeway.context_min.is_some() { 1 } else { 2 })
            };
            first(kinds, fits, leeways).unwrap()
        };
        assert_eq!(taken(&[Vulkan, Cpu], &[2, 2]), Some(0));
        assert_eq!(taken(&[Vulkan, Cpu], &[1, 2]), Some(0));
        assert_eq!(taken(&[Vulkan, Cpu], &[0, 1]), Some(1));
        assert_eq!(taken(&[Vulkan, Vulkan, Cpu], &[1, 2, 2]), Some(1));
        assert_eq!(taken(&[Vulkan, Vulkan, Cpu], &[1, 0, 2]), Some(0));
        assert_eq!(taken(&[Vulkan, Cpu], &[0, 0]), None);
        // By predictions the same.
        assert!(is_worth(Some(10.0), Some(1.0)) && is_worth(None, Some(1.0)));
        assert!(!is_worth(Some(1.9), Some(1.0)) && !is_worth(Some(1.0), None) && !is_worth(None, None));
    }

    #[test]
    fn a_device_without_a_kernel_is_no_misfit_of_memory() {
        let pair = Pair::new();
        let mut spec = pair.spec.clone();
        let Block::Ffn { weights, .. } = &mut spec.blocks[2] else { panic!("the first ffn") };
        weights.up.rows += 1;
        let whole = Placement::single(&spec).unwrap().into();
        let room = Room::of(&pair.opened[..1], None);
        let refused = room.misfit(&spec, &whole, &EngineOptions::default());
        assert!(matches!(&refused, Some(Misfit::Refused(why)) if why.contains("ffn")), "{refused:?}");
    }

    #[test]
    fn a_placement_counts_the_devices_that_stay_open() {
        let spec = shapes::model("smollm2-135m", TensorType::Q8_0).unwrap();
        // Of three devices the first is not used.
        let rules: PlaceRules = "0-29=a,prefill:mixer=b,prefill:ffn=c,decode:0-29=c".parse().unwrap();
        let all = rules.resolve(&spec).unwrap();
        let candidate = Candidate { rules: rules.to_string(), placements: all };
        let used = candidate.devices();
        assert_eq!(used, [1, 2]);
        let placements = among(&candidate.placements, &used, &spec).unwrap();
        assert_eq!((placements.prefill.devices(), placements.decode.devices()), (2, 2));
        assert_eq!([1, 2, 3].map(|b| placements.prefill.device(b)), [0, 1, 0]);
        assert_eq!([1, 2, 3].map(|b| placements.decode.device(b)), [1, 1, 1]);
    }
}
