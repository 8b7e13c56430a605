//! GGUF files of random weights in the shape of well-known models: something for llama.cpp's tools to be timed on.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use unicorn_cases::shapes;
use unicorn_cases::synthetic::SyntheticSource;
use unicorn_core::{Block, ModelSpec, TensorType, Weight, WeightSource};

use crate::sh;

const ALIGNMENT: u64 = 32;
/// Numbers of the GGUF specification.
const VERSION: u32 = 3;
const U32: u32 = 4;
const F32: u32 = 6;
const STRING: u32 = 8;

/// The file of `SIZE:TYPE` under `target/compare`, made where it is missing.
pub fn make(shape: &str) -> Result<PathBuf> {
    let (size, ty) = shape.split_once(':').context("wanted SIZE:TYPE, for example llama-1b:q4_k")?;
    let ty = TensorType::parse(ty).ok_or_else(|| anyhow!("no tensor type `{ty}`"))?;
    let names = || shapes::names().collect::<Vec<_>>().join(", ");
    let spec = shapes::model(size, ty).ok_or_else(|| anyhow!("no shape `{size}`; known: {}", names()))?;
    let path = sh::target("compare").join(format!("{size}-{}.gguf", ty.name().to_ascii_lowercase()));
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(sh::target("compare"))?;
    eprintln!("making {} ({} MB)", path.display(), spec.weight_bytes() / 1_000_000);
    let partial = path.with_extension("partial");
    let mut out = BufWriter::new(File::create(&partial).with_context(|| partial.display().to_string())?);
    write(&spec, &SyntheticSource::new(1), &mut out)?;
    out.flush()?;
    fs::rename(&partial, &path)?;
    Ok(path)
}

/// Writes a llama-like model without vocabulary, which timing tools accept.
fn write(spec: &ModelSpec, source: &dyn WeightSource, out: &mut impl Write) -> Result<()> {
    let metadata = metadata(spec)?;
    let weights = spec.distinct_weights();
    let mut head = Vec::new();
    head.extend(b"GGUF");
    head.extend(VERSION.to_le_bytes());
    head.extend((weights.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    head.extend(metadata.concat());
    let mut offset = 0;
    for weight in &weights {
        tensor_info(weight, offset, &mut head);
        offset = (offset + weight.span.bytes).next_multiple_of(ALIGNMENT);
    }
    pad(&mut head);
    out.write_all(&head)?;
    for weight in &weights {
        let mut bytes = vec![0; weight.span.bytes as usize];
        source.read(&weight.span, 0, &mut bytes).with_context(|| weight.name.clone())?;
        pad(&mut bytes);
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
}

fn metadata(spec: &ModelSpec) -> Result<Vec<Vec<u8>>> {
    let attention = spec.blocks.iter().find_map(|b| match b {
        Block::Attention { spec, .. } => Some(spec),
        _ => None,
    });
    let ffn = spec.blocks.iter().find_map(|b| match b {
        Block::Ffn { spec, .. } => Some(spec),
        _ => None,
    });
    let (attention, ffn) = attention.zip(ffn).context("a model without layers")?;
    let number = |name: &str, value: usize| entry(name, U32, &(value as u32).to_le_bytes());
    Ok(vec![
        entry("general.architecture", STRING, &string("llama")),
        entry("general.name", STRING, &string(&spec.name)),
        number("llama.context_length", 8192),
        number("llama.embedding_length", spec.width),
        number("llama.block_count", spec.layers()),
        number("llama.feed_forward_length", ffn.hidden),
        number("llama.attention.head_count", attention.heads),
        number("llama.attention.head_count_kv", attention.kv_heads),
        number("llama.rope.dimension_count", attention.head_dim),
        entry("llama.attention.layer_norm_rms_epsilon", F32, &attention.norm.eps.to_le_bytes()),
        entry("llama.rope.freq_base", F32, &500_000f32.to_le_bytes()),
        number("llama.vocab_size", spec.vocab),
        entry("tokenizer.ggml.model", STRING, &string("none")),
    ])
}

fn entry(name: &str, ty: u32, value: &[u8]) -> Vec<u8> {
    [&string(name)[..], &ty.to_le_bytes(), value].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Dimensions are listed from the contiguous one on.
fn tensor_info(weight: &Weight, offset: u64, out: &mut Vec<u8>) {
    out.extend(string(&weight.name));
    let dimensions = if weight.rows == 1 { vec![weight.cols] } else { vec![weight.cols, weight.rows] };
    out.extend((dimensions.len() as u32).to_le_bytes());
    for dimension in dimensions {
        out.extend((dimension as u64).to_le_bytes());
    }
    out.extend(weight.ty.gguf_id().to_le_bytes());
    out.extend(offset.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_every_tensor() {
        let spec = shapes::model("smollm2-135m", TensorType::Q4_0).unwrap();
        let mut file = Vec::new();
        write(&spec, &SyntheticSource::new(1), &mut file).unwrap();
        assert_eq!(&file[..8], b"GGUF\x03\0\0\0");
        let tensors = u64::from_le_bytes(file[8..16].try_into().unwrap());
        assert_eq!(tensors as usize, spec.distinct_weights().len());
        let data: u64 =
            spec.distinct_weights().iter().map(|w| w.span.bytes.next_multiple_of(ALIGNMENT)).sum();
        let head = file.len() as u64 - data;
        assert!(head.is_multiple_of(ALIGNMENT) && head < 1 << 16, "{head}");
    }

    #[test]
    fn unknown_shapes_are_named() {
        assert!(make("llama-1b").unwrap_err().to_string().contains("SIZE:TYPE"));
        assert!(make("llama-9b:q4_0").unwrap_err().to_string().contains("known: llama-8b"));
        assert!(make("llama-1b:q9").unwrap_err().to_string().contains("q9"));
    }
}
