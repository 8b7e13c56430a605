//! Whether two engines say the same: greedy decoding in step, up to the first token that differs.
//!
//! Two devices round differently, so their logits differ a little, and where two candidates are nearly equal they may choose differently.
//! What tells such a difference from a fault is the margin between the two candidates, measured against how far the logits of the two
//! engines lie apart there and elsewhere: see [`Difference::margin`].

use unicorn_core::{HeadOutput, Select};

use crate::{Engine, EngineError};

/// The first token on which two engines differ.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Difference {
    /// Tokens that were the same before it.
    pub after: usize,
    /// What the first engine chose.
    pub first: u32,
    /// What the second engine chose.
    pub second: u32,
    /// By how much the first engine preferred its own choice to the other's, in logits.
    pub margin_first: f32,
    /// By how much the second engine preferred its own choice to the other's, in logits.
    pub margin_second: f32,
    /// By how much the second engine's logit of the first's choice is above the first engine's, less the mean over all candidates.
    pub moved_first: f32,
    /// The same of the second engine's choice.
    pub moved_second: f32,
    /// Root mean square, over all candidates, of what `moved_first` is for one: how far the engines are apart at this position.
    pub logit_rms: f64,
}

impl Difference {
    /// How far apart the engines must be for both to be right: the two margins together. It is `moved_second - moved_first`, so each margin
    /// is at most as large as those two together; a NaN counts as infinitely far.
    pub fn margin(&self) -> f32 {
        let sum = self.margin_first + self.margin_second;
        if sum.is_nan() { f32::INFINITY } else { sum }
    }
}

/// How two engines continued one prompt.
#[derive(Clone, PartialEq, Debug)]
pub struct Agreement {
    /// The tokens that both chose.
    pub tokens: Vec<u32>,
    /// The first difference, if there was one.
    pub difference: Option<Difference>,
    /// Root mean square of the difference between their logits, over all steps with the same past. What all logits of a step have in common
    /// changes no probability and does not count.
    pub logit_rms: f64,
    /// Root mean square of the first engine's logits about their mean: what `logit_rms` is to be compared with.
    pub logit_spread: f64,
}

/// Continues `prompt` greedily on both engines, `tokens` tokens or until they differ. Both must run the same model.
///
/// Errors when the prompt is empty or does not fit, or a device fails.
pub fn agree(
    first: &mut Engine,
    second: &mut Engine,
    prompt: &[u32],
    tokens: usize,
) -> Result<Agreement, EngineError> {
    let (mut a, mut b) = (first.evaluator(), second.evaluator());
    let nothing = || EngineError::option("agree prompt", 0, "must have at least 1 token");
    let mut logits =
        (a.prefill(prompt, true)?.ok_or_else(nothing)?, b.prefill(prompt, true)?.ok_or_else(nothing)?);
    let mut sums = Sums::default();
    let mut same = Vec::new();
    let mut difference = None;
    while same.len() < tokens {
        let apart = sums.add(&logits.0, &logits.1);
        let (x, y) = (best(&logits.0), best(&logits.1));
        if x != y {
            difference = Some(differs(same.len(), (x, y), (&logits.0, &logits.1), apart));
            break;
        }
        same.push(x);
        if same.len() == tokens {
            break;
        }
        for (evaluator, row) in [(&mut a, &mut logits.0), (&mut b, &mut logits.1)] {
            if let Some(HeadOutput { logits: new, .. }) = evaluator.feed(&[x], &[0], Select::Logits)? {
                *row = new;
            }
        }
    }
    let (logit_rms, logit_spread) = sums.finish();
    Ok(Agreement { tokens: same, difference, logit_rms, logit_spread })
}

/// What is to be said about two choices from these rows of logits.
fn differs(after: usize, (x, y): (u32, u32), (a, b): (&[f32], &[f32]), apart: Apart) -> Difference {
    let at = |row: &[f32], token: u32| row.get(token as usize).copied().unwrap_or(f32::NAN);
    let moved = |token| at(b, token) - at(a, token) - apart.mean as f32;
    Difference {
        after,
        first: x,
        second: y,
        margin_first: at(a, x) - at(a, y),
        margin_second: at(b, y) - at(b, x),
        moved_first: moved(x),
        moved_second: moved(y),
        logit_rms: apart.rms,
    }
}

/// The likeliest token; the first of equals, as samplers take it. NaN is never chosen while anything else is there.
fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if *l > logits[best] || (logits[best].is_nan() && !l.is_nan()) {
            best = i;
        }
    }
    best as u32
}

/// Sums over all logits compared.
#[derive(Default)]
struct Sums {
    count: f64,
    differences: f64,
    values: f64,
    squares: f64,
}

/// How far two rows of logits lie apart.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Apart {
    /// Mean of the second's less the first's.
    mean: f64,
    /// Root mean square of that about its mean.
    rms: f64,
}

impl Sums {
    fn add(&mut self, a: &[f32], b: &[f32]) -> Apart {
        let n = a.len().max(1) as f64;
        let moved = || a.iter().zip(b).map(|(a, b)| *b as f64 - *a as f64);
        let mean = moved().sum::<f64>() / n;
        let squares: f64 = moved().map(|m| (m - mean) * (m - mean)).sum();
        self.differences += squares;
        for a in a.iter().map(|a| *a as f64) {
            self.values += a;
            self.squares += a * a;
        }
        self.count += a.len() as f64;
        Apart { mean, rms: (squares / n).sqrt() }
    }

    /// Root mean square of the differences, and standard deviation of the first's values.
    fn finish(&self) -> (f64, f64) {
        let n = self.count.max(1.0);
        let mean = self.values / n;
        ((self.differences / n).sqrt(), (self.squares / n - mean * mean).max(0.0).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineOptions;
    use crate::testing::engine_of;

    #[test]
    fn an_engine_agrees_with_itself() {
        let options = || EngineOptions { context: 64, ..EngineOptions::default() };
        let (mut a, mut b) = (engine_of(options()), engine_of(options()));
        let got = agree(&mut a, &mut b, &[1, 2, 3], 12).unwrap();
        assert_eq!((got.tokens.len(), got.difference, got.logit_rms), (12, None, 0.0));
        assert!(got.logit_spread > 0.0);
        assert!(agree(&mut a, &mut b, &[], 4).is_err());
        assert!(agree(&mut a, &mut b, &[1; 60], 30).is_err());
    }

    #[test]
    fn the_first_of_equals_is_best_and_nan_is_not() {
        assert_eq!(best(&[f32::NAN, 1.0, 3.0, 3.0]), 2);
        assert_eq!(best(&[2.0, 1.0]), 0);
    }

    #[test]
    fn margins_add_up_and_nan_is_far() {
        let apart = Apart { mean: 10.0, rms: 0.5 };
        let mut d = differs(3, (0, 1), (&[2.0, 1.75], &[11.5, 12.0]), apart);
        assert_eq!((d.margin_first, d.margin_second, d.margin()), (0.25, 0.5, 0.75));
        assert_eq!((d.moved_first, d.moved_second, d.logit_rms), (-0.5, 0.25, 0.5));
        assert_eq!(d.moved_second - d.moved_first, d.margin());
        d.margin_second = f32::NAN;
        assert_eq!(d.margin(), f32::INFINITY);
    }

    #[test]
    fn differences_are_measured_against_the_spread() {
        let mut sums = Sums::default();
        let apart = sums.add(&[1.0, 3.0], &[1.5, 2.5]);
        assert_eq!((apart, sums.finish()), (Apart { mean: 0.0, rms: 0.5 }, (0.5, 1.0)));
        // What all have in common is no difference.
        assert_eq!(sums.add(&[1.0, 3.0], &[3.0, 5.0]), Apart { mean: 2.0, rms: 0.0 });
        assert_eq!(sums.finish(), (0.125f64.sqrt(), 1.0));
    }
}
