//! Whose turn it is, and what is counted.

use super::*;
use crate::SequenceState;

/// Ids in the order in which they end, one running at a time.
fn order(engine: &mut Engine) -> Vec<SequenceId> {
    let mut ended = Vec::new();
    while !engine.is_idle() {
        let events = engine.step().unwrap();
        ended.extend(events.iter().filter(|e| matches!(e, Event::Finished { .. })).map(Event::sequence));
    }
    ended
}

#[test]
fn higher_priorities_go_first_and_groups_take_turns() {
    let mut engine = engine_of(EngineOptions { sequences_max: 1, ..options() });
    let mut add = |priority, group| engine.add(Request { priority, group, ..request(group, 20, 2) }).unwrap();
    let many: Vec<_> = (0..5).map(|_| add(0, 7)).collect();
    let few: Vec<_> = (0..2).map(|_| add(0, 8)).collect();
    let low = add(-1, 9);
    let high = add(3, 7);
    let late = add(0, 9);
    let expected = [high, many[0], few[0], late, many[1], few[1], many[2], many[3], many[4], low];
    assert_eq!(order(&mut engine), expected);
}

#[test]
fn groups_that_come_anew_do_not_hold_up_one_that_waits() {
    let mut engine = engine_of(EngineOptions { sequences_max: 1, ..options() });
    let waiting: Vec<_> =
        (0..3).map(|_| engine.add(Request { group: 1, ..request(1, 10, 1) }).unwrap()).collect();
    let mut ended = Vec::new();
    for group in 2..40 {
        engine.add(Request { group, ..request(group, 10, 1) }).unwrap();
        let events = engine.step().unwrap();
        ended.extend(events.iter().filter(|e| matches!(e, Event::Finished { .. })).map(Event::sequence));
    }
    assert!(waiting.iter().all(|id| ended.contains(id)), "{ended:?}");
}

#[test]
fn a_higher_priority_keeps_its_pages() {
    // Each needs 5 of 6 pages in the end.
    let mut engine = engine_of(EngineOptions { kv_pages: Some(6), context: 160, ..options() });
    let low = engine.add(request(1, 40, 110)).unwrap();
    let high = engine.add(Request { priority: 1, ..request(2, 40, 110) }).unwrap();
    let (mut texts, mut first) = (Texts::new(), None);
    while !engine.is_idle() {
        let events = engine.step().unwrap();
        let ended = events.iter().find(|e| matches!(e, Event::Finished { .. })).map(Event::sequence);
        first = first.or(ended);
        collect(&mut texts, events);
    }
    assert_eq!(first, Some(high));
    assert!(engine.counters().preemptions > 0);
    assert_eq!(texts[&low], alone(&request(1, 40, 110)));
    assert_eq!(texts[&high], alone(&request(2, 40, 110)));
}

#[test]
fn prefixes_are_shared_within_a_scope_only() {
    let mut engine = engine_of(options());
    let text = prompt(1, 100);
    let mut reused = |scope, tail: u64| {
        let prompt = [text.clone(), prompt(tail, 10)].concat();
        engine.add(Request { scope, keep: true, prompt, ..request(tail, 0, 3) }).unwrap();
        let before = engine.counters().reused_tokens;
        drain(&mut engine);
        engine.counters().reused_tokens - before
    };
    assert_eq!(
        [reused(0, 1), reused(0, 2), reused(1, 3), reused(1, 4), reused(2, 5), reused(0, 6)],
        [0, 96, 0, 96, 0, 96]
    );
}

#[test]
fn what_waits_and_runs_and_was_done_is_told() {
    let mut engine = engine_of(EngineOptions { sequences_max: 2, prefill_chunk: 64, ..options() });
    let first = engine.add(Request { keep: true, ..request(1, 20, 30) }).unwrap();
    engine.step().unwrap();
    let second = engine.add(request(2, 300, 3)).unwrap();
    let third = engine.add(request(3, 10, 3)).unwrap();
    (0..2).for_each(|_| drop(engine.step().unwrap()));
    let infos = engine.sequences_info();
    assert_eq!(infos.iter().map(|i| i.id).collect::<Vec<_>>(), [first, second, third]);
    use SequenceState::{Decode, Prefill, Waiting};
    assert_eq!(infos.iter().map(|i| i.state).collect::<Vec<_>>(), [Decode, Prefill, Waiting]);
    assert_eq!(infos[0].computed_tokens, 19 + infos[0].generated_tokens);
    assert!((1..300).contains(&infos[1].computed_tokens));
    assert_eq!((infos[2].prompt_tokens, infos[2].computed_tokens, infos[2].generated_tokens), (10, 0, 0));
    let now = engine.counters();
    assert_eq!((now.waiting, now.running, now.pages_kept), (1, 2, 0));
    drain(&mut engine);
    let then = engine.counters();
    assert_eq!((then.waiting, then.running), (0, 0));
    assert_eq!((then.prompt_tokens, then.generated_tokens, then.preemptions), (330, 36, 0));
    assert_eq!((then.pages_kept, then.pages_free), (2, then.pages - 2));
    // A drafter that knows the text, and a prefix that is there.
    let request = Request { prompt: prompt(1, 40), ..request(1, 0, 30) };
    let text = alone(&request).0;
    engine.add_guided(request.clone(), drafts_of(Knowing::of(&request, &text, u32::MAX))).unwrap();
    drain(&mut engine);
    let last = engine.counters();
    assert!(last.drafted_tokens > 0 && last.accepted_tokens == last.drafted_tokens);
    assert_eq!(last.generated_tokens, 66);
}
