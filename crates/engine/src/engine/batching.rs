//! How many tokens each running sequence gets in one step.

/// Tokens per sequence for one step. `pending[i]` (at least 1) tokens of sequence `i` are not computed yet: one when it decodes.
///
/// Every decoding sequence gets its token. Prompts share the rest of `budget` evenly, what short ones leave going to
/// the longer ones; they get at least a quarter of the budget, so that many decoding sequences cannot starve them.
pub(super) fn plan(pending: &[usize], budget: usize) -> Vec<usize> {
    let decoding = pending.iter().filter(|p| **p == 1).count();
    let mut left = budget.saturating_sub(decoding).max(budget.div_ceil(4));
    let mut out: Vec<usize> = pending.iter().map(|p| usize::from(*p == 1)).collect();
    let mut prompts: Vec<usize> = (0..pending.len()).filter(|i| pending[*i] > 1).collect();
    // From the shortest on: what it does not use of its share is there for the rest. The older one first among equals.
    prompts.sort_by_key(|i| (pending[*i], *i));
    for (served, &i) in prompts.iter().enumerate() {
        let share = left.div_ceil(prompts.len() - served);
        out[i] = pending[i].min(share);
        left -= out[i];
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples() {
        assert_eq!(plan(&[1000], 512), [512]);
        assert_eq!(plan(&[1, 1000, 1], 512), [1, 510, 1]);
        assert_eq!(plan(&[1000, 100, 1000], 512), [206, 100, 206]);
        assert_eq!(plan(&[1; 600], 512), [1; 600]);
        assert_eq!(plan(&[], 512), [0usize; 0]);
    }

    proptest! {
        #[test]
        fn fair_and_bounded(pending in prop::collection::vec(prop_oneof![Just(1usize), 2usize..2000], 0..40), budget in 1usize..600) {
            let out = plan(&pending, budget);
            let decoding = pending.iter().filter(|p| **p == 1).count();
            let rest = budget.saturating_sub(decoding).max(budget.div_ceil(4));
            prop_assert!(out.iter().sum::<usize>() <= decoding + rest);
            let prompts = pending.len() - decoding;
            for (p, o) in pending.iter().zip(&out) {
                prop_assert!(o <= p);
                prop_assert!(*p != 1 || *o == 1);
                prop_assert!(*p == 1 || *o >= (*p).min(rest / prompts));
            }
            // Nothing is left over while a prompt waits.
            let wanted: usize = pending.iter().filter(|p| **p > 1).sum();
            prop_assert_eq!(out.iter().sum::<usize>(), decoding + wanted.min(rest));
        }
    }
}
