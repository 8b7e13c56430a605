//! The memory that blocks will take, from their shapes alone. What is counted here is what [`super::state::State`] holds in the end.

use unicorn_core::{Block, DeviceError, KvType, MemoryNeed, NormSpec, RopeSpec, Weight, Workload};

use super::attention::{PartitionKey, bidirectional_floats, partial_floats_most, scratch_floats};
use super::blocks::{LOGITS_MAX, REDUNDANT_ELEMENTS};
use super::errors::{invalid, out_of_memory, unsupported};
use super::kv::KvGeometry;
use super::level::SimdLevel;
use super::linear::{ActivationForms, PackedActivations, select};
use super::load::{check_kernel, states_layout};
use super::rope::table_row_len;
use super::weights::{WeightSizes, load_bytes};
use crate::reference::KvLayout;

/// A growing vector may hold up to twice what is asked of it.
const GROWTH: usize = 2;

/// What the device will hold for these blocks at a level, with this many threads.
pub(super) fn needs(
    blocks: &[&Block],
    workload: &Workload,
    level: SimdLevel,
    threads: usize,
) -> Result<MemoryNeed, DeviceError> {
    let mut weights = WeightSizes::default();
    let mut scratch = Scratch::new(workload, level);
    let (mut kv, mut loading, mut outputs) = (0u64, 0, 0);
    for block in blocks {
        block.check().map_err(|e| invalid(e.to_string()))?;
        for matrix in matrices(block) {
            weights.matrix(matrix)?;
            loading = loading.max(load_bytes(matrix));
        }
        vectors(block).into_iter().for_each(|(vector, offset)| weights.vector(vector, offset));
        kv = kv.saturating_add(kv_bytes(block, workload)?);
        scratch.add(block);
        // Hidden states may be read of all rows, logits of few.
        let (vocab, width) = match block {
            Block::Head { spec, .. } => (spec.vocab, spec.width),
            Block::EncoderHead { spec } => (0, spec.width),
            _ => (0, 0),
        };
        let floats =
            workload.outputs.saturating_mul(vocab).saturating_add(workload.rows.saturating_mul(width));
        outputs = outputs.max(floats.saturating_mul(size_of::<f32>()));
    }
    // Weights pass before the first output does.
    let passing = loading.saturating_mul(threads).max(outputs) as u64;
    Ok(MemoryNeed { weights: weights.bytes(), kv, scratch: scratch.bytes(threads), host: 0, passing })
}

/// The tensors that are packed.
fn matrices(block: &Block) -> Vec<&Weight> {
    match block {
        Block::Embedding { table, .. } => vec![table],
        Block::Attention { weights: w, .. } => vec![&w.q, &w.k, &w.v, &w.o],
        Block::ShortConv { weights: w, .. } => vec![&w.input, &w.output],
        Block::Ffn { weights: w, .. } => vec![&w.gate, &w.up, &w.down],
        Block::Head { weight, .. } => vec![weight],
        Block::EncoderEmbedding { weights: w, .. } => vec![&w.table],
        Block::EncoderAttention { weights: w, .. } => vec![&w.q, &w.k, &w.v, &w.o],
        Block::EncoderFfn { weights: w, .. } => vec![&w.up, &w.down],
        Block::EncoderHead { .. } => Vec::new(),
    }
}

/// The tensors that are kept as floats, with what is added to each of their elements.
fn vectors(block: &Block) -> Vec<(&Weight, f32)> {
    let post = |spec: &Option<NormSpec>| spec.map_or(0.0, |n| n.weight_offset);
    match block {
        Block::Embedding { .. } => Vec::new(),
        Block::Attention { spec, weights: w } => {
            let biases = [&w.q_bias, &w.k_bias, &w.v_bias, &w.o_bias].into_iter().map(|b| (b, 0.0));
            let heads = [&w.q_norm, &w.k_norm].into_iter().map(|n| (n, post(&spec.qk_norm)));
            let optional = biases.chain(heads).chain([(&w.post_norm, post(&spec.post_norm))]);
            let optional = optional.filter_map(|(w, offset)| Some((w.as_ref()?, offset)));
            std::iter::once((&w.norm, spec.norm.weight_offset)).chain(optional).collect()
        }
        Block::ShortConv { spec, weights: w } => vec![(&w.norm, spec.norm.weight_offset), (&w.conv, 0.0)],
        Block::Ffn { spec, weights: w } => {
            let post = w.post_norm.as_ref().map(|w| (w, post(&spec.post_norm)));
            std::iter::once((&w.norm, spec.norm.weight_offset)).chain(post).collect()
        }
        Block::Head { spec, norm, .. } => vec![(norm, spec.norm.weight_offset)],
        Block::EncoderEmbedding { .. } | Block::EncoderAttention { .. } => encoder_vectors(block),
        Block::EncoderFfn { .. } | Block::EncoderHead { .. } => encoder_vectors(block),
    }
}

/// Of a block of an encoder: all that is not packed.
fn encoder_vectors(block: &Block) -> Vec<(&Weight, f32)> {
    let packed = matrices(block);
    let kept = |w: &&Weight| !packed.iter().any(|m| std::ptr::eq(*m, *w));
    block.weights().into_iter().filter(kept).map(|w| (w, 0.0)).collect()
}

fn kv_bytes(block: &Block, workload: &Workload) -> Result<u64, DeviceError> {
    if let Block::ShortConv { spec, .. } = block {
        check_kernel(spec)?;
        let bytes = states_layout(spec, &workload.layout)?.bytes();
        return Ok(bytes.map_or(u64::MAX, |bytes| bytes as u64));
    }
    let Block::Attention { spec, .. } = block else { return Ok(0) };
    let layout = KvLayout::of(&workload.layout, spec.state(), spec.head_dim).map_err(unsupported)?;
    let geometry = KvGeometry::new(layout, spec.kv_heads, spec.head_dim);
    let absurd = || out_of_memory(format!("a KV cache of {} pages", layout.pages), u64::MAX);
    Ok(geometry.ok_or_else(absurd)?.bytes() as u64)
}

/// Floats and bytes of the buffers that submissions use, the largest of all blocks.
struct Scratch<'a> {
    workload: &'a Workload,
    level: SimdLevel,
    width: usize,
    heads: usize,
    kv: usize,
    after_norm: usize,
    hidden: usize,
    partials: usize,
    logits: usize,
    ropes: Vec<&'a RopeSpec>,
    /// Activations that all threads share, and those of one thread, in their four forms.
    shared: [usize; 4],
    own: [usize; 4],
    /// A thread's floats for attention, and its longest row.
    attention: usize,
    row: usize,
}

impl<'a> Scratch<'a> {
    fn new(workload: &'a Workload, level: SimdLevel) -> Scratch<'a> {
        Scratch {
            workload,
            level,
            width: 0,
            heads: 0,
            kv: 0,
            after_norm: 0,
            hidden: 0,
            partials: 0,
            logits: 0,
            ropes: Vec::new(),
            shared: [0; 4],
            own: [0; 4],
            attention: 0,
            row: 0,
        }
    }

    fn add(&mut self, block: &'a Block) {
        let rows = self.workload.rows;
        match block {
            Block::Embedding { spec, .. } => self.width = self.width.max(spec.width),
            Block::Attention { spec, weights: w } => {
                self.width = self.width.max(spec.width);
                self.heads = self.heads.max(rows.saturating_mul(spec.heads * spec.head_dim));
                self.kv = self.kv.max(rows.saturating_mul(spec.kv_heads * spec.head_dim));
                self.add_norm(&spec.post_norm, spec.width);
                if !self.ropes.contains(&&spec.rope) {
                    self.ropes.push(&spec.rope);
                }
                let key = PartitionKey {
                    kv_heads: spec.kv_heads,
                    group: spec.heads / spec.kv_heads.max(1),
                    padded: spec.head_dim.next_multiple_of(16),
                    window: spec.window,
                };
                let (sequences, positions) = (self.workload.sequences, self.workload.layout.positions);
                self.partials = self.partials.max(partial_floats_most(key, rows, sequences, positions));
                let staged = self.workload.layout.ty != KvType::F32;
                self.attention = self.attention.max(scratch_floats(key, spec.head_dim, staged));
                self.product(&[&w.q, &w.k, &w.v], rows);
                self.product(&[&w.o], rows);
            }
            Block::ShortConv { spec, weights: w } => {
                self.width = self.width.max(spec.width);
                self.hidden = self.hidden.max(rows.saturating_mul(3 * spec.width));
                self.product(&[&w.input], rows);
                self.product(&[&w.output], rows);
            }
            Block::Ffn { spec, weights: w } => {
                self.width = self.width.max(spec.width);
                self.hidden = self.hidden.max(rows.saturating_mul(spec.hidden));
                self.add_norm(&spec.post_norm, spec.width);
                self.product(&[&w.gate, &w.up], rows);
                self.product(&[&w.down], rows);
            }
            Block::Head { spec, weight, .. } => {
                self.width = self.width.max(spec.width);
                if self.workload.top > 0 {
                    let group = self.workload.outputs.min((LOGITS_MAX / spec.vocab.max(1)).max(1));
                    self.logits = group.saturating_mul(spec.vocab);
                }
                self.product(&[weight], self.workload.outputs);
            }
            Block::EncoderEmbedding { spec, .. } => self.width = self.width.max(spec.width),
            Block::EncoderAttention { spec, weights: w } => {
                self.width = self.width.max(spec.width);
                let inner = rows.saturating_mul(spec.heads * spec.head_dim);
                (self.heads, self.kv) = (self.heads.max(inner), self.kv.max(inner));
                let longest = rows.min(self.workload.layout.positions);
                self.attention = self.attention.max(bidirectional_floats(longest, spec.head_dim));
                self.product(&[&w.q, &w.k, &w.v], rows);
                self.product(&[&w.o], rows);
            }
            Block::EncoderFfn { spec, weights: w } => {
                self.width = self.width.max(spec.width);
                self.hidden = self.hidden.max(rows.saturating_mul(spec.hidden));
                self.product(&[&w.up], rows);
                self.product(&[&w.down], rows);
            }
            Block::EncoderHead { spec } => self.width = self.width.max(spec.width),
        }
    }

    fn add_norm(&mut self, norm: &Option<NormSpec>, width: usize) {
        if norm.is_some() {
            self.after_norm = self.after_norm.max(self.workload.rows.saturating_mul(width));
        }
    }

    /// Activations of products with these weights.
    fn product(&mut self, weights: &[&Weight], rows: usize) {
        let Some(cols) = weights.first().map(|w| w.cols) else { return };
        let level = self.level.or_narrower();
        let forms = weights.iter().map(|w| select(w.ty, level).forms());
        let forms = forms.fold(ActivationForms::default(), |a, b| a | b);
        let larger = |most: [usize; 4], rows| {
            let sizes = PackedActivations::sizes(rows, cols, forms);
            std::array::from_fn(|i| most[i].max(sizes[i].next_multiple_of(64)))
        };
        // Few elements are made by every thread for itself, and so may be one row of a larger batch.
        self.own = larger(self.own, rows.min(REDUNDANT_ELEMENTS / cols.max(1)));
        if rows.saturating_mul(cols) > REDUNDANT_ELEMENTS {
            self.shared = larger(self.shared, rows);
        }
        self.row = self.row.max(cols);
    }

    fn bytes(&self, threads: usize) -> u64 {
        let rows = self.workload.rows;
        let residual = if self.workload.crosses { 0 } else { rows.saturating_mul(self.width) };
        let rope = self.ropes.iter().map(|r| rows.saturating_mul(table_row_len(r))).max().unwrap_or(0);
        let floats = [
            residual.saturating_mul(self.workload.streams),
            self.heads.saturating_mul(2),
            self.kv.saturating_mul(2),
            self.after_norm,
            self.hidden,
            self.partials,
            self.logits,
            rope.saturating_mul(self.ropes.len()),
        ];
        let floats = floats.into_iter().fold(0, usize::saturating_add);
        let own = self.own.iter().sum::<usize>() + GROWTH * 4 * (self.attention + self.row);
        let bytes = floats
            .saturating_mul(size_of::<f32>())
            .saturating_add(self.shared.into_iter().fold(0, usize::saturating_add))
            .saturating_add(own.saturating_mul(threads));
        bytes as u64
    }
}
