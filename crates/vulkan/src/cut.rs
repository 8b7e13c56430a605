//! How much GPU time one submission takes. Integrated GPUs share a watchdog with the screen: it resets the device after about two seconds of
//! one submission, and the killed work can still report success. So a recording is cut into pieces of bounded time there; elsewhere it stays
//! whole. Times are estimated from what each dispatch reads and computes, then corrected by what earlier pieces really took.

use std::ops::Range;

use crate::profile::GpuProfile;
use crate::recording::{Dispatch, Groups};

/// GPU seconds of one piece on integrated GPUs: far below the watchdog, far above what a submission costs.
const PIECE_SECONDS: f64 = 0.15;
/// Deliberately low rates of a small integrated GPU, before anything was measured.
const BYTES_PER_SECOND: f64 = 20e9;
const OPS_PER_SECOND: f64 = 150e9;
/// A dispatch costs at least this.
const DISPATCH_SECONDS: f64 = 4e-6;
/// What a workgroup of a dispatch reads at most, where the dispatch does not tell: a split of a KV cache.
const GROUP_BYTES: u64 = 64 << 10;

/// The longest submission that a device should get; `None` where there is no watchdog to fear.
pub(crate) fn seconds_max(gpu: &GpuProfile) -> Option<f64> {
    (gpu.integrated && !gpu.software).then_some(PIECE_SECONDS)
}

/// Seconds that a dispatch takes on the slowest device that we expect.
pub(crate) fn estimate(d: &Dispatch) -> f64 {
    let Groups::Fixed(groups) = d.groups;
    let groups = groups.iter().map(|g| *g as u64).product::<u64>();
    let bytes = if d.bytes == 0 { groups * GROUP_BYTES } else { d.bytes };
    let work = (bytes as f64 / BYTES_PER_SECOND).max(d.flops as f64 / OPS_PER_SECOND);
    DISPATCH_SECONDS + work
}

/// Cuts consecutive costs (seconds) into pieces of at most `most` each; a cost above that stands alone. Never an empty piece, and
/// one piece where there is no bound.
pub(crate) fn cut(costs: &[f64], most: Option<f64>) -> Vec<Range<usize>> {
    let most = most.unwrap_or(f64::INFINITY);
    let mut pieces = Vec::new();
    let (mut first, mut sum) = (0, 0.0);
    for (i, cost) in costs.iter().enumerate() {
        if i > first && sum + cost > most {
            pieces.push(first..i);
            (first, sum) = (i, 0.0);
        }
        sum += cost;
    }
    if first < costs.len() || pieces.is_empty() {
        pieces.push(first..costs.len());
    }
    pieces
}

/// Corrects the costs of pieces by the seconds that they took. A piece that took no measurable time says nothing.
pub(crate) fn correct(costs: &mut [f64], pieces: &[Range<usize>], seconds: &[f64]) {
    for (piece, measured) in pieces.iter().zip(seconds) {
        let part = &mut costs[piece.clone()];
        let expected: f64 = part.iter().sum();
        if *measured > 0.0 && expected > 0.0 {
            part.iter_mut().for_each(|c| *c *= measured / expected);
        }
    }
}

/// Whether pieces cut before a correction should be cut anew: one took half as long again as it may, or half as many would do.
pub(crate) fn is_worth_recutting(
    seconds: &[f64],
    now: &[Range<usize>],
    after: &[Range<usize>],
    most: f64,
) -> bool {
    let too_long = seconds.iter().any(|s| *s > 1.5 * most) && now != after;
    too_long || after.len() * 2 <= now.len()
}

/// How much slower or faster than [`estimate`] a device is, learned from measured submissions, for recordings that are new.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Pace(f64);

impl Default for Pace {
    fn default() -> Pace {
        Pace(1.0)
    }
}

impl Pace {
    /// Factor on estimates.
    pub(crate) fn factor(self) -> f64 {
        self.0
    }

    /// Learns from one recording: slower at once, faster by and by, since a submission that is too long does harm and one too short does
    /// none.
    pub(crate) fn learn(&mut self, estimated: f64, measured: f64) {
        if estimated > 0.0 && measured > 0.0 {
            let ratio = measured / estimated;
            self.0 = if ratio > self.0 { ratio } else { self.0 * 0.75 + ratio * 0.25 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;

    fn dispatch(groups: [u32; 3], bytes: u64, flops: u64) -> Dispatch {
        Dispatch {
            op: "test",
            kernel: Kernel { shader: "norm".into(), constants: Vec::new(), subgroup: 0 },
            arguments: Vec::new(),
            groups: Groups::Fixed(groups),
            reads: Vec::new(),
            writes: Vec::new(),
            bytes,
            flops,
        }
    }

    #[test]
    fn pieces_are_whole_in_order_and_bounded() {
        let costs: Vec<f64> = (0..500).map(|i| ((i * 37) % 11) as f64 * 0.01).collect();
        for most in [0.0, 0.05, 0.3, 2.0, 1e9] {
            let pieces = cut(&costs, Some(most));
            assert_eq!(pieces.iter().cloned().flatten().collect::<Vec<_>>(), (0..500).collect::<Vec<_>>());
            for p in &pieces {
                let sum: f64 = costs[p.clone()].iter().sum();
                assert!(p.len() == 1 || sum <= most + 1e-9, "{p:?} takes {sum} of {most}");
            }
        }
        assert_eq!((cut(&costs, None).len(), cut(&costs, None)[0].clone()), (1, 0..500));
        assert_eq!((cut(&[], Some(0.1)).len(), cut(&[], Some(0.1))[0].clone()), (1, 0..0));
        assert_eq!(cut(&[9.0, 0.01, 0.01, 9.0], Some(0.1)), [0..1, 1..3, 3..4]);
    }

    #[test]
    fn an_estimate_follows_bytes_operations_and_groups() {
        let weights = estimate(&dispatch([100, 1, 1], 20_000_000_000, 0));
        assert!((weights - 1.0).abs() < 1e-3);
        assert!(estimate(&dispatch([100, 1, 1], 1000, 300_000_000_000)) > 1.9);
        let untold = |rows| estimate(&dispatch([8, 4, rows], 0, 0));
        assert!(untold(512) > 10.0 * untold(16));
        assert!(untold(0) >= DISPATCH_SECONDS);
    }

    #[test]
    fn measured_times_correct_the_cut() {
        let mut costs = vec![0.1; 8];
        let pieces = cut(&costs, Some(0.25));
        assert_eq!(pieces, [0..2, 2..4, 4..6, 6..8]);
        let seconds = [0.8, 0.02, 0.02, 0.0];
        correct(&mut costs, &pieces, &seconds);
        let after = cut(&costs, Some(0.25));
        assert_eq!(after, [0..1, 1..2, 2..8]);
        assert!(is_worth_recutting(&seconds, &pieces, &after, 0.25));
        assert!(!is_worth_recutting(&[0.25; 4], &pieces, &pieces, 0.25));
        let one: Vec<Range<usize>> = cut(&[0.01; 8], Some(0.25));
        assert!(is_worth_recutting(&[0.02; 4], &pieces, &one, 0.25));
    }

    #[test]
    fn a_pace_grows_at_once_and_shrinks_slowly() {
        let mut pace = Pace::default();
        pace.learn(0.1, 0.5);
        assert_eq!(pace.factor(), 5.0);
        pace.learn(0.1, 0.1);
        assert_eq!(pace.factor(), 4.0);
        pace.learn(0.0, 1.0);
        assert_eq!(pace.factor(), 4.0);
    }
}
