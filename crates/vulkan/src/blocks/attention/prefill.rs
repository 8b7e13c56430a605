//! Attention of many rows: flash attention over tiles of rows, with the keys split where tiles are few.

use super::super::builder::Builder;
use super::super::linear::Input;
use super::block::{AttentionBlock, Cache};
use crate::arguments::Arguments;
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::select::{self, FlashProblem, Form, TILE_ROWS};

impl AttentionBlock {
    /// From q, k and v to the input of the output product, over this many tiles of rows and at most this many splits of their keys.
    pub(super) fn prefill<'a>(
        &self,
        b: &mut Builder<'a>,
        cache: &Cache,
        tiles: usize,
        splits: usize,
    ) -> Input<'a> {
        self.flash(b, cache, tiles, splits);
        if b.form(&self.o) == Form::Quantized {
            b.quantize_half(self.o.cols);
            return Input::Inner;
        }
        Input::Half(&b.scratch.half_wide)
    }

    /// Leaves f16 `[rows, heads * head_dim]` in `half_wide`.
    fn flash(&self, b: &mut Builder<'_>, cache: &Cache, tiles: usize, splits: usize) {
        let (s, spec) = (b.scratch, &self.spec);
        let problem = FlashProblem {
            head_dim: spec.head_dim,
            kv_heads: spec.kv_heads,
            group: spec.heads / spec.kv_heads,
            kv: b.kv,
            page_tokens: b.page_tokens,
            splits,
        };
        let flash = select::flash_kernel(&problem, b.gpu);
        self.rope_and_cache(b, cache, flash.query_pitch);
        let (queries, q_rows) = match flash.query_pitch {
            0 => (&s.qkv, (spec.heads + 2 * spec.kv_heads) * spec.head_dim),
            _ => (&s.queries, b.rows),
        };
        let y = &s.half_wide;
        let arguments = Arguments::new()
            .addresses([queries.address(), s.tiles_address(), b.pages_address(self.spec.state())])
            .addresses([cache.keys.address(), cache.values.address()])
            .addresses([y.address(), s.partial.address()])
            .u32(q_rows)
            .u32(spec.window.unwrap_or(0))
            .f32(spec.soft_cap.unwrap_or(0.0));
        let pieces = (TILE_ROWS.min(b.rows) * problem.group).div_ceil(flash.rows);
        let groups = [pieces, spec.kv_heads, tiles * splits];
        let reads = [queries, &s.batch, &cache.keys, &cache.values];
        let writes: &[&Buffer] = if splits > 1 { &[y, &s.partial] } else { &[y] };
        let (flops, bytes) = self.work(b);
        let d = b.dispatch("attention", flash.kernel, arguments, groups, &reads, writes);
        d.flops = flops;
        d.bytes = bytes;
        if splits > 1 {
            self.flash_merge(b, y, tiles);
        }
    }

    fn flash_merge(&self, b: &mut Builder<'_>, y: &Buffer, tiles: usize) {
        let (s, spec) = (b.scratch, &self.spec);
        let kernel = Kernel {
            shader: "flash_merge".into(),
            constants: vec![64, spec.head_dim as u32],
            subgroup: select::subgroup(b.gpu),
        };
        let arguments = Arguments::new()
            .addresses([s.partial.address(), s.tiles_address(), y.address()])
            .u32(spec.window.unwrap_or(0));
        let groups = [spec.heads, TILE_ROWS.min(b.rows), tiles];
        b.dispatch("attention_merge", kernel, arguments, groups, &[&s.partial, &s.batch], &[y]);
    }

    /// Operations of the products of queries, keys and values that the mask leaves, and bytes of keys and values that are read.
    fn work(&self, b: &Builder<'_>) -> (u64, u64) {
        let spec = &self.spec;
        let window = spec.window.map_or(usize::MAX, |w| w.max(1));
        let (mut pairs, mut keys) = (0, 0);
        for &(start, rows) in &b.spans {
            pairs += (start..start + rows).map(|p| (p + 1).min(window)).sum::<usize>();
            keys += (start + rows).min(window.saturating_add(rows));
        }
        let ty = b.kv.tensor_type();
        let key_bytes = spec.kv_heads * spec.head_dim / ty.block_len() * ty.block_bytes();
        ((4 * spec.heads * spec.head_dim * pairs) as u64, (2 * key_bytes * keys) as u64)
    }
}
