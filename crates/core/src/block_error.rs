//! Why a block cannot be, and the check that all of them share.

use crate::Weight;

/// A block that no device can run.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum BlockError {
    /// A tensor has another shape than the spec says.
    #[error("{tensor}: shape [{}, {}], wanted [{}, {}]", .have.0, .have.1, .want.0, .want.1)]
    Shape {
        /// Tensor name.
        tensor: String,
        /// Its rows and columns.
        have: (usize, usize),
        /// Rows and columns of the spec.
        want: (usize, usize),
    },
    /// A tensor's bytes do not hold its elements.
    #[error("{tensor}: {bytes} bytes do not hold [{rows}, {cols}] of {ty}")]
    Bytes {
        /// Tensor name.
        tensor: String,
        /// Bytes of its span.
        bytes: u64,
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
        /// Its type.
        ty: crate::TensorType,
    },
    /// The spec asks for a tensor that is not there.
    #[error("the tensor for {0} is missing")]
    Missing(&'static str),
    /// A tensor is there that the spec does not know.
    #[error("{tensor}: the spec has no {what}")]
    Unasked {
        /// Tensor name.
        tensor: String,
        /// What it would be for.
        what: &'static str,
    },
    /// The spec contradicts itself.
    #[error("{0}")]
    Spec(String),
}

pub(crate) fn shape(weight: &Weight, rows: usize, cols: usize) -> Result<(), BlockError> {
    let (tensor, have, want) = (weight.name.clone(), (weight.rows, weight.cols), (rows, cols));
    if have != want {
        return Err(BlockError::Shape { tensor, have, want });
    }
    let bytes = weight.ty.row_bytes(cols).and_then(|b| b.checked_mul(rows));
    if bytes.map(|b| b as u64) != Some(weight.span.bytes) {
        return Err(BlockError::Bytes { tensor, bytes: weight.span.bytes, rows, cols, ty: weight.ty });
    }
    Ok(())
}
