//! Buffers of one stream: the residual stream and everything that lives between two kernels.

use std::sync::Arc;

use crate::context::Context;
use crate::error::VulkanError;
use crate::memory::Buffer;
use crate::place::Place;
use crate::profile::GpuProfile;
use crate::select::{FlashTile, TILE_PADDING, TILE_ROWS, split_floats, top_pairs_most};

/// Quantized activations: packed bytes `[rows, cols]` and scale with sums `[rows, cols / 32]`.
pub(crate) struct Activations {
    pub(crate) q: Buffer,
    pub(crate) meta: Buffer,
}

/// The largest sizes that the loaded blocks need, per row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sizes {
    /// Model width.
    pub(crate) width: usize,
    /// Query, key and value columns together.
    pub(crate) qkv: usize,
    /// Query heads times head size.
    pub(crate) attended: usize,
    /// Query heads times (head size + 2): one split's partial results.
    pub(crate) partial: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Query heads times the head size rounded up to whole matrices.
    pub(crate) queries: usize,
    /// Hidden width.
    pub(crate) hidden: usize,
    /// Logits.
    pub(crate) vocab: usize,
}

impl Sizes {
    /// Both needs covered.
    pub(crate) fn max(self, o: Sizes) -> Sizes {
        Sizes {
            width: self.width.max(o.width),
            qkv: self.qkv.max(o.qkv),
            attended: self.attended.max(o.attended),
            partial: self.partial.max(o.partial),
            heads: self.heads.max(o.heads),
            queries: self.queries.max(o.queries),
            hidden: self.hidden.max(o.hidden),
            vocab: self.vocab.max(o.vocab),
        }
    }
}

/// How many rows, splits and so on the buffers hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Capacity {
    pub(crate) rows: usize,
    /// Rows whose logits are asked for.
    pub(crate) outputs: usize,
    /// Rows whose hidden states are asked for.
    pub(crate) hidden: usize,
    /// Rows times splits of their keys, of one dispatch of attention.
    pub(crate) row_splits: usize,
    /// Pages of all slices together, in one state group.
    pub(crate) pages: usize,
    /// State groups.
    pub(crate) groups: usize,
    pub(crate) top: usize,
    /// Words of masks.
    pub(crate) masks: usize,
    /// Logits that are taken out of their rows.
    pub(crate) takes: usize,
}

impl Capacity {
    /// Of a new stream.
    pub(crate) const FIRST: Capacity = Capacity {
        rows: 8,
        outputs: 8,
        hidden: 0,
        row_splits: 8,
        pages: 64,
        groups: 1,
        top: 1,
        masks: 0,
        takes: 0,
    };

    pub(crate) fn covers(&self, o: &Capacity) -> bool {
        self.rows >= o.rows
            && self.outputs >= o.outputs
            && self.hidden >= o.hidden
            && self.row_splits >= o.row_splits
            && self.pages >= o.pages
            && self.groups >= o.groups
            && self.top >= o.top
            && self.masks >= o.masks
            && self.takes >= o.takes
    }

    /// Both needs covered, with room to grow.
    pub(crate) fn grown(&self, o: &Capacity) -> Capacity {
        let up = |a: usize, b: usize| if b > a { b.next_power_of_two() } else { a };
        Capacity {
            rows: up(self.rows, o.rows),
            outputs: up(self.outputs, o.outputs),
            hidden: up(self.hidden, o.hidden),
            row_splits: up(self.row_splits, o.row_splits),
            pages: up(self.pages, o.pages),
            groups: self.groups.max(o.groups),
            top: up(self.top, o.top),
            masks: up(self.masks, o.masks),
            takes: up(self.takes, o.takes),
        }
    }
}

/// Buffers of one stream.
pub(crate) struct Scratch {
    pub(crate) sizes: Sizes,
    pub(crate) capacity: Capacity,
    /// Rows of the batch, then the tiles of flash attention, then the output rows, then the pages: written by the host.
    pub(crate) batch: Buffer,
    /// f32 `[rows, width]`.
    pub(crate) residual: Arc<Buffer>,
    /// Normed residual, quantized.
    pub(crate) normed: Activations,
    /// Attention output or hidden activations, quantized.
    pub(crate) inner: Activations,
    /// Sums of squares per group of the residual, `[rows, width / 32]`.
    pub(crate) squares: Buffer,
    /// f32 `[rows, width]`: normed residual for float weights, or a block's output before its post norm.
    pub(crate) float: Buffer,
    /// f16 `[rows, width]`: normed residual for matrix kernels.
    pub(crate) half: Buffer,
    /// f16 `[rows, max(attended, hidden)]`: inner activations of matrix kernels.
    pub(crate) half_wide: Buffer,
    /// f32: sums of the splits of a tiled product.
    pub(crate) splits: Buffer,
    /// f32 `[rows, qkv]`.
    pub(crate) qkv: Buffer,
    /// f16 `[rows, queries]`, and rows that matrix kernels read past the last and ignore.
    pub(crate) queries: Buffer,
    /// f32 `[rows, max(attended, hidden)]`.
    pub(crate) wide: Buffer,
    /// f32 `[rows, hidden]`: the up projection where it is not fused.
    pub(crate) up: Buffer,
    /// Partial attention results.
    pub(crate) partial: Buffer,
    /// u32 `[rows, heads]`: how many splits of a row's attention are done; zero between dispatches.
    pub(crate) tickets: Buffer,
    /// f32 `[outputs, vocab]`, for selection on the device.
    pub(crate) logits: Buffer,
    /// f32 `[outputs, vocab]` in memory that the host reads fast, for logits that it asked for.
    pub(crate) logits_host: Arc<Buffer>,
    /// `(logit, id)` pairs of the slices of each row, `[outputs, slices, k]`.
    pub(crate) pairs: Buffer,
    /// `(id, logit)` pairs `[outputs, k]`, read by the host.
    pub(crate) top: Arc<Buffer>,
    /// Masks of output rows, written by the host.
    pub(crate) masks: Buffer,
    /// Which logits are taken out of their rows, written by the host.
    pub(crate) take_list: Buffer,
    /// f32 for each of them, read by the host.
    pub(crate) taken: Arc<Buffer>,
    /// f32 `[hidden, width]`, read by the host.
    pub(crate) hidden_host: Arc<Buffer>,
}

/// Bytes of the buffers of a stream, as [`Scratch`] names them; of activations those of packed values and of their scales.
pub(crate) struct Extents {
    batch: usize,
    residual: usize,
    normed: [usize; 2],
    inner: [usize; 2],
    squares: usize,
    float: usize,
    half: usize,
    half_wide: usize,
    splits: usize,
    qkv: usize,
    queries: usize,
    wide: usize,
    up: usize,
    partial: usize,
    tickets: usize,
    logits: usize,
    logits_host: usize,
    pairs: usize,
    top: usize,
    masks: usize,
    take_list: usize,
    taken: usize,
    hidden_host: usize,
}

impl Extents {
    /// Of a stream with these capacities.
    pub(crate) fn of(gpu: &GpuProfile, sizes: &Sizes, c: &Capacity) -> Extents {
        // Tiled products load whole tiles of rows.
        let padded = c.rows.next_multiple_of(TILE_PADDING);
        let wide = sizes.attended.max(sizes.hidden);
        let activations = |cols: usize| [32, 8].map(|bytes| c.rows * cols.div_ceil(32) * bytes);
        Extents {
            batch: c.rows * (Scratch::ROW_BYTES + FlashTile::BYTES)
                + (c.outputs + c.hidden) * 4
                + c.groups * c.pages * 4,
            residual: c.rows * sizes.width * 4,
            normed: activations(sizes.width),
            inner: activations(wide),
            squares: c.rows * sizes.width.div_ceil(32) * 4,
            float: c.rows * sizes.width * 4,
            half: padded * sizes.width * 2,
            half_wide: padded * wide * 2,
            splits: 4 * split_floats(gpu),
            qkv: c.rows * sizes.qkv * 4,
            queries: (c.rows + TILE_ROWS) * sizes.queries * 2,
            wide: c.rows * wide * 4,
            up: c.rows * sizes.hidden * 4,
            partial: c.row_splits * sizes.partial * 4,
            tickets: c.rows * sizes.heads * 4,
            logits: c.outputs * sizes.vocab * 4,
            logits_host: c.outputs * sizes.vocab * 4,
            pairs: c.outputs * top_pairs_most(sizes.vocab, c.top, gpu) * 8,
            top: c.outputs * c.top * 8,
            masks: c.masks * 4,
            take_list: c.takes * 8 + 8,
            taken: c.takes * 4,
            hidden_host: c.hidden * sizes.width * 4,
        }
    }

    /// Where and how large all of them are.
    pub(crate) fn all(self) -> impl Iterator<Item = (Place, u64)> {
        let Extents {
            batch,
            residual,
            normed,
            inner,
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
        } = self;
        let wholes = [residual, squares, float, half, half_wide, splits, qkv, queries, wide, up, partial];
        let device = [&wholes[..], &normed, &inner, &[tickets, logits, pairs]].concat();
        let (near, readback) = (vec![batch, masks, take_list], vec![logits_host, top, taken, hidden_host]);
        let places = [(Place::Device, device), (Place::Near, near), (Place::Readback, readback)];
        places.into_iter().flat_map(|(place, all)| all.into_iter().map(move |bytes| (place, bytes as u64)))
    }
}

impl Scratch {
    /// A row of the batch, as `lib/batch.glsl` reads it.
    pub(crate) const ROW_BYTES: usize = 16;

    /// `residual`: memory that takes the place of a residual stream of its own.
    pub(crate) fn new(
        context: &Arc<Context>,
        sizes: Sizes,
        c: Capacity,
        residual: Option<Arc<Buffer>>,
    ) -> Result<Scratch, VulkanError> {
        let bytes = Extents::of(context.profile(), &sizes, &c);
        let new = |place, bytes, what| Buffer::new(context, place, bytes as u64, what);
        let device = |bytes, what| new(Place::Device, bytes, what);
        let near = |bytes, what| new(Place::Near, bytes, what);
        let readback = |bytes, what| new(Place::Readback, bytes, what).map(Arc::new);
        let activations = |[q, meta]: [usize; 2], what| -> Result<Activations, VulkanError> {
            Ok(Activations { q: device(q, what)?, meta: device(meta, what)? })
        };
        let own_residual = || {
            let bytes = bytes.residual as u64;
            Buffer::new_crossing(context, Place::Device, bytes, "the residual stream").map(Arc::new)
        };
        Ok(Scratch {
            sizes,
            capacity: c,
            batch: near(bytes.batch, "the batch")?,
            residual: residual.map_or_else(own_residual, Ok)?,
            normed: activations(bytes.normed, "normed activations")?,
            inner: activations(bytes.inner, "inner activations")?,
            squares: device(bytes.squares, "sums of squares")?,
            float: device(bytes.float, "normed activations")?,
            half: device(bytes.half, "normed activations")?,
            half_wide: device(bytes.half_wide, "inner activations")?,
            splits: device(bytes.splits, "sums of splits")?,
            qkv: device(bytes.qkv, "queries, keys and values")?,
            queries: device(bytes.queries, "queries")?,
            wide: device(bytes.wide, "inner activations")?,
            up: device(bytes.up, "inner activations")?,
            partial: device(bytes.partial, "partial attention")?,
            tickets: device(bytes.tickets, "attention tickets")?,
            logits: device(bytes.logits, "logits")?,
            logits_host: readback(bytes.logits_host, "logits")?,
            pairs: device(bytes.pairs, "selected tokens")?,
            top: readback(bytes.top, "selected tokens")?,
            masks: near(bytes.masks, "masks of tokens")?,
            take_list: near(bytes.take_list, "adjusted tokens")?,
            taken: readback(bytes.taken, "adjusted logits")?,
            hidden_host: readback(bytes.hidden_host, "hidden states")?,
        })
    }

    /// Address of the tiles of flash attention.
    pub(crate) fn tiles_address(&self) -> u64 {
        self.batch.address() + (self.capacity.rows * Scratch::ROW_BYTES) as u64
    }

    /// Address of the list of output rows: those with logits, then those with hidden states.
    pub(crate) fn outputs_address(&self) -> u64 {
        self.tiles_address() + (self.capacity.rows * FlashTile::BYTES) as u64
    }

    /// Address of the page lists of a state group.
    pub(crate) fn pages_address(&self, group: usize) -> u64 {
        self.outputs_address()
            + ((self.capacity.outputs + self.capacity.hidden + group * self.capacity.pages) * 4) as u64
    }
}
