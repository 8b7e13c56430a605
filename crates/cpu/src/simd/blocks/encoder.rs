//! The blocks of encoders, whose norms come after the residual add: the last product of a block is added to the residual stream, and a
//! step of norms follows.

use std::ops::Range;
use std::sync::Arc;

use unicorn_core::{
    Batch, EncoderAttentionSpec, EncoderEmbeddingSpec, EncoderFfnSpec, EncoderHeadSpec, RateKind,
};

use super::label::Label;
use super::region::{Inputs, Needs, Product, Region};
use crate::simd::attention::{Bidirectional, QUERY_ROWS};
use crate::simd::elementary::gelu;
use crate::simd::layer_norm::layer_norm;
use crate::simd::level::SimdLevel;
use crate::simd::linear::{ActivationForms, Epilogue, PackedMatrix};
use crate::simd::pool::Worker;

/// Rows that a thread embeds or norms at a time.
const ROWS: usize = 4;

/// A LayerNorm with its weights.
#[derive(Clone)]
pub(crate) struct LayerNorm {
    /// `[width]`.
    pub(crate) weight: Arc<[f32]>,
    /// `[width]`.
    pub(crate) bias: Arc<[f32]>,
    pub(crate) eps: f32,
}

impl LayerNorm {
    fn row(&self, level: SimdLevel, x: &mut [f32]) {
        layer_norm(level, x, &self.weight, &self.bias, self.eps);
    }

    /// A step that norms all rows of the residual stream.
    ///
    /// # Safety
    /// As [`super::Loaded::run`].
    unsafe fn step(&self, worker: &Worker, region: &Region) {
        let width = self.weight.len();
        worker.step(region.row_count(), ROWS, |part| {
            for row in part {
                // SAFETY: every row is given to one thread.
                self.row(region.level, unsafe { region.x.write(row * width..(row + 1) * width) });
            }
        });
    }
}

/// The residual stream as it is, as activations.
fn residual<'a>(
    region: &'a Region,
    width: usize,
    forms: ActivationForms,
) -> Inputs<impl super::region::FillRow + use<'a>> {
    let fill = move |row: usize, _: &mut _, _: &mut Vec<f32>, quantize: &dyn Fn(&[f32])| {
        // SAFETY: no step that reads the residual stream writes it.
        quantize(unsafe { region.residual(row, width) });
    };
    Inputs { rows: region.row_count(), cols: width, forms, fill }
}

/// A loaded embedding of tokens and positions.
pub(crate) struct EncoderEmbeddingBlock {
    pub(crate) spec: EncoderEmbeddingSpec,
    pub(crate) table: Arc<PackedMatrix>,
    /// `[positions, width]`.
    pub(crate) positions: Arc<[f32]>,
    /// `[token types, width]`, of which the first row counts.
    pub(crate) token_types: Arc<[f32]>,
    pub(crate) norm: LayerNorm,
    pub(super) label: Label,
}

impl EncoderEmbeddingBlock {
    /// Wraps the tables.
    pub(crate) fn new(
        spec: &EncoderEmbeddingSpec,
        table: Arc<PackedMatrix>,
        [positions, token_types]: [Arc<[f32]>; 2],
        norm: LayerNorm,
    ) -> EncoderEmbeddingBlock {
        let name = format!("encoder_embedding {}", table.ty().name().to_lowercase());
        let label = Label { name, rate: RateKind::Float };
        EncoderEmbeddingBlock { spec: spec.clone(), table, positions, token_types, norm, label }
    }

    /// Writes the residual stream anew.
    ///
    /// # Safety
    /// As [`super::Loaded::run`]. Token ids and positions have been checked.
    pub(super) unsafe fn run(&self, worker: &Worker, region: &Region) {
        let width = self.spec.width;
        // SAFETY: every row is given to one thread.
        unsafe {
            region.start_marks(worker);
            worker.step(region.row_count(), ROWS, |part| {
                for row in part {
                    let position = region.rows.position(region.batch, row);
                    let out = region.x.write(row * width..(row + 1) * width);
                    self.table.dequantize_row(region.tokens[row] as usize, out);
                    let others = self.positions[position * width..].iter().zip(&*self.token_types);
                    for (x, (position, token_type)) in out.iter_mut().zip(others) {
                        *x = *x + token_type + position;
                    }
                    self.norm.row(region.level, out);
                }
            });
            let rows = region.row_count() as u64;
            let row_bytes = self.table.bytes() / self.table.rows().max(1) + 4 * width;
            region.mark(worker, &self.label, rows * row_bytes as u64, 0);
        }
    }
}

/// A loaded attention of an encoder.
pub(crate) struct EncoderAttentionBlock {
    pub(crate) spec: EncoderAttentionSpec,
    /// Query, key, value and output projections.
    pub(crate) matrices: [Arc<PackedMatrix>; 4],
    /// Their biases.
    pub(crate) biases: [Arc<[f32]>; 4],
    pub(crate) norm: LayerNorm,
    labels: [Label; 3],
}

impl EncoderAttentionBlock {
    /// Wraps the weights.
    pub(crate) fn new(
        spec: &EncoderAttentionSpec,
        matrices: [Arc<PackedMatrix>; 4],
        biases: [Arc<[f32]>; 4],
        norm: LayerNorm,
        level: SimdLevel,
    ) -> EncoderAttentionBlock {
        let [q, k, v, o] = &matrices;
        let scores = Label { name: format!("encoder_attention_scores {level}"), rate: RateKind::Float };
        let labels = [
            Label::product("encoder_attention_qkv", &[q, k, v]),
            scores,
            Label::product("encoder_attention_output", &[o]),
        ];
        EncoderAttentionBlock { spec: spec.clone(), matrices, biases, norm, labels }
    }

    pub(super) fn labels(&self) -> [&Label; 3] {
        self.labels.each_ref()
    }

    /// Shared memory for `rows` rows.
    pub(crate) fn needs(&self, rows: usize) -> Needs {
        let inner = rows * self.spec.heads * self.spec.head_dim;
        Needs { q: inner, kv: inner, ..Needs::default() }
    }

    /// Maps the residual stream.
    ///
    /// # Safety
    /// As [`super::Loaded::run`]. The slices are whole sequences.
    pub(super) unsafe fn run(&self, worker: &Worker, region: &Region) {
        let (rows, buffers) = (region.row_count(), &region.buffers);
        let (heads, dim) = (self.spec.heads, self.spec.head_dim);
        let [q, k, v, o] = &self.matrices;
        // SAFETY: the outputs of a step are disjoint; what earlier ones wrote is read inside of steps.
        unsafe {
            region.start_marks(worker);
            let forms = q.activation_forms() | k.activation_forms() | v.activation_forms();
            let x = residual(region, self.spec.width, forms);
            let product = |i: usize, out| Product {
                matrix: &self.matrices[i],
                out,
                epilogue: Epilogue::Bias(&self.biases[i]),
            };
            let products = [product(0, buffers.q), product(1, buffers.k), product(2, buffers.v)];
            region.multiply(worker, &x, &products);
            let weights = (q.bytes() + k.bytes() + v.bytes()) as u64;
            let flops = 6 * (rows * q.rows() * q.cols()) as u64;
            region.mark(worker, &self.labels[0], weights, flops);

            let pairs = self.attend(worker, region);
            region.mark(worker, &self.labels[1], 0, 4 * (pairs * heads * dim) as u64);

            let inner = heads * dim;
            let x = Inputs {
                rows,
                cols: inner,
                forms: o.activation_forms(),
                fill: |row, _: &mut _, _: &mut _, quantize: &dyn Fn(&[f32])| {
                    quantize(buffers.attended.read(row * inner..(row + 1) * inner));
                },
            };
            let epilogue = Epilogue::AddBias(&self.biases[3]);
            region.multiply(worker, &x, &[Product { matrix: o, out: region.x, epilogue }]);
            self.norm.step(worker, region);
            let flops = 2 * (rows * o.rows() * o.cols()) as u64;
            region.mark(worker, &self.labels[2], o.bytes() as u64, flops);
        }
    }

    /// Attention proper, a head of some rows at a time; returns the pairs of rows that see each other.
    ///
    /// # Safety
    /// As [`EncoderAttentionBlock::run`].
    unsafe fn attend(&self, worker: &Worker, region: &Region) -> usize {
        let (parts, buffers) = (parts(region.batch), &region.buffers);
        let heads = self.spec.heads;
        let attention = Bidirectional {
            level: region.level,
            heads,
            dim: self.spec.head_dim,
            scale: self.spec.scale,
            q: buffers.q,
            k: buffers.k,
            v: buffers.v,
            out: buffers.attended,
        };
        worker.step(parts.len() * heads, 1, |units| {
            for unit in units {
                let (sequence, queries) = parts[unit / heads].clone();
                // SAFETY: a head of a row is given to one thread, and so is the scratch; the projections were written in earlier steps.
                unsafe {
                    let scratch = &mut region.scratch(worker).attention;
                    attention.attend(sequence, queries, unit % heads, scratch);
                }
            }
        });
        parts.iter().map(|(sequence, queries)| sequence.len() * queries.len()).sum()
    }
}

/// The rows of each sequence, with some of them at a time as queries.
fn parts(batch: &Batch) -> Vec<(Range<usize>, Range<usize>)> {
    let (mut parts, mut end) = (Vec::new(), 0);
    for slice in batch.slices() {
        let rows = end..end + slice.tokens.len();
        let queries = |first: usize| first..rows.end.min(first + QUERY_ROWS);
        parts.extend(rows.clone().step_by(QUERY_ROWS).map(|first| (rows.clone(), queries(first))));
        end = rows.end;
    }
    parts
}

/// A loaded feed-forward block of an encoder.
pub(crate) struct EncoderFfnBlock {
    pub(crate) spec: EncoderFfnSpec,
    /// Up and down.
    pub(crate) matrices: [Arc<PackedMatrix>; 2],
    /// Their biases.
    pub(crate) biases: [Arc<[f32]>; 2],
    pub(crate) norm: LayerNorm,
    labels: [Label; 2],
}

impl EncoderFfnBlock {
    /// Wraps the weights.
    pub(crate) fn new(
        spec: &EncoderFfnSpec,
        matrices: [Arc<PackedMatrix>; 2],
        biases: [Arc<[f32]>; 2],
        norm: LayerNorm,
    ) -> EncoderFfnBlock {
        let [up, down] = &matrices;
        let labels = [Label::product("encoder_ffn_up", &[up]), Label::product("encoder_ffn_down", &[down])];
        EncoderFfnBlock { spec: spec.clone(), matrices, biases, norm, labels }
    }

    pub(super) fn labels(&self) -> [&Label; 2] {
        self.labels.each_ref()
    }

    /// Shared memory for `rows` rows.
    pub(crate) fn needs(&self, rows: usize) -> Needs {
        Needs { hidden: rows * self.spec.hidden, ..Needs::default() }
    }

    /// Maps the residual stream.
    ///
    /// # Safety
    /// As [`super::Loaded::run`].
    pub(super) unsafe fn run(&self, worker: &Worker, region: &Region) {
        let (rows, hidden) = (region.row_count(), self.spec.hidden);
        let [up, down] = &self.matrices;
        let out = region.buffers.hidden;
        let flops = 2 * (rows * up.rows() * up.cols()) as u64;
        // SAFETY: the outputs of a step are disjoint; what earlier ones wrote is read inside of steps.
        unsafe {
            region.start_marks(worker);
            let x = residual(region, self.spec.width, up.activation_forms());
            let epilogue = Epilogue::Bias(&self.biases[0]);
            region.multiply(worker, &x, &[Product { matrix: up, out, epilogue }]);
            region.mark(worker, &self.labels[0], up.bytes() as u64, flops);

            let x = Inputs {
                rows,
                cols: hidden,
                forms: down.activation_forms(),
                fill: |row, _: &mut _, buffer: &mut Vec<f32>, quantize: &dyn Fn(&[f32])| {
                    buffer.clear();
                    buffer.extend_from_slice(out.read(row * hidden..(row + 1) * hidden));
                    gelu(region.level, buffer);
                    quantize(buffer);
                },
            };
            let epilogue = Epilogue::AddBias(&self.biases[1]);
            region.multiply(worker, &x, &[Product { matrix: down, out: region.x, epilogue }]);
            self.norm.step(worker, region);
            region.mark(worker, &self.labels[1], down.bytes() as u64, flops);
        }
    }
}

/// The end of an encoder.
pub(crate) struct EncoderHeadBlock {
    pub(crate) spec: EncoderHeadSpec,
    pub(super) label: Label,
}

impl EncoderHeadBlock {
    pub(crate) fn new(spec: &EncoderHeadSpec) -> EncoderHeadBlock {
        let label = Label { name: "encoder_head".to_owned(), rate: RateKind::Float };
        EncoderHeadBlock { spec: spec.clone(), label }
    }

    /// Copies the output rows of the residual stream, all of which ask for hidden states.
    ///
    /// # Safety
    /// As [`super::Loaded::run`]. `buffers.states` holds these rows.
    pub(super) unsafe fn run(&self, worker: &Worker, region: &Region) {
        let (width, outputs) = (self.spec.width, region.batch.outputs());
        // SAFETY: every row is given to one thread.
        unsafe {
            region.start_marks(worker);
            worker.step(outputs.len(), ROWS, |part| {
                for at in part {
                    let x = region.residual(outputs[at].row as usize, width);
                    region.buffers.states.write(at * width..(at + 1) * width).copy_from_slice(x);
                }
            });
            region.mark(worker, &self.label, 0, 0);
        }
    }
}
