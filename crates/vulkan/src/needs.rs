//! The memory that blocks will take, from their shapes alone: what loading, reserving and the largest batches allocate.

use std::collections::HashMap;

use unicorn_core::{Block, DeviceError, MemoryNeed, RopeSpec, Weight, WeightSpan, Workload};

use crate::arena::{CHUNK_BYTES, SMALL_BYTES_MAX};
use crate::load;
use crate::place::Place;
use crate::profile::GpuProfile;
use crate::scratch::{Capacity, Extents, Sizes};
use crate::select::{self, BlockShape, DECODE_ROWS, Router, SliceShape, VECTOR_TOKENS};
use crate::state::{Inner, State};
use crate::stream;
use crate::transfer::{PIECE_BYTES, SLOTS_SPARE, threads};
use crate::weights::packed_bytes;

/// What the length of memory that is imported is a multiple of.
const SHARED_ALIGN: u64 = 64 << 10;
/// Longer slices fill every GPU without splits of their keys.
const SPLIT_ROWS: usize = 4096;
/// What drivers round sizes up to.
const ALIGN: u64 = 256;

/// What the device will hold for these blocks; nothing is allocated.
///
/// Errors where loading or reserving would refuse them.
pub(crate) fn needs(
    inner: &Inner,
    state: &State,
    blocks: &[&Block],
    workload: &Workload,
) -> Result<MemoryNeed, DeviceError> {
    let gpu = &state.gpu;
    let router = Router { kv: workload.layout.ty, ..state.router() };
    let mut planned = Planned::default();
    let mut matrices: HashMap<Vec<WeightSpan>, u64> = HashMap::new();
    let mut ropes: Vec<&RopeSpec> = Vec::new();
    let mut sizes = Sizes::default();
    let mut kv = 0u64;
    for block in blocks {
        check(inner, router, block, workload)?;
        for stacked in stacks(block) {
            let spans = stacked.iter().map(|w| w.span).collect();
            if matrices.insert(spans, packed_bytes(&stacked)).is_none() {
                planned.add(Place::Device, packed_bytes(&stacked));
            }
        }
        vectors(block).into_iter().for_each(|floats| planned.add(Place::Device, 4 * floats as u64));
        sizes = sizes.max(sizes_of(block));
        if let Block::Attention { spec, .. } = block {
            let [keys, values] = [cache_bytes(block, workload); 2];
            [keys, values].into_iter().for_each(|bytes| planned.add(Place::Device, bytes));
            kv = kv.saturating_add(keys).saturating_add(values);
            if !ropes.contains(&&spec.rope) {
                ropes.push(&spec.rope);
                let turns = workload.layout.positions.saturating_mul(spec.rope.frequencies.len());
                planned.add(Place::Device, 8 * turns as u64);
            }
        }
        if let Block::ShortConv { spec, .. } = block {
            let pages = workload.layout.pages(spec.state()) as u64;
            let bytes = pages.saturating_mul(4 * spec.state_floats() as u64);
            planned.add(Place::Device, bytes);
            kv = kv.saturating_add(bytes);
        }
    }
    let capacity = capacity(gpu, sizes, workload, router);
    for _ in 0..workload.streams {
        Extents::of(gpu, &sizes, &capacity).all().for_each(|(place, bytes)| planned.add(place, bytes));
        if workload.crosses {
            // Imported or not: the memory through which the stream crosses, as it is counted.
            let bytes = 4 * (workload.rows as u64).saturating_mul(sizes.width as u64);
            planned.at(Place::Readback).own += bytes.next_multiple_of(SHARED_ALIGN);
        }
    }
    let unified = gpu.integrated || gpu.software;
    let ring = if unified { 0 } else { PIECE_BYTES + ALIGN };
    (0..=SLOTS_SPARE).filter(|_| ring > 0).for_each(|_| planned.add(Place::Upload, ring));
    let weights = matrices.into_values().fold(0, u64::saturating_add);
    let [device, near, upload, readback] =
        [Place::Device, Place::Near, Place::Upload, Place::Readback].map(|place| planned.bytes(place));
    let host = if unified { 0 } else { upload.saturating_add(readback) };
    let all = [device, near, upload, readback].into_iter().fold(0, u64::saturating_add);
    // Each thread reads a piece, and where memory is not mapped has a slot of the ring; outputs pass when that is over.
    let loading = (threads() as u64).saturating_mul(PIECE_BYTES + ring);
    let outputs = (workload.outputs as u64).saturating_mul(8 * sizes.vocab as u64);
    let hidden = (workload.rows as u64).saturating_mul(8 * sizes.width as u64);
    let scratch = all.saturating_sub(host).saturating_sub(weights).saturating_sub(kv);
    Ok(MemoryNeed { weights, kv, scratch, host, passing: loading.max(outputs.saturating_add(hidden)) })
}

/// Errors where loading or reserving would.
fn check(inner: &Inner, router: Router<'_>, block: &Block, workload: &Workload) -> Result<(), DeviceError> {
    block.check().map_err(|e| inner.invalid(e.to_string()))?;
    if let Some(what) = load::unsupported(block) {
        return Err(inner.unsupported(what));
    }
    inner.require_kernels(router, &BlockShape::of(block))?;
    if let Block::Attention { spec, .. } = block {
        inner.require_cache(spec.head_dim, workload.layout.ty, router.gpu)?;
    }
    match block.state().filter(|spec| workload.layout.group(*spec).is_none()) {
        Some(spec) => Err(inner.invalid(format!("no pages for mixers that keep {spec}"))),
        None => Ok(()),
    }
}

/// The weights of each matrix that is loaded.
fn stacks(block: &Block) -> Vec<Vec<&Weight>> {
    match block {
        Block::Embedding { table, .. } => vec![vec![table]],
        Block::Attention { weights: w, .. } => attention_stacks([&w.q, &w.k, &w.v], &w.o),
        Block::ShortConv { weights: w, .. } => vec![vec![&w.input], vec![&w.output]],
        Block::Ffn { weights: w, .. } => vec![vec![&w.gate], vec![&w.up], vec![&w.down]],
        Block::Head { weight, .. } => vec![vec![weight]],
        Block::EncoderEmbedding { weights: w, .. } => vec![vec![&w.table]],
        Block::EncoderAttention { weights: w, .. } => attention_stacks([&w.q, &w.k, &w.v], &w.o),
        Block::EncoderFfn { weights: w, .. } => vec![vec![&w.up], vec![&w.down]],
        Block::EncoderHead { .. } => Vec::new(),
    }
}

fn attention_stacks<'w>(projections: [&'w Weight; 3], output: &'w Weight) -> Vec<Vec<&'w Weight>> {
    let mut left = &projections[..];
    let mut all = vec![vec![output]];
    for (_, count) in select::projections(projections.map(|w| w.ty)) {
        let (together, others) = left.split_at(*count);
        left = others;
        all.push(together.to_vec());
    }
    all
}

/// Floats of each vector that is loaded: norms, and biases, those of queries, keys and values as one.
fn vectors(block: &Block) -> Vec<usize> {
    let optional = |w: &Option<Weight>| w.as_ref().map(Weight::elements);
    match block {
        Block::Embedding { .. } => Vec::new(),
        Block::Attention { weights: w, .. } => {
            let biased = [&w.q_bias, &w.k_bias, &w.v_bias].iter().any(|b| b.is_some());
            let bias = biased.then(|| w.q.rows + w.k.rows + w.v.rows);
            let others = [&w.o_bias, &w.q_norm, &w.k_norm, &w.post_norm].into_iter().filter_map(optional);
            std::iter::once(w.norm.elements()).chain(bias).chain(others).collect()
        }
        Block::ShortConv { weights: w, .. } => vec![w.norm.elements(), w.conv.elements()],
        Block::Ffn { weights: w, .. } => {
            std::iter::once(w.norm.elements()).chain(optional(&w.post_norm)).collect()
        }
        Block::Head { norm, .. } => vec![norm.elements()],
        Block::EncoderEmbedding { spec, .. } => vec![spec.positions * spec.width, spec.width, spec.width],
        Block::EncoderAttention { spec, .. } => {
            vec![3 * spec.heads * spec.head_dim, spec.width, spec.width, spec.width]
        }
        Block::EncoderFfn { spec, .. } => vec![spec.hidden, spec.width, spec.width, spec.width],
        Block::EncoderHead { .. } => Vec::new(),
    }
}

/// Bytes of the keys of a mixer, or of its values; 0 for other blocks.
fn cache_bytes(block: &Block, workload: &Workload) -> u64 {
    let Block::Attention { spec, .. } = block else { return 0 };
    spec.cache_bytes(&workload.layout).unwrap_or(0) / 2
}

/// As [`load::sizes`], from the block's shapes.
fn sizes_of(block: &Block) -> Sizes {
    match block {
        Block::Embedding { spec, .. } => Sizes { width: spec.width, ..Sizes::default() },
        Block::Attention { spec, weights: w } => Sizes {
            width: spec.width,
            qkv: w.q.rows + w.k.rows + w.v.rows,
            attended: spec.heads * spec.head_dim,
            heads: spec.heads,
            partial: spec.heads * (spec.head_dim + 2),
            queries: spec.heads * spec.head_dim.next_multiple_of(16),
            ..Sizes::default()
        },
        Block::ShortConv { spec, .. } => load::short_conv_sizes(spec.width),
        Block::Ffn { spec, .. } => Sizes { width: spec.width, hidden: spec.hidden, ..Sizes::default() },
        Block::Head { spec, .. } => Sizes { width: spec.width, vocab: spec.vocab, ..Sizes::default() },
        Block::EncoderEmbedding { spec, .. } => Sizes { width: spec.width, ..Sizes::default() },
        Block::EncoderAttention { spec, .. } => {
            let attended = spec.heads * spec.head_dim;
            Sizes { width: spec.width, qkv: 3 * attended, attended, ..Sizes::default() }
        }
        Block::EncoderFfn { spec, .. } => {
            Sizes { width: spec.width, hidden: spec.hidden, ..Sizes::default() }
        }
        Block::EncoderHead { spec } => Sizes { width: spec.width, ..Sizes::default() },
    }
}

/// What a stream's buffers have grown to after the largest batches.
fn capacity(gpu: &GpuProfile, sizes: Sizes, workload: &Workload, router: Router<'_>) -> Capacity {
    let (rows, positions) = (workload.rows.max(1), workload.layout.positions.max(1));
    let sequences = workload.sequences.clamp(1, rows);
    let tables = positions.div_ceil(workload.layout.page_tokens.max(1));
    // Batches with a longer slice or more rows are cut into tiles, unless some block may have to go row by row.
    let tiled = gpu.avoid.is_empty() && !router.options.batch_invariant;
    let single =
        if tiled { rows.min(VECTOR_TOKENS.max(sequences.saturating_mul(DECODE_ROWS))) } else { rows };
    let decoding = select::decode_records(single, select::served_positions(positions));
    Capacity::FIRST.grown(&Capacity {
        rows,
        outputs: workload.outputs.max(1),
        // Every row's may be asked for.
        hidden: rows,
        row_splits: decoding.max(flash_records(gpu, sizes.heads, rows, sequences, positions)).max(1),
        pages: sequences.saturating_mul(tables).max(state_words(workload)),
        groups: workload.layout.groups.len().max(1),
        top: workload.top.max(1),
        // Edits of rows come with few requests, and take little.
        masks: 0,
        takes: 0,
    })
}

/// Words that name recurrent states, as batches of drafts have them: what each sequence starts from and leaves, and a state for each draft.
fn state_words(workload: &Workload) -> usize {
    if !workload.layout.groups.iter().any(|group| group.spec.is_recurrent()) {
        return 0;
    }
    stream::state_words(workload.sequences.clamp(1, workload.rows.max(1)), workload.outputs)
}

/// Partial results of flash attention, at most, of any batch.
fn flash_records(gpu: &GpuProfile, heads: usize, rows: usize, sequences: usize, positions: usize) -> usize {
    let one = |rows: usize| {
        let slice = SliceShape { start: positions.saturating_sub(rows), rows, pages: 0 };
        select::flash_tiling(&[slice], heads, gpu).records
    };
    let of = |rows: usize| {
        let records = one(rows);
        (records, records.div_ceil(rows))
    };
    let each = (1..=rows.min(positions).min(SPLIT_ROWS)).map(of);
    let (records, splits) = each.fold((0, 0), |most, one| (most.0.max(one.0), most.1.max(one.1)));
    // Neither more than so many of the largest, nor more than so many rows of the most splits.
    records.saturating_mul(sequences).min(splits.saturating_mul(rows))
}

/// Allocations to come. Small ones share chunks.
#[derive(Default)]
struct Planned {
    places: Vec<(Place, Bytes)>,
}

#[derive(Clone, Copy, Default)]
struct Bytes {
    /// In allocations of their own.
    own: u64,
    /// In chunks.
    shared: u64,
}

impl Planned {
    fn add(&mut self, place: Place, bytes: u64) {
        let bytes = bytes.clamp(16, u64::MAX - ALIGN).next_multiple_of(ALIGN);
        let Bytes { own, shared } = self.at(place);
        let sum = if bytes > SMALL_BYTES_MAX { own } else { shared };
        *sum = sum.saturating_add(bytes);
    }

    fn at(&mut self, place: Place) -> &mut Bytes {
        let at = self.places.iter().position(|p| p.0 == place).unwrap_or_else(|| {
            self.places.push((place, Bytes::default()));
            self.places.len() - 1
        });
        &mut self.places[at].1
    }

    /// Bytes that are allocated in a place. A chunk may end in a gap that the next buffer is too large for.
    fn bytes(&self, place: Place) -> u64 {
        let Some((_, Bytes { own, shared })) = self.places.iter().find(|p| p.0 == place) else { return 0 };
        let chunks = if *shared <= CHUNK_BYTES {
            u64::from(*shared > 0)
        } else {
            shared.div_ceil(CHUNK_BYTES - SMALL_BYTES_MAX)
        };
        own.saturating_add(chunks.saturating_mul(CHUNK_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::context::Context;
    use crate::scratch::{Activations, Scratch};

    #[test]
    fn every_buffer_of_a_stream_is_counted() {
        let gpu = crate::profiles::recorded("h100");
        let context = Arc::new(Context::null(gpu.clone()));
        let sizes = Sizes {
            width: 960,
            qkv: 1280,
            attended: 768,
            partial: 12 * 66,
            heads: 12,
            queries: 12 * 64,
            hidden: 3000,
            vocab: 5000,
        };
        for (rows, outputs, hidden, row_splits, pages, groups, top) in
            [(8, 8, 0, 8, 64, 1, 1), (512, 16, 512, 300, 1000, 2, 40), (1000, 1, 30, 4096, 64, 3, 1)]
        {
            let capacity =
                Capacity { rows, outputs, hidden, row_splits, pages, groups, top, masks: 100, takes: 3000 };
            let told: u64 = Extents::of(&gpu, &sizes, &capacity).all().map(|(_, bytes)| bytes.max(16)).sum();
            // All fields: a new buffer has to be counted here and there.
            let Scratch {
                sizes: _,
                capacity: _,
                batch,
                residual,
                normed: Activations { q: normed, meta: normed_meta },
                inner: Activations { q: inner, meta: inner_meta },
                squares,
                float,
                half,
                half_wide,
                splits,
                qkv,
                queries,
                wide,
                up,
                partial,
                tickets,
                logits,
                logits_host,
                pairs,
                top,
                masks,
                take_list,
                taken,
                hidden_host,
            } = Scratch::new(&context, sizes, capacity, None).unwrap();
            let own = [
                &batch,
                &normed,
                &normed_meta,
                &inner,
                &inner_meta,
                &squares,
                &float,
                &half,
                &half_wide,
                &splits,
                &qkv,
                &queries,
                &wide,
                &up,
                &masks,
                &take_list,
                &partial,
                &tickets,
                &logits,
                &pairs,
            ];
            let held: u64 = own.into_iter().map(|b| b.bytes()).sum();
            let read = [&logits_host, &top, &taken, &hidden_host].map(|b| b.bytes()).iter().sum::<u64>();
            assert_eq!(held + residual.bytes() + read, told);
        }
    }

    #[test]
    fn small_buffers_share_chunks() {
        let mut planned = Planned::default();
        assert_eq!(planned.bytes(Place::Device), 0);
        planned.add(Place::Device, 1);
        planned.add(Place::Device, SMALL_BYTES_MAX);
        planned.add(Place::Device, 5 << 20);
        assert_eq!(planned.bytes(Place::Device), CHUNK_BYTES + (5 << 20));
        (0..20).for_each(|_| planned.add(Place::Device, SMALL_BYTES_MAX));
        assert_eq!(planned.bytes(Place::Device), 2 * CHUNK_BYTES + (5 << 20));
        assert_eq!(planned.bytes(Place::Readback), 0);
    }

    #[test]
    fn prompts_of_every_length_find_room_for_their_partial_results() {
        let gpu = crate::profiles::recorded("h100");
        let (heads, positions) = (32, 8192);
        let most = flash_records(&gpu, heads, 512, 1, positions);
        for (start, rows) in [(0, 512), (7680, 512), (8100, 64), (4000, 100), (8180, 12)] {
            let tiling = select::flash_tiling(&[SliceShape { start, rows, pages: 0 }], heads, &gpu);
            assert!(tiling.records <= most, "{start} {rows}");
        }
        let two = [(0, 256), (7000, 256)].map(|(start, rows)| SliceShape { start, rows, pages: 0 });
        assert!(
            select::flash_tiling(&two, heads, &gpu).records <= flash_records(&gpu, heads, 512, 2, positions)
        );
    }
}
