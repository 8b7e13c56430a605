//! The Vulkan device: blocks as compute shaders, command buffers recorded once per batch shape and replayed.
//!
//! Invariants: buffers are reached by device address alone; the one descriptor is that of the addresses and sizes that a dispatch is given,
//! a record in a uniform buffer (`records`), which can be rewritten without recording anew. What changes from token to token (tokens,
//! positions, pages) comes from one buffer, so that a recording serves every token of its shape. A barrier stands only where a dispatch
//! touches what another since the last barrier wrote (`recording`). Kernel choice is a pure function (`select`), made for a whole block
//! before a weight is read: loading refuses a block that lacks a kernel, and recording relies on that. What batching
//! changes in the results is told in `select`.
//!
//! Below the blocks: `memory` and `arena` (where buffers lie), `transfer` and `weights` (loading on several threads, in place on unified
//! memory and through a ring elsewhere), `pipeline` and `pipeline_file` (compiled kernels, kept on disk), `cut` and `replay` (submissions
//! of bounded time on integrated GPUs). Everything that grows is bounded: recordings (`lru`), the ring, the files.
//!
//! NV cooperative matrices 2 serve attention, whose scores then stay in registers. Products do not use them: with tensor loads they reached
//! 308 TFLOP/s on an H100 where the KHR kernel reaches 336 (F16, 4096 x 16384, 2048 tokens), and 158 against 203 with Q4_K weights.
//!
//! Residual streams that cross are copied on transfer queues where the device has memory of its own and such queues (`lane`, `ferry`), so that
//! kernels of other streams run meanwhile; what waits for what between queues goes by timelines (`waiting`, `waiter`).

mod arena;
mod arguments;
mod blocks;
mod context;
#[cfg(test)]
mod crossing_tests;
mod cut;
mod device;
#[cfg(test)]
mod driver_tests;
mod edits;
mod error;
mod ferry;
mod gtt;
#[cfg(test)]
mod invariance_tests;
mod kernel;
mod lane;
mod layout;
mod library;
mod load;
mod lru;
mod matrix2;
mod memory;
mod needs;
mod nodes;
#[cfg(test)]
mod null_driver;
mod pages;
mod pipeline;
mod pipeline_file;
mod place;
mod profile;
#[cfg(test)]
mod profiles;
mod prove;
#[cfg(test)]
mod recorded_tests;
mod recording;
mod records;
mod replay;
mod roofline;
mod scratch;
mod select;
pub mod shaders;
mod state;
mod statistics;
mod stream;
mod submission;
mod tiers;
mod timing;
mod told;
mod transfer;
mod validation;
mod waiter;
mod waiting;
mod weights;

pub use context::Context;
pub use device::{VulkanDevice, VulkanOptions};
pub use error::VulkanError;
pub use library::{Candidate, Library, LibraryOptions};
pub use nodes::gpu_possible;
pub use profile::{GpuProfile, Heap, MatrixShape, MatrixTypes};
pub use statistics::{KernelStatistics, SharedStatistics};
pub use tiers::Limit;
pub use validation::{SharedMessages, ValidationMessage};
