//! Repeat, frequency and presence penalties.

use std::collections::HashMap;

use super::SamplingOptions;
use super::adjustments::Adjustments;

/// Penalties of the tokens among the last `penalty_last_n` of `history`.
pub(super) fn collect(options: &SamplingOptions, history: &[u32], to: &mut Adjustments) {
    if !options.penalties_on() {
        return;
    }
    let window = last(history, options.penalty_last_n);
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for &token in window {
        *counts.entry(token).or_default() += 1;
    }
    for (token, count) in counts {
        let of = to.of(token);
        of.divisor = options.repeat_penalty;
        of.penalties[0] = count as f32 * options.frequency_penalty + options.presence_penalty;
    }
}

/// The last `n` tokens, or all.
pub(super) fn last(history: &[u32], n: Option<usize>) -> &[u32] {
    &history[history.len() - n.unwrap_or(history.len()).min(history.len())..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_counting_token_by_token(
            history in prop::collection::vec(0u32..12, 0..80),
            logits in prop::collection::vec(-8f32..8.0, 12),
            last_n in prop::option::of(0usize..100),
            (repeat, presence, frequency) in (0.5f32..2.0, -1f32..1.0, -1f32..1.0),
        ) {
            let options = SamplingOptions {
                repeat_penalty: repeat, presence_penalty: presence, frequency_penalty: frequency,
                penalty_last_n: last_n, ..SamplingOptions::default()
            };
            let mut adjustments = Adjustments::default();
            collect(&options, &history, &mut adjustments);
            let got = adjustments.applied(&logits);
            for (token, &logit) in logits.iter().enumerate() {
                let mut count = 0;
                for (back, &t) in history.iter().rev().enumerate() {
                    if last_n.is_none_or(|n| back < n) && t as usize == token {
                        count += 1;
                    }
                }
                let scaled = if logit > 0.0 { logit / repeat } else { logit * repeat };
                let expected = if count == 0 { logit } else { scaled - (count as f32 * frequency + presence) };
                prop_assert_eq!(got[token], expected);
            }
        }
    }
}
