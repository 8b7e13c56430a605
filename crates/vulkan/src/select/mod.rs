//! Which kernel runs an operation: a pure function of the operation, its types and shape, and the device profile.
//!
//! `router` puts the kernels of a whole block together, before its weights are read: what it lists is all that a recording may hold.
//!
//! # What batching changes
//!
//! The path of a batch follows from its number of rows ([`path`]), and the paths round differently: up to 8 rows (4 of float weights on
//! discrete GPUs with matrix units) products take activations of 8 bits, or f32 with float weights; with more rows they take f16, or 8 bits
//! without matrix units. So the same sequence may give other tokens alone than in a larger batch, or with its prompt cut otherwise. What
//! holds on each path:
//!
//! - Few rows: a row's products are summed in an order that depends on the matrix alone, and its attention is split by its own position
//!   alone. What a block prepares for the next one (the norm folded into the product, `Builder::prepared`) sums squares in an order that
//!   depends on the number of rows and on which blocks are submitted together, and whether keys and values are finished inside attention
//!   depends on the other slices: both change the last bits.
//! - Many rows: tiles do not change the order of a sum, but splits of long rows depend on the number of rows, and splits of keys in flash
//!   attention on the length of the sequence's own chunk, never on the rest of the batch.
//!
//! With [`unicorn_core::DeviceOptions::batch_invariant`] every batch takes the path of few rows, attention row by row, each block its own
//! norm, and keys and values a dispatch of their own. Then nothing depends on the batch, on how a prompt is cut or on which blocks are
//! submitted together; prompts are read at the speed of decoding 8 tokens at once.

mod attention;
mod block;
mod fallback;
mod flash;
mod form;
mod limits;
mod linear;
mod path;
mod problem;
mod product;
mod router;
#[cfg(test)]
mod test_gpus;
#[cfg(test)]
mod tests;
mod tier;
mod top;

pub(crate) use attention::*;
pub(crate) use block::*;
pub(crate) use flash::*;
pub(crate) use form::*;
pub(crate) use limits::{subgroup, workgroup};
pub(crate) use linear::*;
pub(crate) use path::*;
pub(crate) use problem::*;
pub(crate) use product::{matrix_product, split_floats};
pub(crate) use router::*;
pub(crate) use tier::*;
pub(crate) use top::*;
