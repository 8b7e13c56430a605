//! Buffers of one stream: the residual stream and everything that lives between two kernels.

use std::sync::Arc;

use crate::context::Context;
use crate::error::VulkanError;
use crate::memory::{Buffer, Place};

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
            hidden: self.hidden.max(o.hidden),
            vocab: self.vocab.max(o.vocab),
        }
    }
}

/// How many rows, splits and so on the buffers hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Capacity {
    pub(crate) rows: usize,
    pub(crate) outputs: usize,
    /// Rows times splits.
    pub(crate) row_splits: usize,
    pub(crate) pages: usize,
    pub(crate) top: usize,
}

impl Capacity {
    pub(crate) fn covers(&self, o: &Capacity) -> bool {
        self.rows >= o.rows
            && self.outputs >= o.outputs
            && self.row_splits >= o.row_splits
            && self.pages >= o.pages
            && self.top >= o.top
    }

    /// Both needs covered, with room to grow.
    pub(crate) fn grown(&self, o: &Capacity) -> Capacity {
        let up = |a: usize, b: usize| if b > a { b.next_power_of_two() } else { a };
        Capacity {
            rows: up(self.rows, o.rows),
            outputs: up(self.outputs, o.outputs),
            row_splits: up(self.row_splits, o.row_splits),
            pages: up(self.pages, o.pages),
            top: up(self.top, o.top),
        }
    }
}

/// Buffers of one stream.
pub(crate) struct Scratch {
    pub(crate) sizes: Sizes,
    pub(crate) capacity: Capacity,
    /// Rows of the batch, then the output rows, then the pages: written by the host.
    pub(crate) batch: Buffer,
    /// f32 `[rows, width]`.
    pub(crate) residual: Buffer,
    /// Normed residual, quantized.
    pub(crate) normed: Activations,
    /// Attention output or hidden activations, quantized.
    pub(crate) inner: Activations,
    /// Sums of squares per group of the residual, `[rows, width / 32]`.
    pub(crate) squares: Buffer,
    /// f32 `[rows, width]`: normed residual for float weights, or a block's output before its post norm.
    pub(crate) float: Buffer,
    /// f32 `[rows, qkv]`.
    pub(crate) qkv: Buffer,
    /// f32 `[rows, max(attended, hidden)]`.
    pub(crate) wide: Buffer,
    /// f32 `[rows, hidden]`: the up projection where it is not fused.
    pub(crate) up: Buffer,
    /// Partial attention results.
    pub(crate) partial: Buffer,
    /// f32 `[outputs, vocab]`, for selection on the device.
    pub(crate) logits: Buffer,
    /// The same, read by the host.
    pub(crate) logits_host: Buffer,
    /// `(id, logit)` pairs `[outputs, k]`, read by the host.
    pub(crate) top: Buffer,
}

impl Scratch {
    pub(crate) fn new(context: &Arc<Context>, sizes: Sizes, c: Capacity) -> Result<Scratch, VulkanError> {
        let device = |bytes: usize, what| Buffer::new(context, Place::Device, bytes as u64, what);
        let activations = |cols: usize, what| -> Result<Activations, VulkanError> {
            let groups = c.rows * cols.div_ceil(32);
            Ok(Activations { q: device(groups * 32, what)?, meta: device(groups * 8, what)? })
        };
        let wide = sizes.attended.max(sizes.hidden);
        Ok(Scratch {
            sizes,
            capacity: c,
            batch: Buffer::new(
                context,
                Place::Upload,
                (c.rows * 16 + c.outputs * 4 + c.pages * 4) as u64,
                "the batch",
            )?,
            residual: device(c.rows * sizes.width * 4, "the residual stream")?,
            normed: activations(sizes.width, "normed activations")?,
            inner: activations(wide, "inner activations")?,
            squares: device(c.rows * sizes.width.div_ceil(32) * 4, "sums of squares")?,
            float: device(c.rows * sizes.width * 4, "normed activations")?,
            qkv: device(c.rows * sizes.qkv * 4, "queries, keys and values")?,
            wide: device(c.rows * wide * 4, "inner activations")?,
            up: device(c.rows * sizes.hidden * 4, "inner activations")?,
            partial: device(c.row_splits * sizes.partial * 4, "partial attention")?,
            logits: device(c.outputs * sizes.vocab * 4, "logits")?,
            logits_host: Buffer::new(
                context,
                Place::Readback,
                (c.outputs * sizes.vocab * 4) as u64,
                "logits",
            )?,
            top: Buffer::new(context, Place::Readback, (c.outputs * c.top * 8) as u64, "selected tokens")?,
        })
    }

    /// Address of the list of output rows.
    pub(crate) fn outputs_address(&self) -> u64 {
        self.batch.address() + (self.capacity.rows * 16) as u64
    }

    /// Address of the page lists.
    pub(crate) fn pages_address(&self) -> u64 {
        self.outputs_address() + (self.capacity.outputs * 4) as u64
    }
}
