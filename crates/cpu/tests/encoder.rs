//! A tiny random BERT against the hidden states that `transformers` computes in float64, opened from GGUF and from safetensors.

use std::path::Path;
use std::sync::Arc;

use unicorn_cases::golden::relative_error;
use unicorn_cases::golden_encoder::{GoldenEncoder, hidden};
use unicorn_core::{Device, WeightSource};
use unicorn_cpu::{CpuOptions, ReferenceDevice, SimdDevice, SimdLevel};

/// Largest error of a value, relative to the largest: norms and sums in f32 on either side.
const TOLERANCE: f32 = 1e-4;

fn golden() -> GoldenEncoder {
    GoldenEncoder::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny")).unwrap()
}

fn run(device: &dyn Device, path: &Path, texts: &[&[u32]]) -> Vec<Vec<f32>> {
    let model = unicorn_model::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(model.notices.is_empty(), "{:?}", model.notices);
    let source: Arc<dyn WeightSource> = model.source.clone();
    hidden(device, &model.spec.blocks, &source, texts).unwrap()
}

fn devices() -> Vec<Box<dyn Device>> {
    let simd = SimdLevel::available().into_iter().map(|level| -> Box<dyn Device> {
        Box::new(SimdDevice::open(CpuOptions { threads: Some(2), level: Some(level) }).unwrap())
    });
    std::iter::once(Box::new(ReferenceDevice::new()) as Box<dyn Device>).chain(simd).collect()
}

#[test]
fn hidden_states_are_those_of_transformers_alone_and_among_others() {
    let golden = golden();
    let tokens = &golden.tokens[..];
    for device in devices() {
        for path in &golden.files {
            let batches: [(&[&[u32]], usize); 3] =
                [(&[tokens], 0), (&[&tokens[..3], tokens, &tokens[..1]], 1), (&[tokens, tokens], 1)];
            let name = &device.profile().name;
            let error = relative_error(&run(&*device, path, &[&tokens[..2]])[0], &golden.short);
            assert!(error < TOLERANCE, "{name}: {} of two tokens: {error:e}", path.display());
            for (texts, at) in batches {
                let error = relative_error(&run(&*device, path, texts)[at], &golden.hidden);
                assert!(error < TOLERANCE, "{name}: {}: {error:e}", path.display());
            }
        }
    }
}

#[test]
fn what_else_is_in_a_batch_changes_no_bit() {
    let golden = golden();
    let short = &golden.tokens[..7];
    let device = SimdDevice::open(CpuOptions { threads: Some(2), level: None }).unwrap();
    let alone = &run(&device, &golden.files[0], &[short])[0];
    let among = &run(&device, &golden.files[0], &[&golden.tokens, short, &golden.tokens[..20]])[1];
    assert_eq!(alone, among);
}

#[test]
fn every_token_sees_those_behind_it() {
    let golden = golden();
    let mut other = golden.tokens.clone();
    let last = other.len() - 2;
    other[last] = (other[last] + 1) % 90;
    let got = &run(&ReferenceDevice::new(), &golden.files[1], &[&other])[0];
    // The first row too: the comparison would notice a causal mask.
    assert!(relative_error(&got[..32], &golden.hidden[..32]) > 1e-3);
}
