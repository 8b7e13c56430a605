//! The question that selection of a tiled product answers, and the answer.

use unicorn_core::TensorType;

use super::tier::TiledOutput;
use crate::kernel::Kernel;

/// A product of many tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Problem {
    /// Weight type.
    pub ty: TensorType,
    /// Rows of the weight matrix (of each, for a gated unit).
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Tokens.
    pub tokens: usize,
    /// Gated unit with this activation code.
    pub activation: Option<u32>,
    /// What is written.
    pub output: TiledOutput,
}

/// A tiled matrix product.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct MatrixProduct {
    /// The kernel.
    pub kernel: Kernel,
    /// Rows of the weight matrix (of each matrix of a gated unit) that a workgroup computes.
    pub rows: usize,
    /// Tokens that a workgroup computes.
    pub tokens: usize,
    /// Parts of the columns that are summed by workgroups of their own and added afterwards; 1 writes the output itself.
    pub splits: usize,
    /// Columns of a split.
    pub span: usize,
}

/// Buffers of tiled products hold whole tiles of this many rows or tokens, so that kernels may load past the end.
pub(crate) const TILE_PADDING: usize = 128;
