//! Out of the queue: who starts next, and from which computed pages.

use super::keeper::Keeper;
use super::sequence::Sequence;
use super::{Engine, queue};
use crate::prefix::{Found, Plan};
use unicorn_core::SequenceId;

/// Who leaves the queue next.
struct Next {
    id: SequenceId,
    /// What there is of its tokens.
    found: Found,
    /// What a store has behind that, for which it waits first.
    plan: Option<Plan>,
}

impl Engine {
    /// Moves waiting sequences to the running ones while there is a place and the pages for all their tokens so far: a prompt that is certain
    /// to be preempted is not begun.
    pub(super) fn admit(&mut self) {
        while self.running.len() + self.restoring() < self.options.sequences_max {
            let Some(Next { id, found, plan }) = self.next() else { return };
            if let Some(plan) = plan {
                self.restore(id, plan);
                continue;
            }
            let Some(mut sequence) = self.waiting.take(id) else { return };
            let restored = self.prefixes.use_restored(&found);
            let (pages, reused) = self.prefixes.claim(&found);
            if sequence.start(pages, reused, restored) {
                self.counted.prompt_tokens += sequence.prompt_tokens as u64;
                self.counted.reused_tokens += reused as u64;
                self.counted.restored_tokens += sequence.restored_tokens as u64;
            }
            let taken = |slot: &u32| self.running.iter().chain(&self.ending).any(|s| s.slot == *slot);
            sequence.slot = (0..).find(|slot| !taken(slot)).unwrap_or(u32::MAX);
            let at = self.running.partition_point(|s| queue::rank(s) < queue::rank(&sequence));
            self.running.insert(at, sequence);
        }
    }

    /// The first in the queue that need not wait for what others are computing, with what there is of its tokens. None overtakes one for which
    /// there are not enough pages.
    fn next(&self) -> Option<Next> {
        let held = self.keeper.as_ref().map_or(Vec::new(), Keeper::held);
        for sequence in self.waiting.turns() {
            let found = self.prefixes.find(sequence.scope, sequence.reusable());
            if self.is_under_way(sequence, &found) || self.is_coming(sequence, &found) {
                continue;
            }
            let running = self.running.iter().map(|s| (&s.pages, s.tokens.len()));
            let shared = self.prefixes.shared(&found);
            let alone = self.running.is_empty() && self.restoring() == 0;
            let fits = alone || self.pools.fits(sequence.tokens.len(), &shared, &held, running);
            let next = || Next { id: sequence.id, plan: self.in_store(sequence, &found), found };
            return fits.then(next);
        }
        None
    }

    /// True when more of a sequence's beginning than was found will be there sooner than it could compute it itself: a running sequence with
    /// the same beginning is not behind it, or one that has ended is about to leave its pages. Nobody waits for one that waits, so somebody
    /// always goes on.
    fn is_under_way(&self, sequence: &Sequence, found: &Found) -> bool {
        let Some((_, head)) = sequence.reusable().split_last() else { return false };
        let page = self.pools.page_tokens();
        let computes = |other: &Sequence| {
            let goes_on = other.failure.is_none() && !other.cancelled && !other.alone;
            let ahead = other.scope == sequence.scope && other.computed >= found.tokens;
            if !goes_on || !ahead || other.tokens.len().min(head.len()) < other.computed + 1 {
                return false;
            }
            let common = head.iter().zip(&other.tokens).take_while(|(a, b)| a == b).count();
            let full = common - common % page;
            full > found.tokens && full > other.computed
        };
        let leaves = |other: &Sequence| {
            let keeps = other.keep && other.scope == sequence.scope && other.computed > found.tokens;
            keeps && head.starts_with(&other.tokens[..other.computed])
        };
        self.running.iter().any(computes) || self.ending.iter().any(leaves)
    }
}
