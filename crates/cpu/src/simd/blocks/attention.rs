//! The attention block: norm and projections, attention over the KV cache, output projection.

use std::sync::Arc;

use unicorn_core::{AttentionSpec, RateKind};

use super::label::Label;
use super::norm::Norm;
use super::region::{Inputs, Needs, Product, Region};
use crate::simd::attention::{Attention, Heads, Partition, PartitionKey, Projections};
use crate::simd::kv::KvCache;
use crate::simd::level::SimdLevel;
use crate::simd::linear::{Epilogue, PackedMatrix};
use crate::simd::pool::Worker;

/// Per-head norms of queries and keys.
#[derive(Clone)]
pub(crate) struct QkNorm {
    /// `[head_dim]`, for queries.
    pub(crate) q: Arc<[f32]>,
    /// `[head_dim]`, for keys.
    pub(crate) k: Arc<[f32]>,
    pub(crate) eps: f32,
}

/// A loaded attention block.
pub(crate) struct AttentionBlock {
    pub(crate) spec: AttentionSpec,
    /// Index of the rope spec among those of the device.
    pub(crate) rope: usize,
    pub(crate) norm: Norm,
    /// Query, key, value and output projections.
    pub(crate) matrices: [Arc<PackedMatrix>; 4],
    /// Their biases.
    pub(crate) biases: [Option<Arc<[f32]>>; 4],
    pub(crate) qk_norm: Option<QkNorm>,
    pub(crate) post_norm: Option<Norm>,
    pub(crate) kv: Option<KvCache>,
    project_label: Label,
    attend_label: Label,
    output_label: Label,
}

impl AttentionBlock {
    /// Wraps the weights; the KV cache comes later.
    pub(crate) fn new(
        spec: &AttentionSpec,
        rope: usize,
        norm: Norm,
        matrices: [Arc<PackedMatrix>; 4],
        biases: [Option<Arc<[f32]>>; 4],
        qk_norm: Option<QkNorm>,
        post_norm: Option<Norm>,
        level: SimdLevel,
    ) -> AttentionBlock {
        let [q, k, v, o] = &matrices;
        let project_label = Label::product("attention_qkv", &[q, k, v]);
        let attend_label = Label { name: format!("attention_scores {level}"), rate: RateKind::Float };
        let output_label = Label::product("attention_output", &[o]);
        AttentionBlock {
            spec: spec.clone(),
            rope,
            norm,
            matrices,
            biases,
            qk_norm,
            post_norm,
            kv: None,
            project_label,
            attend_label,
            output_label,
        }
    }

    /// Names the cache type in profiles too.
    pub(crate) fn set_cache(&mut self, kv: Option<KvCache>, level: SimdLevel) {
        let ty = kv.as_ref().map_or("", |kv| kv.geometry().ty.tensor_type().name());
        self.attend_label.name = format!("attention_scores {} {level}", ty.to_lowercase());
        self.kv = kv;
    }

    pub(super) fn labels(&self) -> [&Label; 3] {
        [&self.project_label, &self.attend_label, &self.output_label]
    }

    /// Shapes that decide how the work is cut.
    pub(crate) fn partition_key(&self) -> PartitionKey {
        PartitionKey {
            kv_heads: self.spec.kv_heads,
            group: self.spec.heads / self.spec.kv_heads,
            padded: self.spec.head_dim.next_multiple_of(16),
            window: self.spec.window,
        }
    }

    /// Shared memory for `rows` rows.
    pub(crate) fn needs(&self, rows: usize, partition: &Partition) -> Needs {
        let spec = &self.spec;
        Needs {
            q: rows * spec.heads * spec.head_dim,
            kv: rows * spec.kv_heads * spec.head_dim,
            y: if self.post_norm.is_some() { rows * spec.width } else { 0 },
            partials: partition.partial_floats,
            ..Needs::default()
        }
    }

    fn heads(&self) -> Heads<'_> {
        Heads {
            heads: self.spec.heads,
            group: self.spec.heads / self.spec.kv_heads,
            dim: self.spec.head_dim,
            scale: self.spec.scale,
            window: self.spec.window,
            soft_cap: self.spec.soft_cap,
            rope_style: self.spec.rope.style,
            qk_norm: self.qk_norm.as_ref().map(|n| (&*n.q, &*n.k, n.eps)),
        }
    }

    /// Adds the block's output to the residual stream.
    ///
    /// # Safety
    /// As [`super::Loaded::run`]. The batch's pages have been checked, and partition and rope table exist.
    ///
    /// # Panics
    /// When there is no KV cache, partition or table.
    pub(super) unsafe fn run(&self, worker: &Worker, region: &Region) {
        let rows = region.row_count();
        let key = self.partition_key();
        let (Some(cache), Some(partition), Some(table)) = (
            &self.kv,
            region.partitions.iter().find(|p| p.key == key),
            region.ropes.iter().find(|t| t.rope == self.rope),
        ) else {
            panic!("attention without cache, partition or rotations");
        };
        let buffers = &region.buffers;
        let [q, k, v, o] = &self.matrices;
        // SAFETY: the outputs of a step are disjoint; what earlier ones wrote is read inside of steps.
        unsafe {
            region.start_marks(worker);
            let forms = q.activation_forms() | k.activation_forms() | v.activation_forms();
            let x = region.normed(&self.norm, rows, forms, |row| row);
            let product = |i: usize, out| Product {
                matrix: &self.matrices[i],
                out,
                epilogue: self.biases[i].as_deref().map_or(Epilogue::Store, Epilogue::Bias),
            };
            region.multiply(
                worker,
                &x,
                &[product(0, buffers.q), product(1, buffers.k), product(2, buffers.v)],
            );
            let weights = (q.bytes() + k.bytes() + v.bytes()) as u64;
            let flops = 2 * (rows * (q.rows() + k.rows() + v.rows()) * q.cols()) as u64;
            region.mark(worker, &self.project_label, weights, flops);

            let attention = Attention {
                level: region.level,
                heads: self.heads(),
                cache,
                batch: region.batch,
                rows: region.rows,
                partition,
                partials: buffers.partials,
                out: buffers.attended,
            };
            let (heads, dim) = (self.spec.heads, self.spec.head_dim);
            let from = || Projections {
                q: buffers.q.read(0..rows * heads * dim),
                k: buffers.k.read(0..rows * self.spec.kv_heads * dim),
                v: buffers.v.read(0..rows * self.spec.kv_heads * dim),
                rope: table.values.read(0..rows * table.row),
                rope_row: table.row,
            };
            let scratch = &mut region.scratch(worker).attention;
            attention.store(worker, from, scratch);
            attention.attend(worker, from, scratch);
            let bytes = partition.positions * cache.geometry().bytes_per_position() as u64;
            region.mark(worker, &self.attend_label, bytes, 4 * partition.pairs * (heads * dim) as u64);

            let x = Inputs {
                rows,
                cols: heads * dim,
                forms: o.activation_forms(),
                fill: |row, scratch: &mut _, buffer: &mut _, quantize: &dyn Fn(&[f32])| {
                    quantize(attention.output_row(row, scratch, buffer));
                },
            };
            region.add_to_residual(worker, &x, o, self.biases[3].as_deref(), self.post_norm.as_ref());
            let flops = 2 * (rows * o.rows() * o.cols()) as u64;
            region.mark(worker, &self.output_label, o.bytes() as u64, flops);
        }
    }
}
