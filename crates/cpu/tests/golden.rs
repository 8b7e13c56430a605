//! Tiny random models of every architecture against the logits that `transformers` computes in float64, opened from GGUF and
//! from safetensors. The data is made by `xtask/golden/tiny_models.py`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use unicorn_core::{Batch, Device, HeadOutput, KvLayout, KvType, Select, SequenceId, Slice, StreamId, Work};
use unicorn_cpu::{CpuOptions, ReferenceDevice, SimdDevice, SimdLevel};

/// Largest error of a logit, relative to the largest logit: angles, norms and sums in f32 on either side.
const TOLERANCE: f32 = 1e-4;
const MODELS: [&str; 6] = ["llama-linear", "llama-llama3", "qwen2", "qwen2-yarn", "qwen3", "gemma3"];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny")
}

fn tokens() -> Vec<u32> {
    let text = std::fs::read_to_string(data().join("tokens.txt")).unwrap();
    text.split_whitespace().map(|t| t.parse().unwrap()).collect()
}

fn expected(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(data().join(format!("{name}.logits"))).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Logits of every token, computed in chunks of these sizes, the last repeated as often as needed.
fn logits(device: &dyn Device, path: &Path, chunks: &[usize]) -> Vec<f32> {
    let model = unicorn_model::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let blocks: Vec<_> =
        model.spec.blocks.iter().map(|block| device.load(block, model.source.as_ref()).unwrap()).collect();
    device.reserve_kv(KvLayout { page_tokens: 32, pages: 4, ty: KvType::F32 }).unwrap();
    let tokens = tokens();
    let (mut all, mut start, mut sizes) = (Vec::new(), 0, chunks.iter());
    let mut size = 0;
    while start < tokens.len() {
        size = *sizes.next().unwrap_or(&size);
        let part = &tokens[start..tokens.len().min(start + size)];
        let slice =
            Slice { sequence: SequenceId(1), tokens: part.to_vec(), start: start as u32, pages: vec![3, 1] };
        let outputs = (0..part.len() as u32).collect();
        let batch = Arc::new(Batch { slices: vec![slice], outputs, select: Select::Logits });
        let work = Work { stream: StreamId(2), blocks: blocks.clone(), batch };
        device.wait(device.submit(&work).unwrap()).unwrap();
        match device.take_output(StreamId(2)).unwrap() {
            HeadOutput::Logits(rows) => all.extend(rows),
            HeadOutput::Top(_) => panic!("asked for logits"),
        }
        start += part.len();
    }
    blocks.into_iter().for_each(|block| device.unload(block));
    all
}

/// Largest difference, relative to the largest wanted value.
fn error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let difference = |(g, w): (&f32, &f32)| if g.is_finite() { (g - w).abs() } else { f32::INFINITY };
    got.iter().zip(want).map(difference).fold(0f32, f32::max) / largest
}

/// Both file formats, whole and in chunks.
fn check(device: &dyn Device, name: &str) {
    let want = expected(name);
    assert_eq!(want.len() % tokens().len(), 0);
    for path in [data().join(format!("{name}.gguf")), data().join(name)] {
        for chunks in [&[40][..], &[13, 1], &[7]] {
            let error = error(&logits(device, &path, chunks), &want);
            let on = &device.profile().name;
            assert!(error < TOLERANCE, "{on}: {} in chunks of {chunks:?}: error {error:e}", path.display());
        }
    }
}

#[test]
fn reference_gives_the_logits_of_transformers() {
    for name in MODELS {
        check(&ReferenceDevice::new(), name);
    }
}

#[test]
fn every_simd_level_gives_the_logits_of_transformers() {
    for level in SimdLevel::available() {
        for name in MODELS {
            let options = CpuOptions { threads: Some(2), level: Some(level) };
            check(&SimdDevice::open(options).unwrap(), name);
        }
    }
}

#[test]
fn another_models_logits_are_far_off() {
    let got = logits(&ReferenceDevice::new(), &data().join("qwen2"), &[40]);
    assert!(error(&got, &expected("qwen3")) > 0.1);
    // Token order matters: the comparison would notice a shift by one row.
    let vocab = got.len() / tokens().len();
    assert!(error(&got[..got.len() - vocab], &expected("qwen2")[vocab..]) > 0.1);
}
