//! Texts that have to obey something.

use std::sync::Mutex;

use super::*;
use crate::{Constraint, Drafter};

/// Tokens must leave the remainders of `word`, modulo 8, and the text is complete with the last. Keeps what it was told.
#[derive(Clone)]
struct Remainders {
    word: Vec<u32>,
    accepted: Arc<Mutex<Vec<u32>>>,
    /// The mask of this token is an error, and accepting this one is.
    fails: [Option<usize>; 2],
}

impl Remainders {
    fn of(seed: u64, length: u64) -> Remainders {
        let word = (0..length).map(|i| (uniform(seed, 1000 + i) * 8.0) as u32).collect();
        Remainders { word, accepted: Arc::default(), fails: [None; 2] }
    }

    fn obeyed(&self, tokens: &[u32]) -> bool {
        tokens.iter().zip(&self.word).all(|(t, w)| t % 8 == *w) && tokens.len() <= self.word.len()
    }
}

impl Constraint for Remainders {
    fn mask(&mut self) -> Result<Option<Arc<TokenMask>>, String> {
        let at = self.accepted.lock().unwrap().len();
        if self.fails[0] == Some(at) {
            return Err("no mask".into());
        }
        let allowed = (0..VOCAB as u32).filter(|t| t % 8 == self.word[at]);
        Ok(Some(Arc::new(TokenMask::of(VOCAB, allowed))))
    }

    fn accept(&mut self, token: u32) -> Result<bool, String> {
        let mut accepted = self.accepted.lock().unwrap();
        if self.fails[1] == Some(accepted.len()) {
            return Err("no such token".into());
        }
        accepted.push(token);
        Ok(accepted.len() == self.word.len())
    }
}

fn guided(constraint: &Remainders) -> Guides {
    Guides { constraint: Some(Box::new(constraint.clone())), drafter: None }
}

/// The text of a constrained request alone.
fn constrained_alone(request: &Request, constraint: &Remainders) -> (Vec<u32>, Option<FinishReason>) {
    let constraint = Remainders { accepted: Arc::default(), ..constraint.clone() };
    let mut engine = engine_of(EngineOptions { sequences_max: 1, prefill_chunk: 512, ..options() });
    let id = engine.add_guided(request.clone(), guided(&constraint)).unwrap();
    drain(&mut engine).remove(&id).unwrap()
}

#[test]
fn a_constrained_text_obeys_and_ends_when_it_is_complete() {
    for greedy_ones in [false, true] {
        let base = request(1, 70, 40);
        let base = if greedy_ones { Request { stop_tokens: vec![], ..greedy(base) } } else { base };
        let constraint = Remainders::of(3, 12);
        // A device that could go on by itself, whole logits, and a device that selects.
        for logprobs in [None, Some(1)] {
            let device = Arc::new(FakeDevice::new("fake", LAZY, Log::default()));
            let mut engine = engine_on(device, options());
            let constraint = Remainders { accepted: Arc::default(), ..constraint.clone() };
            let request = Request { logprobs, ..base.clone() };
            let id = engine.add_guided(request.clone(), guided(&constraint)).unwrap();
            let (tokens, reason) = drain(&mut engine).remove(&id).unwrap();
            assert_eq!((tokens.len(), reason), (12, Some(FinishReason::Stop)));
            assert!(constraint.obeyed(&tokens), "{tokens:?}");
            assert_eq!(*constraint.accepted.lock().unwrap(), tokens);
            assert!(!constraint.obeyed(&alone(&request).0), "the text obeys without being told");
            assert!(all_free(&engine));
        }
    }
}

#[test]
fn the_constraint_decides_about_stop_tokens_and_the_mask_of_the_request_counts_too() {
    let constraint = Remainders { word: vec![1, 2, 3, 0], ..Remainders::of(0, 0) };
    let run = |request: Request| {
        let constraint = Remainders { accepted: Arc::default(), ..constraint.clone() };
        let mut engine = engine_of(options());
        let id = engine.add_guided(request, guided(&constraint)).unwrap();
        let accepted = constraint.accepted;
        (drain(&mut engine).remove(&id).unwrap(), accepted.lock().unwrap().clone())
    };
    // All stop tokens are multiples of 8: the fourth token is the first that can be one. It is not reported, but told.
    let stops: Vec<u32> = (0..VOCAB as u32).filter(|t| t % 8 == 0).collect();
    let ((tokens, reason), accepted) = run(Request { stop_tokens: stops, ..request(1, 20, 40) });
    assert_eq!((tokens.len(), reason, accepted.len()), (3, Some(FinishReason::Stop), 4));
    let low = |below: u32| Some(Arc::new(TokenMask::of(VOCAB, 0..below)));
    let ((tokens, reason), _) = run(Request { mask: low(16), ..request(1, 20, 40) });
    assert_eq!((tokens.len(), reason), (4, Some(FinishReason::Stop)));
    assert!(tokens.iter().all(|t| *t < 16), "{tokens:?}");
    // The third token cannot be below 3.
    let ((tokens, reason), _) = run(Request { mask: low(3), ..request(1, 20, 40) });
    assert_eq!(tokens, [1, 2]);
    assert!(matches!(&reason, Some(FinishReason::Constraint(why)) if why.contains("own mask")), "{reason:?}");
}

#[test]
fn a_constraint_that_fails_ends_its_sequence_alone_and_nothing_unchecked_is_reported() {
    struct Foreign;
    impl Constraint for Foreign {
        fn mask(&mut self) -> Result<Option<Arc<TokenMask>>, String> {
            Ok(Some(Arc::new(TokenMask::new(vec![1]))))
        }
        fn accept(&mut self, _: u32) -> Result<bool, String> {
            Ok(false)
        }
    }
    let mut engine = engine_of(options());
    let other = engine.add(request(2, 40, 10)).unwrap();
    let failing = |fails| Remainders { fails, ..Remainders::of(5, 20) };
    let [mask, accept] = [[Some(4), None], [None, Some(6)]]
        .map(|fails| engine.add_guided(request(1, 30, 30), guided(&failing(fails))).unwrap());
    let foreign = Guides { constraint: Some(Box::new(Foreign)), drafter: None };
    let foreign = engine.add_guided(request(1, 30, 30), foreign).unwrap();
    let texts = drain(&mut engine);
    let whole = constrained_alone(&request(1, 30, 30), &Remainders::of(5, 20)).0;
    let why = |text: &str| Some(FinishReason::Constraint(text.into()));
    assert_eq!(texts[&mask], (whole[..4].to_vec(), why("no mask")));
    assert_eq!(texts[&accept], (whole[..6].to_vec(), why("no such token")));
    assert!(texts[&foreign].0.is_empty());
    assert!(
        matches!(&texts[&foreign].1, Some(FinishReason::Constraint(why)) if why.contains("mask of 1 words"))
    );
    assert_eq!(texts[&other], alone(&request(2, 40, 10)));
    assert!(all_free(&engine));
}

#[test]
fn constrained_texts_are_not_drafted() {
    #[derive(Debug)]
    struct Never;
    impl Drafter for Never {
        fn draft(&mut self, _: &[u32], _: usize) -> Vec<u32> {
            panic!("asked for drafts")
        }
    }
    let constraint = Remainders::of(5, 20);
    let mut engine = engine_of(options());
    let guides = Guides { drafter: Some(Box::new(Never)), ..guided(&constraint) };
    let id = engine.add_guided(request(1, 30, 30), guides).unwrap();
    assert_eq!(drain(&mut engine)[&id].0, constrained_alone(&request(1, 30, 30), &constraint).0);
}

proptest! {
    /// Preempted, batched with others, failed once and tried again: a constrained text is the one that it is alone, and the constraint is told
    /// each token once.
    #[test]
    fn constraints_keep_their_state(
        pages in 5usize..14, prefill_chunk in 1usize..90, poisoned in any::<bool>(), seed in 0u64..1000,
        lens in prop::collection::vec((1usize..100, 1u64..50), 2..7),
    ) {
        let device = FakeDevice::plain();
        // What is computed again has more rows than a device that fails may have.
        let pages = if poisoned { 40 } else { pages };
        let options = EngineOptions { kv_pages: Some(pages), context: 160, prefill_chunk, ..options() };
        let mut engine = engine_on(device.clone(), options);
        device.set_faults(Faults { rows: poisoned.then_some(3), ..Faults::default() });
        let all: Vec<(Request, Remainders)> = (0..).zip(&lens)
            .map(|(i, (prompt, word))| (request(seed + i, if poisoned { 1 + prompt % 3 } else { *prompt }, 60), Remainders::of(seed + i, *word)))
            .collect();
        let ids: Vec<_> = all.iter().map(|(r, c)| engine.add_guided(r.clone(), guided(c)).unwrap()).collect();
        let texts = drain(&mut engine);
        for (id, (request, constraint)) in ids.iter().zip(&all) {
            prop_assert_eq!(&texts[id], &constrained_alone(request, constraint));
            prop_assert_eq!(&texts[id].0, &*constraint.accepted.lock().unwrap());
        }
        prop_assert!(all_free(&engine));
    }
}
