//! Attention of few rows: each split of the cache by a workgroup of its own, then the splits put together.

use super::super::linear::Input;
use super::super::{Builder, NormRows, NormTo};
use super::{AttentionBlock, Cache};
use crate::memory::Buffer;
use crate::pipeline::Kernel;
use crate::push::Push;
use crate::select::{self, SPLIT};

/// What attention leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MergeOutput {
    Float,
    Quantized,
    Half,
}

impl AttentionBlock {
    /// From q, k and v to the input of the output product.
    pub(super) fn decode<'a>(&self, b: &mut Builder<'a>, cache: &Cache) -> Input<'a> {
        let s = b.scratch;
        self.rope_and_cache(b, cache, 0);
        self.attend(b, cache);
        let attended = self.spec.heads * self.spec.head_dim;
        // Whole groups of 32 lie inside a head, else the output is quantized in a dispatch of its own.
        let fused = self.spec.head_dim.is_multiple_of(32);
        let quantized = !self.o.is_float();
        self.merge(b, if quantized && fused { MergeOutput::Quantized } else { MergeOutput::Float });
        if quantized && !fused {
            b.norm("quantize", &s.wide, None, attended, NormTo::Inner, NormRows::All);
        }
        if quantized { Input::Inner } else { Input::Float(&s.wide) }
    }

    pub(super) fn attend(&self, b: &mut Builder<'_>, cache: &Cache) {
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

    pub(super) fn merge(&self, b: &mut Builder<'_>, output: MergeOutput) {
        let (s, spec) = (b.scratch, &self.spec);
        let kernel = Kernel {
            shader: "attention_merge".into(),
            constants: vec![64, SPLIT as u32, spec.head_dim as u32, output as u32],
            subgroup: select::subgroup(b.gpu),
        };
        let (y, q, meta) = match output {
            MergeOutput::Float => (s.wide.address(), 0, 0),
            MergeOutput::Quantized => (0, s.inner.q.address(), s.inner.meta.address()),
            MergeOutput::Half => (s.half_wide.address(), 0, 0),
        };
        let push = Push::new()
            .addresses([s.partial.address(), s.batch.address(), y, q, meta])
            .u32(b.splits)
            .u32(spec.window.unwrap_or(0));
        let writes: &[&Buffer] = match output {
            MergeOutput::Float => &[&s.wide],
            MergeOutput::Quantized => &[&s.inner.q, &s.inner.meta],
            MergeOutput::Half => &[&s.half_wide],
        };
        b.dispatch("attention_merge", kernel, push, [spec.heads, b.rows, 1], &[&s.partial, &s.batch], writes);
    }
}
