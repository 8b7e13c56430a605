//! The device as a whole: against the reference, bit for bit against itself, and what it says to misuse.

use std::sync::Arc;

use unicorn_cases::synthetic::{SyntheticLayout, SyntheticSource};
use unicorn_core::rope::RopeScaling;
use unicorn_core::{
    Activation, AttentionSpec, AttentionWeights, Batch, Block, BlockId, Device, DeviceError, EmbeddingSpec,
    FfnSpec, FfnWeights, HeadOutput, HeadSpec, KvLayout, KvType, NormSpec, PageId, RopeSpec, RopeStyle,
    Select, SequenceId, Slice, StreamId, TensorType, WeightError, WeightSource, WeightSpan, Work,
};

use super::testing::random_source;
use super::{CpuOptions, SimdDevice, SimdLevel};
use crate::ReferenceDevice;

const VOCAB: usize = 517;
const WIDTH: usize = 192;
const LAYOUT: KvLayout = KvLayout { page_tokens: 32, pages: 64, positions: 2048, ty: KvType::F16 };

/// Types of query, key, value, output, gate, up, down, head.
type Types = [TensorType; 8];

const MIXED: Types = {
    use TensorType::*;
    [Q4_1, Q8_0, F16, Q5_0, Q4_0, Q8_0, Q5_1, F16]
};

/// A model of two layers; `gemma` has every optional part, and a tied head.
fn model(gemma: bool, types: Types) -> Vec<Block> {
    let mut l = SyntheticLayout::default();
    let [tq, tk, tv, to, tg, tu, td, th] = types;
    let norm = NormSpec { weight_offset: if gemma { 1.0 } else { 0.0 }, ..NormSpec::rms(1e-6) };
    let (heads, kv_heads, head_dim, hidden) = (6, if gemma { 1 } else { 2 }, 32, 352);
    let table = l.matrix("table", th, VOCAB, WIDTH);
    let scale = if gemma { 4.0 } else { 1.0 };
    let mut blocks = vec![Block::Embedding {
        spec: EmbeddingSpec { width: WIDTH, vocab: VOCAB, scale },
        table: table.clone(),
    }];
    for layer in 0..2 {
        let style = if gemma { RopeStyle::Neox } else { RopeStyle::Normal };
        let base = if layer == 0 { 10_000.0 } else { 1_000_000.0 };
        let spec = AttentionSpec {
            width: WIDTH,
            heads,
            kv_heads,
            head_dim,
            scale: 0.2,
            rope: RopeSpec::new(style, head_dim, base, &RopeScaling::None),
            window: (gemma && layer == 0).then_some(40),
            soft_cap: gemma.then_some(30.0),
            norm,
            qk_norm: gemma.then_some(norm),
            post_norm: gemma.then_some(norm),
        };
        let bias = |l: &mut SyntheticLayout, n: usize| (!gemma).then(|| l.bias("bias", n));
        let weights = AttentionWeights {
            norm: l.norm("norm", WIDTH),
            q: l.matrix("q", tq, heads * head_dim, WIDTH),
            k: l.matrix("k", tk, kv_heads * head_dim, WIDTH),
            v: l.matrix("v", tv, kv_heads * head_dim, WIDTH),
            o: l.matrix("o", to, WIDTH, heads * head_dim),
            q_bias: bias(&mut l, heads * head_dim),
            k_bias: bias(&mut l, kv_heads * head_dim),
            v_bias: bias(&mut l, kv_heads * head_dim),
            o_bias: bias(&mut l, WIDTH),
            q_norm: gemma.then(|| l.norm("q_norm", head_dim)),
            k_norm: gemma.then(|| l.norm("k_norm", head_dim)),
            post_norm: gemma.then(|| l.norm("post_norm", WIDTH)),
        };
        blocks.push(Block::Attention { spec, weights: Box::new(weights) });
        let spec = FfnSpec {
            width: WIDTH,
            hidden,
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            norm,
            post_norm: gemma.then_some(norm),
        };
        let weights = FfnWeights {
            norm: l.norm("norm", WIDTH),
            gate: l.matrix("gate", tg, hidden, WIDTH),
            up: l.matrix("up", tu, hidden, WIDTH),
            down: l.matrix("down", td, WIDTH, hidden),
            post_norm: gemma.then(|| l.norm("post_norm", WIDTH)),
        };
        blocks.push(Block::Ffn { spec, weights: Box::new(weights) });
    }
    let weight = if gemma { table } else { l.matrix("head", th, VOCAB, WIDTH) };
    blocks.push(Block::Head {
        spec: HeadSpec { width: WIDTH, vocab: VOCAB, norm, soft_cap: gemma.then_some(15.0) },
        norm: l.norm("norm", WIDTH),
        weight,
    });
    blocks
}

fn load(device: &dyn Device, blocks: &[Block], layout: KvLayout) -> Vec<BlockId> {
    let source = SyntheticSource::new(7);
    let ids = blocks.iter().map(|b| device.load(b, &source).unwrap()).collect();
    device.reserve_kv(layout).unwrap();
    ids
}

fn open(level: SimdLevel, threads: usize) -> SimdDevice {
    SimdDevice::open(CpuOptions { threads: Some(threads), level: Some(level) }).unwrap()
}

/// Runs two sequences of tokens in chunks; returns the logits of every position of each.
fn logits(device: &dyn Device, ids: &[BlockId], sequences: &[Vec<u32>], chunk: usize) -> Vec<Vec<f32>> {
    let mut results = vec![Vec::new(); sequences.len()];
    let longest = sequences.iter().map(Vec::len).max().unwrap();
    for start in (0..longest).step_by(chunk) {
        let slices = sequences.iter().enumerate().filter(|(_, tokens)| tokens.len() > start);
        let slices = slices.map(|(i, tokens)| Slice {
            sequence: SequenceId(i as u64),
            tokens: tokens[start..tokens.len().min(start + chunk)].to_vec(),
            start: start as u32,
            pages: (0..16).map(|p| p * 2 + i as PageId).collect(),
        });
        let slices: Vec<Slice> = slices.collect();
        let rows: usize = slices.iter().map(|s| s.tokens.len()).sum();
        let batch = Batch { slices, outputs: (0..rows as u32).collect(), select: Select::Logits };
        let HeadOutput::Logits(all) = submit(device, ids, batch.clone()).unwrap() else {
            panic!("not logits")
        };
        let mut at = 0;
        for slice in &batch.slices {
            let n = slice.tokens.len() * VOCAB;
            results[slice.sequence.0 as usize].extend_from_slice(&all[at..at + n]);
            at += n;
        }
    }
    results
}

fn submit(device: &dyn Device, ids: &[BlockId], batch: Batch) -> Result<HeadOutput, DeviceError> {
    let stream = StreamId(3);
    let ticket = device.submit(&Work { stream, blocks: ids.to_vec(), batch: Arc::new(batch) })?;
    device.wait(ticket)?;
    device.take_output(stream)
}

fn tokens(name: &str, lens: &[usize]) -> Vec<Vec<u32>> {
    let mut random = random_source(name);
    lens.iter().map(|n| (0..*n).map(|_| random.below(VOCAB) as u32).collect()).collect()
}

#[test]
fn float_models_equal_the_reference() {
    let sequences = tokens("device", &[90, 33]);
    let layout = KvLayout { ty: KvType::F32, ..LAYOUT };
    for gemma in [false, true] {
        let blocks = model(gemma, [TensorType::F32; 8]);
        let oracle = ReferenceDevice::new();
        let want = logits(&oracle, &load(&oracle, &blocks, layout), &sequences, 64);
        for level in SimdLevel::available() {
            let device = open(level, 2);
            let got = logits(&device, &load(&device, &blocks, layout), &sequences, 64);
            let (got, want) = (got.concat(), want.concat());
            let rms = (want.iter().map(|v| v * v).sum::<f32>() / want.len() as f32).sqrt();
            for (g, w) in got.iter().zip(&want) {
                assert!((g - w).abs() <= 1e-4 * rms, "{level} gemma {gemma}: {g}, reference {w}, rms {rms}");
            }
        }
    }
}

#[test]
fn the_same_bits_for_any_thread_count_and_cut() {
    let sequences = tokens("device bits", &[75, 40]);
    for gemma in [false, true] {
        let blocks = model(gemma, MIXED);
        for level in SimdLevel::available() {
            let run = |threads: usize, chunk: usize, sequences: &[Vec<u32>]| -> Vec<Vec<u32>> {
                let device = open(level, threads);
                let ids = load(&device, &blocks, LAYOUT);
                let all = logits(&device, &ids, sequences, chunk);
                all.into_iter().map(|s| s.into_iter().map(f32::to_bits).collect()).collect()
            };
            let whole = run(1, 1000, &sequences);
            for (threads, chunk) in [(2, 1000), (3, 1), (4, 17), (1, 33)] {
                assert!(
                    run(threads, chunk, &sequences) == whole,
                    "{level} gemma {gemma}: {threads} threads, chunks of {chunk}"
                );
            }
            assert!(run(2, 29, &sequences[..1])[0] == whole[0], "{level} gemma {gemma}: alone");
        }
    }
}

#[test]
fn top_k_is_the_head_of_the_sorted_logits() {
    let device = open(SimdLevel::detect(), 3);
    let ids = load(&device, &model(true, MIXED), LAYOUT);
    let sequence = tokens("device top k", &[20]);
    let all = logits(&device, &ids, &sequence, 20);
    let slice = Slice { sequence: SequenceId(0), tokens: sequence[0].clone(), start: 0, pages: vec![0] };
    for k in [0, 1, 5, VOCAB, usize::MAX] {
        let batch = Batch { slices: vec![slice.clone()], outputs: vec![3, 19], select: Select::Top(k) };
        let HeadOutput::Top(rows) = submit(&device, &ids, batch).unwrap() else { panic!("not a selection") };
        assert_eq!(rows.len(), 2);
        for (row, entries) in [3, 19].into_iter().zip(rows) {
            let logits = &all[0][row * VOCAB..(row + 1) * VOCAB];
            let mut order: Vec<usize> = (0..VOCAB).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
            assert_eq!(entries.len(), k.min(VOCAB));
            for (entry, want) in entries.iter().zip(order) {
                assert_eq!((entry.token as usize, entry.logit), (want, logits[want]), "k {k}");
            }
        }
    }
}

#[test]
fn weights_are_kept_once_and_freed() {
    let device = open(SimdLevel::detect(), 2);
    let blocks = model(true, MIXED);
    let ids = load(&device, &blocks, LAYOUT);
    let held = device.memory();
    let mut seen = std::collections::HashSet::new();
    let file: u64 =
        blocks.iter().flat_map(Block::weights).filter(|w| seen.insert(w.span)).map(|w| w.span.bytes).sum();
    assert!(held.weights >= file * 9 / 10 && held.weights < file * 12 / 10, "{} of {file}", held.weights);
    assert_eq!(held.copied, file);
    assert!(held.kv >= (2 * 2 * 64 * 32 * 32 * 2) as u64);
    assert!(
        device.describe(ids[1]).iter().any(|l| l.contains("attention_qkv q4_1+q8_0+f16")),
        "{:?}",
        device.describe(ids[1])
    );
    for id in ids {
        device.unload(id);
    }
    let freed = device.memory();
    assert_eq!((freed.weights, freed.kv), (0, 0));
    assert!(device.describe(BlockId(0)).is_empty());
}

#[test]
fn profiles_name_every_kernel() {
    let device = open(SimdLevel::detect(), 2);
    let ids = load(&device, &model(false, MIXED), LAYOUT);
    device.set_profiling(true);
    logits(&device, &ids, &tokens("device profile", &[40]), 20);
    let times = device.kernel_times();
    let mut kernels: Vec<String> = ids.iter().flat_map(|id| device.describe(*id)).collect();
    kernels.sort();
    kernels.dedup();
    kernels.retain(|k| !k.starts_with("head_select"));
    let mut timed: Vec<String> = times.iter().map(|t| t.kernel.clone()).collect();
    timed.sort();
    assert_eq!(timed, kernels);
    let down = times.iter().find(|t| t.kernel.starts_with("ffn_down")).unwrap();
    assert_eq!((down.calls, down.flops), (4, 2 * 40 * 2 * 352 * WIDTH as u64));
    assert!(times.iter().all(|t| t.seconds > 0.0));
    device.set_profiling(false);
    assert!(device.kernel_times().is_empty());
}

/// A source that fails after some reads.
struct Broken(std::sync::atomic::AtomicUsize);

impl WeightSource for Broken {
    fn read(&self, span: &WeightSpan, _: u64, buf: &mut [u8]) -> Result<(), WeightError> {
        if self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= 2 {
            return Err(WeightError::Truncated { file: "broken.gguf".into(), end: span.offset });
        }
        buf.fill(0);
        Ok(())
    }
}

#[test]
fn a_failed_load_keeps_nothing() {
    let device = open(SimdLevel::detect(), 2);
    let error = device.load(&model(false, MIXED)[1], &Broken(0.into())).unwrap_err();
    assert!(matches!(error, DeviceError::Weight { .. }), "{error}");
    assert_eq!(device.memory().weights, 0);
}

#[test]
fn misuse_is_a_typed_error() {
    let device = open(SimdLevel::detect(), 2);
    let source = SyntheticSource::new(7);
    let blocks = model(false, MIXED);
    let ids: Vec<BlockId> = blocks.iter().map(|b| device.load(b, &source).unwrap()).collect();
    let slice = Slice { sequence: SequenceId(0), tokens: vec![1; 33], start: 0, pages: vec![5, 6] };
    let batch = Batch { slices: vec![slice.clone()], outputs: vec![32], select: Select::Top(1) };
    let refuse = |ids: &[BlockId], batch: Batch, what: &str| {
        let error = submit(&device, ids, batch).unwrap_err();
        assert!(matches!(error, DeviceError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error} does not say {what:?}");
    };
    refuse(&ids, batch.clone(), "no KV cache");
    device.reserve_kv(LAYOUT).unwrap();
    submit(&device, &ids, batch.clone()).unwrap();
    refuse(&[BlockId(99)], batch.clone(), "no block 99");
    refuse(&ids[..2], batch.clone(), "no output");
    refuse(&ids[1..], Batch { slices: vec![slice.clone(), slice.clone()], ..batch.clone() }, "");
    refuse(&[ids[5], ids[1]], batch.clone(), "head before");
    refuse(&[ids[1], ids[0]], batch.clone(), "embedding behind");
    let with = |change: &dyn Fn(&mut Slice)| {
        let mut slice = slice.clone();
        change(&mut slice);
        Batch { slices: vec![slice], ..batch.clone() }
    };
    refuse(&ids, with(&|s| s.tokens[3] = VOCAB as u32), "token 517");
    refuse(&ids, with(&|s| s.pages[1] = 64), "page 64");
    refuse(&ids, with(&|s| s.pages.truncate(1)), "1 pages");
    refuse(&ids, with(&|s| s.pages[1] = 5), "page 5 is written");
    refuse(&ids, with(&|s| s.start = u32::MAX), "");
    refuse(&ids, Batch { outputs: vec![33], ..batch.clone() }, "output row 33");
    refuse(&ids, Batch { outputs: vec![3, 3], ..batch.clone() }, "ascending");
    let mut short = vec![0.0; 5 * WIDTH];
    assert!(device.read_residual(StreamId(77), 0, &mut short).is_err());
    assert!(device.read_residual(StreamId(3), usize::MAX, &mut short).is_err());
    assert!(device.read_residual(StreamId(3), 30, &mut short).is_err());
    device.read_residual(StreamId(3), 28, &mut short).unwrap();
    assert!(device.write_residual(StreamId(1), 7, &short).is_err());
    assert!(device.write_residual(StreamId(1), 0, &[]).is_err());
    assert!(device.reserve_kv(KvLayout { page_tokens: 33, ..LAYOUT }).is_err());
    assert!(device.reserve_kv(KvLayout { pages: usize::MAX / 64, ..LAYOUT }).is_err());
    assert!(SimdDevice::open(CpuOptions { threads: Some(0), level: None }).is_err());
    // After all that it still works, and an empty batch is no error.
    device.reserve_kv(LAYOUT).unwrap();
    submit(&device, &ids, batch.clone()).unwrap();
    let empty = Batch { slices: vec![], outputs: vec![], select: Select::Top(1) };
    assert_eq!(submit(&device, &ids, empty).unwrap(), HeadOutput::Top(vec![]));
}

#[test]
fn every_case_of_the_table_is_within_its_tolerance() {
    let oracle = ReferenceDevice::new();
    let seed = random_source("case table").bits();
    for level in SimdLevel::available() {
        let device = open(level, 2);
        let mut failures = Vec::new();
        for case in unicorn_cases::table() {
            match unicorn_cases::run(&case, &device, &oracle, seed) {
                Ok(outcome) if outcome.passed() => {}
                Ok(outcome) => failures.push(outcome.to_string()),
                Err(error) => failures.push(error.to_string()),
            }
        }
        assert!(failures.is_empty(), "{level}: {}", failures.join("\n"));
    }
}
