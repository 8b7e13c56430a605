//! Weights: where a tensor lies and how its bytes are read.

use crate::{TensorType, WeightError};

/// Byte range of a tensor inside the files of a model. Two weights with equal spans are the same memory: a device
/// keeps them once (tied embeddings).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WeightSpan {
    /// Index of the file (shard) in the source.
    pub file: u32,
    /// Byte offset from the start of that file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A stored matrix `[rows, cols]` (row-major, `cols` contiguous; a vector has one row) that computes
/// `y[rows] = W x[cols]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Weight {
    /// Name in the file, used in messages.
    pub name: String,
    /// Element type.
    pub ty: TensorType,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Where the bytes lie.
    pub span: WeightSpan,
}

impl Weight {
    /// Bytes of one row. The loader has checked that `cols` is a multiple of the block length.
    pub fn row_bytes(&self) -> usize {
        self.ty.row_bytes(self.cols).unwrap_or(0)
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }
}

/// Reads weight bytes on behalf of a device, straight into memory that the device chose. Implemented by model files and by
/// in-memory or random weights. Safe to call from several threads at once.
pub trait WeightSource: Send + Sync {
    /// Fills `buf` with the bytes at `offset` inside `span`.
    ///
    /// Errors when the range leaves the span, the file ends early, or the read fails.
    fn read(&self, span: &WeightSpan, offset: u64, buf: &mut [u8]) -> Result<(), WeightError>;
}
