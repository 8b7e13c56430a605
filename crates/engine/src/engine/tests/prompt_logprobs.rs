//! Prompts whose tokens are scored.

use super::*;
use crate::TokenLogprobs;

fn scored(request: Request) -> Request {
    Request { prompt_logprobs: Some(3), ..request }
}

/// What is to come, from the logits of one position at a time.
fn expected(request: &Request) -> Vec<TokenLogprobs> {
    let mut engine = engine_of(options());
    let mut evaluator = engine.evaluator();
    let pairs = request.prompt.windows(2);
    pairs
        .map(|pair| {
            let logits = evaluator.prefill(&pair[..1], true).unwrap().unwrap();
            TokenLogprobs::new(&logits, pair[1], 3)
        })
        .collect()
}

/// The scores of every sequence, which come before its first token, and the texts.
fn scores(engine: &mut Engine) -> (HashMap<SequenceId, Vec<TokenLogprobs>>, Texts) {
    let (mut all, mut texts) = (HashMap::new(), Texts::new());
    while !engine.is_idle() {
        let events = engine.step().unwrap();
        for event in &events {
            if let Event::PromptLogprobs { sequence, logprobs } = event {
                let begun = texts.get(sequence).is_some_and(|t: &(Vec<u32>, _)| !t.0.is_empty());
                assert!(!begun, "scores after a token");
                assert!(all.insert(*sequence, logprobs.clone()).is_none(), "scores twice");
            }
        }
        collect(&mut texts, events);
    }
    (all, texts)
}

#[test]
fn every_token_but_the_first_is_scored_once() {
    for (chunk, outputs_max) in [(64, None), (64, Some(1)), (7, Some(100)), (64, Some(33)), (500, Some(500))]
    {
        let device = FakeDevice::plain();
        let options = EngineOptions { prefill_chunk: chunk, outputs_max, ..options() };
        let mut engine = engine_on(device.clone(), options);
        // A beginning that is known is scored all the same.
        engine.add(Request { keep: true, ..request(1, 80, 1) }).unwrap();
        drain(&mut engine);
        let requests = [
            scored(request(1, 80, 4)),
            scored(Request { logprobs: Some(1), ..request(2, 1, 3) }),
            request(3, 70, 5),
            scored(request(4, 131, 0)),
        ];
        let ids = requests.clone().map(|r| engine.add(r).unwrap());
        let (all, texts) = scores(&mut engine);
        for (id, request) in ids.iter().zip(&requests) {
            assert_eq!(all.get(id), request.prompt_logprobs.map(|_| expected(request)).as_ref());
            assert_eq!(texts[id], alone(&Request { prompt_logprobs: None, ..request.clone() }));
        }
        // One row of each sequence beside those that are scored.
        let most = outputs_max.unwrap_or(4).max(4);
        assert!(device.outputs_max() <= most + 1, "{} rows read", device.outputs_max());
        engine.clear_kept();
        assert!(all_free(&engine));
    }
}

#[test]
fn what_is_scored_survives_preemption_and_failures() {
    let device = FakeDevice::plain();
    let mut engine = engine_on(
        device.clone(),
        EngineOptions { kv_pages: Some(11), context: 300, outputs_max: Some(40), ..options() },
    );
    let requests: Vec<Request> = (0..4).map(|i| scored(request(i, 40 + i as usize, 140))).collect();
    let ids: Vec<SequenceId> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
    let (all, texts) = scores(&mut engine);
    assert!(engine.counters().preemptions > 0);
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(all[id], expected(request));
        assert_eq!(texts[id], alone(&Request { prompt_logprobs: None, ..request.clone() }));
    }
    // Batches of two prompts fail, and each is tried alone.
    device.set_faults(Faults { rows: Some(18), ..Faults::default() });
    let pair: Vec<Request> = (7..9).map(|i| scored(request(i, 16, 3))).collect();
    let ids: Vec<SequenceId> = pair.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
    let (all, texts) = scores(&mut engine);
    for (id, request) in ids.iter().zip(&pair) {
        assert_eq!(all[id], expected(request));
        assert_eq!(texts[id].1, Some(FinishReason::Length));
    }
    assert!(all_free(&engine));
}
