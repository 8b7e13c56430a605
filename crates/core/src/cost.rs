//! What work costs at least: bytes that must be read and operations that must be done. Everything that counts uses this: benches,
//! the case table, the cut of submissions, the planner.

use crate::{AttentionSpec, Block, KvType, ModelSpec, TensorType};

/// Consecutive tokens of one sequence, as far as cost goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Span {
    /// Positions before the first token.
    pub past: usize,
    /// Tokens.
    pub tokens: usize,
}

impl Span {
    /// `tokens` tokens behind `past` positions.
    pub const fn new(past: usize, tokens: usize) -> Span {
        Span { past, tokens }
    }
}

/// The shape of a batch, as far as cost goes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BatchShape {
    /// One per slice.
    pub spans: Vec<Span>,
    /// Rows for which the head computes logits.
    pub outputs: usize,
}

impl BatchShape {
    /// A single slice.
    pub fn one(past: usize, tokens: usize, outputs: usize) -> BatchShape {
        BatchShape { spans: vec![Span { past, tokens }], outputs }
    }

    /// Rows of the residual stream.
    pub fn rows(&self) -> usize {
        self.spans.iter().map(|s| s.tokens).sum()
    }
}

/// Bytes and operations of some work, as the model's shapes dictate them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Cost {
    /// Bytes of weights, each matrix read once per batch.
    pub weight_bytes: u64,
    /// Bytes of keys and values, or of recurrent state, read once per slice.
    pub kv_bytes: u64,
    /// Operations of matrix products (two per multiply-add), by the type of the weights.
    pub matrix_flops: Vec<(TensorType, u64)>,
    /// Operations of attention scores and sums, or of convolutions.
    pub attention_flops: u64,
}

impl Cost {
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

    fn add_attention(&mut self, spec: &AttentionSpec, kv: KvType, span: Span) {
        let window = spec.window.unwrap_or(usize::MAX);
        let Span { past, tokens } = span;
        // The first of the tokens see all before them, the others as much as the window holds.
        let whole = window.saturating_sub(past).min(tokens);
        let visible = whole * past + whole * (whole + 1) / 2 + (tokens - whole) * window.min(past + tokens);
        self.attention_flops += 4 * (visible * spec.heads * spec.head_dim) as u64;
        let positions = (past + tokens).min(window.saturating_add(tokens).saturating_sub(1));
        // No device caches what is no whole number of blocks.
        self.kv_bytes += (positions * spec.position_bytes(kv).unwrap_or(0)) as u64;
    }
}

impl Block {
    /// What the block costs for a batch of this shape with a KV cache of this type.
    pub fn cost(&self, shape: &BatchShape, kv: KvType) -> Cost {
        let mut cost = Cost::default();
        let rows = if matches!(self, Block::Head { .. } | Block::EncoderHead { .. }) {
            shape.outputs
        } else {
            shape.rows()
        };
        if let Block::Embedding { table, .. } = self {
            cost.weight_bytes = (rows * table.row_bytes()) as u64;
            return cost;
        }
        if let Block::EncoderEmbedding { weights, .. } = self {
            let per_row = weights.table.row_bytes() + weights.positions.row_bytes();
            cost.weight_bytes = (rows * per_row) as u64;
            return cost;
        }
        for (i, weight) in self.weights().into_iter().enumerate() {
            cost.weight_bytes += weight.span.bytes;
            // Vectors have one row; so may the matrix of a head, which stands behind its norm. A convolution's kernel multiplies no rows.
            let head = matches!(self, Block::Head { .. }) && i > 0;
            let kernel = matches!(self, Block::ShortConv { weights, .. } if *weight == weights.conv);
            if !kernel && (weight.rows > 1 || head) {
                cost.add_matrix(weight.ty, 2 * (weight.elements() * rows) as u64);
            }
        }
        if let Block::Attention { spec, .. } = self {
            shape.spans.iter().for_each(|span| cost.add_attention(spec, kv, *span));
        }
        if let Block::EncoderAttention { spec, .. } = self {
            // Keys and values are activations here, not read from anywhere.
            let pairs: usize = shape.spans.iter().map(|span| span.tokens * span.tokens).sum();
            cost.attention_flops += 4 * (pairs * spec.heads * spec.head_dim) as u64;
        }
        if let Block::ShortConv { spec, .. } = self {
            // Both gates, and a multiply-add for each position that a row sees.
            cost.attention_flops += (rows * spec.width * (2 * spec.kernel + 2)) as u64;
            let states = shape.spans.iter().filter(|span| span.past > 0).count();
            cost.kv_bytes += (states * spec.state_floats() * size_of::<f32>()) as u64;
        }
        cost
    }
}

impl ModelSpec {
    /// Blocks that a batch has to pass: all, or those up to the last mixer where no row is read, because nothing behind it leaves
    /// anything behind.
    pub fn needed_blocks(&self, outputs: usize) -> usize {
        match self.blocks.iter().rposition(|b| b.state().is_some()) {
            _ if outputs > 0 => self.blocks.len(),
            Some(last) => last + 1,
            None => 0,
        }
    }

    /// What all blocks that the batch has to pass cost.
    pub fn cost(&self, shape: &BatchShape, kv: KvType) -> Cost {
        let mut cost = Cost::default();
        let needed = self.needed_blocks(shape.outputs);
        self.blocks[..needed].iter().for_each(|block| cost.add(&block.cost(shape, kv)));
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::RopeScaling;
    use crate::{NormSpec, RopeSpec, RopeStyle, StateLayout};

    fn attention(kv_heads: usize, head_dim: usize, window: Option<usize>) -> AttentionSpec {
        AttentionSpec {
            width: 64,
            heads: 8,
            kv_heads,
            head_dim,
            scale: 1.0,
            rope: RopeSpec::new(RopeStyle::Neox, 64, 1e4, &RopeScaling::None),
            window,
            soft_cap: None,
            norm: NormSpec::rms(1e-6),
            qk_norm: None,
            post_norm: None,
        }
    }

    #[test]
    fn keys_and_values_have_the_bytes_of_their_type() {
        let words = |ty, heads, dim| {
            let layout = StateLayout::paged(64, 3, 192, ty);
            let spec = attention(heads, dim, None);
            let words = spec.page_words(&layout);
            assert_eq!(words.map(|words| 3 * 4 * words as u64), spec.cache_bytes(&layout));
            words
        };
        assert_eq!(words(KvType::F16, 8, 128), Some(2 * 8 * 64 * 64));
        assert_eq!(words(KvType::F32, 1, 3), Some(2 * 64 * 3));
        assert_eq!(words(KvType::Q8_0, 2, 64), Some(2 * 2 * 64 * 68 / 4));
        assert_eq!(words(KvType::Q8_0, 2, 48), None);
        assert_eq!(words(KvType::F16, usize::MAX, 128), None);
        assert_eq!(attention(2, 32, None).position_bytes(KvType::Q8_0), Some(2 * 2 * 34));
    }

    #[test]
    fn what_tokens_see_is_counted_without_counting_tokens() {
        for window in [None, Some(1), Some(7), Some(40)] {
            for (past, tokens) in [(0, 1), (0, 40), (3, 5), (6, 1), (6, 2), (7, 3), (39, 2), (50, 90)] {
                let mut cost = Cost::default();
                cost.add_attention(&attention(2, 4, window), KvType::F16, Span::new(past, tokens));
                let seen = |p: usize| (p + 1).min(window.unwrap_or(usize::MAX));
                let visible: usize = (past..past + tokens).map(seen).sum();
                assert_eq!(cost.attention_flops, 4 * (visible * 8 * 4) as u64, "{window:?} {past} {tokens}");
            }
        }
        let mut long = Cost::default();
        long.add_attention(&attention(2, 4, None), KvType::F16, Span::new(0, 1 << 24));
        assert_eq!(long.attention_flops, 4 * 32 * ((1 << 23) * ((1 << 24) + 1)));
    }
}
