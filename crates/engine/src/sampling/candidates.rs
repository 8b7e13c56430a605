//! Tokens under consideration and their order.

use std::cmp::Ordering;

/// A token and its logit (never NaN or +inf, see [`clean`]).
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Candidate {
    pub token: u32,
    pub logit: f32,
}

/// A logit that later arithmetic can use: NaN counts as impossible, +inf as the largest number.
pub(super) fn clean(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

/// Largest logit first, ties to the smaller id: a total order, the same as [`unicorn_core::Select::Top`].
pub(super) fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// The first candidate in rank order; `None` when no logit is above -inf.
pub(super) fn largest(logits: &[f32]) -> Option<Candidate> {
    let mut best: Option<Candidate> = None;
    for (i, &logit) in logits.iter().enumerate() {
        let logit = clean(logit);
        if logit > best.map_or(f32::NEG_INFINITY, |b| b.logit) {
            best = Some(Candidate { token: i as u32, logit });
        }
    }
    best
}
