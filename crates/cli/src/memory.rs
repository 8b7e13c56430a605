//! What a model needs of a device's memory, estimated before anything of it is read.

use unicorn_core::{Block, ModelSpec};
use unicorn_engine::EngineOptions;

use crate::units;

/// Buffers of a row of the batch, each as wide as the model or its feed-forward blocks, that a device uses beside the residual stream.
const BUFFERS: u64 = 4;

/// Bytes of memory by what they are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Need {
    /// Weights as they lie in the file; devices pack them into about as many bytes.
    pub weights: u64,
    /// The KV cache.
    pub kv: u64,
    /// Activations and logits, roughly.
    pub scratch: u64,
}

impl Need {
    /// What a model needs under these options.
    pub fn of(spec: &ModelSpec, options: &EngineOptions) -> Need {
        let positions = options.pages().saturating_mul(options.page_tokens);
        let kv = spec.blocks.iter().map(|block| match block {
            Block::Attention { spec, .. } => {
                let row = options.kv_type.tensor_type().row_bytes(spec.head_dim).unwrap_or(0) as u64;
                // Keys and values.
                (2 * spec.kv_heads as u64).saturating_mul(row).saturating_mul(positions as u64)
            }
            _ => 0,
        });
        let widest = spec.blocks.iter().map(|block| match block {
            Block::Ffn { spec, .. } => spec.hidden.max(spec.width),
            _ => 0,
        });
        let rows = options.prefill_chunk.min(options.context) as u64;
        let activations = (widest.max().unwrap_or(0) as u64).saturating_mul(rows * BUFFERS);
        Need {
            weights: spec.weight_bytes(),
            kv: kv.fold(0, u64::saturating_add),
            scratch: activations.saturating_add(spec.vocab as u64).saturating_mul(size_of::<f32>() as u64),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.scratch)
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [weights, kv, scratch] = [self.weights, self.kv, self.scratch].map(units::bytes);
        write!(f, "weights {weights}")?;
        if self.kv > 0 {
            write!(f, ", KV cache {kv}")?;
        }
        write!(f, ", scratch {scratch}")
    }
}

#[cfg(test)]
mod tests {
    use unicorn_cases::shapes;
    use unicorn_core::{KvType, TensorType};

    use super::*;

    #[test]
    fn needs_are_those_of_the_shape() {
        // 32 layers of 8 heads of 128 for keys and for values: 131072 bytes a position in f16.
        let spec = shapes::model("llama-8b", TensorType::Q4_K).unwrap();
        let options = EngineOptions { context: 8192, ..EngineOptions::default() };
        let need = Need::of(&spec, &options);
        assert_eq!(need.kv, 131_072 * 8192);
        assert_eq!(need.weights, spec.weight_bytes());
        assert!(need.scratch > (512 * 14_336 + 128_256) * 4 && need.scratch < 200_000_000, "{need}");
        let wide = EngineOptions { kv_type: KvType::F32, ..options.clone() };
        assert_eq!(Need::of(&spec, &wide).kv, 2 * need.kv);
        let absurd = EngineOptions { context: usize::MAX - 64, ..options };
        assert_eq!(Need::of(&spec, &absurd).total(), u64::MAX);
    }
}
