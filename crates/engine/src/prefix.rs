//! Prefix reuse: computed pages, found by the tokens that led to them.
//!
//! A tree for each scope: a node is a page of tokens and hangs on the node of the page before it, so that its place stands for all tokens up
//! to its end. Pages of running sequences are there as soon as they are full, for others to share; full pages are never written again. What
//! ended may leave a partly filled page behind its last full one, a *tail*: who goes on with the very same tokens takes it over. So no page that
//! will be written has two owners.
//!
//! Kept pages give way one by one, the least recently used first and the end of a text before its beginning. Where a group can do
//! without older pages (a sliding window, recurrent states, of which there are some at ends of pages), these go by themselves: a text can then be resumed only where all groups have what they need.

mod restoring;
mod saving;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use unicorn_core::{PageId, PageKey, StateSpec};

use crate::KvFull;
use crate::kv::{StatePages, StatePools, needed};
use crate::kv_store::{Chain, Keys};
use crate::pages::Page;
use crate::placement::Phase;
pub(crate) use restoring::Plan;

type NodeId = u64;

const PHASES: [Phase; 2] = [Phase::Prefill, Phase::Decode];

/// Where something hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// At the beginning of the texts of a scope.
    Root(u64),
    Node(NodeId),
}

/// What hangs in a place.
#[derive(Debug, Default)]
struct Branch {
    /// Full pages, by their tokens.
    children: HashMap<Box<[u32]>, NodeId>,
    /// Partly filled pages. Nothing hangs on them.
    tails: Vec<NodeId>,
    /// How many of both are kept.
    kept: usize,
}

impl Branch {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.tails.is_empty()
    }
}

#[derive(Debug)]
struct Node {
    place: Place,
    /// As many as a page holds; fewer in a tail.
    tokens: Box<[u32]>,
    /// The page in each group, where it is at hand.
    pages: Vec<Option<Arc<Page>>>,
    /// In each group: whether a text was resumed or ended within sight of the page, and when last.
    worth: Vec<(bool, u64)>,
    /// Whether the devices of each phase have the content, recurrent states aside.
    on: [bool; 2],
    /// Whether they have the recurrent states after the page.
    states_on: [bool; 2],
    branch: Branch,
    /// An ended sequence wants it kept; else it lives with those that run.
    kept: bool,
    used: u64,
    /// Of a full page where there is a store: what it is called there.
    chain: Option<Chain>,
    /// Somebody wants it saved.
    wanted: bool,
    /// In each group: the store has it, as far as is known, or was asked to keep it.
    saved: Vec<bool>,
    /// It came from the store, and nobody has used it yet.
    restored: bool,
}

/// What a sequence has of a page.
#[derive(Debug)]
pub(crate) struct Own {
    /// In each group.
    pub pages: Vec<Option<Arc<Page>>>,
    on: [bool; 2],
    states_on: [bool; 2],
}

impl Own {
    /// Of the page with this number, which reaches to position `end`.
    fn of(pages: &StatePages, groups: usize, number: usize, end: usize) -> Own {
        Own {
            pages: (0..groups).map(|g| pages.piece(g, number, end)).collect(),
            on: PHASES.map(|phase| pages.reach(phase) >= end),
            states_on: pages.states_on(end),
        }
    }
}

impl Node {
    /// True when nobody else holds its page in a group.
    fn is_sole(&self, group: usize) -> bool {
        self.pages.get(group).is_some_and(|p| p.as_ref().is_some_and(|p| Arc::strong_count(p) == 1))
    }

    /// True when it can go: nothing hangs on it, nobody wants it and nobody else holds its pages.
    fn is_left_over(&self) -> bool {
        let held = self.pages.iter().flatten().any(|p| Arc::strong_count(p) > 1);
        self.branch.is_empty() && !self.kept && !held
    }
}

/// What there is of a prompt.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Found {
    path: Vec<NodeId>,
    tail: Option<NodeId>,
    /// Tokens whose state is at hand.
    pub tokens: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    pools: StatePools,
    /// What each group keeps.
    specs: Vec<StateSpec>,
    kept_max: usize,
    /// The phases have devices of their own, and state lies where it was computed.
    two_ways: bool,
    nodes: HashMap<NodeId, Node>,
    roots: HashMap<u64, Branch>,
    /// Nodes on which nothing hangs, the least recently used first.
    leaves: BTreeSet<(u64, NodeId)>,
    /// For each group that can do without older pages: its pages, by their worth. Empty for the others.
    loose: Vec<BTreeSet<((bool, u64), NodeId)>>,
    clock: u64,
    next: NodeId,
    /// Names pages for a store, where there is one.
    keys: Option<Arc<Keys>>,
    /// Nodes of which pages are wanted in the store and not there yet.
    unsaved: BTreeSet<NodeId>,
    /// Pages that were wanted there, and that nobody holds any more. Their content is there until something else is written over it.
    left: Vec<Left>,
}

/// A page that nobody holds any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Left {
    pub group: usize,
    pub page: PageId,
    pub key: PageKey,
    /// A phase whose devices have it.
    pub phase: Phase,
}

impl PrefixCache {
    /// Keeps at most `kept_max` ended sequences. `two_ways` where the phases have devices of their own.
    pub fn new(pools: &StatePools, kept_max: usize, two_ways: bool) -> PrefixCache {
        let specs: Vec<StateSpec> = pools.specs().collect();
        PrefixCache {
            pools: pools.clone(),
            loose: vec![BTreeSet::new(); specs.len()],
            specs,
            kept_max,
            two_ways,
            nodes: HashMap::new(),
            roots: HashMap::new(),
            leaves: BTreeSet::new(),
            clock: 0,
            next: 0,
            keys: None,
            unsaved: BTreeSet::new(),
            left: Vec::new(),
        }
    }

    /// With names for a store.
    pub fn with_keys(self, keys: Arc<Keys>) -> PrefixCache {
        PrefixCache { keys: Some(keys), ..self }
    }

    /// Ended sequences that are kept and not the beginning of another one.
    pub fn len(&self) -> usize {
        self.nodes.values().filter(|n| n.kept && n.branch.kept == 0).count()
    }

    /// Pages that nobody else holds.
    pub fn pages(&self) -> usize {
        let sole = |n: &Node| (0..n.pages.len()).filter(|g| n.is_sole(*g)).count();
        self.nodes.values().map(sole).sum()
    }

    fn branch(&self, place: Place) -> Option<&Branch> {
        match place {
            Place::Root(scope) => self.roots.get(&scope),
            Place::Node(id) => self.nodes.get(&id).map(|n| &n.branch),
        }
    }

    fn branch_mut(&mut self, place: Place) -> Option<&mut Branch> {
        match place {
            Place::Root(scope) => Some(self.roots.entry(scope).or_default()),
            Place::Node(id) => self.nodes.get_mut(&id).map(|n| &mut n.branch),
        }
    }

    /// The full pages of a text that are known, from its beginning on.
    fn path(&self, scope: u64, tokens: &[u32]) -> Vec<NodeId> {
        let (mut path, mut place) = (Vec::new(), Place::Root(scope));
        for part in tokens.chunks_exact(self.pools.page_tokens()) {
            let Some(id) = self.branch(place).and_then(|b| b.children.get(part)) else { break };
            path.push(*id);
            place = Place::Node(*id);
        }
        path
    }

    /// The most of `prompt` whose state is at hand. At least one token is left over, since the logits after the prompt have to be computed.
    pub fn find(&self, scope: u64, prompt: &[u32]) -> Found {
        let Some((_, head)) = prompt.split_last() else { return Found::default() };
        let mut path = self.path(scope, head);
        loop {
            let full = path.len() * self.pools.page_tokens();
            let place = path.last().map_or(Place::Root(scope), |id| Place::Node(*id));
            let length = |tail: &NodeId| self.nodes.get(tail).map_or(0, |n| n.tokens.len());
            let goes_on = |tail: &&NodeId| {
                let tokens = self.nodes.get(*tail).map(|n| &n.tokens);
                tokens.is_some_and(|t| head[full..].starts_with(t)) && self.serves(&path, Some(**tail))
            };
            let tails = self.branch(place).map_or(&[][..], |b| &b.tails);
            if let Some(tail) = tails.iter().filter(goes_on).max_by_key(|t| length(t)) {
                let tokens = full + length(tail);
                return Found { path, tail: Some(*tail), tokens };
            }
            if path.is_empty() || self.serves(&path, None) {
                return Found { path, tail: None, tokens: full };
            }
            path.pop();
        }
    }

    /// True where a sequence can go on behind these pages: every group has what it needs, and one phase's devices have all of it.
    fn serves(&self, path: &[NodeId], tail: Option<NodeId>) -> bool {
        let size = self.pools.page_tokens();
        let all: Vec<&Node> = path.iter().chain(&tail).filter_map(|id| self.nodes.get(id)).collect();
        let position = path.len() * size + tail.and_then(|_| all.last()).map_or(0, |n| n.tokens.len());
        let there = |(g, spec): (usize, &StateSpec)| {
            needed(*spec, position, size).all(|i| all.get(i).is_some_and(|n| n.pages[g].is_some()))
        };
        let whole = |phase: &Phase| all.iter().all(|n| n.on[*phase as usize]);
        self.specs.iter().enumerate().all(there) && (!self.two_ways || PHASES.iter().any(whole))
    }

    /// The pages of each group that a sequence that goes on from there shares.
    pub fn shared(&self, found: &Found) -> Vec<Vec<PageId>> {
        let size = self.pools.page_tokens();
        let ids = |(g, spec): (usize, &StateSpec)| {
            let nodes = needed(*spec, found.tokens, size).filter_map(|i| self.nodes.get(found.path.get(i)?));
            nodes.filter_map(|n| n.pages[g].as_ref()).map(|p| p.id()).collect()
        };
        self.specs.iter().enumerate().map(ids).collect()
    }

    /// The pages of what was found, for a sequence that goes on from there, and the positions that they hold: those that were found, or none
    /// where something has gone since. A tail changes hands.
    pub fn claim(&mut self, found: &Found) -> (StatePages, usize) {
        self.clock += 1;
        let all: Vec<NodeId> = found.path.iter().chain(&found.tail).copied().collect();
        let held = PHASES.map(|phase| {
            let on = all.iter().map_while(|id| self.nodes.get(id).filter(|n| n.on[phase as usize]));
            on.map(|n| n.tokens.len()).sum()
        });
        let piece = |g: usize, i: usize| self.nodes.get(all.get(i)?)?.pages[g].clone();
        let on = all.last().and_then(|id| self.nodes.get(id)).map_or([false; 2], |n| n.states_on);
        let pages = self.pools.assemble(found.tokens, held, on, piece);
        found.path.iter().for_each(|id| self.touch(*id));
        self.value(&all, found.tokens);
        if let Some(tail) = found.tail {
            self.remove(tail);
        }
        pages.map_or_else(|| (self.pools.empty(), 0), |pages| (pages, found.tokens))
    }

    /// Notes that a text was used.
    fn touch(&mut self, id: NodeId) {
        let clock = self.clock;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.branch.is_empty() {
            self.leaves.remove(&(node.used, id));
            self.leaves.insert((clock, id));
        }
        node.used = clock;
    }

    /// Notes that a text was resumed or ended at `position`: what is needed for that is worth more.
    fn value(&mut self, path: &[NodeId], position: usize) {
        for (g, spec) in self.specs.iter().enumerate().filter(|(_, spec)| is_loose(**spec)) {
            for i in needed(*spec, position, self.pools.page_tokens()) {
                let Some(id) = path.get(i) else { continue };
                let Some(node) = self.nodes.get_mut(id).filter(|n| n.pages[g].is_some()) else { continue };
                self.loose[g].remove(&(node.worth[g], *id));
                node.worth[g] = (true, self.clock);
                self.loose[g].insert((node.worth[g], *id));
            }
        }
    }

    /// Makes the full pages of a sequence, whose `tokens` are computed in `pages`, known to others. Returns where they hang.
    pub fn publish(&mut self, scope: u64, tokens: &[u32], pages: &StatePages) -> Vec<NodeId> {
        self.clock += 1;
        let size = self.pools.page_tokens();
        let (mut path, mut place) = (Vec::new(), Place::Root(scope));
        for (i, part) in tokens.chunks_exact(size).enumerate() {
            let own = Own::of(pages, self.specs.len(), i, (i + 1) * size);
            let known = self.branch(place).and_then(|b| b.children.get(part)).copied();
            let id = match known {
                Some(id) => {
                    self.touch(id);
                    self.add(id, own);
                    id
                }
                None => match self.insert(place, part, own) {
                    Some(id) => id,
                    None => break,
                },
            };
            path.push(id);
            place = Place::Node(id);
        }
        path
    }

    /// Adds to a known page what a sequence has of it.
    fn add(&mut self, id: NodeId, own: Own) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Own { pages: own, on, states_on } = own;
        let (mut same, mut taken) = (true, false);
        for (g, own) in own.into_iter().enumerate() {
            let recurrent = self.specs[g].is_recurrent();
            match (&node.pages[g], own) {
                // A state is brought to the other phase's devices by who goes on from it.
                (Some(page), Some(own)) if recurrent => {
                    if Arc::ptr_eq(page, &own) {
                        node.states_on = std::array::from_fn(|p| node.states_on[p] || states_on[p]);
                    }
                }
                (Some(page), Some(own)) => same &= Arc::ptr_eq(page, &own),
                (None, Some(own)) => {
                    if recurrent {
                        node.states_on = states_on;
                    }
                    node.pages[g] = Some(own);
                    node.worth[g] = (false, self.clock);
                    self.loose[g].insert((node.worth[g], id));
                    if node.wanted && !node.saved[g] {
                        self.unsaved.insert(id);
                    }
                    taken |= !recurrent;
                }
                // Devices to which the sequence came later never had what it no longer sees.
                (Some(_), None) if !recurrent => same = false,
                (_, None) => {}
            }
        }
        for (phase, on) in on.into_iter().enumerate() {
            let before = node.on[phase];
            node.on[phase] = match (same, taken) {
                (true, false) => before || on,
                (true, true) => on,
                (false, true) => before && on,
                (false, false) => before,
            };
        }
    }

    /// Hangs a page somewhere; `None` where a group that never does without has no page. Tails that it contains are given up.
    fn insert(&mut self, place: Place, tokens: &[u32], own: Own) -> Option<NodeId> {
        let empty = own.pages.iter().all(Option::is_none);
        if empty || !self.is_whole(&own) { None } else { self.hang(place, tokens, own) }
    }

    /// True where there is a page in each group that never does without.
    fn is_whole(&self, own: &Own) -> bool {
        self.specs.iter().zip(&own.pages).all(|(spec, page)| is_loose(*spec) || page.is_some())
    }

    /// Hangs a page somewhere, or an empty place behind which pages follow.
    fn hang(&mut self, place: Place, tokens: &[u32], own: Own) -> Option<NodeId> {
        let Own { pages, on, states_on } = own;
        let tails = self.branch(place).map_or(Vec::new(), |b| b.tails.clone());
        let (id, used) = (self.next, self.clock);
        self.next += 1;
        let full = tokens.len() == self.pools.page_tokens();
        let was_leaf = match place {
            Place::Node(parent) => {
                self.nodes.get(&parent).filter(|n| n.branch.is_empty()).map(|n| (n.used, parent))
            }
            Place::Root(_) => None,
        };
        let branch = self.branch_mut(place)?;
        if full {
            branch.children.insert(tokens.into(), id);
        } else {
            branch.tails.push(id);
        }
        was_leaf.map(|leaf| self.leaves.remove(&leaf));
        self.leaves.insert((used, id));
        let worth = vec![(false, used); pages.len()];
        for (g, page) in pages.iter().enumerate() {
            if page.is_some() && is_loose(self.specs[g]) {
                self.loose[g].insert((worth[g], id));
            }
        }
        let chain = self.chain(place, tokens).filter(|_| full);
        let (branch, tokens, saved) = (Branch::default(), tokens.into(), vec![false; pages.len()]);
        let (kept, wanted, restored) = (false, false, false);
        let node = Node {
            place,
            tokens,
            pages,
            worth,
            on,
            states_on,
            branch,
            kept,
            used,
            chain,
            wanted,
            saved,
            restored,
        };
        self.nodes.insert(id, node);
        // Those that the new one begins with.
        for tail in tails {
            let within = self.nodes.get(&tail).zip(self.nodes.get(&id));
            if within.is_some_and(|(tail, new)| new.tokens.starts_with(&tail.tokens)) {
                self.remove(tail);
            }
        }
        Some(id)
    }

    /// Keeps an ended sequence whose `tokens` are computed in `pages`, for texts that begin with them or with a part.
    pub fn keep(&mut self, scope: u64, tokens: &[u32], pages: StatePages) {
        if self.kept_max == 0 && self.keys.is_none() {
            drop(pages);
            return self.forget(scope, tokens);
        }
        let mut path = self.publish(scope, tokens, &pages);
        let full = path.len() * self.pools.page_tokens();
        path.extend(self.keep_tail(scope, &path, &tokens[full..], &pages));
        for id in &path {
            let Some(node) = self.nodes.get_mut(id).filter(|n| !n.kept) else { continue };
            node.kept = true;
            let place = node.place;
            self.branch_mut(place).into_iter().for_each(|b| b.kept += 1);
        }
        self.value(&path, tokens.len());
        drop(pages);
        self.want(&path);
        self.trim();
    }

    /// Gives up kept sequences of which there are too many; those that the store has yet to get, afterwards.
    pub fn trim(&mut self) {
        while self.len() > self.kept_max && self.drop_oldest() {}
    }

    /// True where nothing of a text up to this page has yet to go to the store.
    fn is_settled(&self, id: NodeId) -> bool {
        let place = |id: &NodeId| self.nodes.get(id).map(|n| n.place);
        let before = |id: &NodeId| match place(id) {
            Some(Place::Node(id)) => Some(id),
            Some(Place::Root(_)) | None => None,
        };
        self.unsaved.is_empty()
            || std::iter::successors(Some(id), before).all(|id| !self.unsaved.contains(&id))
    }

    /// Hangs the tokens behind the last full page somewhere, unless something longer is there.
    fn keep_tail(
        &mut self,
        scope: u64,
        path: &[NodeId],
        tokens: &[u32],
        pages: &StatePages,
    ) -> Option<NodeId> {
        if tokens.is_empty() || tokens.len() >= self.pools.page_tokens() {
            return None;
        }
        let place = path.last().map_or(Place::Root(scope), |id| Place::Node(*id));
        let branch = self.branch(place);
        let all = branch.into_iter().flat_map(|b| b.children.values().chain(&b.tails)).copied();
        let longer = |id: &NodeId| self.nodes.get(id).is_some_and(|n| n.tokens.starts_with(tokens));
        if let Some(id) = { all }.find(longer) {
            self.touch(id);
            return None;
        }
        let number = path.len();
        let end = number * self.pools.page_tokens() + tokens.len();
        self.insert(place, tokens, Own::of(pages, self.specs.len(), number, end))
    }

    /// Gives up what is there only for a sequence that has ended and given up its pages. `tokens` are all that it may have made known.
    pub fn forget(&mut self, scope: u64, tokens: &[u32]) {
        for id in self.path(scope, tokens).into_iter().rev() {
            // Gone with the one behind it, where it had no page.
            let Some(node) = self.nodes.get(&id) else { continue };
            if !node.is_left_over() {
                return;
            }
            self.remove(id);
        }
    }

    /// Wants the least recently used of the kept sequences no longer, from its end to where others part from it. False where there is none.
    fn drop_oldest(&mut self) -> bool {
        let ends = self.nodes.iter().filter(|(id, n)| n.kept && n.branch.kept == 0 && self.is_settled(**id));
        let mut next = ends.min_by_key(|(id, n)| (n.used, **id)).map(|(id, _)| *id);
        let some = next.is_some();
        while let Some(id) = next {
            let Some(node) = self.nodes.get_mut(&id) else { break };
            node.kept = false;
            let (place, used, left_over) = (node.place, node.used, node.is_left_over());
            self.branch_mut(place).into_iter().for_each(|b| b.kept = b.kept.saturating_sub(1));
            let end = |id: &NodeId| {
                self.nodes.get(id).is_some_and(|n| n.kept && n.branch.kept == 0 && n.used <= used)
            };
            next = if let Place::Node(id) = place { Some(id).filter(end) } else { None };
            if left_over {
                self.remove(id);
            }
        }
        some
    }

    /// Takes out a node on which nothing hangs, and those before it that are left without pages and without purpose.
    fn remove(&mut self, id: NodeId) {
        let mut next = Some(id);
        while let Some(id) = next.take() {
            let Some(node) = self.nodes.remove(&id) else { return };
            self.leaves.remove(&(node.used, id));
            self.unsaved.remove(&id);
            for g in 0..node.pages.len() {
                self.left.extend(self.leaves_behind(&node, g));
            }
            for (g, loose) in self.loose.iter_mut().enumerate() {
                loose.remove(&(node.worth[g], id));
            }
            let Some(branch) = self.branch_mut(node.place) else { return };
            branch.tails.retain(|tail| *tail != id);
            if branch.children.get(&node.tokens) == Some(&id) {
                branch.children.remove(&node.tokens);
            }
            branch.kept = branch.kept.saturating_sub(usize::from(node.kept));
            if !branch.is_empty() {
                return;
            }
            match node.place {
                Place::Root(scope) => drop(self.roots.remove(&scope)),
                Place::Node(parent) => {
                    let Some(node) = self.nodes.get(&parent) else { return };
                    self.leaves.insert((node.used, parent));
                    next = node.pages.iter().all(Option::is_none).then_some(parent);
                }
            }
        }
    }

    /// Takes pages for a slice and its drafts, as [`StatePages::grow`], at the cost of what is kept, and then of the sequence's own snapshots;
    /// for its new snapshots those pages that are worth least.
    ///
    /// Errors where giving up all of that would not do; some of it may be gone then.
    pub fn grow(
        &mut self,
        pages: &mut StatePages,
        start: usize,
        end: usize,
        drafts: usize,
    ) -> Result<(), KvFull> {
        pages.forget_from(start);
        let mut give_up = |pages: &mut StatePages, group| self.evict(group) || pages.drop_snapshots(group);
        while pages.lacking(start, end, drafts).is_some_and(|group| give_up(pages, group)) {}
        while pages.lacking_snapshots(start, end, drafts).is_some_and(|group| self.evict(group)) {}
        pages.grow(start, end, drafts)
    }

    /// Gives up the page that is missed least in a group; false when there is none that nobody else holds.
    fn evict(&mut self, group: usize) -> bool {
        let sole = |id: &NodeId| self.nodes.get(id).is_some_and(|n| n.is_sole(group));
        if is_loose(self.specs[group]) {
            let Some(&(worth, id)) = self.loose[group].iter().find(|(_, id)| sole(id)) else { return false };
            self.loose[group].remove(&(worth, id));
            let left = self.nodes.get(&id).and_then(|node| self.leaves_behind(node, group));
            self.left.extend(left);
            if let Some(node) = self.nodes.get_mut(&id) {
                node.pages[group] = None;
                if node.branch.is_empty() && node.pages.iter().all(Option::is_none) {
                    self.remove(id);
                }
            }
            return true;
        }
        let leaf = self.leaves.iter().find(|(_, id)| sole(id)).copied();
        // A page of nobody may stand before pages that a sequence computed a second time.
        let buried = || self.nodes.keys().any(sole);
        let leaf = leaf.or_else(|| self.leaves.first().copied().filter(|_| buried()));
        leaf.map(|(_, id)| self.remove(id)).is_some()
    }

    /// Gives up everything.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.roots.clear();
        self.leaves.clear();
        self.unsaved.clear();
        self.left.clear();
        self.loose.iter_mut().for_each(BTreeSet::clear);
    }
}

/// True for a group that can go on without its older pages.
fn is_loose(spec: StateSpec) -> bool {
    !matches!(spec, StateSpec::Paged)
}

#[cfg(test)]
mod tests;
