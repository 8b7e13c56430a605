//! Pages that a store has and the tree has not.

use std::sync::Arc;

use unicorn_core::{PageKey, StateSpec};

use super::{Found, Own, PHASES, Place, PrefixCache, is_loose};
use crate::kv::needed;
use crate::kv_store::Chain;
use crate::pages::Page;

/// Tokens that a store has to have more than the tree: with fewer they are computed as fast.
const GAIN_MIN: usize = 16;

/// What a store has of a text. Holds the pages before it that are at hand.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Of each page of the text: what there is of it.
    pub owns: Vec<Own>,
    /// What is not there, by group and number: pages without which all others are for nothing come first.
    pub missing: Vec<(usize, usize)>,
    /// Pages from whose end a sequence could go on as it is.
    pub from: usize,
}

impl PrefixCache {
    /// What a store has behind that which was found of a text; `None` where it is not worth while. `text` are the tokens whose state may come
    /// from elsewhere, and one; `chains` are those of its pages.
    pub fn plan(
        &self,
        scope: u64,
        text: &[u32],
        chains: &[Chain],
        found: &Found,
        has: impl Fn(&PageKey) -> bool,
    ) -> Option<Plan> {
        let (keys, size) = (self.keys.as_ref()?, self.pools.page_tokens());
        let (_, head) = text.split_last()?;
        let path = self.path(scope, head);
        let most = chains.len().min(head.len() / size);
        let node = |i: usize| self.nodes.get(path.get(i)?);
        let at_hand = |g: usize, i: usize| node(i).is_some_and(|n| n.pages[g].is_some());
        let there = |g: usize, i: usize| at_hand(g, i) || has(&keys.page(&chains[i], g));
        let worth = |pages: &usize| pages * size >= found.tokens + GAIN_MIN;
        if !worth(&most) {
            return None;
        }
        let groups = || self.specs.iter().copied().enumerate();
        let whole = groups().filter(|(_, spec)| !is_loose(*spec));
        let reach = whole.map(|(g, _)| (0..most).take_while(|i| there(g, *i)).count()).min().unwrap_or(most);
        let loose: Vec<(StateSpec, Vec<bool>)> = groups()
            .filter(|(_, spec)| is_loose(*spec))
            .map(|(g, spec)| (spec, (0..reach).map(|i| there(g, i)).collect()))
            .collect();
        let resumes = |pages: &usize| {
            let sees = |(spec, there): &(StateSpec, Vec<bool>)| {
                needed(*spec, pages * size, size).all(|i| there.get(i) == Some(&true))
            };
            loose.iter().all(sees)
        };
        let pages = (0..=reach).rev().take_while(worth).find(resumes)?;
        let on = |phase: &super::Phase| (0..pages).filter_map(node).all(|n| n.on[*phase as usize]);
        if self.two_ways && !PHASES.iter().any(on) {
            return None;
        }
        let mut missing: Vec<(usize, usize)> = Vec::new();
        for (g, spec) in groups() {
            missing.extend(needed(spec, pages * size, size).filter(|i| !at_hand(g, *i)).map(|i| (g, i)));
        }
        missing.sort_by_key(|(g, i)| (!is_loose(self.specs[*g]), *g, *i));
        let own = |i: usize| {
            let (mut own, held) = (self.nothing(), node(i));
            if let Some(held) = held {
                own.pages = held.pages.clone();
                own.on = held.on;
                let states = groups().any(|(g, spec)| spec.is_recurrent() && held.pages[g].is_some());
                own.states_on = if states { held.states_on } else { own.states_on };
            }
            own
        };
        let plan = Plan { owns: (0..pages).map(own).collect(), missing, from: found.tokens / size };
        Some(plan).filter(|plan| !plan.missing.is_empty())
    }

    /// A page of which nothing is there. What is restored of it goes to the devices of both phases.
    fn nothing(&self) -> Own {
        Own { pages: vec![None; self.specs.len()], on: [true; 2], states_on: [true; 2] }
    }

    /// Takes so many pages of a group at the cost of what is kept; `None` where giving up all of it would not do.
    pub fn take(&mut self, group: usize, count: usize) -> Option<Vec<Arc<Page>>> {
        while self.pools.free(group) < count && self.evict(group) {}
        self.pools.take(group, count).ok()
    }

    /// Makes restored pages known: `owns` are those of the first pages of `tokens`, as far as they are there. From page `from` on they came
    /// from the store.
    pub fn adopt(&mut self, scope: u64, tokens: &[u32], owns: Vec<Own>, from: usize) {
        self.clock += 1;
        let whole = owns.iter().take_while(|own| self.is_whole(own)).count();
        let last = owns[..whole].iter().rposition(|own| own.pages.iter().any(Option::is_some));
        let end = last.map_or(0, |last| last + 1);
        let mut place = Place::Root(scope);
        let parts = tokens.chunks_exact(self.pools.page_tokens());
        for (i, (part, own)) in parts.zip(owns).take(end).enumerate() {
            let known = self.branch(place).and_then(|b| b.children.get(part)).copied();
            let id = match known {
                Some(id) => {
                    self.touch(id);
                    self.add(id, own);
                    Some(id)
                }
                None => self.hang(place, part, own),
            };
            let Some(id) = id else { return };
            if let Some(node) = self.nodes.get_mut(&id).filter(|_| i >= from) {
                node.restored = true;
            }
            place = Place::Node(id);
        }
    }

    /// Tokens of what was found that came from the store and that nobody has used before.
    pub fn use_restored(&mut self, found: &Found) -> usize {
        let mut tokens = 0;
        for id in &found.path {
            if let Some(node) = self.nodes.get_mut(id).filter(|n| n.restored) {
                node.restored = false;
                tokens += node.tokens.len();
            }
        }
        tokens
    }
}
