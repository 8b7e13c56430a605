//! Attention over the paged KV cache, without ever forming a tokens x tokens matrix.
//!
//! Softmax runs over fixed blocks of [`BLOCK`] positions with a running maximum and sum (Milakov and Gimelshein 2018;
//! Dao et al. 2022), restarted every [`SPLIT`] positions; the splits of a query are merged in ascending order. Blocks and splits
//! are aligned to absolute positions, and every query's operations happen in the same order in prefill and decode, in any batch
//! and on any number of threads: its result is the same to the bit at one SIMD level.

mod attend;
mod bidirectional;
mod multiply;
mod partition;
mod run;
mod scratch;
mod shapes;
mod softmax;
mod store;
#[cfg(test)]
mod tests;

pub(crate) use bidirectional::{Bidirectional, QUERY_ROWS, bidirectional_floats};
pub(crate) use partition::{Partition, PartitionKey, partial_floats_most};
pub(crate) use run::{Attention, BatchRows};
pub(crate) use scratch::{Scratch, scratch_floats};
pub(crate) use shapes::{Heads, Projections};
