//! Log probabilities for reports.

use super::candidates::{Candidate, by_rank, clean};

/// Log probabilities of one choice under the model itself: before bias, penalties and temperature.
#[derive(Clone, PartialEq, Debug)]
pub struct TokenLogprobs {
    /// Natural logarithm of the chosen token's probability.
    pub logprob: f32,
    /// The most likely tokens with theirs, most likely first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// For `token` and the `top` most likely ones out of `logits[vocab]`.
    pub(crate) fn new(logits: &[f32], token: u32, top: usize) -> TokenLogprobs {
        let log_sum = log_sum_exp(logits);
        let of = |logit: f32| (clean(logit) as f64 - log_sum) as f32;
        let all = logits.iter().enumerate().map(|(i, &l)| Candidate { token: i as u32, logit: clean(l) });
        let mut list: Vec<Candidate> = if top == 0 { Vec::new() } else { all.collect() };
        if top < list.len() {
            list.select_nth_unstable_by(top, by_rank);
            list.truncate(top);
        }
        list.sort_unstable_by(by_rank);
        let logprob = logits.get(token as usize).map_or(f32::NEG_INFINITY, |l| of(*l));
        TokenLogprobs { logprob, top: list.iter().map(|c| (c.token, of(c.logit))).collect() }
    }
}

/// `ln(sum(exp(logits)))` in f64.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &l| m.max(clean(l))) as f64;
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + libm::log(logits.iter().map(|&l| libm::exp(clean(l) as f64 - max)).sum::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_softmax() {
        let logits = [1.0f32, -2.0, 3.5, 3.5, 0.0];
        let sum: f64 = logits.iter().map(|l| (*l as f64).exp()).sum();
        let expected = |t: usize| ((logits[t] as f64).exp() / sum).ln();
        let got = TokenLogprobs::new(&logits, 4, 3);
        assert!((got.logprob as f64 - expected(4)).abs() < 1e-6);
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 3, 0]);
        for (token, logprob) in got.top {
            assert!((logprob as f64 - expected(token as usize)).abs() < 1e-6);
        }
        assert!(TokenLogprobs::new(&logits, 0, 0).top.is_empty());
        assert_eq!(TokenLogprobs::new(&logits, 0, 99).top.len(), 5);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        assert!((log_sum_exp(&[1e4, 1e4]) - (1e4 + 2f64.ln())).abs() < 1e-9);
        assert_eq!(log_sum_exp(&[f32::NAN, f32::NEG_INFINITY]), f64::NEG_INFINITY);
    }
}
