//! Token embedding.

use std::sync::Arc;

use super::Builder;
use crate::pipeline::Kernel;
use crate::push::Push;
use crate::select;
use crate::weights::Matrix;

pub(crate) struct EmbeddingBlock {
    pub(crate) table: Arc<Matrix>,
    pub(crate) scale: f32,
}

impl EmbeddingBlock {
    pub(crate) fn record(&self, b: &mut Builder<'_>) {
        let s = b.scratch;
        let kernel = Kernel {
            shader: format!("embedding_{}", self.table.ty.name().to_lowercase()),
            constants: vec![64],
            subgroup: select::subgroup(b.gpu),
        };
        let push = Push::new()
            .addresses(self.table.planes())
            .addresses([s.batch.address(), s.residual.address()])
            .u32(self.table.cols)
            .f32(self.scale);
        b.dispatch("embedding", kernel, push, [b.rows, 1, 1], &[&s.batch], &[&s.residual]);
        b.prepared = false;
    }
}
