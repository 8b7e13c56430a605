//! Attention in which every row of a sequence sees all rows of it: nothing is cached, and keys and values are packed on the fly.

use std::ops::Range;

use super::multiply::{GROUP, Left, multiply};
use super::scratch::Scratch;
use crate::simd::elementary::exp;
use crate::simd::float_vector::{FloatVector, SimdFunction, dispatch};
use crate::simd::level::SimdLevel;
use crate::simd::shared::SharedSlice;

/// Query rows that share one packing of keys and values.
pub(crate) const QUERY_ROWS: usize = 96;
/// Floats to which rows of packed keys and values are padded: two of the longest vectors.
const PADDING: usize = 32;

/// What all units of one mixer share.
#[derive(Clone, Copy)]
pub(crate) struct Bidirectional<'a> {
    pub(crate) level: SimdLevel,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
    pub(crate) scale: f32,
    /// `[rows, heads * dim]` each.
    pub(crate) q: SharedSlice<'a, f32>,
    pub(crate) k: SharedSlice<'a, f32>,
    pub(crate) v: SharedSlice<'a, f32>,
    /// `[rows, heads * dim]`.
    pub(crate) out: SharedSlice<'a, f32>,
}

/// Floats that a thread holds at most for sequences of up to `rows` rows.
pub(crate) fn bidirectional_floats(rows: usize, dim: usize) -> usize {
    let (padded, wide) = (rows.next_multiple_of(PADDING), dim.next_multiple_of(PADDING));
    dim * padded + rows * wide + GROUP * (padded + dim + wide)
}

impl Bidirectional<'_> {
    /// The attention of one head for the rows `queries` of the sequence that has the rows `sequence` of the batch.
    ///
    /// # Safety
    /// Nobody writes queries, keys or values now, and no other thread touches this head of these rows in `out`.
    pub(crate) unsafe fn attend(
        &self,
        sequence: Range<usize>,
        queries: Range<usize>,
        head: usize,
        scratch: &mut Scratch,
    ) {
        dispatch(self.level, Attend { of: *self, sequence, queries, head, scratch });
    }

    /// A row of one head.
    fn part(&self, row: usize, head: usize) -> Range<usize> {
        let start = (row * self.heads + head) * self.dim;
        start..start + self.dim
    }
}

struct Attend<'a> {
    of: Bidirectional<'a>,
    sequence: Range<usize>,
    queries: Range<usize>,
    head: usize,
    scratch: &'a mut Scratch,
}

impl SimdFunction for Attend<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: FloatVector>(self) {
        let Attend { of, sequence, queries, head, scratch } = self;
        let (dim, count) = (of.dim, sequence.len());
        let (padded, wide) = (count.next_multiple_of(PADDING), dim.next_multiple_of(PADDING));
        let Scratch { keys, values, scores, queries: packed, head: result, .. } = scratch;
        keys.resize(dim * padded, 0.0);
        values.resize(count * wide, 0.0);
        scores.resize(GROUP * padded, 0.0);
        packed.resize(GROUP * dim, 0.0);
        result.resize(GROUP * wide, 0.0);
        // SAFETY: the caller dispatched to `S`, excludes writers of what is read and gives the outputs to this thread; all buffers have
        // been sized for these steps, whose vectors end within the padding.
        unsafe {
            for (i, row) in sequence.enumerate() {
                let key = of.k.read(of.part(row, head));
                keys[i..].iter_mut().step_by(padded).zip(key).for_each(|(to, from)| *to = *from);
                values[i * wide..][..dim].copy_from_slice(of.v.read(of.part(row, head)));
            }
            for first in queries.clone().step_by(GROUP) {
                let rows = first..queries.end.min(first + GROUP);
                for (row, to) in rows.clone().zip(packed.chunks_exact_mut(dim)) {
                    let query = of.q.read(of.part(row, head));
                    to.iter_mut().zip(query).for_each(|(to, from)| *to = from * of.scale);
                }
                // Rows past the end are computed from what is left there, and dropped.
                let left = Left { start: packed.as_ptr(), row_step: dim, depth_step: 1 };
                product::<S>(left, keys, padded, dim, scores);
                let mut sums = [0.0; GROUP];
                for (row, sum) in scores.chunks_exact_mut(padded).zip(&mut sums) {
                    *sum = softmax::<S>(row, count);
                }
                let left = Left { start: scores.as_ptr(), row_step: padded, depth_step: 1 };
                product::<S>(left, values, wide, count, result);
                for ((row, from), sum) in rows.zip(result.chunks_exact(wide)).zip(sums) {
                    let inverse = 1.0 / sum;
                    let to = of.out.write(of.part(row, head));
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = from * inverse);
                }
            }
        }
    }
}

/// `out[row][..] = sum_k left[row][k] * right[k][..]` for a group of rows, with `cols` floats, padded ones included, in rows of `right` and
/// `out`.
#[inline(always)]
unsafe fn product<S: FloatVector>(left: Left, right: &[f32], cols: usize, depth: usize, out: &mut [f32]) {
    debug_assert!(right.len() >= depth * cols && out.len() >= GROUP * cols);
    for at in (0..cols).step_by(2 * S::LANES) {
        // SAFETY: the caller has the instruction set and sized the buffers; `cols` is a multiple of two vectors.
        unsafe {
            let start = right.as_ptr().add(at);
            let vectors = [start, start.add(S::LANES)];
            multiply::<S, f32, GROUP, 2>(left, vectors, cols, depth, out.as_mut_ptr().add(at), cols, false);
        }
    }
}

/// Turns the first `count` scores of a row into exponentials relative to their maximum, the rest into zeros; returns their sum.
#[inline(always)]
unsafe fn softmax<S: FloatVector>(row: &mut [f32], count: usize) -> f32 {
    row[count..].fill(f32::NEG_INFINITY);
    // SAFETY: the caller has the instruction set; the row's length is a multiple of LANES.
    unsafe {
        let p = row.as_mut_ptr();
        let mut largest = S::load(p);
        for at in (S::LANES..row.len()).step_by(S::LANES) {
            largest = S::max(largest, S::load(p.add(at)));
        }
        let largest = S::splat(S::max_lane(largest));
        let mut sum = S::splat(0.0);
        for at in (0..row.len()).step_by(S::LANES) {
            let e = exp::<S>(S::sub(S::load(p.add(at)), largest));
            sum = S::add(sum, e);
            S::store(p.add(at), e);
        }
        S::sum(sum)
    }
}
