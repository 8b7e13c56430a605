//! Tiny random models of every architecture against the logits that `transformers` computes in float64, opened from GGUF and
//! from safetensors.

use std::path::Path;
use std::sync::Arc;

use unicorn_cases::golden::{
    Chunks, GOLDEN_MODELS, Golden, QUANTIZED_MODELS, greedy, logits, relative_error,
};
use unicorn_core::{Device, KvType, WeightSource};
use unicorn_cpu::{ActivationRounding, CpuOptions, ReferenceDevice, SimdDevice, SimdLevel};

/// Largest error of a logit, relative to the largest logit: angles, norms and sums in f32 on either side.
const TOLERANCE: f32 = 1e-4;
/// The same for quantized weights, whose kernels round activations to 8 bits.
const TOLERANCE_QUANTIZED: f32 = 0.05;
/// Whole, in pieces, and two sequences in one batch.
const CHUNKS: [Chunks<'static>; 4] = [&[&[40]], &[&[13, 1]], &[&[7]], &[&[40], &[1]]];

fn golden(name: &'static str) -> Golden {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny");
    Golden::read(&folder, name).unwrap()
}

/// Logits of every token, for each sequence.
fn run(device: &dyn Device, path: &Path, tokens: &[u32], chunks: Chunks<'_>) -> Vec<Vec<f32>> {
    let model = unicorn_model::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let source: Arc<dyn WeightSource> = model.source.clone();
    logits(device, &model.spec.blocks, &source, tokens, chunks, KvType::F32).unwrap()
}

/// Both file formats, whole and in chunks.
fn check(device: &dyn Device, name: &'static str, tolerance: f32) {
    let golden = golden(name);
    for path in &golden.files {
        for chunks in CHUNKS {
            for got in run(device, path, &golden.tokens, chunks) {
                let error = relative_error(&got, &golden.logits);
                let on = &device.profile().name;
                assert!(
                    error < tolerance,
                    "{on}: {} in chunks of {chunks:?}: error {error:e}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn reference_gives_the_logits_of_transformers() {
    for name in GOLDEN_MODELS {
        check(&ReferenceDevice::new(), name, TOLERANCE);
    }
}

#[test]
fn what_a_device_keeps_is_what_it_tells() {
    for name in GOLDEN_MODELS {
        let golden = golden(name);
        let model = unicorn_model::open(&golden.files[0]).unwrap();
        let source: Arc<dyn WeightSource> = model.source.clone();
        let tokens = |device: &dyn Device, ahead| {
            greedy(device, &model.spec.blocks, &source, &golden.tokens[..9], 12, ahead).unwrap()
        };
        let options = CpuOptions { threads: Some(2), level: None };
        let simd = SimdDevice::open(options).unwrap();
        for device in [&ReferenceDevice::new() as &dyn Device, &simd] {
            assert_eq!(tokens(device, true), tokens(device, false), "{name}");
        }
    }
}

#[test]
fn every_simd_level_gives_the_logits_of_transformers() {
    for level in SimdLevel::available() {
        for name in GOLDEN_MODELS {
            let options = CpuOptions { threads: Some(2), level: Some(level) };
            check(&SimdDevice::open(options).unwrap(), name, TOLERANCE);
        }
    }
}

#[test]
fn quantized_models_give_the_logits_of_their_weights() {
    for name in QUANTIZED_MODELS {
        check(&ReferenceDevice::new(), name, TOLERANCE);
        for level in SimdLevel::available() {
            let options = CpuOptions { threads: Some(2), level: Some(level) };
            check(&SimdDevice::open(options).unwrap(), name, TOLERANCE_QUANTIZED);
        }
    }
}

#[test]
fn eight_bit_activations_explain_what_quantized_models_are_off_by() {
    let rounding = ReferenceDevice::with_rounding(ActivationRounding { block: 32 });
    for name in QUANTIZED_MODELS {
        let golden = golden(name);
        let off = |device: &dyn Device| {
            let got = &run(device, &golden.files[0], &golden.tokens, &[&[40]])[0];
            relative_error(got, &golden.logits)
        };
        let expected = off(&rounding);
        for level in SimdLevel::available() {
            let options = CpuOptions { threads: Some(2), level: Some(level) };
            let measured = off(&SimdDevice::open(options).unwrap());
            println!("{name} {level}: off by {measured:e}, the rounding oracle by {expected:e}");
            assert!(measured < 2.0 * expected, "{name} {level}: off by {measured:e}, not {expected:e}");
        }
    }
}

#[test]
fn another_models_logits_are_far_off() {
    let qwen2 = golden("qwen2");
    let got = &run(&ReferenceDevice::new(), &qwen2.files[1], &qwen2.tokens, &[&[40]])[0];
    assert!(relative_error(got, &golden("qwen3").logits) > 0.1);
    // Token order matters: the comparison would notice a shift by one row.
    let vocab = got.len() / qwen2.tokens.len();
    assert!(relative_error(&got[..got.len() - vocab], &qwen2.logits[vocab..]) > 0.1);
}
