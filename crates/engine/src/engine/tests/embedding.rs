//! Texts that become vectors: of models that generate, and of encoders.

use std::time::Duration;

use unicorn_core::{
    Block, EncoderAttentionSpec, EncoderAttentionWeights, EncoderEmbeddingSpec, EncoderEmbeddingWeights,
    EncoderHeadSpec, LayerNormWeights, Pooling, Select, TensorType, Weight, WeightSpan,
};

use super::*;
use crate::EmbedRequest;

/// Vectors and ends by sequence; texts that go on are left out.
type Vectors = HashMap<SequenceId, (Option<Vec<f32>>, Option<FinishReason>)>;

fn vectors(engine: &mut Engine) -> (Vectors, Texts) {
    let (mut vectors, mut texts) = (Vectors::new(), Texts::new());
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            let entry = vectors.entry(event.sequence()).or_default();
            assert_eq!(entry.1, None, "an event after the last one");
            match event {
                Event::Embedding { vector, .. } => assert_eq!(entry.0.replace(vector), None),
                Event::Finished { reason, .. } => entry.1 = Some(reason),
                Event::PromptLogprobs { .. } => panic!("nobody asked"),
                Event::Token { token, sequence, .. } => texts.entry(sequence).or_default().0.push(token),
            }
        }
    }
    (vectors, texts)
}

fn text(seed: u64, n: usize, pooling: Pooling) -> EmbedRequest {
    EmbedRequest::new(prompt(seed, n), pooling, false)
}

fn is_vector(end: &(Option<Vec<f32>>, Option<FinishReason>), wanted: &[f32]) -> bool {
    end == &(Some(wanted.to_vec()), Some(FinishReason::Embedded))
}

/// What the model's hidden states of a text, all read at once, make with this pooling.
fn pooled(request: &EmbedRequest) -> Vec<f32> {
    let mut engine = engine_of(EngineOptions { prefill_chunk: 512, ..options() });
    let rows: Vec<u32> = (0..request.tokens.len() as u32).collect();
    let output = engine.evaluator().feed(&request.tokens, &rows, Select::Hidden).unwrap().unwrap();
    pool(&output.hidden, request.pooling)
}

fn pool(hidden: &[f32], pooling: Pooling) -> Vec<f32> {
    let rows: Vec<&[f32]> = hidden.chunks_exact(4).collect();
    let mean = |i: usize| rows.iter().map(|row| row[i] as f64).sum::<f64>() / rows.len() as f64;
    match pooling {
        Pooling::Mean => (0..4).map(|i| mean(i) as f32).collect(),
        Pooling::Cls => rows[0].to_vec(),
        Pooling::Last => rows[rows.len() - 1].to_vec(),
    }
}

#[test]
fn a_model_that_generates_embeds_beside_its_texts() {
    for prefill_chunk in [7, 64] {
        let mut engine = engine_of(EngineOptions { prefill_chunk, ..options() });
        let mut asked = Vec::new();
        for i in 0..4 {
            // One of one token among them.
            for (pooling, _) in Pooling::ALL {
                let request = text(i, 1 + 40 * i as usize, pooling);
                asked.push((engine.add_embedding(request.clone()).unwrap(), request));
            }
            engine.add(Request { keep: true, ..request(i, 30, 20) }).unwrap();
        }
        let (mut ends, texts) = vectors(&mut engine);
        for (id, request) in &asked {
            let got = ends.remove(id).unwrap();
            assert!(is_vector(&got, &pooled(request)), "chunk {prefill_chunk}: {request:?} {got:?}");
        }
        assert_eq!((texts.len(), ends.len()), (4, 4));
        let mut texts: Vec<_> = texts.into_iter().collect();
        texts.sort_by_key(|(id, _)| *id);
        for (i, (id, (tokens, _))) in (0..).zip(texts) {
            assert_eq!(tokens, alone(&request(i, 30, 20)).0);
            assert_eq!(ends[&id].1, Some(FinishReason::Length));
        }
        engine.clear_kept();
        assert!(all_free(&engine));
    }
}

#[test]
fn kept_beginnings_serve_the_last_token_and_no_mean() {
    let mut engine = engine_of(options());
    engine.add(Request { keep: true, ..request(5, 200, 3) }).unwrap();
    drain(&mut engine);
    for (pooling, _) in Pooling::ALL {
        let request = text(5, 200, pooling);
        let id = engine.add_embedding(request.clone()).unwrap();
        assert!(is_vector(&vectors(&mut engine).0[&id], &pooled(&request)), "{pooling}");
    }
}

#[test]
fn preempted_and_retried_texts_lose_nothing() {
    // Pages for two of these texts at most.
    let mut engine = engine_of(EngineOptions { kv_pages: Some(9), ..options() });
    let requests: Vec<EmbedRequest> = (0..6).map(|i| text(i, 120 + i as usize, Pooling::Mean)).collect();
    let ids: Vec<_> = requests.iter().map(|r| engine.add_embedding(r.clone()).unwrap()).collect();
    engine.add(request(9, 100, 60)).unwrap();
    let ends = vectors(&mut engine).0;
    for (id, request) in ids.iter().zip(&requests) {
        assert!(is_vector(&ends[id], &pooled(request)));
    }
    assert!(all_free(&engine));
    // What a batch fails for is one of them.
    let device = FakeDevice::plain();
    let mut engine = engine_on(device.clone(), EngineOptions { prefill_chunk: 16, ..options() });
    let mut bad = text(1, 50, Pooling::Mean);
    bad.tokens.iter_mut().for_each(|t| *t %= 63);
    let mut good = bad.clone();
    good.tokens.reverse();
    bad.tokens[40] = 63;
    device.set_faults(Faults { token: Some(63), ..Faults::default() });
    let ids = [&bad, &good].map(|r| engine.add_embedding(r.clone()).unwrap());
    let ends = vectors(&mut engine).0;
    assert!(matches!(ends[&ids[0]], (None, Some(FinishReason::Device(_)))));
    assert!(is_vector(&ends[&ids[1]], &pooled(&good)));
}

/// Embedding of tokens and positions, `layers` times a mixer, head.
fn encoder_spec(layers: usize) -> ModelSpec {
    let mut offset = 0;
    let mut weight = |name: &str, rows: usize, cols: usize| {
        let bytes = (rows * cols * 4) as u64;
        offset += bytes;
        let span = WeightSpan { file: 0, offset: offset - bytes, bytes };
        Weight { name: name.into(), ty: TensorType::F32, rows, cols, span }
    };
    let mut norm = || LayerNormWeights { weight: weight("norm", 1, 4), bias: weight("norm_bias", 1, 4) };
    let norms: Vec<LayerNormWeights> = (0..=layers).map(|_| norm()).collect();
    let spec =
        EncoderEmbeddingSpec { width: 4, vocab: VOCAB, positions: 512, token_types: 2, norm_eps: 1e-6 };
    let weights = EncoderEmbeddingWeights {
        table: weight("token_embd", VOCAB, 4),
        positions: weight("position_embd", 512, 4),
        token_types: weight("token_types", 2, 4),
        norm: norms[layers].clone(),
    };
    let mut blocks = vec![Block::EncoderEmbedding { spec, weights: Box::new(weights) }];
    for norm in norms.into_iter().take(layers) {
        let spec = EncoderAttentionSpec { width: 4, heads: 1, head_dim: 4, scale: 0.5, norm_eps: 1e-6 };
        let [q, k, v, o] = ["q", "k", "v", "o"].map(|name| weight(name, 4, 4));
        let [q_bias, k_bias, v_bias, o_bias] = ["qb", "kb", "vb", "ob"].map(|name| weight(name, 1, 4));
        let weights = EncoderAttentionWeights { q, k, v, o, q_bias, k_bias, v_bias, o_bias, norm };
        blocks.push(Block::EncoderAttention { spec, weights: Box::new(weights) });
    }
    blocks.push(Block::EncoderHead { spec: EncoderHeadSpec { width: 4 } });
    ModelSpec { blocks, context_max: 512, ..tiny_spec(1) }
}

/// The vector of a text alone.
fn encoded(request: &EmbedRequest) -> Vec<f32> {
    let mut engine = engine_with(&encoder_spec(2), FakeDevice::plain(), options());
    let id = engine.add_embedding(request.clone()).unwrap();
    vectors(&mut engine).0.remove(&id).unwrap().0.unwrap()
}

#[test]
fn an_encoder_takes_many_whole_texts_at_once() {
    let device = FakeDevice::plain();
    let options = EngineOptions { sequences_max: 16, prefill_chunk: 100, ..options() };
    let mut engine = engine_with(&encoder_spec(2), device.clone(), options.clone());
    let requests: Vec<EmbedRequest> =
        (0..30).map(|i| text(i, 1 + 7 * (i as usize % 5), Pooling::ALL[i as usize % 3].0)).collect();
    let ids: Vec<_> = requests.iter().map(|r| engine.add_embedding(r.clone()).unwrap()).collect();
    let ends = vectors(&mut engine).0;
    for (id, request) in ids.iter().zip(&requests) {
        assert!(is_vector(&ends[id], &encoded(request)), "{request:?}");
    }
    // 450 tokens in batches of up to 100, 16 texts at a time.
    assert!(device.rows_max() <= 100 && engine.stats().submits <= 8, "{:?}", engine.stats());
    // A long one has a batch of its own, whatever the chunk.
    let long = text(99, 512, Pooling::Mean);
    let id = engine.add_embedding(long.clone()).unwrap();
    assert!(is_vector(&vectors(&mut engine).0[&id], &encoded(&long)));
    assert_eq!(device.rows_max(), 512);
    // Another text is another vector, and so is another order of its tokens.
    let mut turned = long.clone();
    turned.tokens.reverse();
    assert_ne!(encoded(&turned), encoded(&long));
    assert_eq!(encoded(&EmbedRequest { normalize: true, ..long.clone() }).len(), 4);
    let length: f32 = encoded(&EmbedRequest { normalize: true, ..long }).iter().map(|v| v * v).sum();
    assert!((length - 1.0).abs() < 1e-6);
}

#[test]
fn an_encoder_on_two_devices_gives_the_same_vectors() {
    let spec = encoder_spec(3);
    let device = |name: &str| -> Arc<dyn Device> {
        Arc::new(FakeDevice::new(name, Pace::Lazy(Duration::from_millis(1)), Log::default()))
    };
    let placement = Placement::new(&spec, 2, vec![0, 0, 1, 0, 1]).unwrap();
    let devices = vec![device("a"), device("b")];
    let options = EngineOptions { prefill_chunk: 64, ..options() };
    let mut engine =
        Engine::new(&spec, &zero_weights(), devices, placement, options.clone(), &mut |_| {}).unwrap();
    let mut one = engine_with(&spec, FakeDevice::plain(), options);
    let of = |engine: &mut Engine| {
        (0..12).for_each(|i| {
            engine.add_embedding(text(i, 1 + 11 * i as usize, Pooling::Mean)).unwrap();
        });
        vectors(engine).0
    };
    assert_eq!(of(&mut engine), of(&mut one));
    assert!(engine.stats().crossings > 0);
}

#[test]
fn what_an_encoder_cannot_do_is_said() {
    let device = FakeDevice::plain();
    let options = EngineOptions { queue_max: 1, sequences_max: 1, ..options() };
    let mut engine = engine_with(&encoder_spec(2), device.clone(), options);
    assert_eq!(engine.add(request(1, 5, 5)), Err(AdmissionError::Encoder));
    assert!(matches!(engine.evaluator().feed(&[1], &[0], Select::Logits), Err(EngineError::Encoder)));
    let with = |tokens: Vec<u32>| EmbedRequest::new(tokens, Pooling::Mean, true);
    assert_eq!(engine.add_embedding(with(vec![])), Err(AdmissionError::EmptyPrompt));
    let long = engine.add_embedding(with(vec![1; 513]));
    assert_eq!(long, Err(AdmissionError::PromptTooLong { prompt: 513, context: 512 }));
    let outside = engine.add_embedding(with(vec![1, VOCAB as u32]));
    assert!(matches!(outside, Err(AdmissionError::TokenOutOfRange { .. })));
    let [first, second] = [1, 2].map(|i| engine.add_embedding(text(i, 9, Pooling::Mean)).unwrap());
    let full = engine.add_embedding(text(3, 9, Pooling::Mean));
    assert_eq!(full, Err(AdmissionError::QueueFull { queued: 2 }));
    assert!(engine.cancel(second) && !engine.cancel(second));
    let ends = vectors(&mut engine).0;
    assert_eq!(ends[&second], (None, Some(FinishReason::Cancelled)));
    assert!(is_vector(&ends[&first], &encoded(&text(1, 9, Pooling::Mean))));
    device.set_faults(Faults { nan: true, ..Faults::default() });
    let id = engine.add_embedding(text(1, 9, Pooling::Mean)).unwrap();
    assert_eq!(vectors(&mut engine).0[&id], (None, Some(FinishReason::NotFinite)));
}

/// Steps until devices are lost, and goes on with another engine.
fn lose_and_go_on(
    mut engine: Engine,
    device: &FakeDevice,
    mut other: Engine,
) -> (HashMap<SequenceId, Vec<f32>>, Engine) {
    let mut vectors = HashMap::new();
    let mut take = |events: Vec<Event>| {
        for event in events {
            if let Event::Embedding { sequence, vector } = event {
                assert_eq!(vectors.insert(sequence, vector), None, "a second vector");
            }
        }
    };
    take(engine.step().unwrap());
    device.set_faults(Faults { lost: true, ..Faults::default() });
    while let Ok(events) = engine.step() {
        assert!(!engine.is_idle(), "nothing is left to lose");
        take(events);
    }
    other.adopt(engine.survivors().unwrap());
    while !other.is_idle() {
        take(other.step().unwrap());
    }
    (vectors, other)
}

#[test]
fn a_lost_device_costs_no_vector() {
    for spec in [tiny_spec(2), encoder_spec(2)] {
        let device = FakeDevice::plain();
        let options = EngineOptions { prefill_chunk: 32, ..options() };
        let mut engine = engine_with(&spec, device.clone(), options.clone());
        let requests: Vec<EmbedRequest> =
            (0..30).map(|i| text(i, 3 + 7 * i as usize, Pooling::ALL[i as usize % 3].0)).collect();
        let ids: Vec<_> = requests.iter().map(|r| engine.add_embedding(r.clone()).unwrap()).collect();
        let other = engine_with(&spec, FakeDevice::plain(), options);
        // Some are under way, others wait.
        let (vectors, other) = lose_and_go_on(engine, &device, other);
        for (id, request) in ids.iter().zip(&requests) {
            let wanted = if spec.is_encoder() { encoded(request) } else { pooled(request) };
            assert_eq!(vectors[id], wanted, "{request:?}");
        }
        assert!(all_free(&other));
    }
}

#[test]
fn an_encoder_without_memory_takes_fewer_texts_at_once() {
    let device = FakeDevice::plain();
    let options = EngineOptions { sequences_max: 16, prefill_chunk: 200, ..options() };
    let mut engine = engine_with(&encoder_spec(2), device.clone(), options);
    device.set_faults(Faults { memory: Some(40), ..Faults::default() });
    let requests: Vec<EmbedRequest> = (0..12).map(|i| text(i, 10 + i as usize, Pooling::Mean)).collect();
    let ids: Vec<_> = requests.iter().map(|r| engine.add_embedding(r.clone()).unwrap()).collect();
    // One that cannot be made smaller ends, and does not keep others from going on.
    let long = engine.add_embedding(text(50, 41, Pooling::Mean)).unwrap();
    let ends = vectors(&mut engine).0;
    for (id, request) in ids.iter().zip(&requests) {
        assert!(is_vector(&ends[id], &encoded(request)), "{request:?} {:?}", ends[id]);
    }
    let reason = |what: &Failure| what.to_string().contains("memory");
    assert!(matches!(&ends[&long], (None, Some(FinishReason::Device(what))) if reason(what)));
    assert!(engine.counters().batches_cut > 0);
}
