//! How right predictions were, and what follows for the next ones.

/// Runs that count at most, the latest.
pub const RUNS_MAX: usize = 20;

/// What earlier runs say about predictions of one kind.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Correction {
    /// What predicted times are multiplied with: measured over predicted time, in the median, but nearer to 1 the fewer runs there are.
    pub ratio: f64,
    /// Half of the runs were farther from that than this share.
    pub error: f64,
    /// Runs that were graded.
    pub runs: usize,
}

impl Correction {
    /// None: predictions stand as they are.
    pub const NONE: Correction = Correction { ratio: 1.0, error: ERROR_UNKNOWN, runs: 0 };

    /// From the ratios of measured over predicted times, oldest first. Numbers that are no ratio do not count.
    pub fn of(ratios: &[f64]) -> Correction {
        let sound: Vec<f64> = ratios.iter().copied().filter(|r| r.is_finite() && *r > 0.0).collect();
        let latest = &sound[sound.len().saturating_sub(RUNS_MAX)..];
        let Some(middle) = median(latest.to_vec()) else { return Correction::NONE };
        let runs = latest.len() as f64;
        let ratio = middle.powf(runs / (runs + DOUBT_RUNS));
        let off = latest.iter().map(|r| (r / ratio - 1.0).abs()).collect();
        let spread = median(off).unwrap_or(ERROR_UNKNOWN);
        // One run or two say little about how far the next is off.
        let error = if latest.len() < 3 { ERROR_UNKNOWN.max(spread) } else { spread };
        Correction { ratio, error, runs: latest.len() }
    }
}

/// As if so many runs had met their predictions exactly: one noisy run must not mislead the next prediction.
const DOUBT_RUNS: f64 = 2.0;
/// The error that a prediction is taken to have until there are grades.
const ERROR_UNKNOWN: f64 = 0.08;

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => None,
        n => Some((values[(n - 1) / 2] + values[n / 2]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrections_follow_the_latest_runs() {
        assert_eq!(Correction::of(&[]), Correction::NONE);
        assert_eq!(Correction::of(&[f64::NAN, -1.0, 0.0]), Correction::NONE);
        let several = Correction::of(&[4.0, 2.0, 4.4, 3.6, 4.0]);
        assert_eq!((several.ratio, several.runs), (4f64.powf(5.0 / 7.0), 5));
        // Most runs took longer than is predicted now.
        assert!((several.error - (4.0 / several.ratio - 1.0)).abs() < 0.11, "{several:?}");
        let mut long = vec![9.0; 30];
        long.extend([1.25; RUNS_MAX]);
        let long = Correction::of(&long);
        assert_eq!((long.ratio, long.runs), (1.25f64.powf(20.0 / 22.0), RUNS_MAX));
        assert!((long.error - 0.02).abs() < 0.001, "{long:?}");
    }

    #[test]
    fn few_runs_correct_little() {
        let ratios: Vec<f64> = (0..RUNS_MAX).map(|n| Correction::of(&vec![8.0; n]).ratio).collect();
        // The cube root, the square root, and so on to what was measured.
        assert_eq!(ratios[0], 1.0);
        assert!((ratios[1] - 2.0).abs() < 1e-12 && (ratios[2] - 8f64.sqrt()).abs() < 1e-12, "{ratios:?}");
        assert!(ratios.is_sorted() && ratios.iter().all(|r| *r < 8.0) && ratios[RUNS_MAX - 1] > 6.0);
        // As much in the other direction.
        let slower = Correction::of(&[8.0, 8.0]).ratio * Correction::of(&[0.125, 0.125]).ratio;
        assert!((slower - 1.0).abs() < 1e-12, "{slower}");
        // One that was far off says that the next may be.
        let one = Correction::of(&[1.5]);
        assert!(one.runs == 1 && (one.error - (1.5 / one.ratio - 1.0)).abs() < 1e-12, "{one:?}");
        assert_eq!(Correction::of(&[1.01]).error, ERROR_UNKNOWN);
    }
}
