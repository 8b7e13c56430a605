//! One model on two devices with the same kernels gives the tokens that it gives on one, whatever the placement, the chunks and the batch.

use std::path::Path;
use std::sync::Arc;

use unicorn_core::{Device, SequenceId, WeightSource};
use unicorn_cpu::{CpuOptions, SimdDevice};
use unicorn_engine::{Engine, EngineOptions, Event, PlaceRules, Request, SamplingOptions};

fn device() -> Arc<dyn Device> {
    Arc::new(SimdDevice::open(CpuOptions { threads: Some(1), level: None }).unwrap())
}

/// Answers to several prompts of different lengths at once.
fn answers(model: &str, place: &str, prefill_chunk: usize, sequences_max: usize) -> (Vec<Vec<u32>>, u64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny").join(model);
    let model = unicorn_model::open(&path).unwrap();
    let source: Arc<dyn WeightSource> = model.source.clone();
    let rules: PlaceRules = place.parse().unwrap();
    let placement = rules.resolve(&model.spec).unwrap();
    let devices: Vec<Arc<dyn Device>> = rules.devices().iter().map(|_| device()).collect();
    let options = EngineOptions { context: 128, prefill_chunk, sequences_max, ..EngineOptions::default() };
    let mut engine =
        Engine::new(&model.spec, &source, devices.clone(), placement, options, &mut |_| {}).unwrap();
    let prompt = |i: u32| (0..3 + 17 * i).map(|t| (t * 7 + i * 13 + 1) % 100).collect();
    let request = |i: u32| Request {
        prompt: prompt(i),
        max_tokens: Some(12),
        sampling: SamplingOptions { temperature: 0.0, ..SamplingOptions::default() },
        ..Request::default()
    };
    let ids: Vec<SequenceId> = (0..4).map(|i| engine.add(request(i)).unwrap()).collect();
    let mut tokens = vec![Vec::new(); ids.len()];
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Token { sequence, token, .. } = event {
                tokens[ids.iter().position(|id| *id == sequence).unwrap()].push(token);
            }
        }
    }
    (tokens, devices.iter().map(|d| d.memory().shared).sum())
}

/// Splits of a model's layers into two devices; both models have sliding windows.
const PLACES: [(&str, [&str; 4]); 2] = [
    (
        "gemma3.gguf",
        ["mixer=a,ffn=b", "mixer=b,ffn=a,embedding=a,head=b", "0-2=a,3-6=b", "mixer=a,ffn=a,1-5.ffn=b"],
    ),
    (
        "qwen2.gguf",
        ["mixer=a,ffn=b", "mixer=b,ffn=a,embedding=a,head=b", "0=a,1=b", "mixer=a,ffn=a,1.mixer=b"],
    ),
];

#[test]
fn any_placement_gives_the_tokens_of_one_device() {
    for (model, places) in PLACES {
        let (single, shared) = answers(model, "mixer=a,ffn=a", 512, 1);
        assert!(single.iter().all(|t| t.len() == 12), "{model}: {single:?}");
        assert_eq!(shared, 0, "nothing crosses on one device");
        for place in places {
            for (chunk, sequences) in [(512, 4), (5, 4), (16, 2)] {
                let (tokens, shared) = answers(model, place, chunk, sequences);
                assert_eq!(
                    tokens, single,
                    "{model}: {place}, chunks of {chunk}, {sequences} sequences at once"
                );
                assert!(shared > 0, "{model}: {place}: nothing crossed");
            }
        }
    }
}
