//! What a canary has looked at, what it may look at next, and when it is certain: plain figures, without a device or a thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use unicorn_cases::Judged;
use unicorn_core::quant::Random;
use unicorn_core::{CanaryCounts, Doubt, Launch, Pick, Sample, Span, Watched};

/// Wrong rows that make certain.
const WRONG_ENOUGH: usize = 3;
/// They count together where they are among so many rows of a kind: a kernel may be wrong in few of the rows of a batch.
const TOGETHER: usize = 48;
/// A launch counts as so much work at most: the time since the one before may have been a pause.
const LAUNCH_MAX: Duration = Duration::from_secs(1);

/// Blocks and batches that run the same kernels.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Kind {
    device: usize,
    kernels: Arc<str>,
    size: Size,
}

/// Devices choose kernels by the number of rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Size {
    One,
    Few,
    Many,
}

impl Size {
    fn of(rows: usize) -> Size {
        match rows {
            0 | 1 => Size::One,
            2..=8 => Size::Few,
            _ => Size::Many,
        }
    }
}

/// What ran: enough to run it again and see with which kernels.
#[derive(Clone, PartialEq, Debug)]
pub struct Example {
    /// Index of the block.
    pub block: usize,
    /// Shape of the batch.
    pub spans: Vec<Span>,
    /// Rows whose logits were asked for.
    pub outputs: usize,
}

impl Example {
    fn of(sample: &Sample) -> Example {
        Example { block: sample.watched.block, spans: sample.spans.clone(), outputs: sample.outputs }
    }
}

/// What is known of a kind.
#[derive(Default)]
struct Known {
    picked: u64,
    /// The last batch of which a row was right, with how it ran.
    right: Option<(u64, Example)>,
    suspected: Option<Suspicion>,
    /// Nothing can compute it again.
    beyond: bool,
}

/// Rows that were wrong, not yet enough of them.
struct Suspicion {
    /// The last right batch before the first wrong one.
    since: Option<u64>,
    wrong: usize,
    /// Rows since then, the first included.
    samples: usize,
    /// The row of the last wrong one: another of it may be wrong too.
    row: usize,
    worst: Judged,
}

/// Something that is certainly wrong, and what ran beside it.
#[derive(Clone, PartialEq, Debug)]
pub struct Evidence {
    /// What the engine is told.
    pub doubt: Doubt,
    /// How what is wrong ran.
    pub wrong: Example,
    /// How other kinds ran that were right on the same device.
    pub right: Vec<Example>,
}

/// See the module's documentation.
pub struct Book {
    /// Of the time in which the engine works, what may be spent.
    share: f64,
    /// By number; the others are not looked at.
    devices: Vec<bool>,
    kinds: HashMap<Kind, Known>,
    random: Random,
    busy: Duration,
    spent: Duration,
    launched: Option<Instant>,
    /// A row was picked, and nothing is known of it yet.
    open: bool,
    doubt: Option<Doubt>,
}

impl Book {
    /// Of devices, by number, that are looked at or not.
    pub fn new(share: f64, devices: Vec<bool>, seed: u64) -> Book {
        Book {
            share,
            devices,
            kinds: HashMap::new(),
            random: Random::new(seed),
            busy: Duration::ZERO,
            spent: Duration::ZERO,
            launched: None,
            open: false,
            doubt: None,
        }
    }

    /// What to look at in a batch that starts now. Every kind is looked at once, whatever it costs; beyond that, as far as the share allows, the kinds that were looked at least; and at once what has been wrong.
    pub fn pick(&mut self, launch: &Launch<'_>, now: Instant) -> Option<Pick> {
        if let Some(last) = self.launched.replace(now) {
            self.busy += now.saturating_duration_since(last).min(LAUNCH_MAX);
        }
        if self.open || self.doubt.is_some() {
            return None;
        }
        let mut kinds: Vec<(Kind, Vec<usize>)> = Vec::new();
        for watched in launch.blocks.iter().filter(|w| self.devices.get(w.device) == Some(&true)) {
            let last = launch.blocks.last().is_some_and(|l| l.block == watched.block);
            // A head multiplies the rows that are read alone.
            let rows = if last && !launch.batch.outputs().is_empty() {
                launch.batch.outputs().len()
            } else {
                launch.batch.rows()
            };
            let kind = kind_of(watched, rows);
            match kinds.iter_mut().find(|k| k.0 == kind) {
                Some((_, blocks)) => blocks.push(watched.block),
                None => kinds.push((kind, vec![watched.block])),
            }
        }
        kinds.retain(|(kind, _)| !self.kinds.get(kind).is_some_and(|k| k.beyond));
        let known = |kind: &Kind| self.kinds.get(kind);
        let suspected = kinds.iter().position(|(k, _)| known(k).is_some_and(|k| k.suspected.is_some()));
        let least = || (0..kinds.len()).min_by_key(|i| known(&kinds[*i].0).map_or(0, |k| k.picked));
        let at = suspected.or_else(least)?;
        let (kind, blocks) = kinds.swap_remove(at);
        let known = self.kinds.entry(kind).or_default();
        let affordable = self.spent.as_secs_f64() <= self.share * self.busy.as_secs_f64();
        if known.suspected.is_none() && known.picked > 0 && !affordable {
            return None;
        }
        known.picked += 1;
        self.open = true;
        let row = known.suspected.as_ref().map(|s| s.row);
        Some(Pick { block: blocks[self.random.below(blocks.len())], row, draw: self.random.bits() })
    }

    /// Nothing came of the last pick.
    pub fn missed(&mut self) {
        self.open = false;
    }

    /// A sample cannot be computed again.
    pub fn beyond(&mut self, sample: &Sample) {
        self.open = false;
        self.kinds.entry(kind_of_sample(sample)).or_default().beyond = true;
    }

    /// What came of a sample, and what of the machine's time it cost. The evidence, where it makes certain.
    pub fn judged(
        &mut self,
        sample: &Sample,
        judged: Judged,
        cost: Duration,
        name: &str,
        counts: &mut CanaryCounts,
    ) -> Option<Evidence> {
        self.open = false;
        counts.samples += 1;
        counts.wrong += u64::from(!judged.right);
        let kind = kind_of_sample(sample);
        let device = kind.device;
        let known = self.kinds.entry(kind.clone()).or_default();
        if known.picked > 1 {
            self.spent += cost;
        }
        if judged.right {
            if let Some(suspicion) = &mut known.suspected {
                suspicion.samples += 1;
            }
            if known.suspected.as_ref().is_some_and(|s| s.samples >= TOGETHER) {
                known.suspected = None;
            }
            if known.suspected.is_none() {
                known.right = Some((sample.flight, Example::of(sample)));
            }
            return None;
        }
        let since = known.right.as_ref().map(|r| r.0);
        let suspicion =
            known.suspected.get_or_insert(Suspicion { since, wrong: 0, samples: 0, row: 0, worst: judged });
        suspicion.wrong += 1;
        suspicion.samples += 1;
        suspicion.row = sample.row;
        if judged.max_error > suspicion.worst.max_error {
            suspicion.worst = judged;
        }
        if suspicion.wrong < WRONG_ENOUGH {
            return None;
        }
        let Suspicion { since, wrong, samples, worst, .. } = suspicion;
        let what = format!(
            "{name} was wrong in {wrong} of {samples} rows that were computed again, by up to {:.2} where {:.2} is allowed",
            worst.max_error, worst.allowed.max_error
        );
        let doubt = Doubt { device, what, since: *since };
        self.doubt = Some(doubt.clone());
        let others = self.kinds.iter().filter(|(other, _)| other.device == device && **other != kind);
        let right = others.filter_map(|(_, known)| known.right.as_ref().map(|r| r.1.clone())).collect();
        Some(Evidence { doubt, wrong: Example::of(sample), right })
    }

    /// What is certain.
    pub fn doubt(&self) -> Option<&Doubt> {
        self.doubt.as_ref()
    }
}

fn kind_of(watched: &Watched, rows: usize) -> Kind {
    Kind { device: watched.device, kernels: watched.kernels.clone(), size: Size::of(rows) }
}

fn kind_of_sample(sample: &Sample) -> Kind {
    let rows = match sample.output {
        Some(_) => sample.outputs,
        None => sample.spans.iter().map(|s| s.tokens).sum(),
    };
    kind_of(&sample.watched, rows)
}

#[cfg(test)]
mod tests {
    use unicorn_cases::Tolerance;
    use unicorn_core::{Batch, BatchLimits, SequenceId, Slice};

    use super::*;

    fn watched(block: usize, kernels: &str) -> Watched {
        Watched { block, device: 0, kernels: kernels.into() }
    }

    fn batch(rows: usize) -> Batch {
        let slice = Slice {
            sequence: SequenceId(1),
            tokens: vec![0; rows],
            start: 0,
            tables: vec![],
            snapshots: vec![],
            slot: None,
        };
        Batch::new(vec![slice], vec![], &Arc::new(BatchLimits { vocab: 1, state: None })).unwrap()
    }

    fn sample(watched: &Watched, flight: u64, rows: usize, row: usize) -> Sample {
        Sample {
            flight,
            watched: watched.clone(),
            spans: vec![Span::new(0, rows)],
            outputs: 0,
            row,
            position: row,
            token: Some(0),
            before: vec![],
            after: vec![],
            output: None,
            state: None,
            took: Duration::ZERO,
        }
    }

    fn judged(right: bool) -> Judged {
        let allowed = Tolerance { nrmse: 0.1, max_error: 0.1 };
        Judged { right, nrmse: 0.5, max_error: 0.5, allowed }
    }

    /// Runs batches, of which `wrong` says what is wrong, and returns what was looked at and the evidence.
    fn run(
        book: &mut Book,
        launches: u64,
        cost: Duration,
        blocks: &[Watched],
        rows: usize,
        wrong: impl Fn(&Sample) -> bool,
    ) -> (Vec<usize>, Option<Evidence>, CanaryCounts) {
        let (start, batch, mut seen, mut counts) =
            (Instant::now(), batch(rows), Vec::new(), CanaryCounts::default());
        for flight in 0..launches {
            let launch = Launch { flight, batch: &batch, blocks };
            let Some(pick) = book.pick(&launch, start + Duration::from_millis(10 * flight)) else { continue };
            seen.push(pick.block);
            let row = pick.row.unwrap_or(pick.draw as usize % rows);
            let taken = sample(&blocks[pick.block], flight, rows, row);
            let evidence = book.judged(&taken, judged(!wrong(&taken)), cost, "ffn", &mut counts);
            if evidence.is_some() {
                return (seen, evidence, counts);
            }
        }
        (seen, None, counts)
    }

    #[test]
    fn kernels_take_turns_and_not_blocks() {
        // Three blocks with one kernel, one with another.
        let blocks = [watched(0, "a"), watched(1, "a"), watched(2, "a"), watched(3, "b")];
        let mut book = Book::new(1.0, vec![true], 1);
        let (seen, ..) = run(&mut book, 100, Duration::ZERO, &blocks, 1, |_| false);
        assert_eq!(seen.iter().filter(|b| **b == 3).count(), 50);
        assert!((0..3).all(|b| seen.contains(&b)));
    }

    #[test]
    fn the_share_is_kept_after_a_first_look_at_everything() {
        let blocks = [watched(0, "a"), watched(1, "b")];
        let mut book = Book::new(0.01, vec![true], 1);
        // 10 s of work, 5 ms a sample: 20 of them, beside the first two.
        let (seen, _, counts) = run(&mut book, 1000, Duration::from_millis(5), &blocks, 1, |_| false);
        assert!((20..=24).contains(&seen.len()), "{}", seen.len());
        assert_eq!(counts.samples as usize, seen.len());
        assert_eq!(seen[..2].iter().sum::<usize>(), 1, "both at once");
        let mut unwatched = Book::new(0.01, vec![false], 1);
        assert!(run(&mut unwatched, 100, Duration::ZERO, &blocks, 1, |_| false).0.is_empty());
    }

    #[test]
    fn what_was_wrong_is_looked_at_again_at_once_until_it_is_certain() {
        let blocks = [watched(0, "a"), watched(1, "b")];
        let mut book = Book::new(0.001, vec![true], 1);
        let (_, evidence, counts) = run(&mut book, 5000, Duration::from_millis(1), &blocks, 1, |s| {
            s.watched.block == 1 && s.flight > 900
        });
        let evidence = evidence.unwrap();
        assert_eq!((counts.wrong, evidence.wrong.block), (3, 1));
        let since = evidence.doubt.since.unwrap();
        assert!(since <= 900 && evidence.doubt.what.contains("3 of 3"), "{:?}", evidence.doubt);
        assert_eq!(evidence.right.iter().map(|e| e.block).collect::<Vec<_>>(), [0]);
        assert_eq!(book.doubt(), Some(&evidence.doubt));
    }

    #[test]
    fn a_wrong_tile_is_found_among_right_rows_and_single_accidents_are_forgotten() {
        let blocks = [watched(0, "a")];
        let mut book = Book::new(1.0, vec![true], 1);
        let tile = |s: &Sample| (16..32).contains(&s.row);
        assert!(run(&mut book, 1000, Duration::ZERO, &blocks, 512, tile).1.is_some());
        let mut book = Book::new(1.0, vec![true], 1);
        let (_, evidence, counts) = run(&mut book, 3000, Duration::ZERO, &blocks, 1, |s| s.flight % 50 == 7);
        assert!(evidence.is_none() && counts.wrong > 50, "{counts:?}");
    }
}
