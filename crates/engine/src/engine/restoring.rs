//! Computed pages that a store has, on their way to who waits for them.

use std::time::Instant;

use unicorn_core::SequenceId;

use super::Engine;
use super::keeper::{Keeper, Piece, Restore};
use super::queue::Queue;
use super::sequence::Sequence;
use crate::prefix::{Found, Plan};
use crate::store_copies::Copied;

/// Times that a sequence waits for a store: what came may be gone or not enough.
const TRIES_MAX: usize = 4;

/// True where somebody waits for more of a text than is at hand.
fn is_wanted(waiting: &Queue, restore: &Restore) -> bool {
    waiting.iter().any(|s| restore.common(s.scope, &s.chains) > restore.from)
}

impl Engine {
    /// Texts on their way from the store. Each will have a place among those that run.
    pub(super) fn restoring(&self) -> usize {
        self.keeper.as_ref().map_or(0, |keeper| keeper.restores.len())
    }

    /// True when more of a sequence's beginning than was found is on its way from the store.
    pub(super) fn is_coming(&self, sequence: &Sequence, found: &Found) -> bool {
        let page = self.pools.page_tokens();
        let more = |r: &Restore| r.common(sequence.scope, &sequence.chains) * page > found.tokens;
        self.keeper.as_ref().is_some_and(|keeper| keeper.restores.iter().any(more))
    }

    /// What the store has of a sequence's beginning behind that which was found.
    pub(super) fn in_store(&self, sequence: &Sequence, found: &Found) -> Option<Plan> {
        let keeper = self.keeper.as_ref().filter(|_| sequence.restores < TRIES_MAX)?;
        let (scope, text, chains) = (sequence.scope, sequence.reusable(), &sequence.chains);
        self.prefixes.plan(scope, text, chains, found, |key| keeper.gives(key))
    }

    /// Lets the beginning of a waiting sequence come from the store. Where that takes longer than computing it, or there are no pages for it,
    /// the sequence does not wait for it again.
    pub(super) fn restore(&mut self, id: SequenceId, plan: Plan) {
        let Plan { owns, missing, from } = plan;
        let page_tokens = self.pools.page_tokens();
        let Some(sequence) = self.waiting.get_mut(id) else { return };
        let Some(keeper) = &mut self.keeper else { return };
        if !self.speed.pays(keeper.bytes(&missing), (owns.len() - from) * page_tokens) {
            sequence.restores = TRIES_MAX;
            return;
        }
        let mut left = Vec::new();
        for alike in missing.chunk_by(|a, b| a.0 == b.0) {
            let group = alike[0].0;
            let Some(pages) = self.prefixes.take(group, alike.len()) else {
                sequence.restores = TRIES_MAX;
                return;
            };
            let numbers: Vec<usize> = alike.iter().map(|(_, number)| *number).collect();
            let rows = keeper.shapes[group].rows;
            left.extend(numbers.chunks(rows).zip(pages.chunks(rows)).map(|(numbers, pages)| Piece {
                group,
                numbers: numbers.to_vec(),
                pages: pages.to_vec(),
            }));
        }
        sequence.restores += 1;
        let (count, scope) = (owns.len(), sequence.scope);
        keeper.restores.push(Restore {
            scope,
            tokens: sequence.tokens[..count * page_tokens].to_vec(),
            chains: sequence.chains[..count].to_vec(),
            owns,
            from,
            left: left.into(),
            reading: Vec::new(),
            came: (0, Instant::now()),
        });
        self.save_left();
        self.read_on();
    }

    /// Reads what there is memory for, and makes known what is through.
    pub(super) fn read_on(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        let (waiting, stopped) = (&self.waiting, self.stopped.is_some());
        keeper.read_on(&mut self.executor, |restore| !stopped && is_wanted(waiting, restore));
        for over in keeper.restores.extract_if(.., |restore| restore.is_over()) {
            let (bytes, since) = over.came;
            self.speed.restored(bytes, since.elapsed());
            // Else its pages are free now.
            if !stopped && is_wanted(waiting, &over) {
                self.prefixes.adopt(over.scope, &over.tokens, over.owns, over.from);
            }
        }
    }

    /// A piece has come, or could not be read.
    pub(super) fn restored(&mut self, copied: &Copied) {
        let Some(keeper) = &mut self.keeper else { return };
        let Some((at, piece)) = keeper.read(copied.tag) else { return };
        match &copied.outcome {
            Ok(()) => {
                let bytes = keeper.shapes[piece.group].bytes() as u64;
                self.counted.restored_pages += piece.numbers.len() as u64;
                self.counted.restored_bytes += piece.numbers.len() as u64 * bytes;
                keeper.restores[at].came.0 += piece.numbers.len() as u64 * bytes;
                let Piece { group, numbers, pages } = piece;
                for (number, page) in numbers.into_iter().zip(pages) {
                    keeper.restores[at].owns[number].pages[group] = Some(page);
                }
            }
            Err(_) => self.counted.failed_reads += u64::from(keeper.failed(at, piece)),
        }
        self.read_on();
    }
}

impl Sequence {
    /// Names its pages for the store.
    pub(super) fn name_pages(&mut self, keeper: Option<&Keeper>) {
        let Some(keeper) = keeper else { return };
        let mut chains = std::mem::take(&mut self.chains);
        let text = self.reusable().split_last().map_or(&[][..], |(_, head)| head);
        keeper.keys.extend(self.scope, text, &mut chains);
        self.chains = chains;
    }
}
