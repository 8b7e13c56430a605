//! Softmax attention: q, k and v products, then bias, norms, RoPE and the cache write, then attention by splits, then the output product.

use std::sync::Arc;

use unicorn_core::AttentionSpec;

use super::linear::{Input, Output, Product, Quantize};
use super::{Builder, Norm, NormRows, NormTo};
use crate::memory::Buffer;
use crate::pipeline::Kernel;
use crate::push::Push;
use crate::select::{self, SPLIT};
use crate::weights::Matrix;

/// A mixer's KV cache.
pub(crate) struct Cache {
    pub(crate) keys: Buffer,
    pub(crate) values: Buffer,
    /// Cosine and sine per (position, pair).
    pub(crate) turns: Arc<Buffer>,
}

pub(crate) struct AttentionBlock {
    pub(crate) spec: AttentionSpec,
    pub(crate) norm: Norm,
    pub(crate) q: Arc<Matrix>,
    pub(crate) k: Arc<Matrix>,
    pub(crate) v: Arc<Matrix>,
    pub(crate) o: Arc<Matrix>,
    /// q, k and v biases, one after the other.
    pub(crate) bias: Option<Buffer>,
    /// Weights of the q and k norms, and their epsilon.
    pub(crate) qk_norm: Option<(Buffer, Buffer, f32)>,
    pub(crate) post_norm: Option<Norm>,
    pub(crate) cache: Option<Cache>,
}

impl AttentionBlock {
    /// Whether the first products take quantized input.
    pub(crate) fn takes_quantized(&self) -> bool {
        !self.q.is_float() && !self.k.is_float() && !self.v.is_float()
    }

    /// `next` is the pre-norm of the block after this one, where its input may be prepared here. The cache has been reserved.
    pub(crate) fn record(&self, b: &mut Builder<'_>, cache: &Cache, next: Option<&Norm>) {
        let spec = &self.spec;
        self.projections(b);
        self.rope_and_cache(b, cache);
        self.attend(b, cache);
        let attended = spec.heads * spec.head_dim;
        // Whole groups of 32 lie inside a head, else the output is quantized in a dispatch of its own.
        let fused = spec.head_dim.is_multiple_of(32);
        let quantized = !self.o.is_float();
        self.merge(b, quantized && fused);
        if quantized && !fused {
            b.norm("quantize", &b.scratch.wide, None, attended, NormTo::Inner, NormRows::All);
        }
        let input = if quantized { Input::Inner } else { Input::Float(&b.scratch.wide) };
        b.add_to_residual("attention_output", &self.o, input, self.post_norm.as_ref(), next);
    }

    fn projections(&self, b: &mut Builder<'_>) {
        let (s, rows) = (b.scratch, b.rows);
        let stride = self.q.rows + self.k.rows + self.v.rows;
        let input = b.normed_input(&self.norm, &[&self.q, &self.k, &self.v]);
        let mut column = 0;
        for (op, matrix) in [("attention_q", &self.q), ("attention_k", &self.k), ("attention_v", &self.v)] {
            let out = Output { y: Some(&s.qkv), column, stride, accumulate: false, quantize: Quantize::No };
            b.product(Product { op, matrix, gated: None }, input.of(matrix), out, rows);
            column += matrix.rows;
        }
    }

    fn rope_and_cache(&self, b: &mut Builder<'_>, cache: &Cache) {
        let (s, spec) = (b.scratch, &self.spec);
        let mut constants = vec![
            64,
            spec.heads as u32,
            (spec.rope.style == unicorn_core::RopeStyle::Neox) as u32,
            self.qk_norm.is_some() as u32,
            self.bias.is_some() as u32,
        ];
        constants.resize(10, 0);
        constants.extend(self.cache_constants(b));
        let kernel = Kernel {
            shader: format!("rope_kv_{}", select::kv_suffix(b.kv.ty)),
            constants,
            subgroup: select::subgroup(b.gpu),
        };
        let (q_norm, k_norm, eps) =
            self.qk_norm.as_ref().map_or((0, 0, 0.0), |(q, k, eps)| (q.address(), k.address(), *eps));
        let push = Push::new()
            .addresses([s.qkv.address(), self.bias.as_ref().map_or(0, Buffer::address), q_norm, k_norm])
            .addresses([cache.turns.address(), s.batch.address(), s.pages_address()])
            .addresses([cache.keys.address(), cache.values.address()])
            .u32(spec.rope.frequencies.len())
            .f32(spec.scale)
            .f32(eps);
        let groups = [spec.heads + 2 * spec.kv_heads, b.rows, 1];
        b.dispatch(
            "rope_kv",
            kernel,
            push,
            groups,
            &[&s.qkv, &s.batch],
            &[&s.qkv, &cache.keys, &cache.values],
        );
    }

    fn attend(&self, b: &mut Builder<'_>, cache: &Cache) {
        let (s, spec) = (b.scratch, &self.spec);
        let mut constants = vec![128, (spec.heads / spec.kv_heads) as u32, SPLIT as u32];
        constants.resize(10, 0);
        constants.extend(self.cache_constants(b));
        let kernel = Kernel {
            shader: format!("attention_decode_{}", select::kv_suffix(b.kv.ty)),
            constants,
            subgroup: select::subgroup(b.gpu),
        };
        let push = Push::new()
            .addresses([s.qkv.address(), s.batch.address(), s.pages_address()])
            .addresses([cache.keys.address(), cache.values.address(), s.partial.address()])
            .u32((spec.heads + 2 * spec.kv_heads) * spec.head_dim)
            .u32(spec.window.unwrap_or(0))
            .f32(spec.soft_cap.unwrap_or(0.0));
        let groups = [spec.kv_heads, b.splits, b.rows];
        let reads = [&s.qkv, &s.batch, &cache.keys, &cache.values];
        b.dispatch("attention", kernel, push, groups, &reads, &[&s.partial]);
    }

    fn merge(&self, b: &mut Builder<'_>, quantize: bool) {
        let (s, spec) = (b.scratch, &self.spec);
        let kernel = Kernel {
            shader: "attention_merge".into(),
            constants: vec![64, SPLIT as u32, spec.head_dim as u32, quantize as u32],
            subgroup: select::subgroup(b.gpu),
        };
        let (y, q, meta) = if quantize {
            (0, s.inner.q.address(), s.inner.meta.address())
        } else {
            (s.wide.address(), 0, 0)
        };
        let push = Push::new()
            .addresses([s.partial.address(), s.batch.address(), y, q, meta])
            .u32(b.splits)
            .u32(spec.window.unwrap_or(0));
        let writes: &[&Buffer] = if quantize { &[&s.inner.q, &s.inner.meta] } else { &[&s.wide] };
        b.dispatch("attention_merge", kernel, push, [spec.heads, b.rows, 1], &[&s.partial, &s.batch], writes);
    }

    /// Specialization constants 10, 11 and 12 of every kernel that touches the cache.
    fn cache_constants(&self, b: &Builder<'_>) -> [u32; 3] {
        [self.spec.kv_heads as u32, self.spec.head_dim as u32, b.kv.page_tokens as u32]
    }
}
