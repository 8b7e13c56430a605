//! Kept pages on their way to a store, beside what runs.

use std::time::{Duration, Instant};

use super::Engine;
use crate::kv_store::SAVES_MAX;
use crate::store_copies::Copied;

/// While sequences run, devices rest so many times as long as the last copy took before they copy again.
const REST: u32 = 9;

impl Engine {
    /// True while pages are on their way to a store or from it, or wait for that. [`Engine::step`] goes on with it, and it may be left undone:
    /// what is not saved is computed again when it is wanted.
    pub fn has_background(&self) -> bool {
        let under_way = |k: &super::Keeper| k.saving() > 0 || !k.restores.is_empty();
        self.stopped.is_none() && (self.keeper.as_ref().is_some_and(under_way) || self.prefixes.unsaved() > 0)
    }

    /// Saves everything that is kept and that the store does not have, until `deadline` if it takes as long. Batches in flight land meanwhile,
    /// and none is launched. Returns how many pages of text are left.
    pub fn flush(&mut self, deadline: Instant) -> usize {
        let Some(keeper) = self.keeper.as_ref().filter(|_| self.stopped.is_none()) else { return 0 };
        self.prefixes.want_again(|key| keeper.keeps(key));
        while self.stopped.is_none() && Instant::now() < deadline {
            self.save(SAVES_MAX - 1);
            let Some(ended) = self.executor.ended(true) else { break };
            self.take_in(ended);
        }
        self.prefixes.unsaved()
    }

    /// Saves what is wanted there next: one chunk at a time while sequences run, with rests.
    pub(super) fn save_some(&mut self) {
        let Some(keeper) = &self.keeper else { return };
        let busy = !self.running.is_empty() || !self.waiting.is_empty();
        let rests = keeper.rest_until.is_some_and(|until| Instant::now() < until);
        match busy {
            true if rests => {}
            true => self.save(1),
            false => self.save(SAVES_MAX - 1),
        }
    }

    /// Saves what is wanted there next, with so many chunks under way at most.
    fn save(&mut self, most: usize) {
        let Some(keeper) = &mut self.keeper else { return };
        let before = self.prefixes.unsaved();
        while keeper.saving() < most {
            let (rows, has) = (|g: usize| keeper.shapes[g].rows, |key: &_| keeper.keeps(key));
            let Some(next) = self.prefixes.next_unsaved(rows, has) else { break };
            let count = next.keys.len() as u64;
            if !keeper.save(&mut self.executor, (next.group, next.phase), next.keys, next.pages) {
                self.counted.unsaved_pages += count;
            }
        }
        if self.prefixes.unsaved() < before {
            self.prefixes.trim();
        }
    }

    /// Takes what pages hold that have just left: whatever is written there comes behind that. As far as there is memory; the rest is lost.
    pub(super) fn save_left(&mut self) {
        let mut left = self.prefixes.take_left();
        let Some(keeper) = self.keeper.as_mut().filter(|_| self.stopped.is_none()) else { return };
        left.retain(|page| !keeper.keeps(&page.key));
        left.sort_by_key(|page| (page.group, page.phase as usize));
        for alike in left.chunk_by(|a, b| (a.group, a.phase) == (b.group, b.phase)) {
            let (group, phase) = (alike[0].group, alike[0].phase);
            for some in alike.chunks(keeper.shapes[group].rows) {
                let (keys, pages) = some.iter().map(|page| (page.key, page.page)).unzip();
                if !keeper.save(&mut self.executor, (group, phase), keys, pages) {
                    self.counted.unsaved_pages += some.len() as u64;
                }
            }
        }
    }

    /// A chunk is in the store, or is not and will not be.
    pub(super) fn saved(&mut self, copied: &Copied) {
        let Some(keeper) = &mut self.keeper else { return };
        let Some((keys, bytes)) = keeper.saved(copied.tag) else { return };
        let kept = keys.iter().filter(|key| copied.outcome.is_ok() && keeper.store.has(key)).count() as u64;
        self.counted.saved_pages += kept;
        self.counted.saved_bytes += kept * bytes;
        self.counted.unsaved_pages += keys.len() as u64 - kept;
        keeper.rest_until = Some(Instant::now() + copied.busy().saturating_mul(REST).min(REST_MAX));
        self.prefixes.trim();
    }
}

/// However long a copy took.
const REST_MAX: Duration = Duration::from_secs(10);
