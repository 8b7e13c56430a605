//! Random weights that exist nowhere: a source that makes up bytes as they are read.

use std::sync::OnceLock;

use unicorn_core::quant::{self, Random};
use unicorn_core::{TensorType, Weight, WeightError, WeightSource, WeightSpan};

/// What a synthetic tensor is filled with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// Random weights of about 0.02 standard deviation, as [`quant::random_blocks`] makes them.
    Weights(TensorType),
    /// Norm weights: F32 around 1.
    Norm,
    /// Biases: F32 of 0.3 standard deviation.
    Bias,
    /// F32 ones.
    Ones,
}

const TYPES: usize = TensorType::ALL.len();
const FILLS: usize = TYPES + 3;

impl Fill {
    /// The file index that stands for this fill in a [`WeightSpan`].
    fn file(self) -> u32 {
        match self {
            Fill::Weights(ty) => ty as u32,
            Fill::Norm => TYPES as u32,
            Fill::Bias => TYPES as u32 + 1,
            Fill::Ones => TYPES as u32 + 2,
        }
    }

    fn from_file(file: u32) -> Option<Fill> {
        match (file as usize).checked_sub(TYPES) {
            None => Some(Fill::Weights(TensorType::ALL[file as usize])),
            Some(0) => Some(Fill::Norm),
            Some(1) => Some(Fill::Bias),
            Some(2) => Some(Fill::Ones),
            Some(_) => None,
        }
    }

    fn ty(self) -> TensorType {
        match self {
            Fill::Weights(ty) => ty,
            _ => TensorType::F32,
        }
    }

    /// Bytes that repeat through the whole virtual file: whole blocks, a prime number of them so that rows of equal length do
    /// not line up.
    fn pool(self, seed: u64) -> Vec<u8> {
        let mut random = Random::new(seed ^ (self.file() as u64) << 32);
        let count = 16411;
        match self {
            Fill::Weights(ty) => {
                let blocks = match ty.block_len() {
                    1 => 262_147,
                    32 => 8209,
                    _ => 1031,
                };
                quant::random_blocks(ty, 1, blocks * ty.block_len(), random.bits())
            }
            Fill::Norm => floats(random.normals(count, 0.2).iter().map(|v| v + 1.0)),
            Fill::Bias => floats(random.normals(count, 0.3).iter().copied()),
            Fill::Ones => floats((0..count).map(|_| 1.0)),
        }
    }
}

fn floats(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

/// Serves the tensors that a [`SyntheticLayout`] has laid out. Contents depend on the seed alone; reading is a copy
/// out of a pool of about a megabyte per type.
pub struct SyntheticSource {
    seed: u64,
    pools: [OnceLock<Vec<u8>>; FILLS],
}

impl SyntheticSource {
    /// A source that always gives the same bytes for the same seed.
    pub fn new(seed: u64) -> SyntheticSource {
        SyntheticSource { seed, pools: [const { OnceLock::new() }; FILLS] }
    }
}

impl WeightSource for SyntheticSource {
    fn read(&self, span: &WeightSpan, offset: u64, buf: &mut [u8]) -> Result<(), WeightError> {
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > span.bytes) {
            return Err(WeightError::OutOfSpan { offset, len, span: span.bytes });
        }
        let fill = Fill::from_file(span.file).ok_or_else(|| WeightError::Truncated {
            file: format!("synthetic weights, part {}", span.file),
            end: span.offset + offset + len,
        })?;
        let pool = self.pools[span.file as usize].get_or_init(|| fill.pool(self.seed));
        let mut at = ((span.offset + offset) % pool.len() as u64) as usize;
        let mut rest = buf;
        while !rest.is_empty() {
            let n = rest.len().min(pool.len() - at);
            let (now, later) = rest.split_at_mut(n);
            now.copy_from_slice(&pool[at..at + n]);
            (rest, at) = (later, 0);
        }
        Ok(())
    }
}

/// Hands out byte ranges for synthetic tensors.
#[derive(Clone, Debug)]
pub struct SyntheticLayout {
    next: [u64; FILLS],
}

impl Default for SyntheticLayout {
    fn default() -> SyntheticLayout {
        SyntheticLayout { next: [0; FILLS] }
    }
}

impl SyntheticLayout {
    /// A tensor `[rows, cols]`, distinct from all before.
    ///
    /// # Panics
    /// When `cols` is no multiple of the type's block length.
    pub fn tensor(&mut self, name: &str, fill: Fill, rows: usize, cols: usize) -> Weight {
        let ty = fill.ty();
        let row_bytes = ty.row_bytes(cols);
        assert!(row_bytes.is_some(), "{name}: {cols} columns are no whole number of {ty} blocks");
        let bytes = (rows * row_bytes.unwrap_or(0)) as u64;
        let next = &mut self.next[fill.file() as usize];
        let span = WeightSpan { file: fill.file(), offset: *next, bytes };
        *next += bytes;
        Weight { name: name.into(), ty, rows, cols, span }
    }

    /// A matrix of random weights.
    pub fn matrix(&mut self, name: &str, ty: TensorType, rows: usize, cols: usize) -> Weight {
        self.tensor(name, Fill::Weights(ty), rows, cols)
    }

    /// Norm weights.
    pub fn norm(&mut self, name: &str, len: usize) -> Weight {
        self.tensor(name, Fill::Norm, 1, len)
    }

    /// A bias.
    pub fn bias(&mut self, name: &str, len: usize) -> Weight {
        self.tensor(name, Fill::Bias, 1, len)
    }
}

/// Root mean square of the random weights of a type.
pub(crate) fn weight_rms(ty: TensorType) -> f32 {
    let mut values = vec![0.0; 16384];
    quant::dequantize(ty, &quant::random_blocks(ty, 1, values.len(), 0), &mut values);
    (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_a_tensor_reads_the_same() {
        for ty in [TensorType::Q4_K, TensorType::F16, TensorType::Q8_0] {
            let mut layout = SyntheticLayout::default();
            layout.matrix("first", ty, 3, 256);
            let weight = layout.matrix("second", ty, 3000, 512);
            let read = |seed: u64, step: usize| {
                let source = SyntheticSource::new(seed);
                let mut bytes = vec![0; weight.span.bytes as usize];
                for (i, part) in bytes.chunks_mut(step).enumerate() {
                    source.read(&weight.span, (i * step) as u64, part).unwrap();
                }
                bytes
            };
            let whole = read(1, weight.span.bytes as usize);
            assert_eq!(whole, read(1, 777_777));
            assert_ne!(whole, read(2, 777_777));
            let mut values = vec![0.0; weight.elements()];
            quant::dequantize(ty, &whole, &mut values);
            assert!(values.iter().all(|v| v.is_finite() && v.abs() < 1.0), "{ty}: blocks are misaligned");
        }
    }

    #[test]
    fn reads_outside_a_span_are_errors() {
        let weight = SyntheticLayout::default().norm("n", 8);
        let source = SyntheticSource::new(1);
        let mut buf = [0; 8];
        assert!(source.read(&weight.span, 24, &mut buf).is_ok());
        assert!(matches!(source.read(&weight.span, 25, &mut buf), Err(WeightError::OutOfSpan { .. })));
        assert!(matches!(source.read(&weight.span, u64::MAX, &mut buf), Err(WeightError::OutOfSpan { .. })));
        let unknown = WeightSpan { file: 99, ..weight.span };
        assert!(matches!(source.read(&unknown, 0, &mut buf), Err(WeightError::Truncated { .. })));
    }
}
