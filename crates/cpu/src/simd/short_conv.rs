//! The short convolution of LFM2: gates, a few multiply-adds for each channel, and the states that slices start from and leave.
//!
//! A row's sum is made in the order of its positions, from the same values whether these come from a state or from the slice: results do
//! not depend on how a prompt is cut.

use std::ops::Range;

use unicorn_core::{PageId, StateCopy};

use super::float_vector::{FloatVector, SimdFunction, dispatch};
use super::kv::LazyBytes;
use super::level::SimdLevel;
use super::shared::SharedSlice;
use crate::reference::StatesLayout;

/// Channels that a thread takes at a time.
pub(crate) const CHANNELS: usize = 64;
/// Positions that a row sees, at most.
pub(crate) const KERNEL_MAX: usize = 8;

/// The states of one mixer, `f32 [pages, floats]`.
pub(crate) struct States {
    bytes: LazyBytes,
    layout: StatesLayout,
}

impl States {
    /// Zeroed states; `None` when the memory cannot be had.
    pub(crate) fn new(layout: StatesLayout) -> Option<States> {
        Some(States { bytes: LazyBytes::new(layout.bytes()?)?, layout })
    }

    pub(crate) fn layout(&self) -> &StatesLayout {
        &self.layout
    }

    /// The state in a page.
    ///
    /// # Panics
    /// When there is no such page.
    pub(crate) fn page(&self, page: PageId) -> SharedSlice<'_, f32> {
        let (page, floats) = (page as usize, self.layout.floats);
        assert!(page < self.layout.pages, "page {page} of {}", self.layout.pages);
        // SAFETY: the page lies inside the memory, which is aligned to a cache line; who touches it when is up to the unsafe methods of what
        // is returned.
        unsafe { SharedSlice::from_raw(self.bytes.aligned().cast::<f32>().add(page * floats), floats) }
    }

    /// Copies pages to the host or from it; returns the bytes.
    ///
    /// # Errors
    /// When a page or the host's buffer does not fit.
    ///
    /// # Safety
    /// No work that uses these states is under way.
    pub(crate) unsafe fn copy(&self, copy: &StateCopy) -> Result<u64, String> {
        let floats = self.layout.pages * self.layout.floats;
        // SAFETY: all of the memory; the caller excludes every other access.
        let values = unsafe { std::slice::from_raw_parts_mut(self.bytes.aligned().cast::<f32>(), floats) };
        self.layout.copy(values, copy)
    }
}

/// Some channels of the rows of one slice.
pub(crate) struct Convolution<'a> {
    /// Model width.
    pub(crate) width: usize,
    /// `[kernel, width]`.
    pub(crate) taps: &'a [f32],
    /// `[rows, 3 * width]`: b, c and z of each row. The result takes the place of b.
    pub(crate) rows: SharedSlice<'a, f32>,
    /// The slice's rows among these.
    pub(crate) range: Range<usize>,
    /// At most [`CHANNELS`].
    pub(crate) channels: Range<usize>,
    /// The state before the slice, `[kernel - 1, width]`.
    pub(crate) before: Option<SharedSlice<'a, f32>>,
    /// States after so many rows of the slice, ascending.
    pub(crate) after: &'a [(usize, SharedSlice<'a, f32>)],
}

/// Convolves the channels and writes their part of the states. A state that is read may be one that is written.
///
/// # Safety
/// No other thread touches these channels of the slice's rows or of its states until the next barrier.
///
/// # Panics
/// When shapes do not fit, or the kernel is longer than [`KERNEL_MAX`].
pub(crate) unsafe fn convolve(level: SimdLevel, work: &Convolution) {
    let Convolution { width, taps, rows, range, channels, .. } = work;
    let kernel = taps.len() / width;
    assert!((2..=KERNEL_MAX).contains(&kernel) && taps.len() == kernel * width, "taps of a convolution");
    assert!(channels.end <= *width && channels.len() <= CHANNELS, "channels {channels:?} of {width}");
    assert!(range.end * 3 * width <= rows.len(), "rows {range:?} of a convolution");
    let states = work.before.iter().chain(work.after.iter().map(|(_, state)| state));
    states.for_each(|state| assert!(state.len() == (kernel - 1) * width, "a state of {}", state.len()));
    dispatch(level, Kernel(work));
}

struct Kernel<'a, 'b>(&'a Convolution<'b>);

impl SimdFunction for Kernel<'_, '_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: FloatVector>(self) {
        let Convolution { width, taps, rows, range, channels, before, after } = self.0;
        let (width, past, first, count) = (*width, taps.len() / *width - 1, channels.start, channels.len());
        // The last `past` inputs; that of row `t` is at `t % past`.
        let mut ring = [0f32; (KERNEL_MAX - 1) * CHANNELS];
        if let Some(state) = before {
            for i in 0..past {
                // SAFETY: no other thread writes these channels.
                let from = unsafe { state.read(i * width + first..i * width + channels.end) };
                ring[i * count..(i + 1) * count].copy_from_slice(from);
            }
        }
        let mut after = after.iter().peekable();
        for t in 0..range.len() {
            let row = (range.start + t) * 3 * width + first;
            // SAFETY: the rows and the taps have these channels, and no other thread has them now; the ring has `past` times `count` values.
            unsafe { row_of::<S>(rows.pointer(row), taps, width, first, count, &mut ring, past, t) };
            while let Some((_, state)) = after.next_if(|(rows, _)| *rows == t + 1) {
                for i in 0..past {
                    let at = (t + 1 + i) % past * count;
                    // SAFETY: as above.
                    let to = unsafe { state.write(i * width + first..i * width + channels.end) };
                    to.copy_from_slice(&ring[at..at + count]);
                }
            }
        }
    }
}

/// One row: `row` points to its first channel's b.
#[inline(always)]
unsafe fn row_of<S: FloatVector>(
    row: *mut f32,
    taps: &[f32],
    width: usize,
    first: usize,
    count: usize,
    ring: &mut [f32],
    past: usize,
    t: usize,
) {
    let whole = count - count % S::LANES;
    // SAFETY: the caller's; all offsets stay below `count` channels of each part.
    unsafe {
        for at in (0..whole).step_by(S::LANES) {
            let u = S::mul(S::load(row.add(at)), S::load(row.add(2 * width + at)));
            let tap = |i: usize| S::load(taps.as_ptr().add(i * width + first + at));
            let mut sum = S::splat(0.0);
            for i in 0..past {
                sum = S::fma(tap(i), S::load(ring.as_ptr().add((t + i) % past * count + at)), sum);
            }
            sum = S::fma(tap(past), u, sum);
            S::store(ring.as_mut_ptr().add(t % past * count + at), u);
            S::store(row.add(at), S::mul(S::load(row.add(width + at)), sum));
        }
        for at in whole..count {
            let u = *row.add(at) * *row.add(2 * width + at);
            let tap = |i: usize| taps[i * width + first + at];
            let sum = (0..past).fold(0.0, |sum, i| sum + tap(i) * ring[(t + i) % past * count + at]);
            ring[t % past * count + at] = u;
            *row.add(at) = *row.add(width + at) * (sum + tap(past) * u);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::testing::random_source;

    /// Plain loops over the whole, from `u` of all positions.
    fn expected(rows: &[f32], taps: &[f32], width: usize, before: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let past = taps.len() / width - 1;
        let mut u: Vec<f64> = before.iter().map(|v| f64::from(*v)).collect();
        let mut out = Vec::new();
        for (t, row) in rows.chunks_exact(3 * width).enumerate() {
            u.extend((0..width).map(|c| f64::from(row[c]) * f64::from(row[2 * width + c])));
            out.extend((0..width).map(|c| {
                let tap = |i: usize| f64::from(taps[i * width + c]) * u[(t + i) * width + c];
                f64::from(row[width + c]) * (0..=past).map(tap).sum::<f64>()
            }));
        }
        (out, u)
    }

    #[test]
    fn equals_plain_loops_with_states_before_within_and_after() {
        let mut random = random_source("short_conv");
        for (width, kernel, count) in [(64, 3, 9), (72, 4, 1), (200, 2, 33), (31, 8, 20), (576, 3, 2)] {
            let taps = random.normals(kernel * width, 1.0);
            let rows = random.normals(count * 3 * width, 1.0);
            let before = random.normals((kernel - 1) * width, 1.0);
            let (want, u) = expected(&rows, &taps, width, &before);
            for level in SimdLevel::available() {
                let layout = StatesLayout { group: 0, pages: 3, floats: (kernel - 1) * width };
                let states = States::new(layout).unwrap();
                // SAFETY: one thread.
                unsafe { states.page(2).write(0..before.len()) }.copy_from_slice(&before);
                let mut out = rows.clone();
                let shared = SharedSlice::new(&mut out);
                // In the middle to a page of its own, at the end in the place of what it began with.
                let after = [(count.div_ceil(2), states.page(0)), (count, states.page(2))];
                let after = if count == 1 { &after[1..] } else { &after[..] };
                for first in (0..width).step_by(CHANNELS) {
                    let channels = first..width.min(first + CHANNELS);
                    let before = Some(states.page(2));
                    let work = Convolution {
                        width,
                        taps: &taps,
                        rows: shared,
                        range: 0..count,
                        channels,
                        before,
                        after,
                    };
                    // SAFETY: one thread.
                    unsafe { convolve(level, &work) };
                }
                let near = |got: f32, want: f64| (f64::from(got) - want).abs() <= 1e-5 * (1.0 + want.abs());
                for (row, want) in out.chunks_exact(3 * width).zip(want.chunks_exact(width)) {
                    assert!(row.iter().zip(want).all(|(g, w)| near(*g, *w)), "{level} {width} {kernel}");
                }
                for (rows, state) in after {
                    // SAFETY: one thread.
                    let state = unsafe { state.read(0..state.len()) };
                    assert!(
                        state.iter().zip(&u[rows * width..]).all(|(g, w)| near(*g, *w)),
                        "{level} {rows}"
                    );
                }
            }
        }
    }
}
