//! Ragged batches: slices of several sequences that run through the blocks together.

/// A sequence known to the engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A KV page: the same index names one page in the KV cache of every mixer.
pub type PageId = u32;

/// Consecutive tokens of one sequence. A prefill chunk has many tokens, a decode step one.
#[derive(Clone, PartialEq, Debug)]
pub struct Slice {
    /// Whose tokens these are.
    pub sequence: SequenceId,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Position of the first token; earlier positions of the sequence are already in the KV cache.
    pub start: u32,
    /// Pages that hold positions `0 .. start + tokens.len()`, in order; page `i` holds positions
    /// `i * page_tokens ..`.
    pub pages: Vec<PageId>,
}

/// What the head returns for each output row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Select {
    /// All logits.
    Logits,
    /// The `k` largest logits with their token ids, largest first, ties broken by the smaller id.
    Top(usize),
}

/// A ragged batch. Rows are the tokens of all slices, concatenated in order.
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    /// The parts.
    pub slices: Vec<Slice>,
    /// Rows, ascending, for which the head computes logits.
    pub outputs: Vec<u32>,
    /// What the head returns for them.
    pub select: Select,
}

impl Batch {
    /// Total number of tokens (rows of the residual stream).
    pub fn rows(&self) -> usize {
        self.slices.iter().map(|s| s.tokens.len()).sum()
    }
}

/// One selected token.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TopEntry {
    /// Token id.
    pub token: u32,
    /// Its logit.
    pub logit: f32,
}

/// What a head block produced, in the order of [`Batch::outputs`].
#[derive(Clone, PartialEq, Debug)]
pub enum HeadOutput {
    /// `[outputs, vocab]`, row-major.
    Logits(Vec<f32>),
    /// One list per output row.
    Top(Vec<Vec<TopEntry>>),
}
