//! A canary that looks at everything: what it is given is what the device computed, and nothing changes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use unicorn_core::{
    Block, Canary, CanaryCounts, Doubt, HeadRow, Launch, ModelSpec, Pick, Sample, SampleState,
};

use super::*;
use crate::testing::mix;

/// Looks at a random block of every so many batches, and computes again what the fake device does.
pub struct Looker {
    spec: ModelSpec,
    every: u64,
    state: AtomicU64,
    open: AtomicUsize,
    wrong: Mutex<Vec<String>>,
    seen: Mutex<HashMap<&'static str, usize>>,
    doubt: Mutex<Option<Doubt>>,
    flights: Mutex<Vec<u64>>,
}

impl Looker {
    pub fn new(spec: &ModelSpec, every: u64, seed: u64) -> Looker {
        Looker {
            spec: spec.clone(),
            every,
            state: AtomicU64::new(seed),
            open: AtomicUsize::new(0),
            wrong: Mutex::default(),
            seen: Mutex::default(),
            doubt: Mutex::default(),
            flights: Mutex::default(),
        }
    }

    /// What was not as it should be.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }

    /// Picks that nothing came of, not even that.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Samples by kind of block.
    fn seen(&self) -> HashMap<&'static str, usize> {
        self.seen.lock().unwrap().clone()
    }

    fn random(&self) -> u64 {
        mix(self.state.fetch_add(1, Ordering::SeqCst), 77)
    }

    fn check(&self, sample: &Sample) -> Result<&'static str, String> {
        let block = &self.spec.blocks[sample.watched.block];
        let salt = block.weights()[0].span.offset + 1;
        let hash =
            |row: &[f32]| -> u64 { row.iter().enumerate().map(|(i, v)| (*v as u64) << (16 * i)).sum() };
        let (before, after) = (hash(&sample.before), hash(&sample.after));
        let is = |what: &str, want: u64, got: u64| match want == got {
            true => Ok(()),
            false => {
                Err(format!("{what} of block {}: {got:x}, not {want:x}: {sample:?}", sample.watched.block))
            }
        };
        match block {
            Block::Embedding { .. } => {
                let token = sample.token.ok_or("a row without a token")?;
                is("embedding", mix(salt, token as u64), after).map(|()| "embedding")
            }
            Block::Ffn { .. } => is("ffn", mix(before, salt), after).map(|()| "ffn"),
            Block::Attention { spec, .. } => {
                let state = sample.state.as_ref().ok_or("attention without state")?;
                let p = sample.position;
                is("the key", mix(before, p as u64), word(state, p))?;
                let keys = (spec.state().first_seen(p)..=p).fold(salt, |h, q| mix(h, word(state, q)));
                is("attention", mix(before, keys), after).map(|()| "attention")
            }
            Block::Head { .. } => {
                let (asked, row) = sample.output.as_ref().ok_or("a head without output")?;
                let logit = |v: usize| (mix(before, v as u64) >> 40) as f32 / 2e6;
                let mut logits: Vec<f32> = (0..VOCAB).map(logit).collect();
                asked.edits.apply(0, &mut logits);
                let same = match row {
                    HeadRow::Logits(got) => *got == logits,
                    HeadRow::Top(top) => top.iter().all(|e| logits[e.token as usize] == e.logit),
                };
                if same { Ok("head") } else { Err(format!("logits are others: {sample:?}")) }
            }
            _ => Err("neither recurrent state nor encoders are looked at".into()),
        }
    }
}

/// What a page has of a position.
fn word(state: &SampleState, position: usize) -> u64 {
    let (page, slot) = (position / state.layout.page_tokens, position % state.layout.page_tokens);
    let mut bytes = [0; 8];
    state.pages.read_part(page - state.first_page, slot * 8, &mut bytes);
    u64::from_ne_bytes(bytes)
}

impl Canary for Looker {
    fn pick(&self, launch: &Launch<'_>) -> Option<Pick> {
        self.flights.lock().unwrap().push(launch.flight);
        let draw = self.random();
        if !draw.is_multiple_of(self.every) || launch.blocks.is_empty() {
            return None;
        }
        self.open.fetch_add(1, Ordering::SeqCst);
        let block = launch.blocks[self.random() as usize % launch.blocks.len()].block;
        let row = (draw & 64 == 0).then_some(self.random() as usize % launch.batch.rows());
        Some(Pick { block, row, draw: self.random() })
    }

    fn sample(&self, sample: Sample) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        match self.check(&sample) {
            Ok(kind) => *self.seen.lock().unwrap().entry(kind).or_default() += 1,
            Err(what) => self.wrong.lock().unwrap().push(what),
        }
    }

    fn missed(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn doubt(&self) -> Option<Doubt> {
        self.doubt.lock().unwrap().clone()
    }

    fn counts(&self) -> CanaryCounts {
        CanaryCounts { samples: self.seen().values().sum::<usize>() as u64, ..CanaryCounts::default() }
    }
}

fn watched(looker: &Arc<Looker>, options: EngineOptions) -> Engine {
    let overseer = Overseer(Some(looker.clone() as Arc<dyn Canary>));
    engine_with(&looker.spec, FakeDevice::plain(), EngineOptions { overseer, ..options })
}

#[test]
fn every_kind_of_block_is_looked_at() {
    let looker = Arc::new(Looker::new(&sliding_spec(2, 40), 1, 5));
    let mut engine = watched(&looker, options());
    for i in 0..6 {
        engine.add(request(i, 30 + 20 * i as usize, 60)).unwrap();
    }
    drain(&mut engine);
    assert_eq!(looker.wrong(), Vec::<String>::new());
    assert_eq!(looker.open(), 0);
    let seen = looker.seen();
    for kind in ["embedding", "attention", "ffn", "head"] {
        assert!(seen.get(kind).is_some_and(|count| *count > 5), "{kind}: {seen:?}");
    }
    assert_eq!(engine.counters().canary.samples, seen.values().sum::<usize>() as u64);
}

#[test]
fn a_row_that_failed_is_missed_and_nothing_waits_for_it() {
    let looker = Arc::new(Looker::new(&tiny_spec(2), 1, 5));
    let device = FakeDevice::plain();
    let overseer = Overseer(Some(looker.clone() as Arc<dyn Canary>));
    let mut engine = engine_with(&looker.spec, device.clone(), EngineOptions { overseer, ..options() });
    for next in [1, 2, 3] {
        device.set_faults(Faults { next, ..Faults::default() });
        engine.add(request(1, 30, 5)).unwrap();
        drain(&mut engine);
    }
    device.set_faults(Faults { copies: usize::MAX, ..Faults::default() });
    engine.add(request(2, 30, 30)).unwrap();
    // Copies for the canary alone fail nobody's text.
    assert!(drain(&mut engine).values().all(|(_, reason)| *reason == Some(FinishReason::Length)));
    assert_eq!((looker.open(), looker.wrong()), (0, Vec::new()));
}

/// Of four sequences: one was told tokens before the last right batch and none since, one was told some that may be wrong, one was told
/// nothing yet, and one waits.
#[test]
fn what_may_be_wrong_ends_or_is_computed_again() {
    let looker = Arc::new(Looker::new(&tiny_spec(2), u64::MAX, 5));
    let mut engine = watched(&looker, EngineOptions { sequences_max: 2, prefill_chunk: 16, ..options() });
    let expected = alone(&request(2, 60, 9));
    let told = engine.add(request(1, 5, 400)).unwrap();
    let mut texts = Texts::new();
    while texts.get(&told).is_none_or(|t| t.0.len() < 3) {
        collect(&mut texts, engine.step().unwrap());
    }
    let right = looker.flights.lock().unwrap().last().copied();
    let silent = engine.add(request(2, 60, 9)).unwrap();
    let waits = engine.add(request(3, 5, 4)).unwrap();
    collect(&mut texts, engine.step().unwrap());
    collect(&mut texts, engine.step().unwrap());
    assert_eq!(texts.get(&silent).map(|t| t.0.len()), None, "its prompt takes longer");
    *looker.doubt.lock().unwrap() = Some(Doubt { device: 0, what: "ffn: 3 of 4 rows".into(), since: right });
    let events = engine.step().unwrap();
    collect(&mut texts, events);
    let Some(FinishReason::Device(failure)) = &texts[&told].1 else { panic!("{:?}", texts[&told]) };
    assert!(failure.0.is_wrong() && failure.to_string().contains("ffn: 3 of 4 rows"), "{failure}");
    assert!(matches!(engine.step(), Err(EngineError::Stopped { .. })));
    let survivors = engine.survivors().unwrap();
    assert_eq!((survivors.len(), engine.counters().doubted), (2, 1));
    let mut other = engine_of(EngineOptions { sequences_max: 2, ..options() });
    other.adopt(survivors);
    while !other.is_idle() {
        collect(&mut texts, other.step().unwrap());
    }
    assert_eq!(texts[&silent], expected);
    assert_eq!(texts[&waits], alone(&request(3, 5, 4)));
}

#[test]
fn what_was_computed_before_the_last_right_row_goes_on() {
    let looker = Arc::new(Looker::new(&tiny_spec(2), u64::MAX, 5));
    let mut engine = watched(&looker, options());
    let id = engine.add(request(1, 5, 40)).unwrap();
    let mut texts = Texts::new();
    while texts.get(&id).is_none_or(|t| t.0.len() < 3) {
        collect(&mut texts, engine.step().unwrap());
    }
    *looker.doubt.lock().unwrap() = Some(Doubt { device: 0, what: "ffn".into(), since: Some(u64::MAX) });
    while let Ok(events) = engine.step() {
        collect(&mut texts, events);
    }
    let mut other = engine_of(options());
    other.adopt(engine.survivors().unwrap());
    while !other.is_idle() {
        collect(&mut texts, other.step().unwrap());
    }
    assert_eq!(texts[&id], alone(&request(1, 5, 40)));
}

#[test]
fn what_a_canary_takes_is_in_the_memory_plan() {
    let spec = tiny_spec(2);
    let crossing = |overseer| {
        let devices = [FakeDevice::plain() as Arc<dyn Device>];
        let placements = Placement::single(&spec).unwrap().into();
        let plan = MemoryPlan::new(&spec, &devices, &placements, &EngineOptions { overseer, ..options() });
        plan.unwrap().crossing
    };
    assert_eq!(crossing(Overseer::default()), 0);
    let looker = Arc::new(Looker::new(&spec, 1, 1)) as Arc<dyn Canary>;
    // Two streams of 64 rows, four times the pages of 512 positions and one more, of keys and values in f16, and the head.
    let pages = 4 * (16 + 1) * 32 * 2 * 4 * 2;
    assert_eq!(crossing(Overseer(Some(looker))), 2 * 64 * 4 * 4 + pages + 64 * 4 * 4 + 16);
}
