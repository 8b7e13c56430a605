//! What pages of state are called where they outlive the engine, and what a record of one is made of.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use unicorn_core::{Block, ModelSpec, PageKey, PageStore, SharedBuffer, StateLayout};

use crate::host_buffer::host_buffer;

/// Where an engine saves pages of state, and where it finds those that another engine saved.
#[derive(Clone)]
pub struct KvStore {
    /// Keeps the pages.
    pub pages: Arc<dyn PageStore>,
    /// Stands for everything that decides what a page holds and the engine does not know: the weights, and what computes with them. Pages
    /// are found only by an engine with the same one.
    pub identity: [u8; 32],
}

impl std::fmt::Debug for KvStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvStore").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl PartialEq for KvStore {
    fn eq(&self, other: &KvStore) -> bool {
        Arc::ptr_eq(&self.pages, &other.pages) && self.identity == other.identity
    }
}

impl Eq for KvStore {}

/// Stands for all tokens up to the end of a page, with everything else that decides what the page holds but its state group.
pub(crate) type Chain = [u8; 32];

/// Changes when what goes into a key or what a record holds does.
const VERSION: &[u8] = b"unicorn page of state 1";

/// Makes the keys of one model's pages.
#[derive(Debug)]
pub(crate) struct Keys {
    root: [u8; 32],
    /// What a record of each state group is made of.
    groups: Vec<[u8; 32]>,
    page_tokens: usize,
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        // With lengths, so that no two lists of parts are the same bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

impl Keys {
    pub fn new(identity: &[u8; 32], layout: &StateLayout, shapes: &[RecordShape]) -> Keys {
        let size = (layout.page_tokens as u64).to_le_bytes();
        let ty = layout.ty.tensor_type().name();
        let root = hash(&[VERSION, identity, &size, ty.as_bytes()]);
        let group = |(group, shape): (&unicorn_core::StateGroup, &RecordShape)| {
            let mixers = shape.mixers.iter().flat_map(|(block, words)| [*block as u64, *words as u64]);
            let mixers: Vec<u8> = mixers.flat_map(u64::to_le_bytes).collect();
            hash(&[group.spec.to_string().as_bytes(), &mixers])
        };
        let groups = layout.groups.iter().zip(shapes).map(group).collect();
        Keys { root, groups, page_tokens: layout.page_tokens }
    }

    /// Before the first token of the texts of a scope.
    pub fn start(&self, scope: u64) -> Chain {
        hash(&[&self.root, &scope.to_le_bytes()])
    }

    /// Behind one page more.
    pub fn next(&self, before: &Chain, tokens: &[u32]) -> Chain {
        let tokens: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        hash(&[before, &tokens])
    }

    /// Behind each full page of a text of which `chains` are known.
    pub fn extend(&self, scope: u64, tokens: &[u32], chains: &mut Vec<Chain>) {
        for part in tokens.chunks_exact(self.page_tokens).skip(chains.len()) {
            let before = chains.last().copied().unwrap_or_else(|| self.start(scope));
            chains.push(self.next(&before, part));
        }
    }

    /// The last page that has gone into a chain, in a state group.
    pub fn page(&self, chain: &Chain, group: usize) -> PageKey {
        PageKey(hash(&[chain, &self.groups[group]]))
    }
}

/// Bytes of records that are copied and read or written at once, unless a single one is larger: large enough for a drive, and copied in a
/// few milliseconds.
pub(crate) const CHUNK_BYTES: usize = 8 << 20;
/// Records that are copied at once, at most.
const CHUNK_RECORDS: usize = 32;
/// Chunks on their way to the store at most: one is copied while another is written, and one that has to go at once.
pub(crate) const SAVES_MAX: usize = 3;
/// Chunks on their way from the store at most: one is copied while others are read.
pub(crate) const RESTORES_MAX: usize = 3;

/// What a record of a state group is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RecordShape {
    /// The mixers, by block, with the words that each has of a page.
    pub mixers: Vec<(usize, usize)>,
    /// Records of a chunk at most.
    pub rows: usize,
}

impl RecordShape {
    /// Of each group of a layout.
    pub fn of(spec: &ModelSpec, layout: &StateLayout) -> Vec<RecordShape> {
        let mixers = |group: usize| {
            let of = |(i, block): (usize, &Block)| {
                let here = block.state().and_then(|state| layout.group(state)) == Some(group);
                here.then(|| (i, block.page_words(layout).unwrap_or(usize::MAX)))
            };
            let mixers: Vec<_> = spec.blocks.iter().enumerate().filter_map(of).collect();
            let rows = (CHUNK_BYTES / bytes(&mixers).max(1)).clamp(1, CHUNK_RECORDS);
            RecordShape { mixers, rows }
        };
        (0..layout.groups.len()).map(mixers).collect()
    }

    /// Bytes of a record.
    pub fn bytes(&self) -> usize {
        bytes(&self.mixers)
    }
}

fn bytes(mixers: &[(usize, usize)]) -> usize {
    mixers.iter().fold(0usize, |sum, (_, words)| sum.saturating_add(words.saturating_mul(4)))
}

/// Bytes of host memory that saving and restoring take at most: the chunks under way, and again what a GPU copies from.
pub(crate) fn chunk_bytes(spec: &ModelSpec, layout: &StateLayout) -> u64 {
    let Some(largest) = RecordShape::of(spec, layout).iter().map(RecordShape::bytes).max() else { return 0 };
    (largest.max(CHUNK_BYTES) as u64).saturating_mul(2 * (SAVES_MAX + RESTORES_MAX) as u64)
}

/// A chunk's memory: one buffer a mixer.
pub(crate) type Parts = Vec<Arc<SharedBuffer>>;

/// The memory of chunks, bounded, used again while there is something to do.
#[derive(Debug)]
pub(crate) struct Buffers {
    most: usize,
    /// Chunks that are under way.
    out: usize,
    /// Those that are not, by group.
    free: Vec<(usize, Parts)>,
}

impl Buffers {
    /// For so many chunks at once.
    pub fn new(most: usize) -> Buffers {
        Buffers { most, out: 0, free: Vec::new() }
    }

    /// True where another chunk can be under way.
    pub fn has_room(&self) -> bool {
        self.out < self.most
    }

    /// Memory for a chunk of a group; `None` where as many are under way as may be, or the system has no memory.
    pub fn take(&mut self, group: usize, shape: &RecordShape) -> Option<Parts> {
        if !self.has_room() {
            return None;
        }
        let parts = match self.free.iter().position(|f| f.0 == group) {
            Some(at) => self.free.swap_remove(at).1,
            None => {
                self.free.truncate((self.most - self.out).saturating_sub(1));
                let rows = shape.rows;
                let part = |(_, words): &(usize, usize)| {
                    host_buffer(rows, *words, "pages of state that are saved").map(Arc::new).ok()
                };
                shape.mixers.iter().map(part).collect::<Option<Parts>>()?
            }
        };
        self.out += 1;
        Some(parts)
    }

    /// Takes a chunk's memory back. With nothing under way none is held.
    pub fn give(&mut self, group: usize, parts: Parts) {
        self.out -= 1;
        self.free.push((group, parts));
        if self.out == 0 {
            self.free.clear();
        }
    }

    /// Chunks in memory, under way or not.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.out + self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use unicorn_core::KvType;

    use super::*;
    use crate::testing::{recurrent_spec, sliding_spec, tiny_spec};

    fn layout(spec: &ModelSpec, page_tokens: usize, ty: KvType) -> StateLayout {
        let group = |spec| unicorn_core::StateGroup { spec, pages: 9 };
        let groups = spec.state_groups().into_iter().map(group).collect();
        StateLayout { page_tokens, positions: 512, ty, groups }
    }

    fn key(spec: &ModelSpec, layout: &StateLayout, identity: u8, scope: u64, text: &[u32]) -> Vec<PageKey> {
        let shapes = RecordShape::of(spec, layout);
        let keys = Keys::new(&[identity; 32], layout, &shapes);
        let mut chains = Vec::new();
        keys.extend(scope, text, &mut chains);
        let last = chains.last().expect("a page");
        (0..shapes.len()).map(|group| keys.page(last, group)).collect()
    }

    #[test]
    fn whatever_decides_what_a_page_holds_is_in_its_key() {
        let text: Vec<u32> = (0..128).collect();
        let departs: Vec<u32> = text.iter().map(|t| if *t == 3 { 4 } else { *t }).collect();
        let plain = tiny_spec(2);
        let f16 = layout(&plain, 32, KvType::F16);
        let all = [
            key(&plain, &f16, 1, 0, &text),
            key(&plain, &f16, 2, 0, &text),
            key(&plain, &f16, 1, 1, &text),
            key(&plain, &f16, 1, 0, &departs),
            key(&plain, &f16, 1, 0, &text[..96]),
            key(&plain, &layout(&plain, 64, KvType::F16), 1, 0, &text),
            key(&plain, &layout(&plain, 32, KvType::F32), 1, 0, &text),
            key(&tiny_spec(3), &layout(&tiny_spec(3), 32, KvType::F16), 1, 0, &text),
            key(&sliding_spec(3, 40), &layout(&sliding_spec(3, 40), 32, KvType::F16), 1, 0, &text),
            key(&sliding_spec(3, 41), &layout(&sliding_spec(3, 41), 32, KvType::F16), 1, 0, &text)[1..]
                .to_vec(),
            key(&recurrent_spec(2), &layout(&recurrent_spec(2), 32, KvType::F16), 1, 0, &text),
        ];
        let different: HashSet<PageKey> = all.iter().flatten().copied().collect();
        assert_eq!(different.len(), all.iter().map(Vec::len).sum::<usize>());
        // What lies behind the last whole page is not.
        assert_eq!(key(&plain, &f16, 1, 0, &text[..127]), all[4]);
        // How many pages a device has is not either.
        let mut more = f16.clone();
        more.groups[0].pages = 99;
        assert_eq!(key(&plain, &more, 1, 0, &text), all[0]);
    }

    #[test]
    fn memory_for_chunks_is_bounded_and_used_again() {
        let spec = sliding_spec(3, 40);
        let layout = layout(&spec, 32, KvType::F16);
        let shapes = RecordShape::of(&spec, &layout);
        // Two mixers see everything, one a window; a page of keys and values is 2 * 32 * 4 values.
        assert_eq!([shapes[0].bytes(), shapes[1].bytes()], [1024, 512]);
        assert_eq!(shapes[0].rows, CHUNK_RECORDS);
        let mut buffers = Buffers::new(2);
        let first = buffers.take(0, &shapes[0]).unwrap();
        assert!(first.len() == 2 && first.iter().all(|part| part.rows() == CHUNK_RECORDS));
        let second = buffers.take(1, &shapes[1]).unwrap();
        assert!(!buffers.has_room() && buffers.take(0, &shapes[0]).is_none());
        let there = second[0].address();
        buffers.give(1, second);
        let again = buffers.take(1, &shapes[1]).unwrap();
        assert_eq!(again[0].address(), there);
        buffers.give(1, again);
        // The other group's takes its place.
        let third = buffers.take(0, &shapes[0]).unwrap();
        assert_eq!(buffers.held(), 2);
        buffers.give(0, third);
        buffers.give(0, first);
        assert_eq!(buffers.held(), 0);
        assert!(chunk_bytes(&spec, &layout) >= 6 * CHUNK_BYTES as u64);
    }
}
