//! Attention of few rows: one dispatch from q, k and v to the output, each split of the cache by a workgroup of its own.

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
        // A row that others of the batch attend to must be in the cache before any of them starts.
        if !b.alone {
            self.rope_and_cache(b, cache, 0);
        }
        // Whole groups of 32 lie inside a head, else the output is quantized in a dispatch of its own.
        let fused = self.spec.head_dim.is_multiple_of(32);
        let quantized = !self.o.is_float();
        let output = if quantized && fused { MergeOutput::Quantized } else { MergeOutput::Float };
        self.attend_rows(b, cache, output);
        if quantized && !fused {
            let attended = self.spec.heads * self.spec.head_dim;
            b.norm("quantize", &s.wide, None, attended, NormTo::Inner, NormRows::All);
        }
        if quantized { Input::Inner } else { Input::Float(&s.wide) }
    }

    /// `attention_decode.comp`; finishes q, k and v too where every row of the batch is alone with its position.
    fn attend_rows(&self, b: &mut Builder<'_>, cache: &Cache, output: MergeOutput) {
        let (s, spec) = (b.scratch, &self.spec);
        let group = spec.heads / spec.kv_heads;
        let tiles = select::decode_tiles(spec.head_dim, group, b.kv.ty, b.gpu);
        let heads = spec.kv_heads * tiles.parts as usize;
        let wanted = select::decode_splits_wanted(heads, b.gpu);
        let mut constants = vec![
            tiles.threads,
            tiles.subgroups,
            group as u32,
            tiles.part,
            tiles.lanes,
            tiles.flight,
            b.alone as u32,
            output as u32,
            tiles.lots,
            wanted as u32,
        ];
        constants.extend(self.cache_constants(b));
        constants.extend(self.head_constants(b));
        let kernel = Kernel {
            shader: format!("attention_decode_{}", select::kv_suffix(b.kv.ty)),
            constants,
            subgroup: select::subgroup(b.gpu),
        };
        let (y, meta) = match output {
            MergeOutput::Float => (&s.wide, &s.inner.meta),
            MergeOutput::Quantized => (&s.inner.q, &s.inner.meta),
            MergeOutput::Half => (&s.half_wide, &s.inner.meta),
        };
        let (q_norm, k_norm, eps) = self.norm_addresses();
        let push = Push::new()
            .addresses([s.qkv.address(), self.bias.as_ref().map_or(0, Buffer::address), q_norm, k_norm])
            .addresses([cache.turns.address(), s.batch.address(), s.pages_address()])
            .addresses([cache.keys.address(), cache.values.address()])
            .addresses([s.partial.address(), s.tickets.address(), y.address(), meta.address()])
            .u32(spec.rope.frequencies.len())
            .f32(spec.scale)
            .f32(eps)
            .u32(spec.window.unwrap_or(0))
            .f32(spec.soft_cap.unwrap_or(0.0));
        let visible = (b.splits * SPLIT).min(spec.window.unwrap_or(usize::MAX));
        let groups = [heads, select::decode_splits(visible, wanted), b.rows];
        let reads = [&s.qkv, &s.batch, &cache.keys, &cache.values, &s.tickets];
        let mut writes = vec![&s.partial, &s.tickets, y, meta];
        if b.alone {
            writes.extend([&cache.keys, &cache.values]);
        }
        let positions = (b.rows * visible) as u64;
        let ty = b.kv.ty.tensor_type();
        let element_blocks = (spec.kv_heads * spec.head_dim / ty.block_len()) as u64;
        let d = b.dispatch("attention", kernel, push, groups, &reads, &writes);
        d.bytes = 2 * positions * element_blocks * ty.block_bytes() as u64;
        d.flops = 4 * positions * (spec.heads * spec.head_dim) as u64;
    }

    /// Attention of many rows, by splits that [`Self::merge`] puts together.
    pub(super) fn attend(&self, b: &mut Builder<'_>, cache: &Cache) {
        let (s, spec) = (b.scratch, &self.spec);
        let mut constants = vec![128, (spec.heads / spec.kv_heads) as u32, SPLIT as u32];
        constants.resize(10, 0);
        constants.extend(self.cache_constants(b));
        let kernel = Kernel {
            shader: format!("attention_splits_{}", select::kv_suffix(b.kv.ty)),
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
