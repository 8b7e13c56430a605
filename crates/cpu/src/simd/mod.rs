//! The fast CPU device: kernels compiled per instruction set, packed weights, a thread pool that stays awake between the
//! operations of a token.
//!
//! Invariants: at one SIMD level results are the same to the bit on any number of threads, in any batch, and for any cut of a
//! prompt into chunks. Nothing here reads the environment. `unsafe` kernels are reached through safe functions that check shapes.

mod attention;
mod blocks;
mod check;
mod device;
mod elementary;
mod errors;
mod float_vector;
mod kv;
mod layer_norm;
mod level;
mod limits;
pub mod linear;
mod load;
mod needs;
mod pages;
mod pool;
mod rms_norm;
pub mod roofline;
mod rope;
mod shared;
mod short_conv;
mod state;
mod submit;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod top_k;
mod topology;
mod weights;
mod workspace;

pub use device::{CpuOptions, SimdDevice};
pub use level::SimdLevel;
pub use topology::available;
