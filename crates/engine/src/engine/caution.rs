//! Smaller batches where a device has no memory for larger ones.

/// Fewer rows are not tried: what has no room for these has room for nothing.
const ROWS_MIN: usize = 16;
/// Batches that land well until larger ones are tried again: who took the memory may have given it back.
const GOOD: u32 = 64;

/// Times in a row that even a small batch is tried again.
const TRIES: u32 = 3;

/// How many rows a batch may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Caution {
    rows: usize,
    good: u32,
    /// Failures since a batch landed well.
    failed: u32,
}

impl Default for Caution {
    fn default() -> Caution {
        Caution { rows: usize::MAX, good: 0, failed: 0 }
    }
}

impl Caution {
    /// Rows of a batch at most.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// A batch of so many rows found no memory. True where a smaller one may, if it `shrinks`, or the same a moment later.
    pub fn failed(&mut self, rows: usize, shrinks: bool) -> bool {
        self.good = 0;
        self.failed += 1;
        // What was in flight beside a batch that failed may be as large as that was.
        self.rows = self.rows.min((rows / 2).max(ROWS_MIN));
        (shrinks && rows > ROWS_MIN) || self.failed <= TRIES
    }

    /// A batch landed well.
    pub fn landed(&mut self) {
        self.failed = 0;
        if self.rows < usize::MAX {
            self.good += 1;
            if self.good == GOOD {
                (self.rows, self.good) = (self.rows.saturating_mul(2), 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_shrink_at_once_and_grow_slowly() {
        let mut caution = Caution::default();
        assert!(caution.failed(512, true) && caution.failed(300, true));
        assert_eq!(caution.rows(), 150);
        for _ in 0..GOOD {
            caution.landed();
        }
        assert_eq!(caution.rows(), 300);
        for _ in 0..TRIES {
            assert!(caution.failed(ROWS_MIN, true));
        }
        assert!(caution.failed(20, true) && !caution.failed(ROWS_MIN, true) && !caution.failed(20, false));
        assert_eq!(caution.rows(), ROWS_MIN);
    }
}
