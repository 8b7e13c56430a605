//! Token embedding: rows of the table, scaled.

use std::sync::Arc;

use unicorn_core::{EmbeddingSpec, RateKind};

use super::label::Label;
use super::region::Region;
use crate::simd::linear::PackedMatrix;
use crate::simd::pool::Worker;

/// Rows that a thread takes at a time.
const ROWS: usize = 4;

/// A loaded embedding.
pub(crate) struct EmbeddingBlock {
    pub(crate) spec: EmbeddingSpec,
    pub(crate) table: Arc<PackedMatrix>,
    pub(super) label: Label,
}

impl EmbeddingBlock {
    /// Wraps the table.
    pub(crate) fn new(spec: &EmbeddingSpec, table: Arc<PackedMatrix>) -> EmbeddingBlock {
        let name = format!("embedding {}", table.ty().name().to_lowercase());
        EmbeddingBlock { spec: spec.clone(), table, label: Label { name, rate: RateKind::Float } }
    }

    /// Writes the residual stream anew.
    ///
    /// # Safety
    /// As [`super::Loaded::run`]. Token ids have been checked.
    pub(super) unsafe fn run(&self, worker: &Worker, region: &Region) {
        let width = self.spec.width;
        // SAFETY: every row is given to one thread.
        unsafe {
            region.start_marks(worker);
            worker.step(region.row_count(), ROWS, |part| {
                for row in part {
                    let token = region.tokens[row];
                    let out = region.x.write(row * width..(row + 1) * width);
                    self.table.dequantize_row(token as usize, out);
                    if self.spec.scale != 1.0 {
                        out.iter_mut().for_each(|v| *v *= self.spec.scale);
                    }
                }
            });
            let rows = region.row_count() as u64;
            let row_bytes = (self.table.bytes() / self.table.rows().max(1)) as u64;
            region.mark(worker, &self.label, rows * row_bytes, rows * width as u64);
        }
    }
}
