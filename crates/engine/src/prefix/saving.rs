//! Which pages a store has yet to get.

use std::collections::BTreeSet;
use std::sync::Arc;

use unicorn_core::{PageId, PageKey};

use super::{Left, Node, NodeId, Place, PrefixCache};
use crate::kv_store::Chain;
use crate::placement::Phase;

/// Pages of one group that lie on the devices of one phase.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unsaved {
    pub group: usize,
    pub phase: Phase,
    pub keys: Vec<PageKey>,
    pub pages: Vec<PageId>,
}

impl PrefixCache {
    /// What a full page with these tokens is called in the store.
    pub(super) fn chain(&self, place: Place, tokens: &[u32]) -> Option<Chain> {
        let keys = self.keys.as_ref()?;
        let before = match place {
            Place::Root(scope) => keys.start(scope),
            Place::Node(id) => self.nodes.get(&id)?.chain?,
        };
        Some(keys.next(&before, tokens))
    }

    /// A phase whose devices have a page of a node.
    fn source(&self, node: &Node, group: usize) -> Option<Phase> {
        let on = if self.specs[group].is_recurrent() { node.states_on } else { node.on };
        match (self.two_ways, on) {
            (false, _) | (true, [true, _]) => Some(Phase::Prefill),
            (true, [false, true]) => Some(Phase::Decode),
            (true, [false, false]) => None,
        }
    }

    /// What a page of a node that goes leaves behind: nothing where others hold it, or where nobody wants it saved.
    pub(super) fn leaves_behind(&self, node: &Node, group: usize) -> Option<Left> {
        let (keys, chain) = (self.keys.as_ref()?, node.chain.filter(|_| node.wanted)?);
        let page = node.pages[group].as_ref().filter(|page| Arc::strong_count(page) == 1)?;
        let phase = self.source(node, group)?;
        Some(Left { group, page: page.id(), key: keys.page(&chain, group), phase })
    }

    /// Pages that left since this was last asked. What they hold has to be taken before anything else is launched.
    pub fn take_left(&mut self) -> Vec<Left> {
        std::mem::take(&mut self.left)
    }

    /// Wants the full pages of a text saved.
    pub fn want(&mut self, path: &[NodeId]) {
        for id in path {
            let Some(node) = self.nodes.get_mut(id).filter(|n| n.chain.is_some()) else { continue };
            node.wanted = true;
            if node.pages.iter().zip(&node.saved).any(|(page, saved)| page.is_some() && !saved) {
                self.unsaved.insert(*id);
            }
        }
    }

    /// The same of a text as far as it is known.
    pub fn want_text(&mut self, scope: u64, tokens: &[u32]) {
        if self.keys.is_some() {
            let path = self.path(scope, tokens);
            self.want(&path);
        }
    }

    /// Asks anew for everything that is wanted and that the store does not have after all.
    pub fn want_again(&mut self, has: impl Fn(&PageKey) -> bool) {
        let Some(keys) = self.keys.clone() else { return };
        for (id, node) in self.nodes.iter_mut().filter(|(_, n)| n.wanted) {
            let Some(chain) = node.chain else { continue };
            for (g, page) in node.pages.iter().enumerate() {
                node.saved[g] &= has(&keys.page(&chain, g));
                if page.is_some() && !node.saved[g] {
                    self.unsaved.insert(*id);
                }
            }
        }
    }

    /// Texts with pages that the store has yet to get.
    pub fn unsaved(&self) -> usize {
        self.unsaved.len()
    }

    /// The next pages for the store, beginnings first: as many of one group as `most` tells. They count as saved from now on.
    pub fn next_unsaved(
        &mut self,
        most: impl Fn(usize) -> usize,
        has: impl Fn(&PageKey) -> bool,
    ) -> Option<Unsaved> {
        let keys = self.keys.clone()?;
        let mut next: Option<Unsaved> = None;
        let mut done: BTreeSet<NodeId> = BTreeSet::new();
        for id in self.unsaved.iter().copied() {
            let Some((chain, node)) = self.nodes.get(&id).and_then(|n| Some((n.chain?, n))) else {
                done.insert(id);
                continue;
            };
            let mut saved = node.saved.clone();
            let mut full = false;
            for (g, page) in node.pages.iter().enumerate() {
                let Some(page) = page.as_ref().filter(|_| !saved[g]) else { continue };
                let (key, phase) = (keys.page(&chain, g), self.source(node, g));
                // What lies on no devices as a whole is computed again when it is wanted.
                let Some(phase) = phase.filter(|_| !has(&key)) else {
                    saved[g] = true;
                    continue;
                };
                let empty = Unsaved { group: g, phase, keys: Vec::new(), pages: Vec::new() };
                let next = next.get_or_insert(empty);
                if (next.group, next.phase) == (g, phase) {
                    next.keys.push(key);
                    next.pages.push(page.id());
                    saved[g] = true;
                    full = next.keys.len() >= most(g);
                }
            }
            if node.pages.iter().zip(&saved).all(|(page, saved)| page.is_none() || *saved) {
                done.insert(id);
            }
            self.nodes.entry(id).and_modify(|n| n.saved = saved);
            if full {
                break;
            }
        }
        self.unsaved.retain(|id| !done.contains(id));
        next
    }
}
