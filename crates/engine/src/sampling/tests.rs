//! The chain as a whole.

use proptest::prelude::*;

use super::*;

fn pseudo_logits(seed: u64, vocab: usize) -> Vec<f32> {
    (0..vocab as u64).map(|i| (uniform(seed, i) as f32 - 0.5) * 12.0).collect()
}

fn top_of(logits: &[f32], k: usize) -> Vec<TopEntry> {
    let mut all: Vec<TopEntry> =
        logits.iter().enumerate().map(|(i, &logit)| TopEntry { token: i as u32, logit }).collect();
    all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
    all.truncate(k);
    all
}

/// Draws at many positions and compares the counts with the expected distribution.
fn chi_square(options: SamplingOptions, logits: &[f32], expected: &[f64]) {
    const DRAWS: usize = 20_000;
    let sampler = Sampler::new(options, None).unwrap();
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
    let greedy =
        |bias| Sampler::new(SamplingOptions { logit_bias: bias, ..SamplingOptions::greedy() }, None).unwrap();
    assert_eq!(greedy(vec![]).sample(&[], &logits).unwrap().token, 2);
    assert_eq!(greedy(vec![(3, 9.0)]).sample(&[], &logits).unwrap().token, 3);
    assert_eq!(greedy(vec![(2, f32::NEG_INFINITY)]).sample(&[], &logits).unwrap().token, 1);
    let none = (0..4).map(|t| (t, f32::NEG_INFINITY)).collect::<Vec<_>>();
    assert_eq!(greedy(none.clone()).sample(&[], &logits), Err(SampleError::NoCandidate));
    let drawn = Sampler::new(SamplingOptions { logit_bias: none, ..open() }, None).unwrap();
    assert_eq!(drawn.sample(&[], &logits), Err(SampleError::NoCandidate));
}

#[test]
fn unusual_logits_are_survived() {
    let all =
        [SamplingOptions::greedy(), open(), SamplingOptions { typical_p: 0.5, ..SamplingOptions::default() }];
    for options in all {
        let sampler = Sampler::new(options, Some(2)).unwrap();
        assert_eq!(sampler.sample(&[], &[f32::NAN; 3]), Err(SampleError::NoCandidate));
        assert_eq!(sampler.sample(&[], &[]), Err(SampleError::NoCandidate));
        assert_eq!(sampler.sample(&[], &[0.0, f32::INFINITY, f32::NAN]).unwrap().token, 1);
        assert_eq!(sampler.sample(&[], &[f32::NEG_INFINITY, -1e30, f32::NAN]).unwrap().token, 1);
    }
}

#[test]
fn devices_select_only_where_nothing_else_is_needed() {
    let select = |options, logprobs| Sampler::new(options, logprobs).unwrap().select();
    let base = SamplingOptions::default();
    assert_eq!(select(base.clone(), None), Select::Top(40));
    assert_eq!(select(SamplingOptions::greedy(), None), Select::Top(1));
    assert_eq!(select(base.clone(), Some(0)), Select::Logits);
    assert_eq!(select(SamplingOptions { top_k: 0, ..base.clone() }, None), Select::Logits);
    assert_eq!(select(SamplingOptions { top_k: 65, ..base.clone() }, None), Select::Logits);
    assert_eq!(
        select(SamplingOptions { repeat_penalty: 1.1, ..SamplingOptions::greedy() }, None),
        Select::Logits
    );
    assert_eq!(select(SamplingOptions { logit_bias: vec![(0, 1.0)], ..base.clone() }, None), Select::Logits);
    let dry = DryOptions { multiplier: 1.0, ..DryOptions::default() };
    assert_eq!(select(SamplingOptions { dry, ..base }, None), Select::Logits);
}

#[test]
fn too_short_a_selection_is_an_error() {
    let sampler = Sampler::new(SamplingOptions::default(), None).unwrap();
    let top = top_of(&pseudo_logits(1, 100), 10);
    assert_eq!(sampler.sample_top(&[], &top, 100), Err(SampleError::TooFew { got: 10, needed: 40 }));
    assert!(sampler.sample_top(&[], &top, 10).is_ok());
}

proptest! {
    /// The same token whether a device returns all logits, the asked selection or a longer one.
    #[test]
    fn selection_changes_nothing(
        seed in any::<u64>(), position in 0usize..50, vocab in 1usize..300, extra in 0usize..20,
        top_k in 1usize..=64, (temperature, top_p) in (0f32..2.0, 0.1f32..=1.0), (min_p, typical_p) in (0f32..0.5, 0.1f32..=1.0),
        coarse in any::<bool>(),
    ) {
        let options = SamplingOptions { temperature, top_k, top_p, min_p, typical_p, seed, ..SamplingOptions::default() };
        let mut logits = pseudo_logits(seed, vocab);
        if coarse {
            logits.iter_mut().for_each(|l| *l = l.round());
        }
        let sampler = Sampler::new(options, None).unwrap();
        let history = vec![0; position];
        let Select::Top(k) = sampler.select() else { panic!("a selection is enough here") };
        let expected = sampler.sample(&history, &logits);
        let top = top_of(&logits, k + extra);
        prop_assert_eq!(sampler.sample_top(&history, &top, vocab), expected);
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
        let sampler = Sampler::new(options, Some(3)).unwrap();
        let logits = pseudo_logits(seed, 30);
        let first = sampler.sample(&history, &logits).unwrap();
        prop_assert!(first.token < 30);
        prop_assert_eq!(first.logprobs.as_ref().unwrap().top.len(), 3);
        prop_assert_eq!(sampler.sample(&history, &logits).unwrap(), first);
    }
}
