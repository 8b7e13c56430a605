//! Copies of pages between devices and a store.

use unicorn_core::{Fence, PageId, PageKey, PageRecords, PageStore, Signal, StateCopy, StateWay};

use super::Executor;
use crate::kv_store::{Parts, RecordShape};
use crate::placement::Phase;
use crate::store_copies::StoreCopy;

/// Pages of a group, each with its key, and the memory that they go through.
pub(crate) struct Chunk<'a> {
    pub group: usize,
    pub shape: &'a RecordShape,
    pub keys: Vec<PageKey>,
    pub pages: Vec<PageId>,
    pub parts: &'a Parts,
}

impl Chunk<'_> {
    fn records(&self) -> PageRecords {
        PageRecords { keys: self.keys.clone(), parts: self.parts.clone() }
    }

    fn held(&self) -> impl Iterator<Item = (usize, PageId)> + '_ {
        self.pages.iter().map(|page| (self.group, *page))
    }
}

impl Executor {
    /// Copies pages out of the devices of a phase and writes them to a store. Who writes these pages from now on comes behind the copies.
    /// Returns the tag of its end: when the memory may be used again.
    pub(crate) fn save(&mut self, store: &dyn PageStore, chunk: &Chunk<'_>, phase: Phase) -> u64 {
        let tag = self.store_copies.tag();
        let way = &self.ways[self.way(Some(phase))];
        let (mut copies, mut jobs) = (Vec::new(), Vec::new());
        for ((block, _), host) in chunk.shape.mixers.iter().zip(chunk.parts) {
            let (done, device) = (Signal::new(), way.placement.device(*block));
            copies.push(StoreCopy { block: *block, device, done: done.fence() });
            let (mixer, pages, way) = (way.blocks[*block], chunk.pages.clone(), StateWay::Save(host.clone()));
            // Whoever computed it has landed.
            jobs.push((device, StateCopy { mixer, pages, way, after: Vec::new(), done }));
        }
        let saved: Vec<Fence> = copies.iter().map(|copy| copy.done.clone()).collect();
        let left = Signal::new();
        self.store_copies.save(chunk.held(), left.fence(), copies);
        Fence::all(&saved, None, move |_| left.give(Ok(None)));
        let done = self.queue.signal(tag);
        jobs.into_iter().for_each(|(device, job)| self.devices[device].copy_state(job));
        store.write(chunk.records(), saved, done);
        tag
    }

    /// Reads pages from a store and copies them to the devices of all phases. Returns the tag of its end.
    pub(crate) fn restore(&mut self, store: &dyn PageStore, chunk: &Chunk<'_>) -> u64 {
        let tag = self.store_copies.tag();
        let read = Signal::new();
        let mut after = self.store_copies.reading(chunk.held());
        after.push(read.fence());
        let (mut copies, mut jobs) = (Vec::new(), Vec::new());
        for ((block, _), host) in chunk.shape.mixers.iter().zip(chunk.parts) {
            let mut there = Vec::new();
            for way in &self.ways {
                let device = way.placement.device(*block);
                if !there.contains(&device) {
                    there.push(device);
                    let done = Signal::new();
                    copies.push(StoreCopy { block: *block, device, done: done.fence() });
                    let (mixer, pages, after) = (way.blocks[*block], chunk.pages.clone(), after.clone());
                    let way = StateWay::Restore(host.clone());
                    jobs.push((device, StateCopy { mixer, pages, way, after, done }));
                }
            }
        }
        let restored: Vec<Fence> = copies.iter().map(|copy| copy.done.clone()).collect();
        self.store_copies.restore(chunk.pages.len(), copies);
        let done = self.queue.signal(tag);
        // All of them, well or not: the memory is free then.
        Fence::all(&restored, None, move |outcome| done.give(outcome.map(|()| None)));
        jobs.into_iter().for_each(|(device, job)| self.devices[device].copy_state(job));
        store.read(chunk.records(), read);
        tag
    }
}
