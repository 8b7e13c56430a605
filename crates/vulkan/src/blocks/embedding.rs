//! Token embedding.

use std::sync::Arc;

use super::builder::{Builder, NextInput};
use crate::arguments::Arguments;
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::select;
use crate::weights::Matrix;

pub(crate) struct EmbeddingBlock {
    pub(crate) table: Arc<Matrix>,
    pub(crate) scale: f32,
}

impl EmbeddingBlock {
    /// `next` is the input of the block after this one, where it may be prepared here.
    pub(crate) fn record(&self, b: &mut Builder<'_>, next: Option<NextInput<'_>>) {
        let s = b.scratch;
        let (quantize, weight, prepared) = match next {
            None => (0, 0, [0, 0]),
            Some(n) if n.float => (3, n.norm.weight.address(), [s.float.address(), 0]),
            Some(n) => (2, n.norm.weight.address(), [s.normed.q.address(), s.normed.meta.address()]),
        };
        // Whole groups of 32 columns.
        let threads = select::workgroup(256, b.gpu);
        let kernel = Kernel {
            shader: format!("embedding_{}", self.table.ty.name().to_lowercase()),
            constants: vec![threads, quantize],
            subgroup: select::subgroup(b.gpu),
        };
        let arguments = Arguments::new()
            .addresses(self.table.planes())
            .addresses([s.batch.address(), s.residual.address(), weight])
            .addresses(prepared)
            .address(s.squares.address())
            .u32(self.table.cols)
            .f32(self.scale);
        let mut writes: Vec<&Buffer> = vec![&s.residual];
        match quantize {
            0 => {}
            3 => writes.extend([&s.float, &s.squares]),
            _ => writes.extend([&s.normed.q, &s.normed.meta, &s.squares]),
        }
        let groups = [self.table.cols.div_ceil(threads as usize), b.rows, 1];
        b.dispatch("embedding", kernel, arguments, groups, &[&s.batch], &writes);
        b.prepared = next.is_some();
    }
}
