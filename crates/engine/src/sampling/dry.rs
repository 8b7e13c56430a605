//! DRY: an exponential penalty on tokens that would continue a repetition.

use std::collections::HashMap;

use super::DryOptions;
use super::adjustments::Adjustments;
use super::penalties::last;

/// `ln(f32::MAX)`: keeps `base ^ exponent` finite.
const EXPONENT_LOG_MAX: f64 = 88.722_839;

/// A penalty of `multiplier * base ^ (n - allowed_length)` for every token that would continue a repetition of `n >=
/// allowed_length` tokens; a token that is a breaker by itself is spared.
pub(super) fn collect(options: &DryOptions, history: &[u32], to: &mut Adjustments) {
    if !options.is_on() {
        return;
    }
    let base = options.base as f64;
    let exponent_max = if base > 1.000001 { EXPONENT_LOG_MAX / libm::log(base) } else { f64::MAX };
    for (token, length) in continued_repetitions(options, history) {
        let breaker = options.breakers.iter().any(|b| b.as_slice() == [token]);
        if breaker {
            continue;
        }
        let exponent = ((length - options.allowed_length) as f64).min(exponent_max.floor());
        to.of(token).penalties[1] = (options.multiplier as f64 * libm::pow(base, exponent)) as f32;
    }
}

/// For each token that would continue a repetition of at least `allowed_length` tokens, the longest such length.
fn continued_repetitions(options: &DryOptions, history: &[u32]) -> HashMap<u32, usize> {
    let window: Vec<u32> = last(history, options.penalty_last_n).iter().rev().copied().collect();
    let mut longest = HashMap::new();
    let limit = repetition_limit(&options.breakers, &window);
    // A window as short as the allowed length cannot hold a longer repetition.
    if window.len() <= options.allowed_length || limit < options.allowed_length {
        return longest;
    }
    let repeats = prefix_matches(&window);
    for back in 1..window.len() {
        // The text that ends `back` tokens ago equals the current end over this length; `window[back - 1]` came next.
        let length = repeats[back].min(limit);
        if length >= options.allowed_length {
            let entry = longest.entry(window[back - 1]).or_insert(length);
            *entry = length.max(*entry);
        }
    }
    longest
}

/// How many of the last tokens lie after the last breaker. `window` has the newest token first.
fn repetition_limit(breakers: &[Vec<u32>], window: &[u32]) -> usize {
    if breakers.is_empty() {
        return window.len();
    }
    for head in 0..window.len() {
        // A breaker begins at `head` and runs towards the newest token; it must have ended by now.
        let matches =
            |b: &&Vec<u32>| b.len() <= head + 1 && b.iter().enumerate().all(|(i, t)| window[head - i] == *t);
        if let Some(longest) = breakers.iter().filter(|b| !b.is_empty()).filter(matches).map(Vec::len).max() {
            return head + 1 - longest;
        }
    }
    window.len()
}

/// `z[k]`: length of the longest common prefix of `s` and `s[k..]` (the Z function, linear time); `z[0]` is 0.
fn prefix_matches(s: &[u32]) -> Vec<usize> {
    let mut z = vec![0; s.len()];
    let (mut start, mut end) = (0, 0);
    for k in 1..s.len() {
        let mut n = if k < end { z[k - start].min(end - k) } else { 0 };
        while k + n < s.len() && s[n] == s[k + n] {
            n += 1;
        }
        z[k] = n;
        if k + n > end {
            (start, end) = (k, k + n);
        }
    }
    z
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn apply(options: &DryOptions, history: &[u32], logits: &mut [f32]) {
        let mut adjustments = Adjustments::default();
        collect(options, history, &mut adjustments);
        logits.copy_from_slice(&adjustments.applied(logits));
    }

    /// Straight from the definition: try every earlier position and compare backwards.
    fn naive(options: &DryOptions, history: &[u32], logits: &mut [f32]) {
        let n = options.penalty_last_n.unwrap_or(usize::MAX).min(history.len());
        let text = &history[history.len() - n..];
        // Tokens since the end of the last-beginning breaker (the longest of those that begin there).
        let mut since = text.len();
        'outer: for begin in (0..text.len()).rev() {
            let mut by_length: Vec<_> = options.breakers.iter().collect();
            by_length.sort_by_key(|b| std::cmp::Reverse(b.len()));
            for b in by_length {
                if text[begin..].starts_with(b) {
                    since = text.len() - begin - b.len();
                    break 'outer;
                }
            }
        }
        for token in 0..logits.len() as u32 {
            if options.breakers.contains(&vec![token]) {
                continue;
            }
            let mut best = None;
            for next in 1..text.len() {
                if text[next] != token {
                    continue;
                }
                let mut length = 0;
                while length < next
                    && length < since
                    && text[next - 1 - length] == text[text.len() - 1 - length]
                {
                    length += 1;
                }
                if length >= options.allowed_length && text.len() > options.allowed_length {
                    best = best.max(Some(length));
                }
            }
            if let Some(length) = best.filter(|_| since >= options.allowed_length) {
                let power = (options.base as f64).powi((length - options.allowed_length) as i32);
                logits[token as usize] -= (options.multiplier as f64 * power) as f32;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn equals_the_definition(
            history in prop::collection::vec(0u32..4, 0..60),
            allowed_length in 0usize..5,
            penalty_last_n in prop::option::of(0usize..70),
            breakers in prop::collection::vec(prop::collection::vec(0u32..5, 1..4), 0..3),
        ) {
            let options = DryOptions { multiplier: 0.8, base: 1.2, allowed_length, penalty_last_n, breakers };
            let (mut got, mut expected) = (vec![0f32; 6], vec![0f32; 6]);
            apply(&options, &history, &mut got);
            if options.is_on() {
                naive(&options, &history, &mut expected);
            }
            for (g, e) in got.iter().zip(&expected) {
                prop_assert!((g - e).abs() <= 1e-4 * e.abs().max(1.0), "{:?} {:?}", got, expected);
            }
        }
    }

    #[test]
    fn long_repetitions_stay_finite() {
        let options = DryOptions { multiplier: 1.0, allowed_length: 1, ..DryOptions::default() };
        let mut logits = vec![0f32; 2];
        apply(&options, &[1; 4000], &mut logits);
        assert!(logits[1].is_finite() && logits[1] < -1e30);
        assert_eq!(logits[0], 0.0);
    }

    #[test]
    fn worked_example() {
        // a b c c b c y a b c: "a b c" was followed by c, "c" by b, "b c" by y.
        let (a, b, c, y) = (0, 1, 2, 3);
        let options = DryOptions { multiplier: 1.0, base: 2.0, allowed_length: 2, ..DryOptions::default() };
        let mut logits = vec![0f32; 4];
        apply(&options, &[a, b, c, c, b, c, y, a, b, c], &mut logits);
        assert_eq!(logits, [0.0, 0.0, -2.0, -1.0]);
    }
}
