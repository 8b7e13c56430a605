//! What an attention block keeps, and the dispatches that both ways of attention begin with.

use std::sync::Arc;

use unicorn_core::AttentionSpec;

use super::super::builder::{Builder, Norm};
use super::super::linear::{Output, Product, Quantize};
use crate::arguments::Arguments;
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::select::{self, AttentionShape};
use crate::weights::Matrix;

/// A mixer's KV cache.
pub(crate) struct Cache {
    pub(crate) keys: Buffer,
    pub(crate) values: Buffer,
    /// Cosine and sine per (position, pair).
    pub(crate) turns: Arc<Buffer>,
}

/// One or more of the query, key and value projections, whose rows lie in one matrix where their types are the same.
pub(crate) struct Projection {
    pub(crate) op: &'static str,
    pub(crate) matrix: Arc<Matrix>,
}

pub(crate) struct AttentionBlock {
    pub(crate) spec: AttentionSpec,
    pub(crate) norm: Norm,
    /// Queries, keys and values, in this order.
    pub(crate) inputs: Vec<Projection>,
    pub(crate) o: Arc<Matrix>,
    /// q, k and v biases, one after the other.
    pub(crate) bias: Option<Buffer>,
    /// Bias of the output product.
    pub(crate) o_bias: Option<Buffer>,
    /// Weights of the q and k norms, and their epsilon.
    pub(crate) qk_norm: Option<(Buffer, Buffer, f32)>,
    pub(crate) post_norm: Option<Norm>,
    pub(crate) cache: Option<Cache>,
}

impl AttentionBlock {
    pub(crate) fn shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.spec.heads,
            kv_heads: self.spec.kv_heads,
            head_dim: self.spec.head_dim,
            inputs: self.inputs.iter().map(|p| (p.op, p.matrix.shape())).collect(),
            output: self.o.shape(),
            output_bias: self.o_bias.is_some(),
            post_norm: self.post_norm.is_some(),
        }
    }

    /// Columns of queries, keys and values together.
    pub(crate) fn columns(&self) -> usize {
        self.inputs.iter().map(|p| p.matrix.rows).sum()
    }

    pub(super) fn projections(&self, b: &mut Builder<'_>) {
        let (s, rows) = (b.scratch, b.rows);
        let stride = self.columns();
        let matrices: Vec<&Matrix> = self.inputs.iter().map(|p| &*p.matrix).collect();
        let input = b.normed_input(&self.norm, &matrices);
        let mut column = 0;
        for Projection { op, matrix } in &self.inputs {
            let out = Output { y: Some(&s.qkv), column, stride, accumulate: false, quantize: Quantize::No };
            b.product(Product { op, matrix, gated: None }, input.of(b.form(matrix)), out, rows);
            column += matrix.rows;
        }
    }

    /// Finishes q, k and v in a dispatch of its own: k and v go to the cache; q, scaled, stays in `qkv`, or with a pitch goes as f16 to
    /// `queries`, where it is that many elements from head to head.
    pub(super) fn rope_and_cache(&self, b: &mut Builder<'_>, cache: &Cache, query_pitch: usize) {
        let (s, spec) = (b.scratch, &self.spec);
        let (threads, lanes) = select::rope_threads(spec.head_dim, b.gpu);
        let mut constants = vec![
            threads,
            spec.heads as u32,
            (spec.rope.style == unicorn_core::RopeStyle::Neox) as u32,
            self.qk_norm.is_some() as u32,
            self.bias.is_some() as u32,
            lanes,
            query_pitch as u32,
        ];
        constants.resize(10, 0);
        constants.extend(self.cache_constants(b));
        constants.extend(self.head_constants(b));
        let kernel = Kernel {
            shader: format!("rope_kv_{}", select::kv_suffix(b.kv)),
            constants,
            subgroup: select::subgroup(b.gpu),
        };
        let (q_norm, k_norm, eps) = self.norm_addresses();
        let arguments = Arguments::new()
            .addresses([s.qkv.address(), self.bias.as_ref().map_or(0, Buffer::address), q_norm, k_norm])
            .addresses([cache.turns.address(), s.batch.address(), b.pages_address(self.spec.state())])
            .addresses([cache.keys.address(), cache.values.address(), s.queries.address()])
            .u32(spec.rope.frequencies.len())
            .f32(spec.scale)
            .f32(eps);
        let all = spec.heads + 2 * spec.kv_heads;
        let groups = [all.div_ceil((threads / lanes) as usize), b.rows, 1];
        let queries = if query_pitch == 0 { &s.qkv } else { &s.queries };
        let rows = b.rows;
        let writes = [queries, &cache.keys, &cache.values];
        let d = b.dispatch("rope_kv", kernel, arguments, groups, &[&s.qkv, &s.batch], &writes);
        d.bytes = (2 * rows * all * spec.head_dim * 4) as u64;
    }

    /// Specialization constants 10, 11 and 12 of every kernel that touches the cache.
    pub(super) fn cache_constants(&self, b: &Builder<'_>) -> [u32; 3] {
        [self.spec.kv_heads as u32, self.spec.head_dim as u32, b.page_tokens as u32]
    }

    /// Specialization constants 13 to 17 of every kernel that finishes heads.
    pub(super) fn head_constants(&self, b: &Builder<'_>) -> [u32; 5] {
        [
            select::subgroup(b.gpu),
            self.spec.heads as u32,
            (self.spec.rope.style == unicorn_core::RopeStyle::Neox) as u32,
            self.qk_norm.is_some() as u32,
            self.bias.is_some() as u32,
        ]
    }

    /// Addresses of the q and k norms' weights, zero for none, and their epsilon.
    pub(super) fn norm_addresses(&self) -> (u64, u64, f32) {
        self.qk_norm.as_ref().map_or((0, 0, 0.0), |(q, k, eps)| (q.address(), k.address(), *eps))
    }
}
