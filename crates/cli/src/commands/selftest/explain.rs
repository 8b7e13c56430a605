//! Whether rounding explains that two devices chose different tokens.

use unicorn_engine::agree::{Agreement, Difference};

/// Devices that are both right differ by errors that are near normal, of the measured deviation `rms` for a logit and so `sqrt(2) * rms`
/// for a pair. A choice flips where that exceeds the gap between two candidates, and gaps near zero are all as likely: the margin of a
/// flip has a Rayleigh distribution, and one in 3000 exceeds 4 deviations of the pair. Of 30 flips between the CPU device and the
/// reference (SmolLM2, Gemma 3) the largest had 2.3.
const MARGIN_DEVIATIONS: f64 = 4.0;
/// One of the two logits may have moved by this many deviations. Likely candidates move further than the rest, and together, which flips
/// nothing: of the same 30 flips the largest had 4.0.
const MOVED_DEVIATIONS: f64 = 6.0;
/// Where the devices are further apart than elsewhere in the run by more than this factor, only so much counts: a fault shall not explain
/// itself.
const POSITION_FACTOR: f64 = 2.0;
/// Difference of perplexity that is explained whatever was measured, relative.
const PERPLEXITY_TOLERANCE: f64 = 0.005;
/// The largest that is ever explained: little text says little.
const PERPLEXITY_TOLERANCE_MAX: f64 = 0.02;
/// A mean over tokens may be off by this many of its deviations.
const MEAN_DEVIATIONS: f64 = 3.0;
/// Largest rms difference of the logits relative to their spread. Activations of 8 bits on one side make 2.5 %.
const SHARE_OF_SPREAD_MAX: f64 = 0.1;

/// How far two devices lie apart, measured over a run.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rounding {
    /// The median over all prompts of the rms difference of their logits: a fault in few of them does not raise it.
    pub rms: f64,
    /// Rms difference over the whole run, relative to the spread of the logits.
    pub share_of_spread: f64,
    /// Largest margin that is explained whatever was measured, in logits.
    pub margin_max: f32,
}

/// What rounding does not do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Unexplained {
    /// The two margins together are larger than the difference of two such errors.
    Margin {
        /// In logits.
        found: f32,
        /// In logits.
        allowed: f32,
    },
    /// The logit of one of the two candidates is further off than such an error is.
    Moved {
        /// In logits.
        found: f32,
        /// In logits.
        allowed: f32,
    },
}

impl Rounding {
    /// Measures it on all answers.
    pub fn of(answers: &[Agreement], margin_max: f32) -> Rounding {
        let mut each: Vec<f64> = answers.iter().map(|a| a.logit_rms).collect();
        each.sort_by(f64::total_cmp);
        let rms = each.get(each.len().saturating_sub(1) / 2).copied().unwrap_or(0.0);
        let sum = |of: fn(&Agreement) -> f64| answers.iter().map(|a| of(a) * of(a)).sum::<f64>().sqrt();
        let (apart, spread) = (sum(|a| a.logit_rms), sum(|a| a.logit_spread));
        Rounding { rms, share_of_spread: if apart == 0.0 { 0.0 } else { apart / spread }, margin_max }
    }

    /// Whether the devices differ as little as two ways of rounding do; not where anything is NaN.
    pub fn is_small(&self) -> bool {
        self.share_of_spread <= SHARE_OF_SPREAD_MAX
    }

    /// The deviation of a logit at this position. NaN counts as none, which explains nothing.
    fn deviation(&self, d: &Difference) -> f64 {
        if d.logit_rms.is_nan() || self.rms.is_nan() {
            0.0
        } else {
            d.logit_rms.min(POSITION_FACTOR * self.rms)
        }
    }

    /// The largest margin that is explained at this position, in logits.
    pub fn margin_allowed(&self, d: &Difference) -> f32 {
        let measured = MARGIN_DEVIATIONS * std::f64::consts::SQRT_2 * self.deviation(d);
        (measured as f32).min(self.margin_max)
    }

    /// The largest relative difference of perplexities over this many scored tokens that is explained. The logarithm of a perplexity is the
    /// mean over tokens of what is off by about the deviation of a logit, so over few tokens its own deviation counts. NaN explains no more
    /// than a long text does.
    pub fn perplexity_allowed(&self, tokens: usize) -> f64 {
        let mean = MEAN_DEVIATIONS * self.rms / (tokens.max(1) as f64).sqrt();
        if mean.is_nan() {
            PERPLEXITY_TOLERANCE
        } else {
            mean.clamp(PERPLEXITY_TOLERANCE, PERPLEXITY_TOLERANCE_MAX)
        }
    }

    /// Nothing where rounding explains the difference.
    pub fn objection(&self, d: &Difference) -> Option<Unexplained> {
        let (found, allowed) = (d.margin(), self.margin_allowed(d));
        if found > allowed {
            return Some(Unexplained::Margin { found, allowed });
        }
        let found = d.moved_first.abs().max(d.moved_second.abs());
        let allowed = (MOVED_DEVIATIONS * self.deviation(d)) as f32;
        (found > allowed).then_some(Unexplained::Moved { found, allowed })
    }
}

impl std::fmt::Display for Unexplained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unexplained::Margin { found, allowed } => {
                write!(f, "the margins add up to {found:.4} logits, rounding explains {allowed:.4}")
            }
            Unexplained::Moved { found, allowed } => {
                write!(f, "a candidate moved by {found:.4} logits, rounding explains {allowed:.4}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flip whose candidates moved by these.
    fn flip(moved_first: f32, moved_second: f32, logit_rms: f64) -> Difference {
        let margin = (moved_second - moved_first) / 2.0;
        let (margin_first, margin_second) = (margin, margin);
        Difference {
            after: 1,
            first: 1,
            second: 2,
            margin_first,
            margin_second,
            moved_first,
            moved_second,
            logit_rms,
        }
    }

    fn rounding(rms: f64) -> Rounding {
        Rounding { rms, share_of_spread: 0.04, margin_max: 0.75 }
    }

    #[test]
    fn what_is_measured_bounds_the_margin() {
        // 4 * sqrt(2) * 0.1
        assert_eq!(rounding(0.1).objection(&flip(-0.28, 0.28, 0.1)), None);
        let found = rounding(0.1).objection(&flip(-0.28, 0.29, 0.1));
        let Some(Unexplained::Margin { found, allowed }) = found else { panic!("{found:?}") };
        assert!((found - 0.57).abs() < 1e-6 && (allowed - 0.565_685).abs() < 1e-5, "{found} {allowed}");
        // Devices that agree to the last bits explain no difference of a tenth.
        assert!(rounding(0.001).objection(&flip(-0.05, 0.05, 0.001)).is_some());
        // Closer here than elsewhere: what counts is here.
        assert!(rounding(0.1).objection(&flip(-0.28, 0.28, 0.05)).is_some());
    }

    #[test]
    fn little_text_explains_more_of_a_perplexity() {
        // 3 * 0.1266 / sqrt(381)
        assert!((rounding(0.1266).perplexity_allowed(381) - 0.019_458).abs() < 1e-5);
        assert_eq!(rounding(0.1266).perplexity_allowed(10_000), 0.005);
        assert_eq!(rounding(0.001).perplexity_allowed(381), 0.005);
        assert_eq!(rounding(1.0).perplexity_allowed(0), 0.02);
        assert_eq!(rounding(f64::NAN).perplexity_allowed(381), 0.005);
    }

    #[test]
    fn a_position_far_off_does_not_explain_itself() {
        assert_eq!(rounding(0.05).objection(&flip(-0.28, 0.28, 0.1)), None);
        assert!(rounding(0.05).objection(&flip(-0.29, 0.29, 5.0)).is_some());
    }

    #[test]
    fn nothing_above_the_cap_is_explained() {
        assert_eq!(rounding(1.0).objection(&flip(-0.375, 0.375, 1.0)), None);
        let found = rounding(1.0).objection(&flip(-0.375, 0.376, 1.0));
        assert_eq!(found, Some(Unexplained::Margin { found: 0.751, allowed: 0.75 }));
    }

    #[test]
    fn candidates_that_moved_together_are_seen() {
        let found = rounding(0.125).objection(&flip(0.6, 0.75, 0.125));
        assert_eq!(found, None);
        let found = rounding(0.125).objection(&flip(0.7, 0.875, 0.125));
        assert_eq!(found, Some(Unexplained::Moved { found: 0.875, allowed: 0.75 }));
    }

    #[test]
    fn nan_explains_nothing() {
        assert!(rounding(0.1).objection(&flip(f32::NAN, 0.1, 0.1)).is_some());
        assert!(rounding(0.1).objection(&flip(-0.1, 0.1, f64::NAN)).is_some());
        assert!(rounding(f64::NAN).objection(&flip(-0.1, 0.1, 0.1)).is_some());
        assert!(!Rounding { share_of_spread: f64::NAN, ..rounding(0.1) }.is_small());
    }

    #[test]
    fn one_bad_prompt_does_not_raise_what_is_typical() {
        let answer =
            |logit_rms| Agreement { tokens: vec![1], difference: None, logit_rms, logit_spread: 5.0 };
        let run = Rounding::of(&[answer(0.1), answer(3.0), answer(0.2)], 0.75);
        assert_eq!(run.rms, 0.2);
        assert!(!run.is_small());
        assert!(Rounding::of(&[answer(0.1), answer(0.3)], 0.75).is_small());
        let none = Rounding::of(&[], 0.75);
        assert_eq!((none.rms, none.is_small()), (0.0, true));
    }
}
