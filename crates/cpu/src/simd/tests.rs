//! The device as a whole: against the reference, bit for bit against itself, and what it says to misuse.

use std::sync::Arc;

use unicorn_cases::synthetic::{Fill, SyntheticLayout, SyntheticSource};
use unicorn_core::rope::RopeScaling;
use unicorn_core::{
    Activation, AttentionSpec, AttentionWeights, Batch, BatchLimits, Block, BlockId, Crossing, Device,
    DeviceError, EmbeddingSpec, FfnSpec, FfnWeights, HeadOutput, HeadSpec, Instrument, KvType, NormSpec,
    OutputRow, PageId, RopeSpec, RopeStyle, Select, SequenceId, SharedBuffer, Sharing, ShortConvSpec,
    ShortConvWeights, Slice, StateGroup, StateLayout, StreamId, TensorType, WeightError, WeightSource,
    WeightSpan, run_to_end, state_groups,
};

use super::testing::random_source;
use super::{CpuOptions, SimdDevice, SimdLevel};
use crate::ReferenceDevice;

const VOCAB: usize = 517;
const WIDTH: usize = 192;
const STREAM: StreamId = StreamId(3);

/// State for all mixers of the blocks.
fn layout(blocks: &[Block], ty: KvType) -> StateLayout {
    let groups = state_groups(blocks).into_iter().map(|spec| StateGroup { spec, pages: 64 }).collect();
    StateLayout { page_tokens: 32, positions: 2048, ty, groups }
}

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

/// The same with a short convolution behind the first layer.
fn with_short_conv(mut blocks: Vec<Block>, ty: TensorType) -> Vec<Block> {
    let mut l = SyntheticLayout::default();
    let spec = ShortConvSpec { width: WIDTH, kernel: 3, norm: NormSpec::rms(1e-6) };
    let weights = ShortConvWeights {
        norm: l.norm("norm", WIDTH),
        input: l.matrix("in", ty, 3 * WIDTH, WIDTH),
        conv: l.tensor("conv", Fill::Norm, WIDTH, 3),
        output: l.matrix("out", ty, WIDTH, WIDTH),
    };
    blocks.insert(3, Block::ShortConv { spec, weights: Box::new(weights) });
    blocks
}

fn source() -> Arc<dyn WeightSource> {
    Arc::new(SyntheticSource::new(7))
}

/// A loaded model, with what batches for it are held against.
struct Loaded {
    ids: Vec<BlockId>,
    limits: Arc<BatchLimits>,
}

fn load(device: &dyn Device, blocks: &[Block], ty: KvType) -> Loaded {
    let ids = blocks.iter().map(|b| device.load(b, &source()).unwrap()).collect();
    let state = layout(blocks, ty);
    device.reserve(&state).unwrap();
    Loaded { ids, limits: Arc::new(BatchLimits { vocab: VOCAB, state: Some(state) }) }
}

impl Loaded {
    fn batch(&self, slices: Vec<Slice>, outputs: &[u32], select: Select) -> Arc<Batch> {
        let outputs = outputs.iter().map(|row| OutputRow::new(*row, select)).collect();
        Arc::new(Batch::new(slices, outputs, &self.limits).unwrap())
    }

    /// The same pages for every group.
    fn slice(&self, sequence: u64, start: u32, tokens: &[u32], page: impl Fn(PageId) -> PageId) -> Slice {
        let pages = (start as usize + tokens.len()).div_ceil(32) as PageId;
        let pages: Vec<PageId> = (0..pages).map(page).collect();
        let tables = unicorn_cases::states::tables(&self.limits, &pages);
        let (sequence, tokens, snapshots) = (SequenceId(sequence), tokens.to_vec(), vec![]);
        Slice { sequence, tokens, start, tables, snapshots, slot: None }
    }
}

fn open(level: SimdLevel, threads: usize) -> SimdDevice {
    SimdDevice::open(CpuOptions { threads: Some(threads), level: Some(level) }).unwrap()
}

/// Runs two sequences of tokens in chunks; returns the logits of every position of each.
fn logits(device: &dyn Device, loaded: &Loaded, sequences: &[Vec<u32>], chunk: usize) -> Vec<Vec<f32>> {
    let mut results = vec![Vec::new(); sequences.len()];
    let longest = sequences.iter().map(Vec::len).max().unwrap();
    for start in (0..longest).step_by(chunk) {
        let slices = sequences.iter().enumerate().filter(|(_, tokens)| tokens.len() > start);
        let slices = slices.map(|(i, tokens)| {
            let tokens = &tokens[start..tokens.len().min(start + chunk)];
            loaded.slice(i as u64, start as u32, tokens, |p| p * 2 + i as PageId)
        });
        let slices: Vec<Slice> = slices.collect();
        let rows: usize = slices.iter().map(|s| s.tokens.len()).sum();
        let batch = loaded.batch(slices, &(0..rows as u32).collect::<Vec<u32>>(), Select::Logits);
        let all = submit(device, &loaded.ids, &batch).unwrap().unwrap().logits;
        let mut at = 0;
        for slice in batch.slices() {
            let n = slice.tokens.len() * VOCAB;
            results[slice.sequence.0 as usize].extend_from_slice(&all[at..at + n]);
            at += n;
        }
    }
    results
}

fn submit(
    device: &dyn Device,
    ids: &[BlockId],
    batch: &Arc<Batch>,
) -> Result<Option<HeadOutput>, DeviceError> {
    run_to_end(device, STREAM, ids, batch, Crossing::default())
}

fn tokens(name: &str, lens: &[usize]) -> Vec<Vec<u32>> {
    let mut random = random_source(name);
    lens.iter().map(|n| (0..*n).map(|_| random.below(VOCAB) as u32).collect()).collect()
}

#[test]
fn float_models_equal_the_reference() {
    let sequences = tokens("device", &[90, 33]);
    for gemma in [false, true] {
        let blocks = with_short_conv(model(gemma, [TensorType::F32; 8]), TensorType::F32);
        let oracle = ReferenceDevice::new();
        let want = logits(&oracle, &load(&oracle, &blocks, KvType::F32), &sequences, 64);
        for level in SimdLevel::available() {
            let device = open(level, 2);
            let got = logits(&device, &load(&device, &blocks, KvType::F32), &sequences, 64);
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
        let blocks = with_short_conv(model(gemma, MIXED), TensorType::Q8_0);
        for level in SimdLevel::available() {
            let run = |threads: usize, chunk: usize, sequences: &[Vec<u32>]| -> Vec<Vec<u32>> {
                let device = open(level, threads);
                let loaded = load(&device, &blocks, KvType::F16);
                let all = logits(&device, &loaded, sequences, chunk);
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
    let loaded = load(&device, &model(true, MIXED), KvType::F16);
    let sequence = tokens("device top k", &[20]);
    let all = logits(&device, &loaded, &sequence, 20);
    let slice = loaded.slice(0, 0, &sequence[0], |p| p);
    for k in [1, 5, VOCAB] {
        let batch = loaded.batch(vec![slice.clone()], &[3, 19], Select::Top(k));
        let rows = submit(&device, &loaded.ids, &batch).unwrap().unwrap().top;
        assert_eq!(rows.len(), 2);
        for (row, entries) in [3, 19].into_iter().zip(rows) {
            let logits = &all[0][row * VOCAB..(row + 1) * VOCAB];
            let mut order: Vec<usize> = (0..VOCAB).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
            assert_eq!(entries.len(), k);
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
    let ids = load(&device, &blocks, KvType::F16).ids;
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
    let loaded = load(&device, &model(false, MIXED), KvType::F16);
    let ids = &loaded.ids;
    device.set_profiling(true);
    logits(&device, &loaded, &tokens("device profile", &[40]), 20);
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
    let error = device
        .load(&model(false, MIXED)[1], &(Arc::new(Broken(0.into())) as Arc<dyn WeightSource>))
        .unwrap_err();
    assert!(matches!(error, DeviceError::Weight { .. }), "{error}");
    assert_eq!(device.memory().weights, 0);
}

#[test]
fn misuse_is_a_typed_error() {
    let device = open(SimdLevel::detect(), 2);
    let blocks = model(false, MIXED);
    let state = layout(&blocks, KvType::F16);
    let ids: Vec<BlockId> = blocks.iter().map(|b| device.load(b, &source()).unwrap()).collect();
    let limits = |vocab, state: &StateLayout| Arc::new(BatchLimits { vocab, state: Some(state.clone()) });
    let loaded = Loaded { ids: ids.clone(), limits: limits(VOCAB, &state) };
    let slice = loaded.slice(0, 0, &[1; 33], |p| p + 5);
    let batch = loaded.batch(vec![slice.clone()], &[32], Select::Top(1));
    let refuse = |ids: &[BlockId], batch: &Arc<Batch>, crossing: Crossing, what: &str| {
        let error = run_to_end(&device, STREAM, ids, batch, crossing).unwrap_err();
        assert!(matches!(error.root(), DeviceError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error} does not say {what:?}");
    };
    let none = Crossing::default();
    refuse(&ids, &batch, none, "other state than is reserved");
    device.reserve(&state).unwrap();
    submit(&device, &ids, &batch).unwrap();
    refuse(&[BlockId(99)], &batch, none, "no block 99");
    refuse(&[], &batch, none, "without blocks");
    // What failed on a stream does not keep later work from it.
    submit(&device, &ids, &batch).unwrap();
    assert_eq!(submit(&device, &ids[..2], &batch).unwrap(), None);
    refuse(&[ids[5], ids[1]], &batch, none, "head before");
    refuse(&[ids[1], ids[0]], &batch, none, "embedding behind");
    let more = StateLayout { positions: 4096, ..state.clone() };
    let other = Loaded { ids: ids.clone(), limits: limits(VOCAB, &more) };
    refuse(&ids, &other.batch(vec![slice.clone()], &[], Select::Top(1)), none, "other state");
    let wide = Loaded { ids: ids.clone(), limits: limits(VOCAB + 1, &state) };
    refuse(&ids, &wide.batch(vec![slice.clone()], &[], Select::Top(1)), none, "518 tokens of 517");
    let short = loaded.batch(vec![loaded.slice(0, 0, &[1; 5], |p| p)], &[], Select::Top(1));
    refuse(&ids[1..], &short, none, "a stream of 33 rows for a batch of 5");
    refuse(&ids[1..], &batch, Crossing { import: true, export: false }, "no shared buffer");
    assert!(device.reserve(&StateLayout { page_tokens: 33, ..state.clone() }).is_err());
    let absurd = vec![StateGroup { pages: usize::MAX / 64, ..state.groups[0] }];
    assert!(device.reserve(&StateLayout { groups: absurd, ..state.clone() }).is_err());
    assert!(device.reserve(&StateLayout { groups: vec![], ..state.clone() }).is_err());
    assert!(SimdDevice::open(CpuOptions { threads: Some(0), level: None }).is_err());
    // After all that it still works.
    device.reserve(&state).unwrap();
    submit(&device, &ids, &batch).unwrap();
}

#[test]
fn streams_cross_in_place() {
    let device = open(SimdLevel::detect(), 2);
    let loaded = load(&device, &model(false, MIXED), KvType::F16);
    let batch = loaded.batch(vec![loaded.slice(0, 0, &[1; 33], |p| p)], &[32], Select::Logits);
    let want = submit(&device, &loaded.ids, &batch).unwrap();
    // Split in the middle, as between two devices; the second half takes what the buffer holds.
    let (first, second) = loaded.ids.split_at(3);
    let buffer = Arc::new(SharedBuffer::new(40, WIDTH).unwrap());
    assert_eq!(device.attach(STREAM, &buffer).unwrap(), Sharing::InPlace);
    let export = Crossing { import: false, export: true };
    assert_eq!(run_to_end(&device, STREAM, first, &batch, export).unwrap(), None);
    let mut rows = vec![0.0; 33 * WIDTH];
    buffer.read(&mut rows);
    assert!(rows.iter().any(|v| *v != 0.0));
    let import = Crossing { import: true, export: false };
    assert_eq!(run_to_end(&device, STREAM, second, &batch, import).unwrap(), want);
    let memory = device.memory();
    assert_eq!(memory.shared, (33 * WIDTH * 4) as u64);
    let long = loaded.batch(vec![loaded.slice(0, 0, &[1; 41], |p| p)], &[], Select::Logits);
    let error = run_to_end(&device, STREAM, second, &long, import).unwrap_err();
    assert!(error.to_string().contains("41 rows in a shared buffer of 40"), "{error}");
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
