//! What a batch costs at least: bytes that must be read and operations that must be done.

use unicorn_core::{AttentionSpec, Block, KvType, ModelSpec, TensorType};

/// Bytes and operations of some work, as the model's shapes dictate them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Cost {
    /// Bytes of weights, each matrix read once per batch.
    pub weight_bytes: u64,
    /// Bytes of keys and values, read once per batch slice.
    pub kv_bytes: u64,
    /// Operations of matrix products (two per multiply-add), by the type of the weights.
    pub matrix_flops: Vec<(TensorType, u64)>,
    /// Operations of attention scores and sums.
    pub attention_flops: u64,
}

impl Cost {
    /// Cost of one batch with a single slice of `rows` tokens at position `start`, of which the head computes `outputs`.
    pub fn of_slice(spec: &ModelSpec, kv: KvType, start: usize, rows: usize, outputs: usize) -> Cost {
        let mut cost = Cost::default();
        let last_mixer = spec.blocks.iter().rposition(|b| matches!(b, Block::Attention { .. }));
        for (i, block) in spec.blocks.iter().enumerate() {
            // A part that no one reads stops after its last mixer.
            if outputs == 0 && last_mixer.is_some_and(|last| i > last) {
                break;
            }
            let block_rows = if matches!(block, Block::Head { .. }) { outputs } else { rows };
            match block {
                Block::Embedding { .. } => cost.weight_bytes += rows as u64 * block.bytes_per_row(),
                _ => {
                    cost.weight_bytes += block.bytes_per_row();
                    for weight in block.weights().into_iter().filter(|w| w.rows > 1) {
                        cost.add_matrix(weight.ty, 2 * (weight.elements() * block_rows) as u64);
                    }
                }
            }
            if let Block::Attention { spec, .. } = block {
                cost.add_attention(spec, kv, start, rows);
            }
        }
        cost
    }

    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.kv_bytes
    }

    /// All operations.
    pub fn flops(&self) -> u64 {
        self.attention_flops + self.matrix_flops.iter().map(|m| m.1).sum::<u64>()
    }

    /// Adds another cost.
    pub fn add(&mut self, other: &Cost) {
        self.weight_bytes += other.weight_bytes;
        self.kv_bytes += other.kv_bytes;
        self.attention_flops += other.attention_flops;
        other.matrix_flops.iter().for_each(|(ty, flops)| self.add_matrix(*ty, *flops));
    }

    fn add_matrix(&mut self, ty: TensorType, flops: u64) {
        match self.matrix_flops.iter_mut().find(|m| m.0 == ty) {
            Some(entry) => entry.1 += flops,
            None => self.matrix_flops.push((ty, flops)),
        }
    }

    fn add_attention(&mut self, spec: &AttentionSpec, kv: KvType, start: usize, rows: usize) {
        let window = spec.window.unwrap_or(usize::MAX);
        let visible: usize = (start..start + rows).map(|p| (p + 1).min(window)).sum();
        self.attention_flops += 4 * (visible * spec.heads * spec.head_dim) as u64;
        let positions = (start + rows).min(window.saturating_add(rows).saturating_sub(1));
        let ty = kv.tensor_type();
        let elements = 2 * positions * spec.kv_heads * spec.head_dim;
        self.kv_bytes += (elements * ty.block_bytes() / ty.block_len()) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny_spec;

    #[test]
    fn counts_by_hand() {
        // Width 4, vocabulary 64, 1 head of 4, hidden 8, all F32; see `tiny_spec`.
        let spec = tiny_spec(1);
        let cost = Cost::of_slice(&spec, KvType::F16, 10, 2, 1);
        let mixer = 4 * 16;
        let ffn = 3 * 32;
        let head = 64 * 4;
        assert_eq!(cost.matrix_flops, [(TensorType::F32, 2 * (2 * (mixer + ffn) + head) as u64)]);
        assert_eq!(cost.weight_bytes, 4 * (2 * 4 + 4 + mixer + 4 + ffn + 4 + head) as u64);
        assert_eq!(cost.kv_bytes, 2 * 12 * 4 * 2);
        assert_eq!(cost.attention_flops, 4 * 4 * (11 + 12));
        assert_eq!(cost.bytes(), cost.weight_bytes + cost.kv_bytes);
        // Without outputs neither the last ffn nor the head is read.
        let unread = Cost::of_slice(&spec, KvType::F16, 10, 2, 0);
        assert_eq!(unread.weight_bytes, 4 * (2 * 4 + 4 + mixer) as u64);
        let mut sum = cost.clone();
        sum.add(&unread);
        assert_eq!(sum.flops(), cost.flops() + unread.flops());
    }

    #[test]
    fn a_window_bounds_what_is_read() {
        let mut spec = tiny_spec(1);
        if let Block::Attention { spec, .. } = &mut spec.blocks[1] {
            spec.window = Some(8);
        }
        let cost = Cost::of_slice(&spec, KvType::Q8_0, 100, 1, 1);
        assert_eq!(cost.attention_flops, 4 * 4 * 8);
        assert_eq!(cost.kv_bytes, 2 * 8 * 4 * 34 / 32);
    }
}
