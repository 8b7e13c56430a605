//! all-MiniLM-L6-v2, from text to vector, against the embeddings that `transformers` computes in float64 (`xtask/golden/encoders.py`).
//!
//! No harness: without the model, which `cargo xtask data` fetches, it is said to be NOT RUN, and not counted as passed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use unicorn_core::{Device, Pooling, SequenceId, WeightSource};
use unicorn_cpu::{CpuOptions, SimdDevice};
use unicorn_engine::{EmbedRequest, Engine, EngineOptions, Event, Placement};
use unicorn_model::{EmbeddingDefaults, OpenModel};
use unicorn_text::EncodeOptions;

/// Largest cosine distance.
const TOLERANCE: f64 = 1e-5;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (model, begin) = (root.join("target/test-data/minilm"), Instant::now());
    if !model.join("model.safetensors").is_file() {
        println!(
            "test minilm::embeddings ... NOT RUN: {} is missing, see `cargo xtask data`",
            model.display()
        );
        return ExitCode::SUCCESS;
    }
    let (passed, failed) = match check(&model, &root.join("tests/data/embeddings/minilm.json")) {
        Ok(note) => {
            println!("test minilm::embeddings ... ok ({note})");
            (1, 0)
        }
        Err(error) => {
            println!("test minilm::embeddings ... FAILED\n    {error}");
            (0, 1)
        }
    };
    let (verdict, seconds) = (if failed == 0 { "ok" } else { "FAILED" }, begin.elapsed().as_secs_f32());
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {seconds:.2}s\n"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A text with what it must become.
struct Golden {
    text: String,
    tokens: Vec<u32>,
    embedding: Vec<f64>,
}

fn golden(path: &PathBuf) -> Result<Vec<Golden>, Box<dyn std::error::Error>> {
    let list: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path)?)?;
    let entry = |value: &serde_json::Value| {
        let numbers = |key: &str| value[key].as_array().into_iter().flatten();
        Golden {
            text: value["text"].as_str().unwrap_or_default().to_owned(),
            tokens: numbers("tokens").filter_map(|v| v.as_u64()).map(|v| v as u32).collect(),
            embedding: numbers("embedding").filter_map(serde_json::Value::as_f64).collect(),
        }
    };
    Ok(list.iter().map(entry).collect())
}

fn check(folder: &Path, golden_file: &PathBuf) -> Result<String, Box<dyn std::error::Error>> {
    let golden = golden(golden_file)?;
    if golden.len() < 12 {
        return Err(format!("{} texts", golden.len()).into());
    }
    let model = unicorn_model::open(folder)?;
    let wanted =
        EmbeddingDefaults { pooling: Some(Pooling::Mean), normalize: Some(true), tokens_max: Some(256) };
    if model.embedding_defaults()? != wanted || !model.notices.is_empty() {
        return Err(format!("{:?} {:?}", model.embedding_defaults(), model.notices).into());
    }
    let tokenizer = model.tokenizer()?.tokenizer;
    for Golden { text, tokens, .. } in &golden {
        let got = tokenizer.encode(text, EncodeOptions { parse_special: false, add_special: true })?;
        if got != *tokens {
            return Err(format!("{text:?} became {got:?}, not {tokens:?}").into());
        }
    }
    let got = embed(&model, golden.iter().map(|g| g.tokens.clone()))?;
    let mut worst = 0f64;
    for (golden, got) in golden.iter().zip(&got) {
        let distance = distance(&golden.embedding, got);
        if distance.is_nan() || distance >= TOLERANCE {
            return Err(format!("{:?}: cosine distance {distance:e}", golden.text).into());
        }
        worst = worst.max(distance);
    }
    let apart = distance(&golden[0].embedding, &got[2]);
    if apart < 0.5 {
        return Err(format!("texts of different matters are {apart} apart").into());
    }
    Ok(format!("{} texts, cosine distances up to {worst:.1e}", golden.len()))
}

fn embed(
    model: &OpenModel,
    texts: impl Iterator<Item = Vec<u32>>,
) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
    let source: Arc<dyn WeightSource> = model.source.clone();
    let device: Arc<dyn Device> = Arc::new(SimdDevice::open(CpuOptions::default())?);
    let options = EngineOptions { context: 256, sequences_max: 8, ..EngineOptions::default() };
    let placement = Placement::single(&model.spec)?;
    let mut engine = Engine::new(&model.spec, &source, vec![device], placement, options, &mut |_| {})?;
    let mut ids = Vec::new();
    for tokens in texts {
        ids.push(engine.add_embedding(EmbedRequest::new(tokens, Pooling::Mean, true))?);
    }
    let mut vectors: Vec<(SequenceId, Vec<f32>)> = Vec::new();
    while !engine.is_idle() {
        for event in engine.step()? {
            if let Event::Embedding { sequence, vector } = event {
                vectors.push((sequence, vector));
            }
        }
    }
    vectors.sort_by_key(|(id, _)| *id);
    if vectors.iter().map(|(id, _)| *id).ne(ids) {
        return Err("a text without a vector".into());
    }
    Ok(vectors.into_iter().map(|(_, vector)| vector).collect())
}

fn distance(a: &[f64], b: &[f32]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum();
    let length = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let lengths = length(&mut a.iter().copied()) * length(&mut b.iter().map(|v| f64::from(*v)));
    1.0 - dot / lengths
}
