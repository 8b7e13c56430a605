//! Prefix reuse: finished sequences whose KV pages are kept for prompts that begin the same way.

use crate::kv::{StatePages, StatePools};

#[derive(Debug)]
struct Kept {
    tokens: Vec<u32>,
    pages: StatePages,
    used: u64,
}

/// Kept sequences, the least recently used one given up first.
///
/// A prompt that begins with the whole of a kept sequence takes over its partly filled last page and shares the full ones;
/// one that departs in the middle shares the full pages before that point. So no page that will be written has two owners.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    entries: Vec<Kept>,
    entries_max: usize,
    pools: StatePools,
    clock: u64,
}

impl PrefixCache {
    /// Keeps at most `entries_max` sequences.
    pub fn new(pools: &StatePools, entries_max: usize) -> PrefixCache {
        PrefixCache { entries: Vec::new(), entries_max, pools: pools.clone(), clock: 0 }
    }

    /// Number of kept sequences.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Tokens of `prompt` whose KV is at hand, and their pages. At least one token is left over, since the logits after the prompt have
    /// to be computed.
    pub fn take(&mut self, prompt: &[u32]) -> (StatePages, usize) {
        let Some((&_last, head)) = prompt.split_last() else { return (self.pools.empty(), 0) };
        let reusable = |kept: &Kept| {
            let common = common_prefix(&kept.tokens, head);
            let whole = common == kept.tokens.len();
            let reused = if whole { common } else { common - common % self.pools.page_tokens() };
            // A window may have given up what the prompt departs from, and recurrent state is there at some positions only.
            kept.pages.restart(reused)
        };
        let best = (0..self.entries.len()).max_by_key(|i| reusable(&self.entries[*i]));
        let Some((index, reused)) = best.map(|i| (i, reusable(&self.entries[i]))).filter(|(_, n)| *n > 0)
        else {
            return (self.pools.empty(), 0);
        };
        self.clock += 1;
        let entry = &mut self.entries[index];
        entry.used = self.clock;
        let mut pages = entry.pages.share_full(reused);
        if reused % self.pools.page_tokens() != 0 {
            entry.pages.move_rest(reused, &mut pages);
            entry.tokens.truncate(entry.pages.capacity());
            if entry.tokens.is_empty() {
                self.entries.swap_remove(index);
            }
        }
        (pages, reused)
    }

    /// Keeps a sequence whose `tokens` are computed in `pages`. Kept sequences that it begins with are dropped.
    pub fn keep(&mut self, tokens: &[u32], mut pages: StatePages) {
        let tokens = &tokens[..pages.truncate(tokens.len())];
        if tokens.is_empty() || self.entries_max == 0 {
            return;
        }
        self.clock += 1;
        if let Some(longer) = self.entries.iter_mut().find(|e| e.tokens.starts_with(tokens)) {
            longer.used = self.clock;
            return;
        }
        self.entries.retain(|e| !tokens.starts_with(&e.tokens));
        while self.entries.len() >= self.entries_max {
            self.evict();
        }
        self.entries.push(Kept { tokens: tokens.to_vec(), pages, used: self.clock });
    }

    /// Gives up the least recently used sequence; false when there is none.
    pub fn evict(&mut self) -> bool {
        let oldest = (0..self.entries.len()).min_by_key(|i| self.entries[*i].used);
        oldest.map(|i| self.entries.swap_remove(i)).is_some()
    }

    /// Gives up everything.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicorn_core::{KvType, StateLayout};

    use super::*;

    /// One group that keeps everything.
    fn pools(pages: usize) -> StatePools {
        StatePools::new(&StateLayout::paged(32, pages, 4096, KvType::F16), 64)
    }

    fn filled(pools: &StatePools, tokens: usize) -> StatePages {
        let mut list = pools.empty();
        list.grow(0, tokens, 0).unwrap();
        list
    }

    #[test]
    fn continuation_takes_the_partial_page() {
        let pool = pools(8);
        let mut cache = PrefixCache::new(&pool, 4);
        let kept: Vec<u32> = (0..70).collect();
        cache.keep(&kept, filled(&pool, 70));
        let prompt: Vec<u32> = (0..100).collect();
        let (pages, reused) = cache.take(&prompt);
        assert_eq!((pages.held(), reused), (vec![3], 70));
        assert!(pages.writable_from(70));
        // What is left of the kept sequence serves others up to the last full page.
        let (other, reused) = cache.take(&prompt);
        assert_eq!((other.held(), reused), (vec![2], 64));
        drop((pages, other));
        assert_eq!(pool.pages().0, 6);
        cache.clear();
        assert_eq!(pool.pages().0, 8);
    }

    #[test]
    fn a_departing_prompt_shares_full_pages_only() {
        let pool = pools(8);
        let mut cache = PrefixCache::new(&pool, 4);
        cache.keep(&(0..100).collect::<Vec<_>>(), filled(&pool, 100));
        let mut prompt: Vec<u32> = (0..80).collect();
        prompt[70] = 999;
        assert_eq!(cache.take(&prompt).1, 64);
        // The very same prompt again: its last token has to run.
        assert_eq!(cache.take(&(0..64).collect::<Vec<_>>()).1, 32);
        assert_eq!(cache.take(&[0]).1, 0);
        assert_eq!(cache.take(&[]).1, 0);
        assert_eq!(cache.take(&[5, 6, 7]).1, 0);
    }

    #[test]
    fn least_recently_used_goes_first() {
        let pool = pools(8);
        let mut cache = PrefixCache::new(&pool, 2);
        let text = |first: u32| (first..first + 40).collect::<Vec<u32>>();
        for first in [100, 200] {
            cache.keep(&text(first), filled(&pool, 40));
        }
        assert_eq!(cache.take(&text(100)).1, 32);
        cache.keep(&text(300), filled(&pool, 40));
        assert_eq!(cache.len(), 2);
        assert_eq!(cache.take(&text(200)).1, 0);
        // A longer version replaces what it begins with; a shorter one adds nothing.
        let longer: Vec<u32> = (300..350).collect();
        cache.keep(&longer, filled(&pool, 50));
        cache.keep(&text(300), filled(&pool, 40));
        assert_eq!(cache.len(), 2);
        assert!(cache.evict() && cache.evict() && !cache.evict());
        assert_eq!(pool.pages().0, 8);
    }

    proptest! {
        /// Reused pages hold the right tokens and a page to be written has one owner.
        #[test]
        fn content_matches(texts in prop::collection::vec((prop::collection::vec(0u32..2, 1..130), any::<bool>()), 1..12)) {
            let pool = pools(64);
            let mut cache = PrefixCache::new(&pool, 3);
            // What every page holds, as the sequences wrote it.
            let mut memory = vec![vec![u32::MAX; 32]; 64];
            let mut running: Vec<(Vec<u32>, StatePages)> = Vec::new();
            for (prompt, keep) in texts {
                let (mut pages, reused) = cache.take(&prompt);
                prop_assert!(reused < prompt.len());
                if pages.grow(reused, prompt.len(), 0).is_err() {
                    continue;
                }
                prop_assert!(pages.writable_from(reused));
                let ids = &pages.tables(0, prompt.len())[0];
                for (position, token) in prompt.iter().enumerate() {
                    let slot = &mut memory[ids[position / 32] as usize][position % 32];
                    if position < reused {
                        prop_assert_eq!(*slot, *token);
                    } else {
                        *slot = *token;
                    }
                }
                if keep {
                    cache.keep(&prompt, pages);
                } else {
                    running.push((prompt, pages));
                }
                for (prompt, pages) in &running {
                    let ids = &pages.tables(0, prompt.len())[0];
                    for (position, token) in prompt.iter().enumerate() {
                        prop_assert_eq!(memory[ids[position / 32] as usize][position % 32], *token);
                    }
                }
            }
            running.clear();
            cache.clear();
            prop_assert_eq!(pool.pages().0, 64);
        }
    }
}
