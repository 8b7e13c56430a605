//! What the devices did and when, for traces and for the share of time in which they worked at once.

use std::ops::Range;
use std::time::{Duration, Instant};

/// One step of one batch as it ran.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    /// Index of the device.
    pub device: usize,
    /// Number of the batch.
    pub flight: u64,
    /// The blocks that ran.
    pub blocks: Range<usize>,
    /// Rows of the batch.
    pub rows: usize,
    /// When the device began.
    pub start: Instant,
    /// When the step was seen to have ended.
    pub end: Instant,
}

/// The first steps, up to a bound.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    spans: Vec<Span>,
    dropped: u64,
}

/// Steps kept at most: some tens of megabytes.
const SPANS_MAX: usize = 1 << 19;

/// How busy the devices were.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Occupancy {
    /// From the first start to the last end.
    pub wall: Duration,
    /// Time in which at least one device worked.
    pub any: Duration,
    /// Time in which at least two devices worked.
    pub several: Duration,
    /// Time in which each device worked.
    pub busy: Vec<Duration>,
}

impl Occupancy {
    /// Share of the wall time in which at least two devices worked, 0 to 1.
    pub fn overlap(&self) -> f64 {
        self.several.as_secs_f64() / self.wall.as_secs_f64().max(1e-12)
    }
}

impl Timeline {
    /// Adds a step that ran; one that was given up before it began leaves nothing.
    pub(crate) fn push(&mut self, span: Span) {
        if span.start >= span.end {
            return;
        }
        if self.spans.len() < SPANS_MAX {
            self.spans.push(span);
        } else {
            self.dropped += 1;
        }
    }

    /// The steps, in the order in which their batches landed.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Steps that were not kept because there were too many.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How busy `devices` devices were.
    pub fn occupancy(&self, devices: usize) -> Occupancy {
        let mut edges: Vec<(Instant, bool, usize)> = Vec::with_capacity(2 * self.spans.len());
        for span in &self.spans {
            edges.push((span.start, true, span.device));
            edges.push((span.end, false, span.device));
        }
        edges.sort_unstable();
        let mut out = Occupancy { busy: vec![Duration::ZERO; devices], ..Occupancy::default() };
        let mut working = vec![0usize; devices];
        let Some(first) = edges.first() else { return out };
        let mut last = first.0;
        for (at, begins, device) in edges {
            let passed = at.duration_since(last);
            out.wall += passed;
            let several = working.iter().filter(|w| **w > 0).count();
            out.any += if several > 0 { passed } else { Duration::ZERO };
            out.several += if several > 1 { passed } else { Duration::ZERO };
            for (busy, working) in out.busy.iter_mut().zip(&working) {
                *busy += if *working > 0 { passed } else { Duration::ZERO };
            }
            if let Some(working) = working.get_mut(device) {
                *working = if begins { *working + 1 } else { working.saturating_sub(1) };
            }
            last = at;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occupancy_by_hand() {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let mut timeline = Timeline::default();
        for (device, start, end) in [(0, 0, 10), (1, 5, 20), (0, 10, 12), (1, 30, 40)] {
            timeline.push(Span { device, flight: 0, blocks: 0..1, rows: 1, start: at(start), end: at(end) });
        }
        let ms = Duration::from_millis;
        let occupancy = timeline.occupancy(2);
        assert_eq!(occupancy.wall, ms(40));
        assert_eq!(occupancy.any, ms(30));
        assert_eq!(occupancy.several, ms(7));
        assert_eq!(occupancy.busy, [ms(12), ms(25)]);
        assert!((occupancy.overlap() - 7.0 / 40.0).abs() < 1e-9);
        timeline.push(Span { device: 0, flight: 1, blocks: 0..1, rows: 1, start: at(50), end: at(50) });
        assert_eq!(timeline.occupancy(2), occupancy);
        assert_eq!(Timeline::default().occupancy(1).overlap(), 0.0);
    }
}
