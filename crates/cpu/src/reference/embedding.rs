//! Token embedding.

use unicorn_core::EmbeddingSpec;

use super::Matrix;

/// The table of an embedding block.
pub(super) struct Embedding {
    pub spec: EmbeddingSpec,
    pub table: Matrix,
}

impl Embedding {
    /// `table[token] * scale` for every token: `[tokens, width]`. Token ids have been checked.
    pub fn forward(&self, tokens: impl Iterator<Item = u32>) -> Vec<f64> {
        let width = self.spec.width;
        tokens
            .flat_map(|token| &self.table[token as usize * width..(token as usize + 1) * width])
            .map(|v| *v as f64 * self.spec.scale as f64)
            .collect()
    }
}
