//! How right predictions were, and what follows for the next ones.

/// Runs that count at most, the latest.
pub const RUNS_MAX: usize = 20;

/// What earlier runs say about predictions of one kind.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Correction {
    /// Measured over predicted time, in the median: what predicted times are multiplied with.
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
        let Some(ratio) = median(latest.to_vec()) else { return Correction::NONE };
        let off = latest.iter().map(|r| (r / ratio - 1.0).abs()).collect();
        let spread = median(off).unwrap_or(ERROR_UNKNOWN);
        // One run or two say little about how far the next is off.
        let error = if latest.len() < 3 { ERROR_UNKNOWN.max(spread) } else { spread };
        Correction { ratio, error, runs: latest.len() }
    }
}

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
        let one = Correction::of(&[1.5]);
        assert_eq!((one.ratio, one.error, one.runs), (1.5, ERROR_UNKNOWN, 1));
        let several = Correction::of(&[2.0, 1.0, 2.2, 1.8, 2.0]);
        assert_eq!((several.ratio, several.runs), (2.0, 5));
        assert!((several.error - 0.1).abs() < 1e-9, "{several:?}");
        let mut long = vec![9.0; 30];
        long.extend([1.25; RUNS_MAX]);
        assert_eq!(Correction::of(&long), Correction { ratio: 1.25, error: 0.0, runs: RUNS_MAX });
    }
}
