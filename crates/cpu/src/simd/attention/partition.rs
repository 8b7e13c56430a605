//! How attention over a batch is cut into units of work: a pure function of shapes, never of the thread count.

use std::ops::Range;

use unicorn_core::Batch;

use super::shapes::{SPLIT, first_visible, partial_len};

/// Rows (query heads of a group times tokens) that share a pass over keys and values.
const TILE_ROWS: usize = 48;

/// Shapes that decide the cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PartitionKey {
    /// Key and value heads.
    pub(crate) kv_heads: usize,
    /// Query heads per KV head.
    pub(crate) group: usize,
    /// Elements per head, padded.
    pub(crate) padded: usize,
    /// Sliding window.
    pub(crate) window: Option<usize>,
}

/// Consecutive tokens of one slice for one KV head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unit {
    /// Index of the slice.
    pub(crate) slice: usize,
    /// KV head.
    pub(crate) kv_head: usize,
    /// First token inside the slice.
    pub(crate) token: usize,
    /// Tokens.
    pub(crate) tokens: usize,
    /// The whole attention of these tokens, or a part of it.
    pub(crate) part: Coverage,
}

/// What a unit covers of its tokens' context.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Coverage {
    /// Everything; the result goes to the output rows. Keys and values of the whole batch have been stored.
    Whole,
    /// One split of positions. The unit first stores the keys and values of its slice that fall into the split; the partial
    /// result starts at this float of the partial buffer.
    Split {
        /// Index of the split.
        split: usize,
        /// Where its partial result goes.
        at: usize,
    },
}

/// How a slice is processed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SliceCut {
    /// In tiles of tokens, each over its whole context.
    Tiles,
    /// All tokens at once, over splits of the context whose results are merged afterwards. Partial results of KV head `h` and
    /// split `first + i` start at `at + (h * splits + i) * floats`.
    Splits {
        /// First split that any token sees.
        first: usize,
        /// Number of splits.
        splits: usize,
        /// Start in the partial buffer.
        at: usize,
        /// Floats of one partial result.
        floats: usize,
    },
}

/// The cut of one batch for mixers of one shape.
#[derive(Clone, Debug)]
pub(crate) struct Partition {
    /// Shapes it was made for.
    pub(crate) key: PartitionKey,
    /// Heavy units first.
    pub(crate) units: Vec<Unit>,
    /// One entry per slice.
    pub(crate) slices: Vec<SliceCut>,
    /// Size of the partial buffer.
    pub(crate) partial_floats: usize,
    /// Rows of slices in tiles, whose keys and values must be stored before any unit runs.
    pub(crate) store_rows: Vec<Range<usize>>,
    /// Pairs of query and visible position, summed over rows: for operation counts.
    pub(crate) pairs: u64,
    /// Positions read, summed over slices: for byte counts.
    pub(crate) positions: u64,
}

/// Floats of the partial buffer of any batch of up to `rows` rows of `sequences` sequences that end before `positions`.
pub(crate) fn partial_floats_most(
    key: PartitionKey,
    rows: usize,
    sequences: usize,
    positions: usize,
) -> usize {
    let tile = tile_tokens(key.group);
    let tokens = sequences.saturating_mul(tile).min(rows);
    // A window may begin in the middle of a split.
    let seen = key.window.map_or(positions, |w| w.saturating_add(tile + SPLIT).min(positions));
    let each = partial_len(key.group, key.padded).saturating_mul(key.kv_heads);
    tokens.saturating_mul(seen.div_ceil(SPLIT)).saturating_mul(each)
}

/// Tokens of a slice that share a pass over keys and values.
pub(super) fn tile_tokens(group: usize) -> usize {
    (TILE_ROWS / group.max(1)).max(1)
}

impl Partition {
    /// Cuts the batch.
    pub(crate) fn new(key: PartitionKey, batch: &Batch) -> Partition {
        let mut partition = Partition {
            key,
            units: Vec::new(),
            slices: Vec::new(),
            partial_floats: 0,
            store_rows: Vec::new(),
            pairs: 0,
            positions: 0,
        };
        let tile_tokens = tile_tokens(key.group);
        let mut row = 0;
        for (index, slice) in batch.slices().iter().enumerate() {
            let (start, tokens) = (slice.start as usize, slice.tokens.len());
            if tokens == 0 {
                partition.slices.push(SliceCut::Tiles);
            } else if tokens <= tile_tokens {
                partition.add_splits(index, start, tokens);
            } else {
                partition.slices.push(SliceCut::Tiles);
                partition.store_rows.push(row..row + tokens);
                for kv_head in 0..key.kv_heads {
                    for token in (0..tokens).step_by(tile_tokens) {
                        let tokens = tile_tokens.min(tokens - token);
                        partition.units.push(Unit {
                            slice: index,
                            kv_head,
                            token,
                            tokens,
                            part: Coverage::Whole,
                        });
                    }
                }
            }
            row += tokens;
            let visible = |p: usize| (p + 1 - first_visible(p, key.window)) as u64;
            partition.pairs += (start..start + tokens).map(visible).sum::<u64>();
            partition.positions += (start + tokens - first_visible(start, key.window).min(start)) as u64;
        }
        let cost = |u: &Unit| match u.part {
            Coverage::Whole => {
                let end = batch.slices()[u.slice].start as usize + u.token + u.tokens;
                u.tokens * (end - first_visible(end - u.tokens, key.window))
            }
            Coverage::Split { .. } => u.tokens * SPLIT,
        };
        partition.units.sort_by_key(|u| std::cmp::Reverse(cost(u)));
        partition
    }

    fn add_splits(&mut self, slice: usize, start: usize, tokens: usize) {
        let key = self.key;
        let first = first_visible(start, key.window) / SPLIT;
        let splits = (start + tokens - 1) / SPLIT - first + 1;
        let floats = partial_len(tokens * key.group, key.padded);
        let at = self.partial_floats;
        for kv_head in 0..key.kv_heads {
            for i in 0..splits {
                let part = Coverage::Split { split: first + i, at: at + (kv_head * splits + i) * floats };
                self.units.push(Unit { slice, kv_head, token: 0, tokens, part });
            }
        }
        self.partial_floats += key.kv_heads * splits * floats;
        self.slices.push(SliceCut::Splits { first, splits, at, floats });
    }
}
