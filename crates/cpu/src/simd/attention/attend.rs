//! Attention of some tokens over stored keys and values: whole, or one split of it.

use unicorn_core::KvType;

use super::multiply::{Element, GROUP, Left, multiply};
use super::scratch::{Scratch, SoftmaxState};
use super::shapes::{BLOCK, Heads, Projections, RUN, SPLIT, Tokens, first_visible};
use super::softmax::{finish, merge, softmax_row};
use super::store::{prepare, store_row};
use crate::simd::float_vector::{FloatVector, SimdFunction, dispatch};
use crate::simd::kv::{KvHead, TILE};
use crate::simd::level::SimdLevel;
use crate::simd::shared::SharedSlice;

/// The whole attention of some tokens for one KV head; the result goes to their rows of `out`, `[rows, heads * dim]`.
///
/// # Safety
/// All keys and values that the tokens see are stored, and nobody writes them now; no other thread touches these tokens' heads of
/// this group in `out`.
pub(crate) unsafe fn attend_whole(
    level: SimdLevel,
    heads: &Heads,
    from: &Projections,
    cache: KvHead,
    kv_head: usize,
    tokens: Tokens,
    out: SharedSlice<f32>,
    scratch: &mut Scratch,
) {
    let (rows, padded) = (tokens.count * heads.group, cache.geometry().padded);
    dispatch(level, PackQueries { heads, from, kv_head, tokens, scratch });
    scratch.whole.reset(rows, padded);
    let last = tokens.position + tokens.count - 1;
    for split in first_visible(tokens.position, heads.window) / SPLIT..=last / SPLIT {
        dispatch(level, Attend { heads, cache, tokens, split, scratch });
        for r in 0..rows {
            let sums = r * padded..(r + 1) * padded;
            let Scratch { part, whole, .. } = &mut *scratch;
            let whole = (&mut whole.sums[sums.clone()], &mut whole.max[r], &mut whole.total[r]);
            dispatch(level, Merge(whole, (&part.sums[sums], part.max[r], part.total[r])));
        }
    }
    for r in 0..rows {
        let head = kv_head * heads.group + r % heads.group;
        let at = ((tokens.row + r / heads.group) * heads.heads + head) * heads.dim;
        // SAFETY: these tokens' heads are this unit's.
        let result = unsafe { out.write(at..at + heads.dim) };
        finish(&scratch.whole.sums[r * padded..], scratch.whole.total[r], result);
    }
}

/// The partial attention of a slice's tokens over one split, for one KV head. First stores the tokens' own keys and values that fall
/// into the split. `out` receives accumulators `[rows, padded]`, maxima and sums `[rows]`, with rows token after token.
///
/// # Safety
/// Earlier keys and values are stored; no other thread touches the positions of the split in this head.
pub(crate) unsafe fn attend_split(
    level: SimdLevel,
    heads: &Heads,
    from: &Projections,
    cache: KvHead,
    kv_head: usize,
    tokens: Tokens,
    split: usize,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let (rows, padded) = (tokens.count * heads.group, cache.geometry().padded);
    // The first block comes from memory while keys and queries are rotated.
    let first = first_visible(tokens.position, heads.window).max(split * SPLIT) / BLOCK * BLOCK;
    cache.prefetch(first..(first + BLOCK).min(tokens.position));
    let own = (split * SPLIT).max(tokens.position)..((split + 1) * SPLIT).min(tokens.position + tokens.count);
    for position in own {
        let row = tokens.row + position - tokens.position;
        // SAFETY: the caller gives the split of this head to this thread.
        unsafe { store_row(level, heads, from, cache, kv_head, row, position, scratch) };
    }
    dispatch(level, PackQueries { heads, from, kv_head, tokens, scratch });
    dispatch(level, Attend { heads, cache, tokens, split, scratch });
    let (sums, rest) = out.split_at_mut(rows * padded);
    sums.copy_from_slice(&scratch.part.sums[..rows * padded]);
    rest[..rows].copy_from_slice(&scratch.part.max[..rows]);
    rest[rows..2 * rows].copy_from_slice(&scratch.part.total[..rows]);
}

/// Merges the partial results of one query row and writes `dim` outputs. `partials` is one KV head's part of the partial buffer:
/// `splits` results of `floats` floats; `rows` is the number of query rows in each.
pub(crate) fn merge_splits(
    level: SimdLevel,
    partials: &[f32],
    floats: usize,
    rows: usize,
    row: usize,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let padded = floats / rows - 2;
    let whole = &mut scratch.whole;
    whole.reset(1, padded);
    for part in partials.chunks_exact(floats) {
        let sums = &part[row * padded..(row + 1) * padded];
        let (max, total) = (part[rows * padded + row], part[rows * (padded + 1) + row]);
        let whole = (&mut whole.sums[..padded], &mut whole.max[0], &mut whole.total[0]);
        dispatch(level, Merge(whole, (sums, max, total)));
    }
    finish(&whole.sums, whole.total[0], out);
}

/// Norms, rotates, scales and interleaves queries.
struct PackQueries<'a> {
    heads: &'a Heads<'a>,
    from: &'a Projections<'a>,
    kv_head: usize,
    tokens: Tokens,
    scratch: &'a mut Scratch,
}

impl SimdFunction for PackQueries<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: FloatVector>(self) {
        let PackQueries { heads, from, kv_head, tokens, scratch } = self;
        let (dim, rows) = (heads.dim, tokens.count * heads.group);
        let Scratch { queries, head, .. } = scratch;
        queries.clear();
        queries.resize(rows.div_ceil(GROUP) * GROUP * dim, 0.0);
        let norm = heads.qk_norm.map(|(q, _, eps)| (q, eps));
        for r in 0..rows {
            let row = tokens.row + r / heads.group;
            let at = (row * heads.heads + kv_head * heads.group + r % heads.group) * dim;
            // SAFETY: dispatched to `S`.
            unsafe { prepare::<S>(heads, from, row, &from.q[at..at + dim], norm, head) };
            let packed = &mut queries[r / GROUP * GROUP * dim + r % GROUP..];
            for (to, from) in packed.iter_mut().step_by(GROUP).zip(head.iter()) {
                *to = from * heads.scale;
            }
        }
    }
}

/// Merges a partial result into a whole one.
struct Merge<'a>((&'a mut [f32], &'a mut f32, &'a mut f32), (&'a [f32], f32, f32));

impl SimdFunction for Merge<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: FloatVector>(self) {
        // SAFETY: dispatched to `S`.
        unsafe { merge::<S>(self.0, self.1) }
    }
}

/// Attends over the visible positions of one split, from packed queries, into `scratch.part`.
struct Attend<'a> {
    heads: &'a Heads<'a>,
    cache: KvHead<'a>,
    tokens: Tokens,
    split: usize,
    scratch: &'a mut Scratch,
}

impl SimdFunction for Attend<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: FloatVector>(mut self) {
        // SAFETY: dispatched to `S`.
        unsafe { self.run_split::<S>() }
    }
}

impl Attend<'_> {
    fn rows(&self) -> usize {
        self.tokens.count * self.heads.group
    }

    /// The position of query row `r`.
    fn position(&self, r: usize) -> usize {
        self.tokens.position + r / self.heads.group
    }

    #[inline(always)]
    unsafe fn run_split<S: FloatVector>(&mut self) {
        let (rows, split, g) = (self.rows(), self.split, *self.cache.geometry());
        // Whole groups: rows past the end are computed from zero queries and dropped.
        self.scratch.part.reset(rows.next_multiple_of(GROUP), g.padded);
        self.scratch.scores.resize(GROUP * BLOCK, 0.0);
        let first = first_visible(self.tokens.position, self.heads.window).max(split * SPLIT);
        let end = (self.position(rows - 1) + 1).min((split + 1) * SPLIT);
        // Half floats are expanded on the fly unless several groups of rows use them.
        let staged = g.ty == KvType::Q8_0 || (g.ty == KvType::F16 && rows > 2 * GROUP);
        if staged {
            self.scratch.keys.resize(BLOCK * g.dim, 0.0);
            self.scratch.values.resize(BLOCK * g.padded, 0.0);
        }
        for block in (first - first % BLOCK..end).step_by(BLOCK) {
            let (mut keys, mut values) = self.pointers(block, end);
            // SAFETY: the caller's; pointers lead to the tiles and runs of this block that hold visible positions.
            unsafe {
                if staged {
                    self.expand::<S>(block, first.max(block), end.min(block + BLOCK));
                    let (k, v) = (self.scratch.keys.as_mut_ptr(), self.scratch.values.as_mut_ptr());
                    keys = std::array::from_fn(|t| k.add(t * g.dim * TILE).cast());
                    values = std::array::from_fn(|i| v.add(i * RUN * g.padded).cast());
                }
                if !staged {
                    // Decode reads the cache from far away: ask for the next block while this one is computed.
                    self.cache.prefetch((block + BLOCK).min(end)..(block + 2 * BLOCK).min(end));
                }
                if staged || g.ty == KvType::F32 {
                    self.run_block::<S, f32>(block, keys, values);
                } else {
                    self.run_block::<S, u16>(block, keys, values);
                }
            }
        }
    }

    /// Tiles of keys and runs of values of a block; those from `end` on repeat an earlier one and are not read.
    fn pointers(&self, block: usize, end: usize) -> ([*mut u8; BLOCK / TILE], [*mut u8; BLOCK / RUN]) {
        let keys = std::array::from_fn(|t| self.cache.key_tile((block + t * TILE).min(end - 1)));
        let values = std::array::from_fn(|i| {
            let position = block + i * RUN;
            self.cache.value_row(if position < end { position } else { block })
        });
        (keys, values)
    }

    /// Expands the tiles and runs of a block that hold positions `start .. end`.
    #[inline(always)]
    unsafe fn expand<S: FloatVector>(&mut self, block: usize, start: usize, end: usize) {
        let g = *self.cache.geometry();
        // SAFETY: both buffers hold a whole block.
        unsafe {
            for tile in (start - block) / TILE..(end - block).div_ceil(TILE) {
                self.cache.expand_keys::<S>(
                    block + tile * TILE,
                    self.scratch.keys.as_mut_ptr().add(tile * g.dim * TILE),
                );
            }
            for run in (start - block) / RUN..(end - block).div_ceil(RUN) {
                let from = start.max(block + run * RUN);
                let count = end.min(block + (run + 1) * RUN) - from;
                let to = self.scratch.values.as_mut_ptr().add((from - block) * g.padded);
                self.cache.expand_values::<S>(from, count, to);
            }
        }
    }

    /// One block for all groups of rows.
    #[inline(always)]
    unsafe fn run_block<S: FloatVector, E: Element>(
        &mut self,
        block: usize,
        keys: [*mut u8; BLOCK / TILE],
        values: [*mut u8; BLOCK / RUN],
    ) {
        let keys = keys.map(|p| p.cast_const().cast::<E>());
        let values = values.map(|p| p.cast_const().cast::<E>());
        let rows = self.rows();
        for row in (0..rows).step_by(GROUP) {
            // SAFETY: the caller's.
            unsafe {
                match rows - row {
                    1 => self.run_group::<S, E, 1>(block, row, keys, values),
                    2 => self.run_group::<S, E, 2>(block, row, keys, values),
                    3 => self.run_group::<S, E, 3>(block, row, keys, values),
                    4 => self.run_group::<S, E, 4>(block, row, keys, values),
                    _ => self.run_group::<S, E, GROUP>(block, row, keys, values),
                }
            }
        }
    }

    /// One block for the `R` rows from `row` on: scores, softmax, weighted values.
    #[inline(always)]
    unsafe fn run_group<S: FloatVector, E: Element, const R: usize>(
        &mut self,
        block: usize,
        row: usize,
        keys: [*const E; BLOCK / TILE],
        values: [*const E; BLOCK / RUN],
    ) {
        let (dim, padded, window) = (self.heads.dim, self.cache.geometry().padded, self.heads.window);
        let seen = |position: usize| {
            let first = first_visible(position, window).clamp(block, block + BLOCK) - block;
            (first, (position + 1).clamp(block, block + BLOCK) - block)
        };
        // Rows are in order of position: the first sees furthest back, the last furthest ahead.
        let last = (row + R).min(self.rows()) - 1;
        let (start, end) = (seen(self.position(row)).0, seen(self.position(last)).1);
        if start >= end {
            return;
        }
        let scores = self.scratch.scores.as_mut_ptr();
        let queries =
            Left { start: self.scratch.queries[row * dim..].as_ptr(), row_step: 1, depth_step: GROUP };
        // SAFETY: `scores` is `[GROUP][BLOCK]`; tiles that hold `start .. end` are valid.
        unsafe {
            let mut tile = start / TILE;
            while tile < end.div_ceil(TILE) {
                let left = (end.div_ceil(TILE) - tile) * TILE / S::LANES;
                let c = scores.add(tile * TILE);
                let vector = |v: usize| keys[tile + v * S::LANES / TILE].add(v * S::LANES % TILE);
                let done = if left >= 4 && R <= S::WIDE_ROWS {
                    let right = [vector(0), vector(1), vector(2), vector(3)];
                    multiply::<S, E, R, 4>(queries, right, TILE, dim, c, BLOCK, false);
                    4
                } else if left >= 2 || S::LANES < TILE {
                    multiply::<S, E, R, 2>(queries, [vector(0), vector(1)], TILE, dim, c, BLOCK, false);
                    2
                } else {
                    multiply::<S, E, R, 1>(queries, [vector(0)], TILE, dim, c, BLOCK, false);
                    1
                };
                tile += done * S::LANES / TILE;
            }
            let SoftmaxState { sums, max, total } = &mut self.scratch.part;
            for r in 0..R {
                let visible = seen(self.tokens.position + (row + r) / self.heads.group);
                let sums = &mut sums[(row + r) * padded..(row + r + 1) * padded];
                let state = (sums, &mut max[row + r], &mut total[row + r]);
                softmax_row::<S>(scores.add(r * BLOCK), visible, self.heads.soft_cap, state);
            }
            let out = sums[row * padded..(row + R) * padded].as_mut_ptr();
            let joined = values[1] == values[0].add(RUN * padded);
            let mut from = start;
            while from < end {
                let to = if joined || from >= RUN { end } else { end.min(RUN) };
                let rows = values[from / RUN].add(from % RUN * padded);
                weigh::<S, E, R>(scores.add(from), rows, to - from, padded, out);
                from = to;
            }
        }
    }
}

/// `out[r][..] += sum_k probabilities[r][k] * values[k][..]` over `count` positions.
#[inline(always)]
unsafe fn weigh<S: FloatVector, E: Element, const R: usize>(
    probabilities: *const f32,
    values: *const E,
    count: usize,
    padded: usize,
    out: *mut f32,
) {
    if count == 0 {
        return;
    }
    let left = Left { start: probabilities, row_step: BLOCK, depth_step: 1 };
    let mut d = 0;
    // SAFETY: the caller's; `padded` is a multiple of 16, and so of LANES.
    unsafe {
        while d < padded {
            let vectors = (padded - d) / S::LANES;
            let (at, c) = (values.add(d), out.add(d));
            let vector = |v: usize| at.add(v * S::LANES);
            if vectors >= 4 && R <= S::WIDE_ROWS {
                let right = [vector(0), vector(1), vector(2), vector(3)];
                multiply::<S, E, R, 4>(left, right, padded, count, c, padded, true);
                d += 4 * S::LANES;
            } else if vectors >= 2 || S::LANES < TILE {
                multiply::<S, E, R, 2>(left, [vector(0), vector(1)], padded, count, c, padded, true);
                d += 2 * S::LANES;
            } else {
                multiply::<S, E, R, 1>(left, [vector(0)], padded, count, c, padded, true);
                d += S::LANES;
            }
        }
    }
}
