//! The chain as a whole.

use proptest::prelude::*;

use unicorn_core::Adjustment;

use super::*;

fn pseudo_logits(seed: u64, vocab: usize) -> Vec<f32> {
    (0..vocab as u64).map(|i| (uniform(seed, i) as f32 - 0.5) * 12.0).collect()
}

fn top_of(logits: &[f32], k: usize) -> Vec<TopEntry> {
    let mut all: Vec<TopEntry> =
        logits.iter().enumerate().map(|(i, &logit)| TopEntry { token: i as u32, logit }).collect();
    all.retain(TopEntry::is_choosable);
    all.sort_by(TopEntry::rank);
    all.truncate(k);
    all
}

/// Draws at many positions and compares the counts with the expected distribution.
fn chi_square(options: SamplingOptions, logits: &[f32], expected: &[f64]) {
    const DRAWS: usize = 20_000;
    let sampler = Sampler::new(options, None, None).unwrap();
    let history = vec![0u32; DRAWS];
    let mut counts = vec![0usize; logits.len()];
    for position in 0..DRAWS {
        counts[sampler.sample(&history[..position], logits).unwrap().token as usize] += 1;
    }
    let mut chi = 0.0;
    for (count, p) in counts.iter().zip(expected) {
        if *p == 0.0 {
            assert_eq!(*count, 0);
        } else {
            let e = p * DRAWS as f64;
            chi += (*count as f64 - e).powi(2) / e;
        }
    }
    let freedom = expected.iter().filter(|p| **p > 0.0).count() as f64 - 1.0;
    // Mean plus five standard deviations of the chi-square distribution.
    assert!(chi < freedom + 5.0 * (2.0 * freedom).sqrt(), "chi-square {chi}, {freedom} degrees of freedom");
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let e: Vec<f64> = logits.iter().map(|l| (*l as f64 / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|x| x / sum).collect()
}

fn open() -> SamplingOptions {
    SamplingOptions {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 11,
        ..SamplingOptions::default()
    }
}

#[test]
fn draws_follow_the_softmax() {
    let logits = pseudo_logits(1, 20).iter().map(|l| l / 4.0).collect::<Vec<_>>();
    chi_square(open(), &logits, &softmax(&logits, 1.0));
    chi_square(SamplingOptions { temperature: 0.6, ..open() }, &logits, &softmax(&logits, 0.6));
    chi_square(
        SamplingOptions { temperature: 2.5, seed: u64::MAX, ..open() },
        &logits,
        &softmax(&logits, 2.5),
    );
}

#[test]
fn draws_follow_the_filtered_softmax() {
    let logits = pseudo_logits(2, 20).iter().map(|l| l / 4.0).collect::<Vec<_>>();
    let only = |keep: &dyn Fn(usize) -> bool| {
        let p = softmax(&logits, 1.0);
        let sum: f64 = (0..20).filter(|i| keep(*i)).map(|i| p[i]).sum();
        (0..20).map(|i| if keep(i) { p[i] / sum } else { 0.0 }).collect::<Vec<f64>>()
    };
    let top: Vec<usize> = top_of(&logits, 5).iter().map(|e| e.token as usize).collect();
    chi_square(SamplingOptions { top_k: 5, ..open() }, &logits, &only(&|i| top.contains(&i)));
    let max = logits.iter().cloned().fold(f32::MIN, f32::max);
    let bound = max + 0.2f32.ln();
    chi_square(SamplingOptions { min_p: 0.2, ..open() }, &logits, &only(&|i| logits[i] >= bound));
}

#[test]
fn bias_moves_and_bans() {
    let logits = [1.0f32, 2.0, 3.0, 0.0];
    let greedy = |bias| {
        Sampler::new(SamplingOptions { logit_bias: bias, ..SamplingOptions::greedy() }, None, None).unwrap()
    };
    assert_eq!(greedy(vec![]).sample(&[], &logits).unwrap().token, 2);
    assert_eq!(greedy(vec![(3, 9.0)]).sample(&[], &logits).unwrap().token, 3);
    assert_eq!(greedy(vec![(2, f32::NEG_INFINITY)]).sample(&[], &logits).unwrap().token, 1);
    let none = (0..4).map(|t| (t, f32::NEG_INFINITY)).collect::<Vec<_>>();
    assert_eq!(greedy(none.clone()).sample(&[], &logits), Err(Unchosen::NoCandidate));
    let drawn = Sampler::new(SamplingOptions { logit_bias: none, ..open() }, None, None).unwrap();
    assert_eq!(drawn.sample(&[], &logits), Err(Unchosen::NoCandidate));
}

#[test]
fn unusual_logits_are_survived() {
    let all =
        [SamplingOptions::greedy(), open(), SamplingOptions { typical_p: 0.5, ..SamplingOptions::default() }];
    for options in all {
        let sampler = Sampler::new(options, Some(2), None).unwrap();
        for broken in [[f32::NAN; 3], [0.0, f32::INFINITY, 1.0], [f32::NEG_INFINITY, -1e30, f32::NAN]] {
            assert_eq!(sampler.sample(&[], &broken), Err(Unchosen::NotFinite));
            let mut top: Vec<TopEntry> =
                (0..).zip(broken).map(|(token, logit)| TopEntry { token, logit }).collect();
            top.sort_by(TopEntry::rank);
            assert_eq!(sampler.sample_top(&[], &top[..1]), Err(Unchosen::NotFinite));
        }
        assert_eq!(sampler.sample(&[], &[]), Err(Unchosen::NoCandidate));
        assert_eq!(sampler.sample(&[], &[f32::NEG_INFINITY, -1e30, f32::NEG_INFINITY]).unwrap().token, 1);
    }
}

#[test]
fn all_logits_are_asked_for_only_where_they_are_needed() {
    let ask = |options, logprobs| Sampler::new(options, logprobs, None).unwrap().ask(&[3, 1, 3], 100);
    let base = SamplingOptions::default();
    let plain = |select| (select, Edits::default());
    assert_eq!(ask(base.clone(), None), plain(Select::Top(40)));
    assert_eq!(ask(SamplingOptions::greedy(), None), plain(Select::Top(1)));
    assert_eq!(ask(base.clone(), Some(0)), plain(Select::Logits));
    assert_eq!(ask(SamplingOptions { top_k: 0, ..base.clone() }, None), plain(Select::Logits));
    assert_eq!(ask(SamplingOptions { top_k: 65, ..base.clone() }, None), plain(Select::Logits));
    let penalized =
        SamplingOptions { repeat_penalty: 1.5, frequency_penalty: 0.5, ..SamplingOptions::greedy() };
    let (select, edits) = ask(penalized.clone(), None);
    let of =
        |token, penalty| Adjustment { divisor: 1.5, penalties: [penalty, 0.0], ..Adjustment::none(token) };
    assert_eq!((select, edits.adjustments), (Select::Top(1), vec![of(1, 0.5), of(3, 1.0)]));
    assert_eq!(ask(penalized, Some(1)), plain(Select::Logits));
    let biased = SamplingOptions { logit_bias: vec![(9, 1.0), (2, -1.0), (9, 2.0)], ..base };
    let (_, edits) = ask(biased, None);
    let of = |token, bias| Adjustment { bias, ..Adjustment::none(token) };
    assert_eq!(edits.adjustments, [of(2, -1.0), of(9, 3.0)]);
}

#[test]
fn long_lists_of_adjustments_stay_on_the_host() {
    let ask = |tokens: usize| {
        let logit_bias = (0..tokens as u32).map(|token| (token, 1.0)).collect();
        let options = SamplingOptions { logit_bias, ..SamplingOptions::greedy() };
        Sampler::new(options, None, None).unwrap().ask(&[], 10_000).0
    };
    assert_eq!((ask(ADJUSTMENTS_MAX), ask(ADJUSTMENTS_MAX + 1)), (Select::Top(1), Select::Logits));
}

/// Options that adjust logits in every way, for tokens below 30.
fn adjusting() -> impl Strategy<Value = SamplingOptions> {
    let penalties = (0.5f32..2.0, -1f32..1.0, -1f32..1.0, prop::option::of(0usize..50));
    let bias = prop::collection::vec((0u32..30, prop_oneof![Just(f32::NEG_INFINITY), -3f32..3.0]), 0..5);
    (penalties, bias, any::<bool>()).prop_map(|((repeat, presence, frequency, last), logit_bias, dry)| {
        let multiplier = if dry { 0.7 } else { 0.0 };
        SamplingOptions {
            repeat_penalty: repeat,
            presence_penalty: presence,
            frequency_penalty: frequency,
            penalty_last_n: last,
            logit_bias,
            dry: DryOptions { multiplier, ..DryOptions::default() },
            ..SamplingOptions::default()
        }
    })
}

proptest! {
    /// The same token whether a device returns all logits, the asked selection or a longer one.
    #[test]
    fn selection_changes_nothing(
        seed in any::<u64>(), vocab in 1usize..300, extra in 0usize..20,
        top_k in 1usize..=64, (temperature, top_p) in (0f32..2.0, 0.1f32..=1.0), (min_p, typical_p) in (0f32..0.5, 0.1f32..=1.0),
        coarse in any::<bool>(), adjusting in adjusting(), history in prop::collection::vec(0u32..30, 0..40),
        mask in prop::option::of(prop::collection::vec(0u32..300, 1..60)),
    ) {
        let options = SamplingOptions { temperature, top_k, top_p, min_p, typical_p, seed, ..adjusting };
        let mut logits = pseudo_logits(seed, vocab);
        if coarse {
            logits.iter_mut().for_each(|l| *l = l.round());
        }
        let mask = mask.map(|tokens| Arc::new(TokenMask::of(vocab, tokens)));
        let sampler = Sampler::new(options, None, mask).unwrap();
        let expected = sampler.sample(&history, &logits);
        let (Select::Top(k), edits) = sampler.ask(&history, vocab) else { panic!("a selection is enough here") };
        edits.apply(0, &mut logits);
        prop_assert_eq!(sampler.sample_top(&history, &top_of(&logits, k + extra)), expected);
    }

    #[test]
    fn any_valid_options_choose_a_token(
        seed in any::<u64>(), (temperature, top_p, min_p, typical_p) in (0f32..3.0, 0f32..=1.0, 0f32..=1.0, 0f32..=1.0),
        top_k in 0usize..50, repeat_penalty in 0.1f32..3.0, history in prop::collection::vec(0u32..30, 0..40),
    ) {
        let dry = DryOptions { multiplier: 0.7, ..DryOptions::default() };
        let options = SamplingOptions {
            temperature, top_p, min_p, typical_p, top_k, repeat_penalty, dry, seed, ..SamplingOptions::default()
        };
        let sampler = Sampler::new(options, Some(3), None).unwrap();
        let logits = pseudo_logits(seed, 30);
        let first = sampler.sample(&history, &logits).unwrap();
        prop_assert!(first.token < 30);
        prop_assert_eq!(first.logprobs.as_ref().unwrap().top.len(), 3);
        prop_assert_eq!(sampler.sample(&history, &logits).unwrap(), first);
    }
}
