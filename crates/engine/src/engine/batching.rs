//! Which sequences the next batch has, and how many tokens of each: pure functions, which the planner's simulation calls too.

/// Rows that a batch has at least while a prompt has as many: fewer cost a reading of all weights each.
const CHUNK_MIN: usize = 32;

/// A sequence with tokens to launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ready {
    /// Tokens not launched yet.
    pub pending: usize,
    /// Tokens of its prompt less those that it reuses.
    pub prompt: usize,
    /// True where it has generated tokens and one is pending; one that reads its tokens again after it was preempted is like a prompt.
    pub decodes: bool,
}

/// Tokens of prompts in a batch, of prompts of `tokens` in all: a chunk, less where that would leave a device without work. Batches
/// of equal size, as many for each lane: one that runs alone leaves the other devices idle.
fn share(tokens: usize, chunk: usize, lanes: usize) -> usize {
    if lanes == 1 {
        return chunk;
    }
    let batches = tokens.div_ceil(chunk).max(1).next_multiple_of(lanes);
    tokens.div_ceil(batches).clamp(chunk.min(CHUNK_MIN), chunk)
}

/// How many batches may be on their way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Room {
    /// Batches that the devices can work on at once.
    pub lanes: usize,
    /// Batches in flight at most.
    pub flights: usize,
    /// Tokens of a batch at most, decoding sequences aside.
    pub chunk: usize,
}

/// Batches of `all` in flight at most, so that they come in waves of about equal size: devices take turns among what is in flight, so that
/// a wave ends together, and the last one would be too small to keep all of them busy.
fn wave(all: usize, flights: usize) -> usize {
    all.div_ceil(all.div_ceil(flights).max(1)).max(1)
}

/// The next batch as `(index in ready, tokens)`, with `flying` batches on their way and `decoding` running sequences that decode, ready or
/// not. Empty when nothing is to be launched now.
///
/// Where several devices share the work, as many batches as they can work on at once are on their way, each with its share of the
/// sequences and of the chunk. More may follow that only continue prompts: they keep the devices busy while others cross or the host reads
/// what they bring, and no token waits for them.
pub(crate) fn next(ready: &[Ready], decoding: usize, flying: usize, room: Room) -> Vec<(usize, usize)> {
    let Room { lanes, flights, chunk } = room;
    if flying >= lanes && decoding > 0 {
        return Vec::new();
    }
    let fair = decoding.div_ceil(lanes);
    let mut decoders = 0;
    let takes_part = |i: &usize| {
        decoders += usize::from(ready[*i].decodes);
        !ready[*i].decodes || decoders <= fair
    };
    let chosen: Vec<usize> = (0..ready.len()).filter(takes_part).collect();
    let pending: Vec<usize> = chosen.iter().map(|i| ready[*i].pending).collect();
    // By whole prompts less what they reuse, not by what is left of them: or each batch would be half of the one before.
    let whole: usize = chosen.iter().map(|i| if ready[*i].decodes { 1 } else { ready[*i].prompt }).sum();
    let share = share(whole, chunk, lanes);
    if lanes > 1 && flying >= wave(whole.div_ceil(share), flights).max(lanes) {
        return Vec::new();
    }
    let counts = plan(&pending, share);
    chosen.into_iter().zip(counts).filter(|w| w.1 > 0).collect()
}

/// Tokens per sequence for one step. `pending[i]` (at least 1) tokens of sequence `i` are not computed yet: one when it decodes.
///
/// Every decoding sequence gets its token. Prompts share the rest of `budget` evenly, what short ones leave going to
/// the longer ones; they get at least a quarter of the budget, so that many decoding sequences cannot starve them.
fn plan(pending: &[usize], budget: usize) -> Vec<usize> {
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
    fn waves_are_even() {
        let of = |all| wave(all, 8);
        assert_eq!([1, 5, 8, 9, 15, 16, 17, 64].map(of), [1, 5, 8, 5, 8, 8, 6, 8]);
        assert_eq!(wave(0, 8), 1);
    }

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
