//! What an engine has under way to a store and from it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use unicorn_core::{ModelSpec, PageId, PageKey, PageStore, StateLayout};

use crate::executor::Executor;
use crate::executor::storing::Chunk;
use crate::kv_store::{Buffers, Chain, Keys, KvStore, Parts, RESTORES_MAX, RecordShape, SAVES_MAX};
use crate::pages::Page;
use crate::placement::Phase;
use crate::prefix::Own;

/// Pages of one group on their way to the store.
pub(super) struct Saving {
    tag: u64,
    group: usize,
    parts: Parts,
    keys: Vec<PageKey>,
}

/// Pages of one group that come from the store.
pub(super) struct Piece {
    pub group: usize,
    /// Which pages of the text they are.
    pub numbers: Vec<usize>,
    pub pages: Vec<Arc<Page>>,
}

/// A piece that is being read.
pub(super) struct Reading {
    tag: u64,
    parts: Parts,
    pub piece: Piece,
}

/// The beginning of a text on its way from the store.
pub(super) struct Restore {
    pub scope: u64,
    /// Whole pages of them.
    pub tokens: Vec<u32>,
    /// One a page.
    pub chains: Vec<Chain>,
    /// What there is of each page.
    pub owns: Vec<Own>,
    /// The first page that was not at hand before.
    pub from: usize,
    /// What is still to be read.
    pub left: VecDeque<Piece>,
    pub reading: Vec<Reading>,
    /// Bytes that have come, and since when they were waited for.
    pub came: (u64, Instant),
}

impl Restore {
    /// Pages that a text has in common with it.
    pub fn common(&self, scope: u64, chains: &[Chain]) -> usize {
        let same = self.chains.iter().zip(chains).take_while(|(a, b)| a == b).count();
        if scope == self.scope { same } else { 0 }
    }

    /// True once nothing more will come.
    pub fn is_over(&self) -> bool {
        self.left.is_empty() && self.reading.is_empty()
    }
}

/// Pages that could not be read, and are not asked for again: as many at most.
const BAD_MAX: usize = 4096;

/// See the module's documentation.
pub(super) struct Keeper {
    pub store: Arc<dyn PageStore>,
    pub keys: Arc<Keys>,
    pub shapes: Vec<RecordShape>,
    saves: Vec<Saving>,
    save_buffers: Buffers,
    /// While sequences run nothing more is saved before this.
    pub rest_until: Option<Instant>,
    pub restores: Vec<Restore>,
    restore_buffers: Buffers,
    bad: HashSet<PageKey>,
}

impl Keeper {
    pub fn new(store: &KvStore, spec: &ModelSpec, layout: &StateLayout) -> Keeper {
        let shapes = RecordShape::of(spec, layout);
        Keeper {
            store: store.pages.clone(),
            keys: Arc::new(Keys::new(&store.identity, layout, &shapes)),
            shapes,
            saves: Vec::new(),
            save_buffers: Buffers::new(SAVES_MAX),
            rest_until: None,
            restores: Vec::new(),
            restore_buffers: Buffers::new(RESTORES_MAX),
            bad: HashSet::new(),
        }
    }

    /// True where a page is in the store or on its way there.
    pub fn keeps(&self, key: &PageKey) -> bool {
        self.store.has(key) || self.saves.iter().any(|s| s.keys.contains(key))
    }

    /// True where a page can be had from the store, as far as is known.
    pub fn gives(&self, key: &PageKey) -> bool {
        !self.bad.contains(key) && self.store.has(key)
    }

    /// Chunks on their way to the store.
    pub fn saving(&self) -> usize {
        self.saves.len()
    }

    /// Sends pages on their way to the store; false where there is no memory for them now.
    pub fn save(
        &mut self,
        executor: &mut Executor,
        (group, phase): (usize, Phase),
        keys: Vec<PageKey>,
        pages: Vec<PageId>,
    ) -> bool {
        let shape = &self.shapes[group];
        let Some(parts) = self.save_buffers.take(group, shape) else { return false };
        let chunk = Chunk { group, shape, keys: keys.clone(), pages, parts: &parts };
        let tag = executor.save(&*self.store, &chunk, phase);
        self.saves.push(Saving { tag, group, parts, keys });
        true
    }

    /// What was saved under a tag is through: its keys, and the bytes of a record.
    pub fn saved(&mut self, tag: u64) -> Option<(Vec<PageKey>, u64)> {
        let at = self.saves.iter().position(|s| s.tag == tag)?;
        let Saving { group, parts, keys, .. } = self.saves.swap_remove(at);
        self.save_buffers.give(group, parts);
        Some((keys, self.shapes[group].bytes() as u64))
    }

    /// The key of a page of a text that is on its way.
    fn key(&self, restore: usize, group: usize, number: usize) -> PageKey {
        self.keys.page(&self.restores[restore].chains[number], group)
    }

    /// Reads the next pieces, the text that came first before others, as far as there is memory. What nobody wants any more is left out.
    pub fn read_on(&mut self, executor: &mut Executor, wanted: impl Fn(&Restore) -> bool) {
        for at in 0..self.restores.len() {
            if !wanted(&self.restores[at]) {
                self.restores[at].left.clear();
            }
            while let Some(piece) = self.restores[at].left.pop_front() {
                let (group, shape) = (piece.group, &self.shapes[piece.group]);
                let Some(parts) = self.restore_buffers.take(group, shape) else {
                    self.restores[at].left.push_front(piece);
                    if self.restores.iter().all(|r| r.reading.is_empty()) {
                        // The system has no memory for a single piece.
                        self.restores[at].left.clear();
                    }
                    break;
                };
                let keys = piece.numbers.iter().map(|number| self.key(at, group, *number)).collect();
                let pages = piece.pages.iter().map(|page| page.id()).collect();
                let chunk = Chunk { group, shape: &self.shapes[group], keys, pages, parts: &parts };
                let tag = executor.restore(&*self.store, &chunk);
                self.restores[at].reading.push(Reading { tag, parts, piece });
            }
        }
    }

    /// What was read under a tag: whose it is, and the piece.
    pub fn read(&mut self, tag: u64) -> Option<(usize, Piece)> {
        let at = self.restores.iter().position(|r| r.reading.iter().any(|r| r.tag == tag))?;
        let reading = &mut self.restores[at].reading;
        let within = reading.iter().position(|r| r.tag == tag)?;
        let Reading { parts, piece, .. } = reading.swap_remove(within);
        self.restore_buffers.give(piece.group, parts);
        Some((at, piece))
    }

    /// Takes in a piece of a text that could not be read. Which of its pages is gone is found out one by one; what lies behind that is left
    /// out. True once it is known.
    pub fn failed(&mut self, restore: usize, piece: Piece) -> bool {
        if piece.numbers.len() > 1 {
            let Piece { group, numbers, pages } = piece;
            let left = &mut self.restores[restore].left;
            for (number, page) in numbers.into_iter().zip(pages).rev() {
                left.push_front(Piece { group, numbers: vec![number], pages: vec![page] });
            }
            return false;
        }
        if self.bad.len() >= BAD_MAX {
            self.bad.clear();
        }
        let keys: Vec<PageKey> = piece.numbers.iter().map(|n| self.key(restore, piece.group, *n)).collect();
        self.bad.extend(keys);
        self.restores[restore].left.clear();
        true
    }

    /// Bytes of pages by group and number.
    pub fn bytes(&self, pages: &[(usize, usize)]) -> u64 {
        pages.iter().map(|(group, _)| self.shapes[*group].bytes() as u64).sum()
    }

    /// The pages that texts on their way hold, by group.
    pub fn held(&self) -> Vec<Vec<PageId>> {
        let mut held = vec![Vec::new(); self.shapes.len()];
        for restore in &self.restores {
            for own in &restore.owns {
                for (held, page) in held.iter_mut().zip(&own.pages) {
                    held.extend(page.as_ref().map(|page| page.id()));
                }
            }
            let pieces = restore.left.iter().chain(restore.reading.iter().map(|r| &r.piece));
            pieces.for_each(|piece| held[piece.group].extend(piece.pages.iter().map(|page| page.id())));
        }
        held
    }

    /// Chunks in memory in both ways.
    #[cfg(test)]
    pub fn chunks(&self) -> usize {
        self.save_buffers.held() + self.restore_buffers.held()
    }
}
