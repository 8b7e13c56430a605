//! How long batches take, measured as they run: what a prompt may add to a batch so that nobody waits too long for a token.

use std::time::{Duration, Instant};

/// Rows of prompts in a batch that are always allowed: with fewer a long prompt would hardly get on.
const ROWS_MIN: usize = 16;
/// Batches with fewer rows more than sequences tell little about what a row takes.
const ROWS_TOLD: usize = 8;
/// Weights of the latest batch where it was slower and where it was faster than thought.
const SLOWER: f64 = 0.5;
const FASTER: f64 = 0.25;

/// What is left of what a store took, each time that it is not asked for that reason.
const DOUBT: f64 = 0.9;

/// What batches took of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Speed {
    /// Seconds of a batch with one row a sequence.
    plain: Option<f64>,
    /// Seconds of each row more.
    row: Option<f64>,
    /// When the latest batch landed.
    landed: Option<Instant>,
    /// Seconds that a byte of state takes from a store to the devices.
    byte: Option<f64>,
}

fn follow(old: &mut Option<f64>, new: f64) {
    *old = Some(old.map_or(new, |old| old + if new > old { SLOWER } else { FASTER } * (new - old)));
}

impl Speed {
    /// A batch of so many rows of so many sequences has landed well. `turns` where batches run one after the other: its time begins when the
    /// one before it has landed.
    pub fn landed(&mut self, rows: usize, sequences: usize, launched: Instant, turns: bool) {
        let now = Instant::now();
        let before = self.landed.replace(now).filter(|_| turns);
        let began = before.map_or(launched, |before| before.max(launched));
        self.learn(rows, sequences, now.duration_since(began).as_secs_f64());
    }

    fn learn(&mut self, rows: usize, sequences: usize, seconds: f64) {
        match rows.saturating_sub(sequences) {
            0 => follow(&mut self.plain, seconds),
            more if more >= ROWS_TOLD => {
                let plain = self.plain.unwrap_or(0.0).min(seconds);
                follow(&mut self.row, (seconds - plain) / more as f64);
            }
            _ => {}
        }
    }

    /// So many bytes of state came from a store in this time.
    pub fn restored(&mut self, bytes: u64, time: Duration) {
        if bytes > 0 {
            follow(&mut self.byte, time.as_secs_f64() / bytes as f64);
        }
    }

    /// True where so many bytes of state come from a store sooner than so many tokens are computed, as far as can be told. Where they do not,
    /// that is believed a little less the next time: a store that was slow may be faster now, and only trying tells.
    pub fn pays(&mut self, bytes: u64, tokens: usize) -> bool {
        let (Some(byte), Some(row)) = (&mut self.byte, self.row) else { return true };
        let pays = *byte * bytes as f64 <= row * tokens as f64;
        if !pays {
            *byte *= DOUBT;
        }
        pays
    }

    /// Rows of prompts beside those of decoding sequences, so that a batch takes `most` at most as far as can be told.
    pub fn rows_within(&self, most: Duration) -> usize {
        let Some(row) = self.row else { return ROWS_MIN };
        let left = most.as_secs_f64() - self.plain.unwrap_or(0.0);
        ((left / row.max(1e-9)).max(0.0) as usize).max(ROWS_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_slower_than_computing_is_asked_now_and_then() {
        let mut speed = Speed::default();
        // Nothing is known.
        assert!(speed.pays(1 << 30, 1));
        speed.restored(1 << 20, Duration::from_millis(1));
        assert!(speed.pays(1 << 30, 1));
        speed.learn(1000, 0, 1.0);
        // A page of a mebibyte in a millisecond, and a token too.
        assert!(speed.pays(10 << 20, 11) && !speed.pays(10 << 20, 5));
        let tries = (0..).take_while(|_| !speed.pays(10 << 20, 1)).count();
        assert!((15..30).contains(&tries), "{tries}");
        speed.restored(1 << 20, Duration::from_millis(9));
        assert!(!speed.pays(10 << 20, 10));
    }

    #[test]
    fn rows_fill_the_time_that_is_left() {
        let most = Duration::from_millis(100);
        let mut speed = Speed::default();
        assert_eq!(speed.rows_within(most), ROWS_MIN);
        speed.learn(512, 1, 0.511);
        assert_eq!(speed.rows_within(most), 100);
        // A step without prompts takes 20 ms, and each row of one a millisecond.
        (0..20).for_each(|_| speed.learn(4, 4, 0.020));
        (0..40).for_each(|_| speed.learn(84, 4, 0.100));
        assert!((78..=82).contains(&speed.rows_within(most)), "{speed:?}");
        // Slower rows are believed at once.
        speed.learn(84, 4, 0.260);
        assert!(speed.rows_within(most) <= 41, "{speed:?}");
        // What drafts add tells nothing of prompts.
        let before = speed.rows_within(most);
        speed.learn(9, 4, 0.5);
        assert_eq!(speed.rows_within(most), before);
        (0..9).for_each(|_| speed.learn(4, 4, 0.5));
        assert_eq!(speed.rows_within(most), ROWS_MIN);
    }
}
