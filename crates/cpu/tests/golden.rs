//! Tiny random models of every architecture against the logits that `transformers` computes in float64, opened from GGUF and
//! from safetensors.

use std::path::Path;

use unicorn_cases::golden::{Chunks, GOLDEN_MODELS, Golden, logits, relative_error};
use unicorn_core::{Device, KvType};
use unicorn_cpu::{CpuOptions, ReferenceDevice, SimdDevice, SimdLevel};

/// Largest error of a logit, relative to the largest logit: angles, norms and sums in f32 on either side.
const TOLERANCE: f32 = 1e-4;
/// Whole, in pieces, and two sequences in one batch.
const CHUNKS: [Chunks<'static>; 4] = [&[&[40]], &[&[13, 1]], &[&[7]], &[&[40], &[1]]];

fn golden(name: &'static str) -> Golden {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny");
    Golden::read(&folder, name).unwrap()
}

/// Logits of every token, for each sequence.
fn run(device: &dyn Device, path: &Path, tokens: &[u32], chunks: Chunks<'_>) -> Vec<Vec<f32>> {
    let model = unicorn_model::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    logits(device, &model.spec.blocks, model.source.as_ref(), tokens, chunks, KvType::F32).unwrap()
}

/// Both file formats, whole and in chunks.
fn check(device: &dyn Device, name: &'static str) {
    let golden = golden(name);
    for path in &golden.files {
        for chunks in CHUNKS {
            for got in run(device, path, &golden.tokens, chunks) {
                let error = relative_error(&got, &golden.logits);
                let on = &device.profile().name;
                assert!(
                    error < TOLERANCE,
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
        check(&ReferenceDevice::new(), name);
    }
}

#[test]
fn every_simd_level_gives_the_logits_of_transformers() {
    for level in SimdLevel::available() {
        for name in GOLDEN_MODELS {
            let options = CpuOptions { threads: Some(2), level: Some(level) };
            check(&SimdDevice::open(options).unwrap(), name);
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
