//! A whole model that starts from pages that another engine saved: the tokens are those of a cold start.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use unicorn_core::quant::Random;
use unicorn_core::{Device, Fence, KvType, PageKey, PageRecords, PageStore, Signal, WeightSource};
use unicorn_cpu::{CpuOptions, SimdDevice};
use unicorn_engine::{Engine, EngineOptions, Event, KvStore, Placement, Request, SamplingOptions, Timings};

const TOKENS: usize = 24;

/// The bytes of each part of a page.
type Page = Vec<Vec<u8>>;

/// Pages in memory.
#[derive(Default)]
struct Pages(Arc<Mutex<HashMap<PageKey, Page>>>);

impl PageStore for Pages {
    fn has(&self, key: &PageKey) -> bool {
        self.0.lock().unwrap().contains_key(key)
    }

    fn read(&self, records: PageRecords, done: Signal) {
        let pages = self.0.lock().unwrap();
        for (row, key) in records.keys.iter().enumerate() {
            records.parts.iter().zip(&pages[key]).for_each(|(part, bytes)| part.write_part(row, 0, bytes));
        }
        drop(pages);
        done.give(Ok(None));
    }

    fn write(&self, records: PageRecords, after: Vec<Fence>, done: Signal) {
        let pages = self.0.clone();
        Fence::all(&after, None, move |outcome| {
            outcome.unwrap();
            for (row, key) in records.keys.iter().enumerate() {
                let part = |part: &Arc<unicorn_core::SharedBuffer>| {
                    let mut bytes = vec![0; part.width() * 4];
                    part.read_part(row, 0, &mut bytes);
                    bytes
                };
                pages.lock().unwrap().insert(*key, records.parts.iter().map(part).collect());
            }
            done.give(Ok(None));
        });
    }
}

fn engine(model: &str, kv_type: KvType, store: Option<KvStore>) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny").join(model);
    let model = unicorn_model::open(&path).unwrap();
    let source: Arc<dyn WeightSource> = model.source.clone();
    let device: Arc<dyn Device> =
        Arc::new(SimdDevice::open(CpuOptions { threads: Some(2), level: None }).unwrap());
    let placement = Placement::single(&model.spec).unwrap();
    let options = EngineOptions { context: 256, page_tokens: 32, kv_type, store, ..EngineOptions::default() };
    Engine::new(&model.spec, &source, vec![device], placement, options, &mut |_| {}).unwrap()
}

fn run(engine: &mut Engine, prompt: &[u32]) -> (Vec<u32>, Timings) {
    let sampling = SamplingOptions { temperature: 0.0, ..SamplingOptions::default() };
    let prompt = prompt.to_vec();
    let request = Request { prompt, max_tokens: Some(TOKENS), sampling, keep: true, ..Request::default() };
    engine.add(request).unwrap();
    let (mut tokens, mut told) = (Vec::new(), Timings::default());
    while !engine.is_idle() || engine.has_background() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::PromptLogprobs { .. } | Event::Embedding { .. } => {}
                Event::Finished { timings, .. } => told = timings,
            }
        }
    }
    (tokens, told)
}

#[test]
fn a_second_engine_starts_where_the_first_ended() {
    let mut random = Random::new(5);
    let mut tokens = |n: usize| (0..n).map(|_| random.below(200) as u32).collect::<Vec<u32>>();
    // All positions, windows, and recurrent states.
    for model in ["qwen3.gguf", "gemma3.gguf", "lfm2.gguf"] {
        for kv_type in [KvType::F16, KvType::F32] {
            let store = KvStore { pages: Arc::new(Pages::default()), identity: [1; 32] };
            let mut text = tokens(120);
            for turn in 0..3 {
                let mut warm = engine(model, kv_type, Some(store.clone()));
                let (answer, timings) = run(&mut warm, &text);
                let (cold, _) = run(&mut engine(model, kv_type, None), &text);
                assert_eq!(answer, cold, "{model} {kv_type:?} turn {turn}");
                // All full pages that were computed in the turn before.
                let before = if turn == 0 { 0 } else { (text.len() - 11) / 32 * 32 };
                assert_eq!(timings.restored_tokens, before, "{model} {kv_type:?} turn {turn}");
                text.extend(&answer);
                text.extend(tokens(10));
            }
        }
    }
}
