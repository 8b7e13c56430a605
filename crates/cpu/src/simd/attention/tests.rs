//! Attention against plain loops in double precision, and bit for bit against itself cut differently.

use std::sync::Mutex;

use unicorn_core::quant::Random;
use unicorn_core::rope::RopeScaling;
use unicorn_core::{
    Batch, BatchLimits, KvType, PageId, RopeSpec, RopeStyle, SequenceId, Slice, StateLayout, StateSpec,
};

use super::*;
use crate::reference::KvLayout;
use crate::simd::kv::{KvCache, KvGeometry};
use crate::simd::level::SimdLevel;
use crate::simd::pool::Pool;
use crate::simd::rope::{fill_table_row, table_row_len};
use crate::simd::shared::{PerThread, SharedSlice};
use crate::simd::testing::random_source;

#[derive(Clone, Debug)]
struct Shape {
    kv_heads: usize,
    group: usize,
    dim: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
    norm: bool,
    ty: KvType,
    page_tokens: usize,
    style: RopeStyle,
}

/// One sequence's projections for positions `0 .. len`.
struct Sequence {
    shape: Shape,
    rope: RopeSpec,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    len: usize,
}

impl Sequence {
    fn new(shape: &Shape, len: usize, random: &mut Random) -> Sequence {
        let Shape { kv_heads, group, dim, .. } = *shape;
        Sequence {
            shape: shape.clone(),
            rope: RopeSpec::new(shape.style, dim, 10_000.0, &RopeScaling::None),
            q: random.normals(len * kv_heads * group * dim, 1.5),
            k: random.normals(len * kv_heads * dim, 1.0),
            v: random.normals(len * kv_heads * dim, 1.0),
            q_norm: random.normals(dim, 1.0),
            k_norm: random.normals(dim, 1.0),
            len,
        }
    }

    /// Two sequences of one model.
    fn pair(shape: &Shape, lens: [usize; 2], random: &mut Random) -> [Sequence; 2] {
        let mut pair = lens.map(|len| Sequence::new(shape, len, random));
        pair[1].q_norm = pair[0].q_norm.clone();
        pair[1].k_norm = pair[0].k_norm.clone();
        pair
    }

    fn heads(&self) -> Heads<'_> {
        let s = &self.shape;
        Heads {
            heads: s.kv_heads * s.group,
            group: s.group,
            dim: s.dim,
            scale: 1.0 / (s.dim as f32).sqrt(),
            window: s.window,
            soft_cap: s.soft_cap,
            rope_style: s.style,
            qk_norm: s.norm.then_some((&self.q_norm[..], &self.k_norm[..], 1e-6)),
        }
    }

    fn prepared(&self, from: &[f32], at: usize, position: usize, norm: &[f32]) -> Vec<f64> {
        let dim = self.shape.dim;
        let mut x: Vec<f64> = from[at..at + dim].iter().map(|v| f64::from(*v)).collect();
        if self.shape.norm {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / dim as f64;
            x.iter_mut().zip(norm).for_each(|(v, w)| *v *= f64::from(*w) / (mean + 1e-6).sqrt());
        }
        for (i, frequency) in self.rope.frequencies.iter().enumerate() {
            let (a, b) = self.rope.pair(i);
            let (sin, cos) = (position as f64 * f64::from(*frequency)).sin_cos();
            (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
        }
        x
    }

    /// What the cache gives back.
    fn rounded(&self, x: &[f64]) -> Vec<f64> {
        let ty = self.shape.ty.tensor_type();
        let floats: Vec<f32> = x.iter().map(|v| *v as f32).collect();
        let (mut bytes, mut out) = (Vec::new(), vec![0.0; x.len()]);
        unicorn_core::quant::quantize(ty, &floats, &mut bytes);
        unicorn_core::quant::dequantize(ty, &bytes, &mut out);
        out.iter().map(|v| f64::from(*v)).collect()
    }

    /// Plain attention of the query at `position`.
    fn exact(&self, position: usize) -> Vec<f64> {
        let Shape { kv_heads, group, dim, window, soft_cap, .. } = self.shape;
        let mut out = Vec::new();
        for head in 0..kv_heads * group {
            let q =
                self.prepared(&self.q, (position * kv_heads * group + head) * dim, position, &self.q_norm);
            let seen = window.map_or(0, |w| (position + 1).saturating_sub(w))..position + 1;
            let row = |p: usize| (p * kv_heads + head / group) * dim;
            let scores: Vec<f64> = seen
                .clone()
                .map(|p| {
                    let k = self.rounded(&self.prepared(&self.k, row(p), p, &self.k_norm));
                    let s = q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt();
                    soft_cap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            let mut sum = vec![0.0; dim];
            for (p, s) in seen.zip(&scores) {
                let v: Vec<f64> = self.v[row(p)..row(p) + dim].iter().map(|v| f64::from(*v)).collect();
                let weight = (s - max).exp() / total;
                sum.iter_mut().zip(self.rounded(&v)).for_each(|(o, v)| *o += weight * v);
            }
            out.extend(sum);
        }
        out
    }
}

/// The outputs of every position, computed in chunks of these lengths, of both sequences in one batch where both have tokens.
fn run(
    sequences: &[Sequence],
    chunks: &[usize],
    level: SimdLevel,
    threads: usize,
    random: &mut Random,
) -> Vec<Vec<f32>> {
    let shape = &sequences[0].shape;
    let pages_each = sequences.iter().map(|s| s.len).max().unwrap().div_ceil(shape.page_tokens);
    let pages = pages_each * sequences.len() + 3;
    let positions = pages_each * shape.page_tokens;
    let state = StateLayout::paged(shape.page_tokens, pages, positions, shape.ty);
    let layout = KvLayout::of(&state, StateSpec::Paged, shape.dim).unwrap();
    let limits = std::sync::Arc::new(BatchLimits { vocab: 1, state: Some(state) });
    let geometry = KvGeometry::new(layout, shape.kv_heads, shape.dim).unwrap();
    let cache = KvCache::new(geometry).unwrap();
    let mut free: Vec<PageId> = (0..pages as u32).collect();
    let mut take =
        || -> Vec<PageId> { (0..pages_each).map(|_| free.swap_remove(random.below(free.len()))).collect() };
    let tables: Vec<Vec<PageId>> = sequences.iter().map(|_| take()).collect();
    let pool = Pool::new(threads);
    pool.use_all_threads();
    let width = shape.kv_heads * shape.group * shape.dim;
    let mut results = vec![Vec::new(); sequences.len()];
    let mut starts = vec![0; sequences.len()];
    for chunk in chunks.iter().cycle() {
        if starts.iter().zip(sequences).all(|(start, s)| *start == s.len) {
            break;
        }
        let slices =
            sequences.iter().zip(&tables).zip(&starts).enumerate().map(|(i, ((s, table), start))| {
                let count = *chunk.min(&(s.len - start));
                Slice {
                    sequence: SequenceId(i as u64),
                    tokens: vec![0; count],
                    slot: None,
                    snapshots: vec![],
                    start: *start as u32,
                    tables: vec![table[..(start + count).div_ceil(shape.page_tokens)].to_vec()],
                }
            });
        let slices: Vec<Slice> = slices.filter(|s| !s.tokens.is_empty()).collect();
        let batch = Batch::new(slices, vec![], &limits).unwrap();
        let outputs = run_batch(sequences, &batch, &cache, level, &pool);
        let mut row = 0;
        for slice in batch.slices() {
            let i = slice.sequence.0 as usize;
            results[i].extend_from_slice(&outputs[row * width..(row + slice.tokens.len()) * width]);
            row += slice.tokens.len();
            starts[i] += slice.tokens.len();
        }
    }
    results
}

fn run_batch(
    sequences: &[Sequence],
    batch: &Batch,
    cache: &KvCache,
    level: SimdLevel,
    pool: &Pool,
) -> Vec<f32> {
    let shape = &sequences[0].shape;
    let (kv, dim) = (shape.kv_heads * shape.dim, shape.dim);
    let width = kv * shape.group;
    let (mut q, mut k, mut v, mut rope) = (vec![], vec![], vec![], vec![]);
    let rope_row = table_row_len(&sequences[0].rope);
    for slice in batch.slices() {
        let s = &sequences[slice.sequence.0 as usize];
        let (a, b) = (slice.start as usize, slice.start as usize + slice.tokens.len());
        q.extend_from_slice(&s.q[a * width..b * width]);
        k.extend_from_slice(&s.k[a * kv..b * kv]);
        v.extend_from_slice(&s.v[a * kv..b * kv]);
        for position in a..b {
            rope.resize(rope.len() + rope_row, 0.0);
            let at = rope.len() - rope_row;
            fill_table_row(&s.rope, position as u32, &mut rope[at..]);
        }
    }
    let from = Projections { q: &q, k: &k, v: &v, rope: &rope, rope_row };
    let key = PartitionKey {
        kv_heads: shape.kv_heads,
        group: shape.group,
        padded: dim.next_multiple_of(16),
        window: shape.window,
    };
    let (partition, rows) = (Partition::new(key, batch), BatchRows::new(batch));
    let mut out = vec![f32::NAN; batch.rows() * width];
    let mut partials = vec![f32::NAN; partition.partial_floats];
    let attention = Attention {
        level,
        heads: sequences[0].heads(),
        cache,
        batch,
        rows: &rows,
        partition: &partition,
        partials: SharedSlice::new(&mut partials),
        out: SharedSlice::new(&mut out),
    };
    let scratch = PerThread::new(pool.threads(), Scratch::default);
    let results = Mutex::new(vec![f32::NAN; batch.rows() * width]);
    pool.run(&|worker| {
        // SAFETY: indexed by worker; all threads walk the same steps.
        unsafe {
            let scratch = scratch.get(worker.index);
            attention.store(worker, || from, scratch);
            attention.attend(worker, || from, scratch);
            worker.step(batch.rows(), 1, |part| {
                for row in part {
                    let mut buffer = Vec::new();
                    let result = attention.output_row(row, scratch, &mut buffer).to_vec();
                    results.lock().unwrap()[row * width..(row + 1) * width].copy_from_slice(&result);
                }
            });
        }
    })
    .unwrap();
    results.into_inner().unwrap()
}

fn shapes() -> Vec<Shape> {
    let base = Shape {
        kv_heads: 3,
        group: 3,
        dim: 64,
        window: None,
        soft_cap: None,
        norm: false,
        ty: KvType::F16,
        page_tokens: 32,
        style: RopeStyle::Normal,
    };
    vec![
        base.clone(),
        Shape {
            kv_heads: 1,
            group: 4,
            dim: 256,
            window: Some(70),
            norm: true,
            style: RopeStyle::Neox,
            ..base.clone()
        },
        Shape { kv_heads: 2, group: 7, dim: 128, ty: KvType::F32, page_tokens: 64, ..base.clone() },
        Shape { kv_heads: 2, group: 2, dim: 96, ty: KvType::Q8_0, soft_cap: Some(20.0), ..base.clone() },
        Shape { kv_heads: 2, group: 1, dim: 40, soft_cap: Some(5.0), page_tokens: 96, ..base.clone() },
        Shape { kv_heads: 1, group: 50, dim: 8, window: Some(300), ty: KvType::F32, ..base },
    ]
}

#[test]
fn equals_plain_loops() {
    let mut random = random_source("attention");
    for shape in shapes() {
        let sequences = Sequence::pair(&shape, [331, 65], &mut random);
        for level in SimdLevel::available() {
            let outputs = run(&sequences, &[100, 1, 17], level, 2, &mut random);
            for (s, got) in sequences.iter().zip(&outputs) {
                let width = shape.kv_heads * shape.group * shape.dim;
                for position in [0, 1, 31, 63, 64, 99, 100, 101, 117, 118, 255, 256, 330] {
                    if position >= s.len {
                        continue;
                    }
                    // A key that lies between two representable values may round either way.
                    let tolerance = if shape.ty == KvType::F32 { 5e-6 } else { 2e-3 };
                    for (g, w) in got[position * width..].iter().zip(s.exact(position)) {
                        assert!(
                            (f64::from(*g) - w).abs() <= tolerance * (1.0 + w.abs()),
                            "{level:?} {shape:?} position {position}: {g}, exact {w}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_same_bits_for_any_cut_batch_and_thread_count() {
    let mut random = random_source("attention bits");
    for shape in shapes() {
        let sequences = Sequence::pair(&shape, [523, 77], &mut random);
        for level in SimdLevel::available() {
            let bits = |outputs: Vec<Vec<f32>>| -> Vec<Vec<u32>> {
                outputs.iter().map(|s| s.iter().map(|v| v.to_bits()).collect()).collect()
            };
            let whole = bits(run(&sequences, &[1000], level, 1, &mut random));
            for (chunks, threads) in
                [(&[1000][..], 2), (&[1], 3), (&[200, 3, 48], 4), (&[33, 1, 1, 130, 16], 2)]
            {
                let other = bits(run(&sequences, chunks, level, threads, &mut random));
                assert!(whole == other, "{level:?} {shape:?} chunks {chunks:?} threads {threads}");
                let alone = bits(run(&sequences[1..], chunks, level, threads, &mut random));
                assert!(whole[1] == alone[0], "{level:?} {shape:?} alone, chunks {chunks:?}");
            }
        }
    }
}
