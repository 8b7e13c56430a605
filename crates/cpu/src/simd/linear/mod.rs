//! Matrix products `y = W x` with weights of every type, packed for the processor.
//!
//! [`PackedMatrix`] holds weights, [`PackedActivations`] what they multiply; [`linear`] and [`linear_glu`] compute any range of
//! panels (16 output features) and rows (tokens), so that threads share the work as they like.
//!
//! Invariant: an output element is summed in one fixed order at a given SIMD level. Its bits depend on its row of
//! weights and its row of activations alone, not on ranges, batch size or threads.

mod activations;
mod allocation;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod compiled;
#[cfg(test)]
mod emulated;
mod encoding;
mod float;
mod group_words;
mod int;
mod job;
mod kind;
mod layout;
mod matrix;
mod output;
mod pack;
mod panel_vector;
mod scalar;
mod select;
#[cfg(test)]
mod tests;
mod tile_job;

pub use activations::{ActivationForms, PackedActivations};
pub(crate) use allocation::Allocation;
pub use matrix::{PackError, PackedMatrix};
pub(crate) use output::linear_glu;
pub use output::{Epilogue, OutputView, linear};
pub use select::LinearKernel;
pub(crate) use select::select;
