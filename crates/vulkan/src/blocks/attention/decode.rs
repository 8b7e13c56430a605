//! Attention of few rows: one dispatch from q, k and v to the output, each split of the cache by a workgroup of its own.

use super::super::builder::{Builder, NormRows, NormTo};
use super::super::linear::Input;
use super::block::{AttentionBlock, Cache};
use crate::arguments::Arguments;
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::scratch::Scratch;
use crate::select::{self, Form};

/// What attention leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
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
        let form = b.form(&self.o);
        let output = match form {
            Form::Quantized if fused => Left::Quantized,
            Form::Half => Left::Half,
            Form::Quantized | Form::Float => Left::Float,
        };
        self.attend(b, cache, output);
        if form == Form::Quantized && !fused {
            let attended = self.spec.heads * self.spec.head_dim;
            b.norm("quantize", &s.wide, None, attended, NormTo::Inner, NormRows::All);
        }
        match form {
            Form::Float => Input::Float(&s.wide),
            Form::Half => Input::Half(&s.half_wide),
            Form::Quantized => Input::Inner,
        }
    }

    /// `attention_decode.comp`; finishes q, k and v too where every row of the batch is alone with its position. As many rows a dispatch
    /// as the buffer of partial results holds.
    fn attend(&self, b: &mut Builder<'_>, cache: &Cache, output: Left) {
        let (s, spec) = (b.scratch, &self.spec);
        let group = spec.heads / spec.kv_heads;
        let tiles = select::decode_tiles(spec.head_dim, group, b.kv, b.gpu);
        let heads = spec.kv_heads * tiles.parts as usize;
        let wanted = select::decode_splits_wanted(heads, b.gpu);
        let visible = b.positions.min(spec.window.unwrap_or(usize::MAX));
        let splits = select::decode_splits(visible, wanted);
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
            shader: format!("attention_decode_{}", select::kv_suffix(b.kv)),
            constants,
            subgroup: select::subgroup(b.gpu),
        };
        // Bytes of an element.
        let (y, element) = match output {
            Left::Float => (&s.wide, 4),
            Left::Quantized => (&s.inner.q, 1),
            Left::Half => (&s.half_wide, 2),
        };
        let meta = &s.inner.meta;
        let attended = spec.heads * spec.head_dim;
        let (q_norm, k_norm, eps) = self.norm_addresses();
        let reads = [&s.qkv, &s.batch, &cache.keys, &cache.values, &s.tickets];
        let mut writes = vec![&s.partial, &s.tickets, y];
        if output == Left::Quantized {
            writes.push(meta);
        }
        if b.alone {
            writes.extend([&cache.keys, &cache.values]);
        }
        let ty = b.kv.tensor_type();
        let position_bytes = 2 * spec.kv_heads * spec.head_dim / ty.block_len() * ty.block_bytes();
        let most = select::decode_rows(splits);
        for first in (0..b.rows).step_by(most) {
            let rows = most.min(b.rows - first);
            let from = |buffer: &Buffer, row_bytes: usize| buffer.address() + (first * row_bytes) as u64;
            let arguments = Arguments::new()
                .address(from(&s.qkv, 4 * self.columns()))
                .addresses([self.bias.as_ref().map_or(0, Buffer::address), q_norm, k_norm])
                .addresses([
                    cache.turns.address(),
                    from(&s.batch, Scratch::ROW_BYTES),
                    b.pages_address(self.spec.state()),
                ])
                .addresses([cache.keys.address(), cache.values.address()])
                .addresses([s.partial.address(), s.tickets.address()])
                .addresses([from(y, element * attended), from(meta, attended / 32 * 8)])
                .u32(spec.rope.frequencies.len())
                .f32(spec.scale)
                .f32(eps)
                .u32(spec.window.unwrap_or(0))
                .f32(spec.soft_cap.unwrap_or(0.0));
            let seen = b.spans.iter().flat_map(|&(start, rows)| start..start + rows).skip(first).take(rows);
            let seen: usize = seen.map(|p| (p + 1).min(visible)).sum();
            let d =
                b.dispatch("attention", kernel.clone(), arguments, [heads, splits, rows], &reads, &writes);
            d.bytes = (seen * position_bytes) as u64;
            d.flops = (4 * seen * attended) as u64;
        }
    }
}
