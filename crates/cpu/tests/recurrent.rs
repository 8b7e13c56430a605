//! A whole model with recurrent state: chunks, reused prefixes and drafts give the tokens of the run token by token.

use std::path::Path;
use std::sync::Arc;

use unicorn_core::quant::Random;
use unicorn_core::{Device, WeightSource};
use unicorn_cpu::{CpuOptions, SimdDevice};
use unicorn_engine::{Drafter, Engine, EngineOptions, Event, Guides, Placement, Request, SamplingOptions};

/// Of every answer.
const TOKENS: usize = 24;

fn engine(options: EngineOptions) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny/lfm2.gguf");
    let model = unicorn_model::open(&path).unwrap();
    let source: Arc<dyn WeightSource> = model.source.clone();
    let device: Arc<dyn Device> =
        Arc::new(SimdDevice::open(CpuOptions { threads: Some(2), level: None }).unwrap());
    let placement = Placement::single(&model.spec).unwrap();
    Engine::new(&model.spec, &source, vec![device], placement, options, &mut |_| {}).unwrap()
}

fn options() -> EngineOptions {
    EngineOptions { context: 256, page_tokens: 32, outputs_max: Some(17), ..EngineOptions::default() }
}

fn request(prompt: &[u32]) -> Request {
    let sampling = SamplingOptions { temperature: 0.0, ..SamplingOptions::default() };
    Request { prompt: prompt.to_vec(), max_tokens: Some(TOKENS), sampling, keep: true, ..Request::default() }
}

/// Guesses from a text, one in three of them wrong.
#[derive(Debug)]
struct Guesses {
    text: Vec<u32>,
    random: u32,
}

impl Drafter for Guesses {
    fn draft(&mut self, tokens: &[u32], max: usize) -> Vec<u32> {
        let coming: Vec<u32> = self.text.iter().skip(tokens.len()).take(max).copied().collect();
        let mut guess = |token: u32| {
            self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if self.random >> 16 & 3 == 0 { (token + 1) % 200 } else { token }
        };
        coming.into_iter().map(&mut guess).collect()
    }
}

#[derive(Default)]
struct Ran {
    tokens: Vec<u32>,
    reused: usize,
    drafted: usize,
    accepted: usize,
}

fn run(engine: &mut Engine, prompt: &[u32], guesses: Option<Guesses>) -> Ran {
    match guesses {
        Some(guesses) => {
            let guides = Guides { drafter: Some(Box::new(guesses)), ..Guides::default() };
            engine.add_guided(request(prompt), guides).unwrap()
        }
        None => engine.add(request(prompt)).unwrap(),
    };
    let mut ran = Ran::default();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { token, .. } => ran.tokens.push(token),
                Event::PromptLogprobs { .. } | Event::Embedding { .. } => {}
                Event::Finished { timings, .. } => {
                    (ran.reused, ran.drafted, ran.accepted) =
                        (timings.reused_tokens, timings.drafted_tokens, timings.accepted_tokens);
                }
            }
        }
    }
    ran
}

#[test]
fn chunks_prefixes_and_drafts_change_no_token() {
    let mut random = Random::new(11);
    let tokens =
        |random: &mut Random, n: usize| (0..n).map(|_| random.below(200) as u32).collect::<Vec<u32>>();
    let (mut drafted, mut accepted, mut from_end, mut from_snapshot) = (0, 0, 0, 0);
    for round in 0..6 {
        let chunk = [1, 3, 17, 40, 64, 100][round];
        let mut tested = engine(EngineOptions { prefill_chunk: chunk, ..options() });
        let mut text = tokens(&mut random, 70);
        for turn in 0..4 {
            let mut plain =
                engine(EngineOptions { prefill_chunk: 1, kept_max: 0, ahead: false, ..options() });
            let expected = run(&mut plain, &text, None).tokens;
            assert_eq!(expected.len(), TOKENS);
            let known = Guesses { text: [&text[..], &expected].concat(), random: round as u32 * 7 + turn };
            let ran = run(&mut tested, &text, (turn % 2 == 1).then_some(known));
            assert_eq!(ran.tokens, expected, "chunks of {chunk}, turn {turn}");
            (drafted, accepted) = (drafted + ran.drafted, accepted + ran.accepted);
            if ran.reused.is_multiple_of(32) {
                from_snapshot += ran.reused
            } else {
                from_end += ran.reused
            };
            // The conversation goes on behind the answer, or departs within it.
            text.extend(&expected);
            if turn == 1 {
                text.truncate(text.len() - 30);
            }
            text.extend(tokens(&mut random, 9));
        }
    }
    assert!(accepted > 0 && drafted > accepted, "{accepted} of {drafted} drafts");
    assert!(from_end > 0 && from_snapshot > 0, "{from_end} tokens from ends, {from_snapshot} from snapshots");
}
