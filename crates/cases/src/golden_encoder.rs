//! A tiny encoder against known hidden states: the same run on every device.
//!
//! `tests/data/tiny` holds a random BERT, as GGUF and as safetensors, and the hidden states that `transformers` computes for it in float64
//! (`xtask/golden/encoders.py`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use unicorn_core::{
    Batch, BatchLimits, Block, Crossing, Device, DeviceError, OutputRow, Select, SequenceId, Slice, StreamId,
    WeightSource, run_to_end,
};

use crate::golden::Loaded;

const STREAM: StreamId = StreamId(3);
/// Tokens of the short text.
const SHORT: usize = 2;

/// The model with what it must compute.
#[derive(Clone, Debug)]
pub struct GoldenEncoder {
    /// The model as a GGUF file and as a safetensors folder.
    pub files: Vec<PathBuf>,
    /// One text.
    pub tokens: Vec<u32>,
    /// `[tokens, width]`.
    pub hidden: Vec<f32>,
    /// `[2, width]`: those of its first two tokens as a text.
    pub short: Vec<f32>,
}

impl GoldenEncoder {
    /// Reads tokens and hidden states in `folder`.
    ///
    /// Errors when a file cannot be read, or does not hold as many values for every token.
    pub fn read(folder: &Path) -> io::Result<GoldenEncoder> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let text = std::fs::read_to_string(folder.join("bert.tokens"))?;
        let tokens: Result<Vec<u32>, _> = text.split_whitespace().map(str::parse).collect();
        let tokens = tokens.map_err(|e| invalid(format!("bert.tokens: {e}")))?;
        let bytes = std::fs::read(folder.join("bert.hidden"))?;
        if tokens.is_empty() || bytes.is_empty() || bytes.len() % (4 * (tokens.len() + SHORT)) != 0 {
            return Err(invalid(format!("bert.hidden: {} bytes for {} tokens", bytes.len(), tokens.len())));
        }
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut hidden: Vec<f32> = values.collect();
        let short = hidden.split_off(hidden.len() / (tokens.len() + SHORT) * tokens.len());
        let files = ["bert.gguf", "bert"].map(|name| folder.join(name)).to_vec();
        Ok(GoldenEncoder { files, tokens, hidden, short })
    }
}

/// The hidden states of all tokens, `[tokens, width]` for each of the texts, which share one batch.
///
/// Errors when the device refuses or fails.
pub fn hidden(
    device: &dyn Device,
    blocks: &[Block],
    source: &Arc<dyn WeightSource>,
    texts: &[&[u32]],
) -> Result<Vec<Vec<f32>>, DeviceError> {
    let loaded = Loaded::new(device, blocks, source)?;
    let vocab = blocks.iter().find_map(|b| match b {
        Block::EncoderEmbedding { spec, .. } => Some(spec.vocab),
        _ => None,
    });
    let limits = Arc::new(BatchLimits { vocab: vocab.unwrap_or(1), state: None });
    let slice = |(number, tokens): (usize, &&[u32])| Slice {
        sequence: SequenceId(number as u64),
        tokens: tokens.to_vec(),
        start: 0,
        tables: Vec::new(),
        snapshots: Vec::new(),
        slot: None,
    };
    let slices: Vec<Slice> = texts.iter().enumerate().map(slice).collect();
    let rows: usize = texts.iter().map(|t| t.len()).sum();
    let outputs = (0..rows as u32).map(|row| OutputRow::new(row, Select::Hidden)).collect();
    let wrong = |e: unicorn_core::BatchError| DeviceError::Invalid {
        device: device.profile().name.clone(),
        what: e.to_string(),
    };
    let batch = Batch::of_whole_sequences(slices, outputs, &limits).map(Arc::new).map_err(wrong)?;
    let output = run_to_end(device, STREAM, &loaded.blocks, &batch, Crossing::default())?;
    // What is missing makes parts that no comparison passes.
    let all = output.unwrap_or_default().hidden;
    let width = all.len() / rows.max(1);
    let mut rest = &all[..];
    let part = |tokens: &&[u32]| {
        let (mine, others) = rest.split_at(tokens.len() * width);
        rest = others;
        mine.to_vec()
    };
    Ok(texts.iter().map(part).collect())
}
