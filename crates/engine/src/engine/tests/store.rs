//! Pages that outlive the engine.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use unicorn_core::PageKey;

use super::*;
use crate::kv_store::{Keys, RESTORES_MAX, RecordShape, SAVES_MAX};
use crate::testing::store::{FakeStore, StoreFaults};
use crate::{KvStore, Timings};

fn with(store: &Arc<FakeStore>, options: EngineOptions) -> EngineOptions {
    EngineOptions { store: Some(KvStore { pages: store.clone(), identity: [7; 32] }), ..options }
}

fn kept(request: Request) -> Request {
    Request { keep: true, ..request }
}

/// Chunks of so many pages.
fn cut(engine: &mut Engine, rows: usize) {
    let keeper = engine.keeper.as_mut().expect("a store");
    keeper.shapes.iter_mut().for_each(|shape| shape.rows = rows.min(shape.rows));
}

/// Until nothing is left to do, in the background either.
fn settle(engine: &mut Engine) -> Texts {
    let mut texts = Texts::new();
    for _ in 0..100_000 {
        if engine.is_idle() && !engine.has_background() {
            return texts;
        }
        collect(&mut texts, engine.step().unwrap());
        let chunks = engine.keeper.as_ref().map_or(0, Keeper::chunks);
        assert!(chunks <= SAVES_MAX + RESTORES_MAX, "{chunks} chunks in memory");
    }
    panic!("the engine does not come to an end");
}

/// The text of a request and its timings.
fn run(engine: &mut Engine, request: &Request) -> (Vec<u32>, Timings) {
    // However fast a fake model computes.
    engine.speed = Speed::default();
    let id = engine.add(request.clone()).unwrap();
    let (mut texts, mut told) = (Texts::new(), None);
    while !engine.is_idle() {
        let events = engine.step().unwrap();
        for event in &events {
            if let Event::Finished { timings, .. } = event {
                told = Some(*timings);
            }
        }
        collect(&mut texts, events);
    }
    (texts.remove(&id).unwrap().0, told.unwrap())
}

fn specs() -> [ModelSpec; 3] {
    [tiny_spec(2), sliding_spec(3, 40), recurrent_spec(3)]
}

/// Keys of all pages of a text.
fn keys_of(spec: &ModelSpec, engine: &Engine, scope: u64, text: &[u32]) -> HashSet<PageKey> {
    let layout = engine.limits.state.as_ref().unwrap();
    let shapes = RecordShape::of(spec, layout);
    let keys = Keys::new(&[7; 32], layout, &shapes);
    let mut chains = Vec::new();
    keys.extend(scope, text, &mut chains);
    chains.iter().flat_map(|c| (0..shapes.len()).map(|g| keys.page(c, g))).collect()
}

#[test]
fn a_conversation_goes_on_in_another_engine() {
    for spec in specs() {
        for (slow, rows) in [(None, 32), (Some(Duration::from_micros(200)), 2)] {
            let store = FakeStore::new(slow, StoreFaults::default());
            let first = kept(request(1, 200, 40));
            let mut one = engine_with(&spec, FakeDevice::plain(), with(&store, options()));
            cut(&mut one, rows);
            let (answer, timings) = run(&mut one, &first);
            assert_eq!((&answer, timings.restored_tokens), (&alone_with(&spec, &first).0, 0));
            settle(&mut one);
            // 239 positions are computed.
            let counters = one.counters();
            assert!(store.len() >= 7 && counters.saved_pages == store.len() as u64, "{counters:?}");
            assert_eq!((counters.unsaved_pages, counters.restored_pages), (0, 0));
            drop(one);
            store.take_log();
            let device = FakeDevice::plain();
            let mut two = engine_with(&spec, device.clone(), with(&store, options()));
            cut(&mut two, rows);
            let text = [&first.prompt[..], &answer, &prompt(5, 30)].concat();
            let next = kept(Request { prompt: text, ..request(2, 0, 12) });
            let (answer, timings) = run(&mut two, &next);
            assert_eq!(answer, alone_with(&spec, &next).0);
            assert_eq!((timings.restored_tokens, timings.reused_tokens), (224, 224));
            assert_eq!(device.rows_read(), 270 - 224 + 11);
            assert!(store.most() <= rows);
            settle(&mut two);
            // What came from there does not go there again.
            let [read, written] = store.take_log();
            assert!(read.iter().all(|key| !written.contains(key)));
            let new = two.counters();
            assert_eq!(written.len() as u64, new.saved_pages);
            assert!(new.restored_pages >= 7 && new.failed_reads == 0, "{new:?}");
            assert!(written.iter().collect::<HashSet<_>>().len() == written.len());
            // The same again comes from memory.
            let (_, timings) =
                run(&mut two, &Request { prompt: next.prompt[..240].to_vec(), ..next.clone() });
            assert_eq!((timings.restored_tokens, timings.reused_tokens), (0, 224));
            two.clear_kept();
            settle(&mut two);
            assert!(all_free(&two));
        }
    }
}

#[test]
fn what_is_not_kept_is_not_saved_and_scopes_share_nothing() {
    let store = FakeStore::new(None, StoreFaults::default());
    let mut engine = engine_of(with(&store, options()));
    run(&mut engine, &request(1, 200, 20));
    settle(&mut engine);
    assert_eq!(store.len(), 0);
    let mine = Request { scope: 1, ..kept(request(1, 200, 20)) };
    run(&mut engine, &mine);
    settle(&mut engine);
    assert_eq!(store.len(), 6);
    let mut other = engine_of(with(&store, options()));
    let theirs = Request { scope: 2, ..mine.clone() };
    assert_eq!(run(&mut other, &theirs).1.restored_tokens, 0);
    let [read, _] = store.take_log();
    assert!(read.is_empty());
    assert_eq!(run(&mut other, &mine).1.restored_tokens, 192);
    // Nor do models.
    let third =
        EngineOptions { store: Some(KvStore { pages: store.clone(), identity: [8; 32] }), ..options() };
    assert_eq!(run(&mut engine_of(third), &mine).1.restored_tokens, 0);
    let other_pages = with(&store, EngineOptions { page_tokens: 64, ..options() });
    assert_eq!(run(&mut engine_of(other_pages), &mine).1.restored_tokens, 0);
    let other_type = with(&store, EngineOptions { kv_type: unicorn_core::KvType::F32, ..options() });
    assert_eq!(run(&mut engine_of(other_type), &mine).1.restored_tokens, 0);
}

#[test]
fn pages_before_a_lost_one_are_used() {
    for rows in [1, 4, 32] {
        let store = FakeStore::new(None, StoreFaults::default());
        let spec = tiny_spec(2);
        let first = kept(request(1, 300, 1));
        let mut one = engine_with(&spec, FakeDevice::plain(), with(&store, options()));
        run(&mut one, &first);
        settle(&mut one);
        assert_eq!(store.len(), 9);
        // It says that it has the sixth page.
        let key = keys_of(&spec, &one, 0, &first.prompt[..192]);
        let before = keys_of(&spec, &one, 0, &first.prompt[..160]);
        store.remove(key.difference(&before).next().unwrap());
        store.set_faults(StoreFaults { boasts: true, ..StoreFaults::default() });
        let mut two = engine_with(&spec, FakeDevice::plain(), with(&store, options()));
        cut(&mut two, rows);
        let (text, timings) = run(&mut two, &first);
        assert_eq!((text, timings.reused_tokens), (alone_with(&spec, &first).0, 160));
        assert!(two.counters().failed_reads >= 1);
        settle(&mut two);
        two.clear_kept();
        assert!(all_free(&two));
    }
}

#[test]
fn two_that_begin_alike_share_what_comes() {
    let store = FakeStore::new(Some(Duration::from_millis(2)), StoreFaults::default());
    let mut one = engine_of(with(&store, options()));
    let first = kept(request(1, 300, 4));
    run(&mut one, &first);
    settle(&mut one);
    drop(one);
    store.take_log();
    let mut two = engine_of(with(&store, options()));
    let requests: Vec<Request> = (0..3)
        .map(|i| {
            let prompt = [&first.prompt[..290], &prompt(30 + i, 20)].concat();
            Request { prompt, ..request(i, 0, 9) }
        })
        .collect();
    let ids: Vec<_> = requests.iter().map(|r| two.add(r.clone()).unwrap()).collect();
    let texts = settle(&mut two);
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(texts[id], alone(request));
    }
    let [read, _] = store.take_log();
    assert_eq!(read.len(), 9);
    assert_eq!(two.counters().restored_tokens, 288);
    assert!(all_free(&two));
}

#[test]
fn others_run_while_a_store_is_slow_and_cancelling_frees_everything() {
    let store = FakeStore::new(Some(Duration::from_millis(40)), StoreFaults::default());
    let mut one = engine_of(with(&store, options()));
    let first = kept(request(1, 400, 2));
    run(&mut one, &first);
    settle(&mut one);
    drop(one);
    let mut two = engine_of(with(&store, options()));
    cut(&mut two, 1);
    let slow = two.add(first.clone()).unwrap();
    let quick = two.add(request(2, 20, 30)).unwrap();
    let mut texts = Texts::new();
    while texts.get(&quick).is_none_or(|t| t.1.is_none()) {
        collect(&mut texts, two.step().unwrap());
    }
    assert_eq!(texts[&quick], alone(&request(2, 20, 30)));
    assert!(!texts.contains_key(&slow) && two.has_background());
    // What was asked for comes, and nothing more.
    store.take_log();
    assert!(two.cancel(slow));
    texts.extend(settle(&mut two));
    assert_eq!(texts[&slow], (vec![], Some(FinishReason::Cancelled)));
    let [read, _] = store.take_log();
    assert!(read.len() <= RESTORES_MAX, "{} more read", read.len());
    assert!(all_free(&two));
}

#[test]
fn what_falls_out_of_memory_is_saved_and_comes_back() {
    let store = FakeStore::new(None, StoreFaults::default());
    // Room for one conversation and a half.
    let few = EngineOptions { kv_pages: Some(14), kept_max: 8, ..options() };
    for spec in [tiny_spec(2), recurrent_spec(2)] {
        let device = FakeDevice::plain();
        device.set_faults(Faults { late: Some(Duration::from_millis(3)), ..Faults::default() });
        let mut engine = engine_with(&spec, device, with(&store, few.clone()));
        let requests: Vec<Request> = (0..4).map(|i| kept(request(i, 250, 20))).collect();
        for round in 0..2 {
            for request in &requests {
                let (text, timings) = run(&mut engine, request);
                assert_eq!(text, alone_with(&spec, request).0);
                assert_eq!(timings.restored_tokens > 0, round == 1, "{timings:?}");
            }
        }
        // A few may have left while all the memory for copies was in use.
        let counters = engine.counters();
        assert!(counters.unsaved_pages < counters.saved_pages / 4, "{counters:?}");
        settle(&mut engine);
        engine.clear_kept();
        assert!(all_free(&engine));
    }
}

#[test]
fn saving_takes_a_small_share_of_the_time_while_somebody_waits_for_tokens() {
    let store = FakeStore::new(None, StoreFaults::default());
    let device = Arc::new(FakeDevice::new("fake", Pace::Lazy(Duration::from_millis(1)), Log::default()));
    let copy = Duration::from_millis(3);
    device.set_faults(Faults { late: Some(copy), ..Faults::default() });
    let mut engine = engine_with(&tiny_spec(1), device, with(&store, options()));
    cut(&mut engine, 1);
    let first = kept(request(1, 400, 1));
    engine.add(first).unwrap();
    engine.add(kept(request(2, 10, 200))).unwrap();
    let mut texts = Texts::new();
    let since = Instant::now();
    while !engine.is_idle() {
        collect(&mut texts, engine.step().unwrap());
    }
    let (took, saved) = (since.elapsed(), engine.counters().saved_pages as u32);
    assert!(saved > 2 && copy * saved < took / 5, "{saved} pages in {took:?}");
    // Nobody waits any more.
    let since = Instant::now();
    settle(&mut engine);
    let left = engine.counters().saved_pages as u32 - saved;
    assert!(left > 2 && since.elapsed() < copy * 5 * left, "{left} pages in {:?}", since.elapsed());
}

#[test]
fn a_flush_leaves_nothing_behind() {
    let store = FakeStore::new(Some(Duration::from_micros(300)), StoreFaults::default());
    // It keeps nothing in memory.
    let mut engine = engine_of(with(&store, EngineOptions { kept_max: 0, ..options() }));
    cut(&mut engine, 1);
    for i in 0..3 {
        run(&mut engine, &kept(request(i, 200, 10)));
    }
    assert!(engine.has_background());
    assert!(engine.flush(Instant::now()) > 0);
    assert_eq!(engine.flush(Instant::now() + Duration::from_secs(60)), 0);
    assert_eq!((store.len(), engine.report().kept), (18, 0));
    assert!(!engine.has_background() && all_free(&engine));
    // What the store has lost since is saved again, where it is in memory.
    let mut engine = engine_of(with(&store, options()));
    run(&mut engine, &kept(request(0, 200, 10)));
    settle(&mut engine);
    let lost: Vec<PageKey> = store.keys();
    lost.iter().for_each(|key| store.remove(key));
    assert_eq!(engine.flush(Instant::now() + Duration::from_secs(60)), 0);
    assert_eq!(store.len(), 6);
}

#[test]
fn a_store_without_an_answer_ends_nothing() {
    let store = FakeStore::new(None, StoreFaults::default());
    let mut one = engine_of(with(&store, options()));
    let first = kept(request(1, 200, 20));
    run(&mut one, &first);
    settle(&mut one);
    store.set_faults(StoreFaults { mute: true, ..StoreFaults::default() });
    let mut two = engine_of(with(&store, options()));
    let (text, timings) = run(&mut two, &first);
    assert_eq!((text, timings.reused_tokens), (alone(&first).0, 0));
    settle(&mut two);
    assert_eq!(two.counters().saved_pages, 0);
    two.clear_kept();
    assert!(all_free(&two));
}

#[test]
fn a_lost_device_leaves_nothing_under_way() {
    let store = FakeStore::new(Some(Duration::from_micros(100)), StoreFaults::default());
    let mut one = engine_of(with(&store, options()));
    let first = kept(request(1, 300, 20));
    run(&mut one, &first);
    settle(&mut one);
    let device = FakeDevice::plain();
    let mut two = engine_on(device.clone(), with(&store, options()));
    cut(&mut two, 1);
    let other = kept(request(2, 60, 50));
    let ids = [&first, &other].map(|request| two.add(request.clone()).unwrap());
    let mut texts = Texts::new();
    collect(&mut texts, two.step().unwrap());
    device.set_faults(Faults { lost: true, copies: usize::MAX, ..Faults::default() });
    while let Ok(events) = two.step() {
        collect(&mut texts, events);
    }
    let survivors = two.survivors().unwrap();
    assert!(all_free(&two) && !two.has_background() && two.restoring() == 0);
    // They go on elsewhere from what is in the store.
    let mut three = engine_of(with(&store, options()));
    three.adopt(survivors);
    for (id, (tokens, end)) in settle(&mut three) {
        let entry = texts.entry(id).or_default();
        entry.0.extend(tokens);
        entry.1 = end;
    }
    for (id, request) in ids.iter().zip([&first, &other]) {
        assert_eq!(texts[id], alone(request));
    }
    assert!(three.counters().restored_pages >= 9);
}

#[test]
fn who_waits_for_a_store_alone_can_be_woken() {
    let store = FakeStore::new(Some(Duration::from_millis(300)), StoreFaults::default());
    let mut engine = engine_of(with(&store, options()));
    run(&mut engine, &kept(request(1, 200, 4)));
    assert!(engine.has_background());
    let waker = engine.waker();
    let since = Instant::now();
    waker.wake();
    assert!(engine.step().unwrap().is_empty());
    assert!(since.elapsed() < Duration::from_millis(150));
    settle(&mut engine);
}

proptest! {
    /// Whatever the placement, the paces, the chunks, the drafts and the pages, what the store loses or fails to read, and whenever the
    /// engine goes: the next one gives every request the text that it has alone, reads nothing of another scope, and has all pages again.
    #[test]
    fn any_engine_and_any_store_give_the_same_text(
        layers in 1usize..4, window in prop::option::of(0usize..60), seed in any::<u64>(), paces in prop::array::uniform2(any::<bool>()),
        prefill_chunk in 1usize..90, sequences_max in 1usize..5, pages in 6usize..40, (kept_max, rows) in (0usize..5, 1usize..5),
        apart in any::<bool>(), lens in prop::collection::vec((1usize..150, 1usize..40, 0u64..2, any::<bool>()), 1..7),
        (cancel, drafts) in (prop::option::of((0usize..7, 0usize..30)), prop::option::of(0u32..20)),
        slow in prop::option::of(0u64..300), (loses, fails) in (prop::option::of(1u64..9), prop::option::of(1u64..9)),
        ends in prop::collection::vec((0usize..120, any::<bool>()), 1..4), late in prop::option::of(0u64..400),
    ) {
        let spec = match window {
            None => tiny_spec(layers),
            Some(0..20) => recurrent_spec(layers),
            Some(window) => sliding_spec(layers, window),
        };
        let single = seed & 7 < 3;
        let bit = |i: usize| (seed.rotate_left(i as u32 * 5) & !single as u64 & 1) as usize;
        let placement = |shift| Placement::new(&spec, 2, (0..spec.blocks.len()).map(|i| bit(i + shift)).collect()).unwrap();
        let placements = Placements { prefill: placement(0), decode: placement(if apart { 7 } else { 0 }) };
        let store = FakeStore::new(slow.map(Duration::from_micros), StoreFaults { loses, fails, ..StoreFaults::default() });
        let options = with(&store, EngineOptions {
            context: 192, prefill_chunk, sequences_max, kv_pages: Some(pages), kept_max, ..options()
        });
        let engine = || {
            let paces = paces.map(|lazy| if lazy { LAZY } else { Pace::Eager });
            let devices = ["a", "b"].into_iter().zip(paces).map(|(name, pace)| {
                let device = FakeDevice::new(name, pace, Log::default());
                device.set_faults(Faults { late: late.map(Duration::from_micros), ..Faults::default() });
                Arc::new(device) as Arc<dyn Device>
            });
            let mut engine =
                Engine::new(&spec, &zero_weights(), devices.collect(), placements.clone(), options.clone(), &mut |_| {}).unwrap();
            cut(&mut engine, rows);
            engine
        };
        let of = |(i, (prompt, tokens, scope, keep)): (usize, &(usize, usize, u64, bool))| {
            let request = Request { keep: *keep, scope: *scope, ..request(i as u64 % 3, *prompt, *tokens) };
            if seed >> 3 & 3 == 0 { request } else { greedy(request) }
        };
        let mut requests: Vec<Request> = lens.iter().enumerate().map(of).collect();
        let single = |request: &Request| {
            let options = EngineOptions { context: 192, sequences_max: 1, prefill_chunk: 192, ..self::options() };
            let mut one = engine_with(&spec, FakeDevice::plain(), options);
            let there = one.add(Request { keep: false, ..request.clone() }).unwrap();
            drain(&mut one).remove(&there).unwrap()
        };
        let mut expected: Vec<_> = requests.iter().map(single).collect();
        let mut allowed: HashSet<PageKey> = HashSet::new();
        for (end, flushes) in ends.into_iter().map(Some).chain([None]).map(|e| e.unwrap_or((20_000, false))) {
            let mut engine = engine();
            let add = |(request, expected): (&Request, &(Vec<u32>, Option<FinishReason>))| match drafts {
                Some(right) => engine.add_guided(request.clone(), drafts_of(Knowing::of(request, &expected.0, right))).unwrap(),
                None => engine.add(request.clone()).unwrap(),
            };
            let ids: Vec<SequenceId> = requests.iter().zip(&expected).map(add).collect();
            let mut texts = Texts::new();
            for step in 0..end {
                prop_assert!(step < 19_999, "the engine does not come to an end");
                if let Some((which, when)) = cancel && when == step && which < ids.len() {
                    engine.cancel(ids[which]);
                }
                if engine.is_idle() && !engine.has_background() {
                    break;
                }
                // However fast a fake model computes.
                engine.speed = Speed::default();
                collect(&mut texts, engine.step().unwrap());
                prop_assert!(engine.keeper.as_ref().unwrap().chunks() <= SAVES_MAX + RESTORES_MAX);
            }
            for ((id, (text, reason)), request) in ids.iter().zip(&expected).zip(&requests) {
                let got = texts.entry(*id).or_default();
                if matches!(got.1, Some(FinishReason::Cancelled) | None) {
                    prop_assert_eq!(&text[..got.0.len()], &got.0[..]);
                } else {
                    prop_assert_eq!((&got.0, &got.1), (text, reason));
                }
                let whole = [&request.prompt[..], text].concat();
                allowed.extend(keys_of(&spec, &engine, request.scope, &whole));
            }
            let kept: HashSet<PageKey> = requests.iter().zip(&expected).filter(|(r, _)| r.keep)
                .flat_map(|(r, e)| keys_of(&spec, &engine, r.scope, &[&r.prompt[..], &e.0].concat())).collect();
            if flushes {
                engine.flush(Instant::now() + Duration::from_secs(20));
            }
            if engine.is_idle() && !engine.has_background() {
                engine.clear_kept();
                prop_assert!(all_free(&engine));
            }
            drop(engine);
            let [read, written] = store.take_log();
            prop_assert!(read.iter().all(|key| allowed.contains(key)));
            prop_assert!(written.iter().all(|key| kept.contains(key)));
            // The next engine knows one scope alone, and is to read nothing of the other.
            let left = requests.iter().zip(&expected).filter(|(r, _)| r.scope == 1 || seed & 64 == 0);
            let left: Vec<_> = left.map(|(r, e)| (r.clone(), e.clone())).collect();
            if !left.is_empty() {
                (requests, expected) = left.into_iter().unzip();
            }
            allowed.clear();
        }
    }
}
