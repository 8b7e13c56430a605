use proptest::prelude::*;
use unicorn_core::{KvType, StateGroup, StateLayout};

use super::*;

const WINDOW: StateSpec = StateSpec::Window(40);

fn pools_of(groups: &[(StateSpec, usize)]) -> StatePools {
    let groups = groups.iter().map(|(spec, pages)| StateGroup { spec: *spec, pages: *pages }).collect();
    let layout = StateLayout { page_tokens: 32, positions: 4096, ty: KvType::F16, groups };
    StatePools::new(&layout, 64)
}

/// One group that keeps everything.
fn pools(pages: usize) -> StatePools {
    pools_of(&[(StateSpec::Paged, pages)])
}

fn filled(pools: &StatePools, tokens: usize) -> StatePages {
    let mut list = pools.empty();
    list.grow(0, tokens, 0).unwrap();
    list
}

fn cache(pools: &StatePools, kept_max: usize) -> PrefixCache {
    PrefixCache::new(pools, kept_max, false)
}

fn keys(pools: &StatePools) -> Arc<Keys> {
    let group = |spec| StateGroup { spec, pages: 9 };
    let groups: Vec<StateGroup> = pools.specs().map(group).collect();
    let shape = crate::kv_store::RecordShape { mixers: vec![(1, 32)], rows: 3 };
    let shapes = vec![shape; groups.len()];
    let layout = StateLayout { page_tokens: 32, positions: 4096, ty: KvType::F16, groups };
    Arc::new(Keys::new(&[0; 32], &layout, &shapes))
}

fn chains(keys: &Keys, text: &[u32]) -> Vec<Chain> {
    let mut chains = Vec::new();
    keys.extend(0, text, &mut chains);
    chains
}

fn take(cache: &mut PrefixCache, prompt: &[u32]) -> (StatePages, usize) {
    let found = cache.find(0, prompt);
    cache.claim(&found)
}

fn text(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[test]
fn a_continuation_takes_the_partial_page() {
    let pool = pools(8);
    let mut cache = cache(&pool, 4);
    cache.keep(0, &text(0..70), filled(&pool, 70));
    let prompt = text(0..100);
    let (pages, reused) = take(&mut cache, &prompt);
    assert_eq!((pages.held(), reused), (vec![3], 70));
    assert!(pages.writable_from(70) && !pages.writable_from(63));
    // What is left of the kept sequence serves others up to the last full page.
    let (other, reused) = take(&mut cache, &prompt);
    assert_eq!((other.held(), reused), (vec![2], 64));
    assert_eq!(cache.pages(), 0);
    drop((pages, other));
    assert_eq!((pool.pages().0, cache.pages(), cache.len()), (6, 2, 1));
    cache.clear();
    assert_eq!(pool.pages().0, 8);
}

#[test]
fn a_departing_prompt_shares_full_pages_only() {
    let pool = pools(20);
    let mut cache = cache(&pool, 4);
    cache.keep(0, &text(0..100), filled(&pool, 100));
    let mut prompt = text(0..80);
    prompt[70] = 999;
    assert_eq!(cache.find(0, &prompt).tokens, 64);
    assert_eq!(cache.find(1, &prompt).tokens, 0, "another scope");
    // The very same prompt again: its last token has to run.
    assert_eq!(cache.find(0, &text(0..64)).tokens, 32);
    for short in [&[0][..], &[], &[5, 6, 7]] {
        assert_eq!(cache.find(0, short).tokens, 0);
    }
    // The longest of several partial pages.
    for end in [98, 110] {
        let mut other = text(0..end);
        other[97] = 500;
        cache.keep(0, &other, filled(&pool, other.len()));
    }
    let mut prompt = text(0..120);
    prompt[97] = 500;
    assert_eq!(cache.find(0, &prompt).tokens, 110);
    assert_eq!(cache.find(0, &text(0..120)).tokens, 100);
}

#[test]
fn running_sequences_are_found_and_leave_nothing_that_nobody_wants() {
    let pool = pools(9);
    let mut cache = cache(&pool, 4);
    let first = filled(&pool, 100);
    cache.publish(0, &text(0..90), &first);
    let (second, reused) = take(&mut cache, &text(0..70));
    assert_eq!((reused, second.held()), (64, vec![2]));
    assert_eq!((pool.pages().0, cache.pages(), cache.len()), (5, 0, 0));
    drop(first);
    cache.forget(0, &text(0..100));
    assert_eq!((cache.find(0, &text(0..70)).tokens, pool.pages().0), (64, 7));
    drop(second);
    cache.forget(0, &text(0..70));
    assert_eq!((cache.find(0, &text(0..70)).tokens, pool.pages().0), (0, 9));
    assert!(cache.nodes.is_empty() && cache.roots.is_empty());
}

#[test]
fn pages_give_way_from_the_ends_of_what_was_used_least_recently() {
    let pool = pools(8);
    let mut cache = cache(&pool, 9);
    let common = text(0..32);
    let with = |tail: u32| [common.clone(), text(tail..tail + 68)].concat();
    for tail in [1000, 2000] {
        let (mut pages, _) = take(&mut cache, &with(tail));
        pages.grow(0, 100, 0).unwrap();
        cache.keep(0, &with(tail), pages);
    }
    // The common page, and of each text two more and a partial one.
    assert_eq!((pool.pages().0, cache.pages(), cache.len()), (1, 7, 2));
    let found =
        |cache: &PrefixCache| [1000, 2000].map(|t| cache.find(0, &[with(t), vec![1]].concat()).tokens);
    drop(take(&mut cache, &with(1000)));
    assert_eq!(found(&cache), [100, 100]);
    let mut seen = Vec::new();
    while cache.evict(0) {
        seen.push(found(&cache));
    }
    // The partial page of the first was not used again.
    assert_eq!(seen, [[96, 100], [96, 96], [96, 64], [96, 32], [64, 32], [32, 32], [0, 0]]);
    assert_eq!(pool.pages().0, 8);
}

#[test]
fn the_least_recently_used_sequence_goes_first() {
    let pool = pools(8);
    let mut cache = cache(&pool, 2);
    let text = |first: u32| text(first..first + 40);
    for first in [100, 200] {
        cache.keep(0, &text(first), filled(&pool, 40));
    }
    assert_eq!(take(&mut cache, &text(100)).1, 32);
    cache.keep(0, &text(300), filled(&pool, 40));
    assert_eq!(cache.len(), 2);
    assert_eq!(cache.find(0, &text(200)).tokens, 0);
    assert_eq!(cache.find(0, &text(100)).tokens, 32);
    // A longer version replaces what it begins with; a shorter one adds nothing.
    let longer: Vec<u32> = (300..350).collect();
    cache.keep(0, &longer, filled(&pool, 50));
    cache.keep(0, &text(300), filled(&pool, 40));
    assert_eq!(cache.len(), 2);
    while cache.evict(0) {}
    assert_eq!((pool.pages().0, cache.len()), (8, 0));
}

#[test]
fn a_window_serves_where_its_pages_are() {
    let pool = pools_of(&[(StateSpec::Paged, 20), (WINDOW, 6)]);
    let mut cache = cache(&pool, 4);
    let prompt = text(0..300);
    let mut pages = pool.empty();
    for end in (32..=288).step_by(32) {
        cache.grow(&mut pages, 0, end, 0).unwrap();
        cache.publish(0, &prompt[..end], &pages);
        pages.slide(end);
    }
    // The pages that the window no longer saw went as others were needed; the sequence has three.
    assert_eq!(cache.find(0, &prompt).tokens, 288);
    let reached = |cache: &PrefixCache, end| cache.find(0, &prompt[..end]).tokens;
    assert_eq!(
        [33, 65, 97, 129, 161, 193, 225, 257].map(|end| reached(&cache, end)),
        [0, 0, 0, 0, 160, 192, 224, 256]
    );
    // What is resumed from is worth more than what lies behind.
    let (other, _) = take(&mut cache, &prompt[..200]);
    assert_eq!(other.held(), [6, 2]);
    drop(other);
    let mut new = pool.empty();
    cache.grow(&mut new, 0, 32, 0).unwrap();
    assert_eq!([161, 193, 225, 257].map(|end| reached(&cache, end)), [0, 192, 224, 256]);
    drop((pages, new));
    cache.forget(0, &prompt);
    assert_eq!(pool.pages(), (26, 26));
}

#[test]
fn a_page_of_nobody_before_pages_of_somebody_can_be_had() {
    let pool = pools(4);
    let mut cache = cache(&pool, 4);
    // Two sequences compute the same without knowing of each other; the second goes on.
    let (first, second) = (filled(&pool, 32), filled(&pool, 64));
    cache.publish(0, &text(0..32), &first);
    cache.publish(0, &text(0..64), &second);
    drop(first);
    cache.forget(0, &text(0..40));
    assert_eq!((pool.pages().0, cache.pages()), (1, 1));
    let mut third = pool.empty();
    assert!(cache.grow(&mut third, 0, 64, 0).is_ok());
    assert_eq!(cache.grow(&mut third, 0, 96, 0), Err(KvFull { asked: 1, free: 0, pages: 4 }));
}

#[test]
fn state_that_lies_apart_is_resumed_only_where_one_phase_has_all() {
    let pool = pools(8);
    let mut cache = PrefixCache::new(&pool, 4, true);
    let mut prefilled = filled(&pool, 32);
    prefilled.written(Phase::Prefill, 0, 32);
    prefilled.arrived(Phase::Prefill, 0, 32);
    cache.publish(0, &text(0..32), &prefilled);
    // The same computed where answers are, and more.
    let mut decoded = filled(&pool, 64);
    decoded.written(Phase::Decode, 0, 64);
    decoded.arrived(Phase::Decode, 0, 64);
    cache.publish(0, &text(0..64), &decoded);
    assert_eq!(cache.find(0, &text(0..70)).tokens, 32);
    let (pages, _) = take(&mut cache, &text(0..70));
    assert_eq!(PHASES.map(|phase| pages.reach(phase)), [32, 0]);
    // The first goes on and its state is brought to the other phase.
    prefilled.written(Phase::Decode, 0, 32);
    prefilled.arrived(Phase::Decode, 0, 32);
    cache.publish(0, &text(0..32), &prefilled);
    let (pages, reused) = take(&mut cache, &text(0..70));
    assert_eq!((PHASES.map(|phase| pages.reach(phase)), reused), ([32, 64], 64));
}

#[test]
fn what_a_window_gave_up_is_where_it_was_computed() {
    let pool = pools_of(&[(StateSpec::Paged, 9), (WINDOW, 9)]);
    let mut cache = PrefixCache::new(&pool, 4, true);
    let mut pages = filled(&pool, 160);
    pages.written(Phase::Prefill, 0, 128);
    pages.arrived(Phase::Prefill, 0, 128);
    cache.publish(0, &text(0..128), &pages);
    // The last token is computed where answers are; only what the window holds was brought there.
    pages.slide(128);
    pages.written(Phase::Decode, 128, 160);
    pages.arrived(Phase::Decode, 128, 160);
    cache.publish(0, &text(0..160), &pages);
    let reach = |cache: &mut PrefixCache, end| {
        let (pages, reused) = take(cache, &text(0..end));
        (PHASES.map(|phase| pages.reach(phase)), reused)
    };
    assert_eq!(reach(&mut cache, 40), ([32, 0], 32));
    assert_eq!(reach(&mut cache, 100), ([96, 0], 96));
}

#[test]
fn what_a_store_has_more_is_planned_where_it_can_be_resumed() {
    let pool = pools_of(&[(StateSpec::Paged, 20), (WINDOW, 20)]);
    let keys = keys(&pool);
    let mut cache = cache(&pool, 4).with_keys(keys.clone());
    let prompt = text(0..300);
    let chains = chains(&keys, &prompt[..299]);
    let all = |groups: &[(usize, std::ops::Range<usize>)]| -> std::collections::HashSet<PageKey> {
        groups.iter().flat_map(|(g, r)| r.clone().map(|i| keys.page(&chains[i], *g))).collect()
    };
    let plan = |cache: &PrefixCache, end: usize, there: &std::collections::HashSet<PageKey>| {
        let found = cache.find(0, &prompt[..end]);
        let plan = cache.plan(0, &prompt[..end], &chains, &found, |key| there.contains(key))?;
        Some((plan.owns.len(), plan.from, plan.missing))
    };
    // The window's pages first: without them nothing else is worth a read.
    let there = all(&[(0, 0..9), (1, 0..9)]);
    let missing = |g: usize, range: std::ops::Range<usize>| range.map(move |i| (g, i));
    assert_eq!(plan(&cache, 300, &there), Some((9, 0, missing(1, 7..9).chain(missing(0, 0..9)).collect())));
    assert_eq!(plan(&cache, 100, &there).unwrap().0, 3);
    assert_eq!(plan(&cache, 32, &there), None);
    // A hole in what is seen from everywhere, and one in a window.
    assert_eq!(plan(&cache, 300, &all(&[(0, 0..5), (0, 6..9), (1, 0..9)])).unwrap().0, 5);
    assert_eq!(plan(&cache, 300, &all(&[(0, 0..9), (1, 0..6), (1, 7..9)])).unwrap().0, 9);
    assert_eq!(plan(&cache, 300, &all(&[(0, 0..9), (1, 0..7)])).unwrap().0, 7);
    assert_eq!(plan(&cache, 300, &all(&[(0, 0..9)])), None);
    // What is at hand is held and not read again; too little more is not worth it.
    cache.keep(0, &prompt[..150], filled(&pool, 150));
    assert_eq!(cache.find(0, &prompt[..151]).tokens, 150);
    assert_eq!(plan(&cache, 165, &there), None);
    assert_eq!(plan(&cache, 200, &there).unwrap(), (6, 4, vec![(1, 4), (1, 5), (0, 4), (0, 5)]));
    // What came becomes known, with what it builds on, whatever has gone meanwhile.
    let found = cache.find(0, &prompt[..200]);
    let mut plan = cache.plan(0, &prompt[..200], &chains, &found, |key| there.contains(key)).unwrap();
    for (g, i) in &plan.missing {
        plan.owns[*i].pages[*g] = cache.take(*g, 1).unwrap().pop();
    }
    cache.clear();
    cache.adopt(0, &prompt[..192], plan.owns, plan.from);
    let found = cache.find(0, &prompt[..200]);
    assert_eq!((found.tokens, cache.use_restored(&found), cache.use_restored(&found)), (192, 64, 0));
    let (pages, _) = cache.claim(&found);
    assert_eq!(pages.held(), [6, 2]);
    drop(pages);
    cache.forget(0, &prompt[..200]);
    assert_eq!(pool.pages(), (40, 40));
}

#[test]
fn a_text_of_windows_alone_hangs_on_empty_places() {
    let pool = pools_of(&[(WINDOW, 9)]);
    let keys = keys(&pool);
    let mut cache = cache(&pool, 4).with_keys(keys.clone());
    let prompt = text(0..200);
    let chains = chains(&keys, &prompt);
    let found = cache.find(0, &prompt);
    let mut plan = cache.plan(0, &prompt, &chains, &found, |_| true).unwrap();
    assert_eq!(plan.missing, [(0, 4), (0, 5)]);
    for (g, i) in &plan.missing {
        plan.owns[*i].pages[*g] = cache.take(*g, 1).unwrap().pop();
    }
    cache.adopt(0, &prompt[..192], plan.owns, plan.from);
    assert_eq!(cache.find(0, &prompt).tokens, 192);
    while cache.evict(0) {}
    assert!(cache.nodes.is_empty() && pool.pages() == (9, 9));
}

#[derive(Clone, Debug)]
enum Op {
    Start { scope: u64, text: Vec<u32> },
    Compute(usize, usize),
    End(usize, bool),
    Save,
    Preempt(usize),
    Restart(usize),
    Evict(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let text = prop::collection::vec(0u32..2, 1..170);
    prop_oneof![
        // Few texts, so that they have beginnings in common.
        4 => (0u64..2, text, 0usize..150).prop_map(|(scope, mut text, common)| {
            text.iter_mut().take(common).for_each(|t| *t = 1);
            Op::Start { scope, text }
        }),
        8 => (0usize..6, 1usize..90).prop_map(|(i, n)| Op::Compute(i, n)),
        3 => (0usize..6, any::<bool>()).prop_map(|(i, keep)| Op::End(i, keep)),
        2 => Just(Op::Save),
        1 => (0usize..6).prop_map(Op::Preempt),
        2 => (0usize..3).prop_map(Op::Restart),
        1 => (0usize..2).prop_map(Op::Evict),
    ]
}

#[derive(Debug)]
struct Run {
    scope: u64,
    text: Vec<u32>,
    pages: StatePages,
    computed: usize,
}

/// What a position holds: it depends on all tokens up to there.
fn content(text: &[u32], position: usize) -> u64 {
    text[..=position]
        .iter()
        .fold(7, |h: u64, t| (h ^ *t as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (h >> 29))
}

struct Model {
    pools: StatePools,
    cache: PrefixCache,
    /// By group and page.
    memory: HashMap<(usize, PageId), Vec<u64>>,
    running: Vec<Run>,
    waiting: Vec<(u64, Vec<u32>)>,
    stored: HashMap<PageKey, Vec<u64>>,
}

impl Model {
    fn start(&mut self, scope: u64, text: Vec<u32>) {
        let found = self.cache.find(scope, &text);
        assert!(found.tokens < text.len());
        let (pages, _) = self.cache.claim(&found);
        self.running.push(Run { scope, text, pages, computed: found.tokens });
    }

    fn compute(&mut self, i: usize, count: usize) {
        let Some(run) = self.running.get_mut(i) else { return };
        let end = run.text.len().min(run.computed + count);
        let grown = self.cache.grow(&mut run.pages, 0, end, 0);
        self.take_left();
        let run = &mut self.running[i];
        if grown.is_err() {
            return;
        }
        assert!(run.pages.writable_from(run.computed));
        for (g, table) in run.pages.tables(0, end).iter().enumerate() {
            for p in run.computed..end {
                let page = self.memory.entry((g, table[p / 32])).or_insert_with(|| vec![0; 32]);
                page[p % 32] = content(&run.text, p);
            }
        }
        run.computed = end;
        self.cache.publish(run.scope, &run.text[..end], &run.pages);
        run.pages.slide(end);
    }

    fn end(&mut self, i: usize, keep: bool) {
        if i >= self.running.len() {
            return;
        }
        let Run { scope, text, pages, computed } = self.running.swap_remove(i);
        if keep && computed > 0 {
            self.cache.keep(scope, &text[..computed], pages);
        } else {
            drop(pages);
            self.cache.forget(scope, &text);
        }
    }

    /// What goes to the store, and what has left, is what its key stands for.
    fn save(&mut self) {
        let next = self.cache.next_unsaved(|_| 3, |key| self.stored.contains_key(key));
        let next = next.into_iter().flat_map(|n| {
            assert!(n.keys.len() <= 3 && n.keys.len() == n.pages.len());
            n.keys.into_iter().zip(n.pages.into_iter().map(move |page| (n.group, page)))
        });
        let next: Vec<_> = next.collect();
        for (key, page) in next {
            assert_eq!(self.stored.insert(key, self.memory[&page].clone()), None, "saved twice");
        }
        self.cache.trim();
        self.take_left();
    }

    /// Before anything is written.
    fn take_left(&mut self) {
        for left in self.cache.take_left() {
            let there = self.memory[&(left.group, left.page)].clone();
            let known = self.stored.entry(left.key).or_insert_with(|| there.clone());
            assert_eq!(*known, there);
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Start { scope, text } if self.running.len() < 6 => self.start(scope, text),
            Op::Start { scope, text } => self.waiting.push((scope, text)),
            Op::Compute(i, count) => self.compute(i, count),
            Op::End(i, keep) => self.end(i, keep),
            Op::Preempt(i) if i < self.running.len() => {
                let run = self.running.swap_remove(i);
                self.waiting.push((run.scope, run.text));
            }
            Op::Restart(i) if i < self.waiting.len() => {
                let (scope, text) = self.waiting.swap_remove(i);
                self.start(scope, text);
            }
            Op::Save => self.save(),
            Op::Evict(group) if group < self.cache.specs.len() => drop(self.cache.evict(group)),
            _ => {}
        }
        // What was to be saved may have gone otherwise.
        self.cache.trim();
        self.take_left();
    }

    /// Every running sequence sees what it computed or what was computed for the same tokens, and no page is lost.
    fn check(&self) {
        for run in &self.running {
            assert!(run.pages.writable_from(run.computed));
            let tables = run.pages.tables(0, run.computed);
            for ((g, table), spec) in tables.iter().enumerate().zip(&self.cache.specs) {
                for p in spec.first_seen(run.computed)..run.computed {
                    assert_eq!(self.memory[&(g, table[p / 32])][p % 32], content(&run.text, p));
                }
            }
        }
        let cache = &self.cache;
        let mut held: std::collections::HashSet<(usize, PageId)> = Default::default();
        for (id, node) in &cache.nodes {
            let branch = &node.branch;
            let below = || branch.children.values().chain(&branch.tails);
            assert_eq!(branch.kept, below().filter(|id| cache.nodes[id].kept).count());
            assert!(below().all(|below| cache.nodes[below].place == Place::Node(*id)));
            assert!(node.kept || branch.kept == 0);
            assert_eq!(branch.is_empty(), cache.leaves.contains(&(node.used, *id)));
            for (g, page) in node.pages.iter().enumerate() {
                held.extend(page.as_ref().map(|p| (g, p.id())));
                let listed = cache.loose[g].contains(&(node.worth[g], *id));
                assert_eq!(listed, is_loose(cache.specs[g]) && page.is_some());
                assert!(page.is_some() || is_loose(cache.specs[g]));
            }
        }
        let waits =
            |n: &Node| n.wanted && n.pages.iter().zip(&n.saved).any(|(p, saved)| p.is_some() && !saved);
        assert!(cache.nodes.iter().all(|(id, n)| !waits(n) || cache.unsaved.contains(id)));
        assert!(cache.unsaved.iter().all(|id| cache.nodes.contains_key(id)));
        let leaves = cache.nodes.values().filter(|n| n.branch.is_empty()).count();
        let loose = |g: usize| {
            cache.nodes.values().filter(|n| is_loose(cache.specs[g]) && n.pages[g].is_some()).count()
        };
        assert_eq!(cache.leaves.len(), leaves);
        assert!((0..cache.loose.len()).all(|g| cache.loose[g].len() == loose(g)));
        assert!(cache.len() <= cache.kept_max || !cache.unsaved.is_empty());
        for run in &self.running {
            let pieces = |g: usize| {
                (0..8).filter_map(move |i| run.pages.piece(g, i, 32 * (i + 1)).map(|p| (g, p.id())))
            };
            held.extend((0..cache.specs.len()).flat_map(pieces));
        }
        let (free, all) = self.pools.pages();
        assert_eq!(free + held.len(), all);
    }
}

proptest! {
    /// Running, ending, preempted and evicted in any order: content is right, and a page to be written has one owner.
    #[test]
    fn content_matches(
        ops in prop::collection::vec(op(), 1..60), pages in prop::array::uniform2(6usize..24), groups in 0usize..3, kept_max in 0usize..4,
        stores in any::<bool>(),
    ) {
        let groups = [&[StateSpec::Paged][..], &[StateSpec::Paged, WINDOW], &[WINDOW]][groups];
        let groups: Vec<(StateSpec, usize)> = groups.iter().copied().zip(pages).collect();
        let pools = pools_of(&groups);
        let mut cache = cache(&pools, kept_max);
        if stores {
            cache = cache.with_keys(keys(&pools));
        }
        let (memory, stored) = (HashMap::new(), HashMap::new());
        let mut model = Model { pools, cache, memory, running: Vec::new(), waiting: Vec::new(), stored };
        for op in ops {
            model.apply(op);
            model.check();
        }
        while !model.running.is_empty() {
            model.end(0, false);
            model.check();
        }
        for (scope, text) in std::mem::take(&mut model.waiting) {
            model.cache.forget(scope, &text);
        }
        while model.cache.unsaved() > 0 {
            model.save();
        }
        prop_assert!(model.cache.len() <= kept_max);
        // Nothing is left that nobody wants.
        prop_assert!(model.cache.nodes.values().all(|n| n.kept));
        model.cache.clear();
        let (free, all) = model.pools.pages();
        prop_assert_eq!(free, all);
    }
}
