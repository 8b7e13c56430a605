//! Whole canaries over real devices: what is wrong is found soon, what is right never.

use std::sync::Arc;
use std::time::{Duration, Instant};

use unicorn_cases::shapes::{self, Shape};
use unicorn_cases::synthetic::SyntheticSource;
use unicorn_core::quant::Random;
use unicorn_core::{Block, CanaryCounts, Device, KvType, ModelSpec, TensorType, WeightSource};
use unicorn_engine::{Engine, EngineError, EngineOptions, Overseer, Placement, Request, SamplingOptions};

use super::watcher::{Coop, Wish, start};
use crate::devices::{DeviceChoice, Faults, OpenOptions};
use crate::open_device::Opened;

/// Steps in which a wrong kernel has to be found.
const STEPS: usize = 1000;
/// Work after which a kernel becomes wrong at most.
const WRONG_FROM: usize = 300;

/// A small model whose layers have matrices of two types.
fn model() -> ModelSpec {
    let shape = Shape {
        name: "small",
        width: 128,
        hidden: 384,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        vocab: 1000,
        tied: false,
    };
    let mut spec = shapes::of(&shape, TensorType::Q4_0);
    let other = shapes::of(&shape, TensorType::Q8_0);
    // The last feed-forward block alone is of the other type.
    let last = spec.blocks.len() - 2;
    assert!(matches!(spec.blocks[last], Block::Ffn { .. }));
    spec.blocks[last] = other.blocks[last].clone();
    spec
}

/// Opens a device as it is, with faults around it; `None` where it is not here.
fn open(name: &str, faults: &str) -> Option<Opened> {
    let choice: DeviceChoice = name.parse().unwrap();
    let faults = Faults::parse(faults);
    let options = OpenOptions {
        threads: Some(1),
        tier: None,
        small: false,
        faults: &faults,
        cache_folder: None,
        note: &|_| {},
    };
    match choice.open(&options) {
        Ok(device) => Some(Opened { key: choice.key(&*device), device, options: Default::default(), choice }),
        Err(error) => {
            assert!(std::env::var_os("UNICORN_REQUIRE_VULKAN").is_none(), "{error:#}");
            println!("NOT RUN: {error:#}");
            None
        }
    }
}

/// An engine that serves random prompts, a few at once.
struct Serving {
    engine: Engine,
    random: Random,
}

impl Serving {
    fn new(opened: &Opened, spec: &ModelSpec, kv: KvType, wish: Option<&Wish>, seed: u64) -> Serving {
        let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(seed));
        let canary = wish
            .and_then(|wish| start(wish, std::slice::from_ref(opened), spec, &source, kv, false).unwrap());
        let options = EngineOptions {
            context: 256,
            sequences_max: 4,
            prefill_chunk: 64,
            kv_type: kv,
            overseer: Overseer(canary),
            ..EngineOptions::default()
        };
        let devices = vec![opened.device.clone() as Arc<dyn Device>];
        let placement = Placement::single(spec).unwrap();
        let engine = Engine::new(spec, &source, devices, placement, options, &mut |_| {}).unwrap();
        Serving { engine, random: Random::new(seed) }
    }

    /// One step; false once the engine has stopped.
    fn step(&mut self) -> bool {
        while self.engine.counters().running + self.engine.counters().waiting < 1 + self.random.below(4) {
            let length = 1 + self.random.below(100);
            let vocab = self.engine.spec().vocab;
            let prompt = (0..length).map(|_| self.random.below(vocab) as u32).collect();
            let temperature = if self.random.below(2) == 0 { 0.0 } else { 1.0 };
            let sampling =
                SamplingOptions { temperature, seed: self.random.bits(), ..SamplingOptions::default() };
            let request = Request { prompt, max_tokens: Some(20), sampling, ..Request::default() };
            if self.engine.add(request).is_err() {
                return false;
            }
        }
        match self.engine.step() {
            Ok(_) => true,
            Err(EngineError::Stopped { reason }) => {
                assert!(reason.0.is_wrong(), "{reason}");
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn counts(&self) -> CanaryCounts {
        self.engine.counters().canary
    }
}

/// Steps until a fault is found. A step of this model takes a fraction of what a row takes to be computed again, where a real model's takes
/// several times that: each waits a little, and the share is larger, so that the proportions are those of a real one.
fn found_after(device: &str, fault: &str, kv: KvType, seed: u64) -> Option<usize> {
    let opened = open(device, fault)?;
    let wish = Wish { share: Some(0.3), coop: Arc::<Coop>::default() };
    let mut serving = Serving::new(&opened, &model(), kv, Some(&wish), seed);
    let step = |_: &usize| {
        std::thread::sleep(Duration::from_millis(4));
        !serving.step()
    };
    let steps = (0..=STEPS).find(step).unwrap_or(usize::MAX);
    assert!(steps <= STEPS, "{device} {fault}: not found in {STEPS} steps, {:?}", serving.counts());
    let found = wish.coop.cases.lock().unwrap();
    assert_eq!(found.len(), 1, "{fault}");
    Some(steps)
}

#[test]
fn wrong_lanes_tiles_and_types_are_found_in_twenty_of_twenty_trials() {
    let faults = [
        "lane",
        "tile",
        "lane:attention",
        "tile:attention",
        "lane:head",
        "tile:head",
        "type:q4_0",
        "type:q8_0",
        "lane",
        "tile",
    ];
    let mut random = Random::new(7);
    for (trial, fault) in faults.iter().cycle().take(20).enumerate() {
        let from = 1 + random.below(WRONG_FROM);
        let kv = [KvType::F16, KvType::F32, KvType::Q8_0][trial % 3];
        let steps = found_after("cpu", &format!("wrong-{fault}@{from}"), kv, trial as u64);
        println!("trial {trial}: {fault}, wrong from work {from} on: found in step {}", steps.unwrap());
    }
}

#[test]
fn wrong_kernels_of_a_gpu_are_found() {
    for (seed, fault) in ["lane", "tile:attention", "type:q8_0"].into_iter().enumerate() {
        let steps = found_after("vulkan:0", &format!("wrong-{fault}@9"), KvType::F16, seed as u64);
        println!("{fault} on vulkan:0: found in step {steps:?}");
    }
}

/// Looks at everything for a while.
fn alarms(device: &str, samples: u64, most: Duration) {
    let began = Instant::now();
    let mut looked = 0;
    for round in 0.. {
        let kv = [KvType::F16, KvType::F32, KvType::Q8_0][round % 3];
        let Some(opened) = open(device, "") else { return };
        let wish = Wish { share: Some(10.0), coop: Arc::default() };
        let mut serving = Serving::new(&opened, &model(), kv, Some(&wish), round as u64);
        let until = (samples - looked).min(samples / 3 + 1);
        while serving.counts().samples < until && began.elapsed() < most {
            assert!(serving.step(), "{device}: a false alarm, {:?}", wish.coop);
        }
        let counts = serving.counts();
        assert_eq!(counts.wrong, 0, "{device}, {kv:?}: {counts:?}");
        looked += counts.samples;
        if looked >= samples || began.elapsed() >= most {
            break;
        }
    }
    println!("{device}: {looked} rows, none wrong, in {:.0} s", began.elapsed().as_secs_f64());
    assert!(looked > 0, "{device}: nothing was looked at");
}

/// `UNICORN_CANARY_SAMPLES=100000 cargo test -p unicorn --release right_kernels -- --nocapture` looks at as many rows on each device.
#[test]
fn right_kernels_raise_no_alarm() {
    let many = std::env::var("UNICORN_CANARY_SAMPLES").ok().and_then(|samples| samples.parse().ok());
    let most = Duration::from_secs(if many.is_some() { 24 * 3600 } else { 30 });
    alarms("cpu", many.unwrap_or(600), most);
    alarms("vulkan:0", many.unwrap_or(200), most);
}

/// Prints what a canary costs beside an engine without one, in turn.
#[test]
fn the_cost_is_told() {
    let Some(opened) = open("cpu", "") else { return };
    let spec = model();
    let coop = Arc::<Coop>::default();
    let wish = Wish { share: Some(0.01), coop: coop.clone() };
    let mut runs =
        [None, Some(&wish)].map(|wish| Serving::new(&open("cpu", "").unwrap(), &spec, KvType::F16, wish, 1));
    drop(opened);
    let mut seconds = [0.0; 2];
    for _ in 0..8 {
        for (run, seconds) in runs.iter_mut().zip(&mut seconds) {
            let began = Instant::now();
            (0..100).for_each(|_| assert!(run.step()));
            *seconds += began.elapsed().as_secs_f64();
        }
    }
    let counts = runs[1].counts();
    println!(
        "800 steps: {:.3} s without a canary, {:.3} s with one ({:+.1} %); {} rows took {:.3} s",
        seconds[0],
        seconds[1],
        100.0 * (seconds[1] / seconds[0] - 1.0),
        counts.samples,
        counts.seconds
    );
    assert!(counts.samples > 0 && counts.wrong == 0, "{counts:?}");
}
