//! What the devices and the host did and when: for traces, for the share of time in which devices worked at once, and for why they stood
//! still.

use std::ops::Range;
use std::time::{Duration, Instant};

/// What worked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lane {
    /// A device, by its index, on blocks.
    Device(usize),
    /// What a device, by its index, copies beside its work: residual streams on their way in and out, and state.
    Copies(usize),
    /// The host.
    Host,
}

/// What it did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Activity {
    /// Ran these blocks of the model.
    Blocks(Range<usize>),
    /// Copied pages of state of this block out of a device.
    Save(usize),
    /// Copied them into another.
    Restore(usize),
    /// Copied the residual stream in, before the block with this number.
    In(usize),
    /// Copied it out, behind the block with this number.
    Out(usize),
    /// Chose tokens.
    Sampling,
}

/// One step of one batch as it ran, or what was done for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    /// Who worked.
    pub lane: Lane,
    /// On what.
    pub activity: Activity,
    /// Number of the batch; of the next one, for copies of state.
    pub flight: u64,
    /// Rows of the batch, or pages.
    pub rows: usize,
    /// When it was given to the device.
    pub launched: Instant,
    /// When the last thing that it waited for had ended, and on which device that was; `None` where it waited for nothing.
    pub ready: Option<(Instant, usize)>,
    /// When the device began.
    pub start: Instant,
    /// When it was seen to have ended.
    pub end: Instant,
}

/// The first spans, up to a bound.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    spans: Vec<Span>,
    dropped: u64,
}

/// Spans kept at most: some tens of megabytes.
const SPANS_MAX: usize = 1 << 19;

/// Why a device stood still.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stalls {
    /// Nothing was given to it: the host chose tokens, made batches, or had nothing to do.
    pub host: Duration,
    /// What was given to it waited for another device.
    pub others: Duration,
    /// What was given to it could begin, and had not yet: waking up, or its own queue.
    pub start: Duration,
    /// It had not begun, or had done all of its work, while others worked.
    pub ends: Duration,
}

/// How busy the devices were.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Occupancy {
    /// From the first start to the last end of work on blocks.
    pub wall: Duration,
    /// Time in which at least one device worked.
    pub any: Duration,
    /// Time in which at least two devices worked.
    pub several: Duration,
    /// Time in which each device worked.
    pub busy: Vec<Duration>,
    /// Why each device stood still for the rest of the time.
    pub stalls: Vec<Stalls>,
}

impl Occupancy {
    /// Share of the wall time in which at least two devices worked, 0 to 1.
    pub fn overlap(&self) -> f64 {
        self.several.as_secs_f64() / self.wall.as_secs_f64().max(1e-12)
    }
}

impl Timeline {
    /// Adds what was done; what was given up before it began leaves nothing.
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

    /// The spans, in the order in which their batches landed.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Spans that were not kept because there were too many.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Those of the devices' work on blocks.
    fn work(&self) -> impl Iterator<Item = (usize, &Span)> {
        self.spans.iter().filter_map(|span| match span.lane {
            Lane::Device(device) => Some((device, span)),
            Lane::Copies(_) | Lane::Host => None,
        })
    }

    /// How busy `devices` devices were, and why they were not.
    pub fn occupancy(&self, devices: usize) -> Occupancy {
        let mut edges: Vec<(Instant, bool, usize)> = Vec::with_capacity(2 * self.spans.len());
        for (device, span) in self.work() {
            edges.push((span.start, true, device));
            edges.push((span.end, false, device));
        }
        edges.sort_unstable();
        let mut out = Occupancy { busy: vec![Duration::ZERO; devices], ..Occupancy::default() };
        let mut working = vec![0usize; devices];
        let Some(first) = edges.first().map(|e| e.0) else { return out };
        let mut last = first;
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
        out.stalls = (0..devices).map(|device| self.stalls(device, first, last)).collect();
        out
    }

    /// Why a device stood still between two moments.
    fn stalls(&self, device: usize, from: Instant, to: Instant) -> Stalls {
        let mut spans: Vec<&Span> = self.work().filter(|(d, _)| *d == device).map(|(_, s)| s).collect();
        spans.sort_unstable_by_key(|s| s.start);
        let mut stalls = Stalls::default();
        let mut idle_since = None;
        for span in spans {
            match idle_since {
                None => stalls.ends += span.start.duration_since(from),
                Some(since) if span.start > since => {
                    // Each part lasts to a moment that lies between the last one and the start.
                    let until = |at: Instant, after: Instant| at.clamp(after, span.start);
                    let given = until(span.launched, since);
                    let ready = span.ready.map_or(given, |(at, _)| until(at, given));
                    stalls.host += given.duration_since(since);
                    stalls.others += ready.duration_since(given);
                    stalls.start += span.start.duration_since(ready);
                }
                Some(_) => {}
            }
            idle_since = Some(idle_since.map_or(span.end, |since: Instant| since.max(span.end)));
        }
        stalls.ends += to.duration_since(idle_since.unwrap_or(from));
        stalls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn span(zero: Instant, device: usize, [launched, ready, start, end]: [u64; 4]) -> Span {
        Span {
            lane: Lane::Device(device),
            activity: Activity::Blocks(0..1),
            flight: 0,
            rows: 1,
            launched: zero + ms(launched),
            ready: Some((zero + ms(ready), 1 - device)),
            start: zero + ms(start),
            end: zero + ms(end),
        }
    }

    #[test]
    fn occupancy_by_hand() {
        let zero = Instant::now();
        let mut timeline = Timeline::default();
        for (device, start, end) in [(0, 0, 10), (1, 5, 20), (0, 10, 12), (1, 30, 40)] {
            timeline.push(span(zero, device, [0, 0, start, end]));
        }
        let occupancy = timeline.occupancy(2);
        assert_eq!(occupancy.wall, ms(40));
        assert_eq!(occupancy.any, ms(30));
        assert_eq!(occupancy.several, ms(7));
        assert_eq!(occupancy.busy, [ms(12), ms(25)]);
        assert!((occupancy.overlap() - 7.0 / 40.0).abs() < 1e-9);
        timeline.push(span(zero, 0, [0, 0, 50, 50]));
        timeline.push(Span { lane: Lane::Host, ..span(zero, 0, [0, 0, 50, 60]) });
        timeline.push(Span { lane: Lane::Copies(1), ..span(zero, 0, [0, 0, 50, 60]) });
        assert_eq!(timeline.occupancy(2), occupancy);
        assert_eq!(Timeline::default().occupancy(1).overlap(), 0.0);
    }

    #[test]
    fn what_is_not_busy_stalls_for_a_cause() {
        let zero = Instant::now();
        let mut timeline = Timeline::default();
        // Device 0 begins at 2, gets nothing from 10 to 14, waits for device 1 until 19 and begins at 20.
        timeline.push(span(zero, 0, [0, 1, 2, 10]));
        timeline.push(span(zero, 0, [14, 19, 20, 30]));
        // What was ready long ago begins late; what overlaps counts once.
        timeline.push(span(zero, 0, [5, 5, 33, 40]));
        timeline.push(span(zero, 0, [5, 5, 35, 38]));
        timeline.push(span(zero, 1, [0, 0, 0, 50]));
        let occupancy = timeline.occupancy(2);
        let expected = Stalls { host: ms(4), others: ms(5), start: ms(4), ends: ms(12) };
        assert_eq!(occupancy.stalls, [expected, Stalls::default()]);
        let Stalls { host, others, start, ends } = expected;
        assert_eq!(occupancy.busy[0] + host + others + start + ends, occupancy.wall);
        let untouched = Timeline { spans: timeline.spans[4..].to_vec(), dropped: 0 }.occupancy(2);
        assert_eq!(untouched.stalls[0], Stalls { ends: ms(50), ..Stalls::default() });
    }
}
