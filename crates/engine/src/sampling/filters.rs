//! Filters over candidates and the probabilities they use.

use super::candidates::{Candidate, by_rank};

/// `exp((logit - max) / temperature)` of every candidate: probabilities up to their sum.
pub(super) fn weights(list: &[Candidate], temperature: f64) -> Vec<f64> {
    let max = list.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.logit)) as f64;
    list.iter().map(|c| libm::exp((c.logit as f64 - max) / temperature)).collect()
}

/// Brings the first `n` in rank order to the front, sorted.
fn sort_front(list: &mut [Candidate], n: usize) {
    if n < list.len() {
        list.select_nth_unstable_by(n, by_rank);
        list[..n].sort_unstable_by(by_rank);
    } else {
        list.sort_unstable_by(by_rank);
    }
}

/// Keeps the `k` most likely, sorted.
pub(super) fn top_k(list: &mut Vec<Candidate>, k: usize) {
    sort_front(list, k);
    list.truncate(k);
}

/// Keeps the fewest most likely whose probabilities reach `p`, sorted; at least one.
pub(super) fn top_p(list: &mut Vec<Candidate>, p: f32, sorted: bool) {
    // Summed before sorting: the order of the list is a function of the logits alone either way.
    let total: f64 = weights(list, 1.0).iter().sum();
    let max = list.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.logit)) as f64;
    let mut ready = if sorted { list.len() } else { 0 };
    let mut sum = 0.0;
    for i in 0..list.len() {
        if i == ready {
            // Most of a vocabulary is never needed in order: sort ever larger fronts.
            ready = (ready * 8).max(256).min(list.len());
            sort_front(list, ready);
        }
        sum += libm::exp(list[i].logit as f64 - max);
        if sum >= p as f64 * total {
            list.truncate(i + 1);
            return;
        }
    }
}

/// Keeps candidates at least `p` times as likely as the most likely one. The order stays.
pub(super) fn min_p(list: &mut Vec<Candidate>, p: f32) {
    if p > 0.0 {
        let max = list.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.logit)) as f64;
        let bound = max + libm::log(p as f64);
        list.retain(|c| c.logit as f64 >= bound);
    }
}

/// Keeps the candidates whose information `-ln p` is nearest to the entropy until their probabilities exceed `p`, most typical
/// first; at least one.
pub(super) fn typical(list: &mut Vec<Candidate>, p: f32) {
    let weights = weights(list, 1.0);
    let total: f64 = weights.iter().sum();
    let log_total = libm::log(total);
    let max = list.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.logit)) as f64;
    let information = |c: &Candidate| log_total - (c.logit as f64 - max);
    let entropy: f64 = list.iter().zip(&weights).map(|(c, w)| w / total * information(c)).sum();
    let mut scored: Vec<(f64, f64, Candidate)> =
        list.iter().zip(&weights).map(|(c, w)| ((information(c) - entropy).abs(), w / total, *c)).collect();
    scored.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then_with(|| by_rank(&a.2, &b.2)));
    let mut sum = 0.0;
    let mut kept = scored.len();
    for (i, (_, probability, _)) in scored.iter().enumerate() {
        sum += probability;
        if sum > p as f64 {
            kept = i + 1;
            break;
        }
    }
    list.clear();
    list.extend(scored[..kept].iter().map(|s| s.2));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(logits: &[f32]) -> Vec<Candidate> {
        logits.iter().enumerate().map(|(i, &logit)| Candidate { token: i as u32, logit }).collect()
    }

    fn tokens(list: &[Candidate]) -> Vec<u32> {
        list.iter().map(|c| c.token).collect()
    }

    /// Tokens by falling logit, found by repeated search.
    fn naive_order(logits: &[f32]) -> Vec<u32> {
        let mut left: Vec<u32> = (0..logits.len() as u32).collect();
        let mut order = Vec::new();
        while !left.is_empty() {
            let mut best = 0;
            for i in 1..left.len() {
                if logits[left[i] as usize] > logits[left[best] as usize] {
                    best = i;
                }
            }
            order.push(left.remove(best));
        }
        order
    }

    fn softmax(logits: &[f32]) -> Vec<f64> {
        let sum: f64 = logits.iter().map(|l| (*l as f64).exp()).sum();
        logits.iter().map(|l| (*l as f64).exp() / sum).collect()
    }

    /// Logits on a coarse grid make ties; more than 256 of them make `top_p` grow its sorted front.
    fn some_logits() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec((-40i32..40).prop_map(|i| i as f32 / 8.0), 1..700)
    }

    proptest! {
        #[test]
        fn top_k_is_the_front_of_the_order(logits in some_logits(), k in 1usize..800) {
            let mut list = candidates(&logits);
            top_k(&mut list, k);
            let mut expected = naive_order(&logits);
            expected.truncate(k);
            prop_assert_eq!(tokens(&list), expected);
        }

        #[test]
        fn top_p_adds_up_in_order(logits in some_logits(), p in 0f32..0.999, sorted in any::<bool>()) {
            let mut list = candidates(&logits);
            if sorted {
                list.sort_by(by_rank);
            }
            top_p(&mut list, p, sorted);
            let probabilities = softmax(&logits);
            let order = naive_order(&logits);
            prop_assert_eq!(&tokens(&list), &order[..list.len()]);
            let sum = |n: usize| order[..n].iter().map(|t| probabilities[*t as usize]).sum::<f64>();
            prop_assert!(sum(list.len()) >= p as f64 - 1e-9);
            prop_assert!(list.len() == 1 || sum(list.len() - 1) <= p as f64 + 1e-9);
        }

        #[test]
        fn min_p_compares_with_the_largest(logits in some_logits(), p in 0f32..=1.0) {
            let mut list = candidates(&logits);
            min_p(&mut list, p);
            let probabilities = softmax(&logits);
            let max = probabilities.iter().cloned().fold(0.0, f64::max);
            for (token, probability) in probabilities.iter().enumerate() {
                let kept = list.iter().any(|c| c.token == token as u32);
                let ratio = probability / max;
                prop_assert!(kept == (ratio >= p as f64) || (ratio - p as f64).abs() < 1e-6);
            }
        }

        #[test]
        fn typical_adds_up_by_surprise(logits in some_logits(), p in 0f32..0.999) {
            let mut list = candidates(&logits);
            typical(&mut list, p);
            let probabilities = softmax(&logits);
            let entropy: f64 = probabilities.iter().map(|p| -p * p.ln()).sum();
            let surprise = |t: u32| (-probabilities[t as usize].ln() - entropy).abs();
            let kept = tokens(&list);
            let worst = kept.iter().map(|t| surprise(*t)).fold(0.0, f64::max);
            for token in (0..logits.len() as u32).filter(|t| !kept.contains(t)) {
                prop_assert!(surprise(token) >= worst - 1e-9);
            }
            let sum = |n: usize| kept[..n].iter().map(|t| probabilities[*t as usize]).sum::<f64>();
            prop_assert!(sum(kept.len()) > p as f64 - 1e-9 || kept.len() == logits.len());
            prop_assert!(kept.len() == 1 || sum(kept.len() - 1) <= p as f64 + 1e-9);
        }
    }
}
