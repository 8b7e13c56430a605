//! The short convolution of LFM2 (Liquid AI 2025): a mixer that looks back a few positions and keeps what it needs of them.

use crate::block_error::{BlockError, shape};
use crate::{NormSpec, StateSpec, Weight};

/// Gated causal convolution, each channel by itself: `[b, c, z] = Win norm(x)`, `u = b * z`,
/// `x += Wout (c * sum over i of conv[i] * u[p - kernel + 1 + i])`. Before the first position `u` is 0.
#[derive(Clone, PartialEq, Debug)]
pub struct ShortConvSpec {
    /// Model width; as many channels.
    pub width: usize,
    /// Positions that a row sees, its own among them; at least 2.
    pub kernel: usize,
    /// Norm of the block's input.
    pub norm: NormSpec,
}

/// Tensors of a short convolution.
#[derive(Clone, PartialEq, Debug)]
pub struct ShortConvWeights {
    /// `[width]`.
    pub norm: Weight,
    /// `[3 * width, width]`: the rows of b, of c, of z.
    pub input: Weight,
    /// `[width, kernel]`; the last column is for the row's own position.
    pub conv: Weight,
    /// `[width, width]`.
    pub output: Weight,
}

impl ShortConvSpec {
    /// Values of a state: `u` of the last positions, `[kernel - 1, width]`, the oldest first.
    pub fn state_floats(&self) -> usize {
        self.kernel.saturating_sub(1).saturating_mul(self.width)
    }

    /// What it keeps per sequence.
    pub fn state(&self) -> StateSpec {
        StateSpec::Recurrent { floats: self.state_floats() }
    }

    pub(crate) fn check(&self, w: &ShortConvWeights) -> Result<(), BlockError> {
        if self.kernel < 2 {
            return Err(BlockError::Spec(format!(
                "a short convolution over {} positions; it has 2 at least",
                self.kernel
            )));
        }
        shape(&w.norm, 1, self.width)?;
        shape(&w.input, 3 * self.width, self.width)?;
        shape(&w.conv, self.width, self.kernel)?;
        shape(&w.output, self.width, self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchShape, Block, KvType, Span, StateLayout, TensorType, WeightSpan};

    fn block(width: usize, kernel: usize) -> Block {
        let weight = |name: &str, rows: usize, cols: usize| {
            let span = WeightSpan { file: 0, offset: 0, bytes: (rows * cols * 4) as u64 };
            Weight { name: name.into(), ty: TensorType::F32, rows, cols, span }
        };
        let spec = ShortConvSpec { width, kernel, norm: NormSpec::rms(1e-5) };
        let weights = ShortConvWeights {
            norm: weight("norm", 1, width),
            input: weight("in", 3 * width, width),
            conv: weight("conv", width, kernel),
            output: weight("out", width, width),
        };
        Block::ShortConv { spec, weights: Box::new(weights) }
    }

    #[test]
    fn shapes_are_held_against_the_spec() {
        assert_eq!(block(8, 3).check(), Ok(()));
        assert!(block(8, 1).check().unwrap_err().to_string().contains("over 1 positions"));
        let Block::ShortConv { spec, weights } = block(8, 3) else { unreachable!("a short convolution") };
        let spec = ShortConvSpec { kernel: 4, ..spec };
        let error = Block::ShortConv { spec, weights }.check().unwrap_err();
        assert_eq!(error.to_string(), "conv: shape [8, 3], wanted [8, 4]");
    }

    #[test]
    fn state_and_cost_are_those_of_the_channels() {
        let block = block(8, 3);
        assert_eq!(block.state(), Some(StateSpec::Recurrent { floats: 16 }));
        let layout = StateLayout::paged(32, 1, 32, KvType::F16);
        assert_eq!(block.page_words(&layout), Some(16));
        let shape = BatchShape { spans: vec![Span::new(0, 5), Span::new(9, 1)], outputs: 0 };
        let cost = block.cost(&shape, KvType::F16);
        assert_eq!(cost.weight_bytes, 4 * (8 + 3 * 64 + 24 + 64));
        // The second slice reads a state.
        assert_eq!(cost.kv_bytes, 64);
        assert_eq!(cost.matrix_flops, [(TensorType::F32, 2 * 6 * 4 * 64)]);
        // Two products of gates, and three multiply-adds.
        assert_eq!(cost.attention_flops, 6 * 8 * 8);
    }
}
