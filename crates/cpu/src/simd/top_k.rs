//! The largest logits of a row: each thread scans its part, the parts are merged in a total order.

use unicorn_core::TopEntry;

use super::float_vector::{FloatVector, SimdFunction, dispatch};
use super::level::SimdLevel;

/// The `k` first of `logits[i]` with token `first + i`, in order. Fewer when there are fewer logits.
pub(crate) fn top_k(level: SimdLevel, logits: &[f32], first: u32, k: usize) -> Vec<TopEntry> {
    if k == 0 {
        return Vec::new();
    }
    let mut kept = dispatch(level, Scan { logits, first, k });
    // No comparison finds it: one is enough, since it is the first.
    if let Some(at) = no_number(logits) {
        kept.retain(|e| !e.logit.is_nan());
        kept.push(TopEntry { token: first + at as u32, logit: logits[at] });
    }
    kept.sort_unstable_by(TopEntry::rank);
    kept.truncate(k);
    kept
}

/// Where the first logit is that is no number.
fn no_number(logits: &[f32]) -> Option<usize> {
    // Without a branch for each, which the compiler turns into vector code.
    let mut parts = logits.chunks(64);
    let part = parts.position(|part| part.iter().fold(false, |any, l| any | l.is_nan()))?;
    let within = logits[part * 64..].iter().position(|l| l.is_nan())?;
    Some(part * 64 + within)
}

/// Merges the parts of one row; what cannot be chosen is left out.
pub(crate) fn merge(parts: impl Iterator<Item = Vec<TopEntry>>, k: usize) -> Vec<TopEntry> {
    let mut all: Vec<TopEntry> = parts.flatten().filter(TopEntry::is_choosable).collect();
    all.sort_unstable_by(TopEntry::rank);
    all.truncate(k);
    all
}

struct Scan<'a> {
    logits: &'a [f32],
    first: u32,
    k: usize,
}

impl SimdFunction for Scan<'_> {
    type Output = Vec<TopEntry>;

    /// Once `k` entries are kept, only larger logits can enter (equal ones have larger ids); the threshold rises whenever the
    /// list has grown to several times `k`.
    #[inline(always)]
    unsafe fn run<S: FloatVector>(self) -> Vec<TopEntry> {
        let Scan { logits, first, k } = self;
        let capacity = k.saturating_mul(4).saturating_add(64).min(logits.len());
        let mut kept: Vec<TopEntry> = Vec::with_capacity(capacity + S::LANES);
        // No threshold before `k` entries were seen: even NaN must be kept while entries are missing.
        let mut threshold = f32::NEG_INFINITY;
        let mut full = false;
        let whole = logits.len() - logits.len() % S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: `i + LANES` is at most the length.
            let mut mask = unsafe { S::mask_gt(S::load(logits.as_ptr().add(i)), S::splat(threshold)) };
            if !full {
                mask = u32::MAX >> (32 - S::LANES);
            }
            while mask != 0 {
                let at = i + mask.trailing_zeros() as usize;
                mask &= mask - 1;
                kept.push(TopEntry { token: first + at as u32, logit: logits[at] });
            }
            if kept.len() > capacity || (!full && kept.len() >= k) {
                threshold = shrink(&mut kept, k);
                full = true;
            }
        }
        for at in whole..logits.len() {
            kept.push(TopEntry { token: first + at as u32, logit: logits[at] });
        }
        kept
    }
}

/// Keeps the `k` first entries, in any order, and returns the smallest logit among them.
fn shrink(kept: &mut Vec<TopEntry>, k: usize) -> f32 {
    if kept.len() > k {
        kept.select_nth_unstable_by(k - 1, TopEntry::rank);
        kept.truncate(k);
    }
    kept.iter().map(|e| if e.logit.is_nan() { f32::INFINITY } else { e.logit }).fold(f32::INFINITY, f32::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::testing::random_source;

    #[test]
    fn equals_sorting() {
        let mut random = random_source("top_k");
        for n in [1usize, 5, 8, 63, 1000, 49_152] {
            for spread in [3.0, 1000.0] {
                // Few distinct values: many ties.
                let mut logits: Vec<f32> = (0..n).map(|_| (random.normal() * spread).round()).collect();
                if n > 100 {
                    logits[17] = f32::NAN;
                    logits[18] = f32::NEG_INFINITY;
                    logits[19] = f32::INFINITY;
                }
                let mut all: Vec<TopEntry> =
                    logits.iter().enumerate().map(|(i, l)| TopEntry { token: i as u32, logit: *l }).collect();
                all.sort_by(TopEntry::rank);
                for k in [0usize, 1, 2, 40, 999, 60_000] {
                    for level in SimdLevel::available() {
                        let whole = top_k(level, &logits, 0, k);
                        let parts = (0..n).step_by(777).map(|s| {
                            let end = n.min(s + 777);
                            top_k(level, &logits[s..end], s as u32, k)
                        });
                        let merged = merge(parts, k);
                        let want: Vec<u32> = all.iter().take(k).map(|e| e.token).collect();
                        let tokens = |v: &[TopEntry]| v.iter().map(|e| e.token).collect::<Vec<_>>();
                        assert_eq!(tokens(&whole), want, "{level:?} n {n} k {k}");
                        let want: Vec<u32> =
                            all.iter().take(k).filter(|e| e.is_choosable()).map(|e| e.token).collect();
                        assert_eq!(tokens(&merged), want, "{level:?} n {n} k {k} merged");
                    }
                }
            }
        }
    }
}
