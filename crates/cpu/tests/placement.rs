//! One model on two devices with the same kernels gives the tokens that it gives on one, whatever the placement, the chunks and the batch.

use std::path::Path;
use std::sync::Arc;

use unicorn_core::{Device, KvType, SequenceId, WeightSource};
use unicorn_cpu::{CpuOptions, ReferenceDevice, SimdDevice};
use unicorn_engine::{Engine, EngineOptions, Event, PlaceRules, Request, SamplingOptions};

fn device() -> Arc<dyn Device> {
    Arc::new(SimdDevice::open(CpuOptions { threads: Some(1), level: None }).unwrap())
}

/// Answers to several prompts of different lengths at once.
fn answers(model: &str, place: &str, prefill_chunk: usize, sequences_max: usize) -> (Vec<Vec<u32>>, u64) {
    let (tokens, devices) =
        answers_with(model, place, prefill_chunk, sequences_max, KvType::F16, &|_| device());
    (tokens, devices.iter().map(|d| d.memory().shared).sum())
}

/// [`answers`] with other state and other devices; the devices come back too.
fn answers_with(
    model: &str,
    place: &str,
    prefill_chunk: usize,
    sequences_max: usize,
    kv_type: KvType,
    open: &dyn Fn(&str) -> Arc<dyn Device>,
) -> (Vec<Vec<u32>>, Vec<Arc<dyn Device>>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny").join(model);
    let model = unicorn_model::open(&path).unwrap();
    let source: Arc<dyn WeightSource> = model.source.clone();
    let rules: PlaceRules = place.parse().unwrap();
    let placements = rules.resolve(&model.spec).unwrap();
    let devices: Vec<Arc<dyn Device>> = rules.devices().iter().map(|name| open(name)).collect();
    let options =
        EngineOptions { context: 128, prefill_chunk, sequences_max, kv_type, ..EngineOptions::default() };
    let mut engine =
        Engine::new(&model.spec, &source, devices.clone(), placements, options, &mut |_| {}).unwrap();
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
    (tokens, devices)
}

/// Splits of a model's layers into two devices: of models with sliding windows, and of one with recurrent state.
const PLACES: [(&str, [&str; 4]); 3] = [
    (
        "gemma3.gguf",
        ["mixer=a,ffn=b", "mixer=b,ffn=a,embedding=a,head=b", "0-2=a,3-6=b", "mixer=a,ffn=a,1-5.ffn=b"],
    ),
    (
        "qwen2.gguf",
        ["mixer=a,ffn=b", "mixer=b,ffn=a,embedding=a,head=b", "0=a,1=b", "mixer=a,ffn=a,1.mixer=b"],
    ),
    (
        "lfm2.gguf",
        ["mixer=a,ffn=b", "mixer=b,ffn=a,embedding=a,head=b", "0-2=a,3-4=b", "mixer=a,ffn=a,1-2.mixer=b"],
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

/// The state of a prompt goes from where it was read to where the answer comes from, whatever its type and its way: layouts differ between
/// the fast kernels and the reference, whose float64 sums round to the same tokens here.
#[test]
fn prompts_read_on_one_device_give_the_answers_of_another() {
    let open = |name: &str| -> Arc<dyn Device> {
        if name.starts_with("reference") { Arc::new(ReferenceDevice::new()) } else { device() }
    };
    for (model, kv) in [
        ("gemma3.gguf", KvType::F32),
        ("gemma3.gguf", KvType::F16),
        ("qwen2.gguf", KvType::F16),
        ("qwen3-q4_k.gguf", KvType::Q8_0),
        ("lfm2.gguf", KvType::F16),
    ] {
        let run = |place: &str, chunk| answers_with(model, place, chunk, 4, kv, &open);
        let (single, _) = run("mixer=a,ffn=a", 512);
        for place in [
            "prefill:mixer=a,prefill:ffn=a,decode:mixer=b,decode:ffn=b",
            "mixer=a,ffn=a,decode:mixer=b,0.ffn=b",
        ] {
            for chunk in [512, 5] {
                assert_eq!(run(place, chunk).0, single, "{model}, {kv:?}: {place}, chunks of {chunk}");
            }
        }
        if kv == KvType::Q8_0 {
            // The fast kernels round activations where the weights are quantized.
            continue;
        }
        let (reference, _) = run("mixer=reference,ffn=reference", 512);
        for [prefill, decode] in [["a", "reference"], ["reference", "a"]] {
            let place = format!("mixer={prefill},ffn={prefill},decode:mixer={decode},decode:ffn={decode}");
            let (tokens, devices) = run(&place, 16);
            assert_eq!(tokens, reference, "{model}, {kv:?}: {place}");
            assert!(devices.iter().all(|d| d.memory().copied > 0));
        }
    }
}
