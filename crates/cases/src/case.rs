//! What a case is.

use unicorn_core::{BatchShape, Block, KvType, Span, TensorType, Weight};

use crate::Tolerance;

/// One row of the table.
#[derive(Clone, PartialEq, Debug)]
pub struct Case {
    /// Unique, made of parts that filters can name, for example `ffn/q4_k/256x512/t33/silu`.
    pub name: String,
    /// What runs; its spans are those of a [`SyntheticSource`](crate::synthetic::SyntheticSource).
    pub block: Block,
    /// One entry per sequence of the batch.
    pub batch: Vec<Span>,
    /// Element type of the KV cache; only mixers look at it.
    pub kv: KvType,
    /// Largest allowed error.
    pub tolerance: Tolerance,
}

impl Case {
    /// The case for an oracle that rounds activations as the device's kernels do; `None` where nothing is quantized, or the KV cache is:
    /// its rounding has ties of its own.
    pub fn rounded(mut self) -> Option<Case> {
        let products = match &self.block {
            Block::Embedding { .. } | Block::EncoderEmbedding { .. } | Block::EncoderHead { .. } => {
                return None;
            }
            Block::Head { .. } => 1,
            Block::Ffn { .. } | Block::Attention { .. } | Block::ShortConv { .. } => 2,
            Block::EncoderFfn { .. } | Block::EncoderAttention { .. } => 2,
        };
        let quantized = self.types().iter().any(|ty| ty.is_quantized());
        self.tolerance = Tolerance::rounded(products);
        (quantized && self.kv == KvType::F32).then_some(self)
    }

    /// Rows of the residual stream.
    pub fn rows(&self) -> usize {
        self.batch.iter().map(|s| s.tokens).sum()
    }

    /// Rows that the block multiplies at once at most: in the batch or while the past is filled in.
    pub(crate) fn most_rows(&self) -> usize {
        self.rows().max(self.batch.iter().map(|s| s.past).sum())
    }

    /// The batch's shape. All rows are output rows.
    fn shape(&self) -> BatchShape {
        BatchShape { spans: self.batch.clone(), outputs: self.rows() }
    }

    /// Arithmetic operations of the batch, two per multiply-add, attention scores included.
    pub fn flops(&self) -> u64 {
        self.block.cost(&self.shape(), self.kv).flops()
    }

    /// Bytes of weights and KV cache that the batch must read at least once.
    pub fn bytes(&self) -> u64 {
        self.block.cost(&self.shape(), self.kv).bytes()
    }

    /// True for a block of an encoder, which maps whole sequences.
    pub(crate) fn is_of_encoder(&self) -> bool {
        is_of_encoder(&self.block)
    }

    /// True for the taps of a convolution, which are no matrix of a product.
    fn is_kernel(&self, weight: &Weight) -> bool {
        matches!(&self.block, Block::ShortConv { weights, .. } if *weight == weights.conv)
    }

    /// Types of the block's matrices, without repetition.
    pub fn types(&self) -> Vec<TensorType> {
        let mut types: Vec<TensorType> =
            self.block.weights().iter().filter(|w| w.rows > 1 && !self.is_kernel(w)).map(|w| w.ty).collect();
        types.sort();
        types.dedup();
        types
    }

    /// True when the name contains every part of the filter, parts being separated by spaces. An empty filter takes all.
    pub fn matches(&self, filter: &str) -> bool {
        filter.split_whitespace().all(|part| self.name.contains(part))
    }
}

/// True for a block of an encoder.
pub(crate) fn is_of_encoder(block: &Block) -> bool {
    use Block::{EncoderAttention, EncoderEmbedding, EncoderFfn, EncoderHead};
    matches!(
        block,
        EncoderAttention { .. } | EncoderEmbedding { .. } | EncoderFfn { .. } | EncoderHead { .. }
    )
}
