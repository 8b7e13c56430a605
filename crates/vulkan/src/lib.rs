//! The Vulkan device: blocks as compute shaders, command buffers recorded once per batch shape and replayed.
//!
//! Invariants: buffers are reached by device address alone, so there are no descriptors; what changes from token to token (tokens,
//! positions, pages) comes from one buffer, so that a recording serves every token of its shape. A barrier stands only where a dispatch
//! touches what another since the last barrier wrote (`recording`). Kernel choice is a pure function (`select`).
//!
//! Absent so far: more than one queue.

mod blocks;
mod context;
mod copy_rate;
mod describe;
mod device;
mod error;
pub mod layout;
mod library;
mod load;
mod matrix2;
mod memory;
#[cfg(test)]
mod null_driver;
mod pipeline;
mod profile;
#[cfg(test)]
mod profiles;
mod push;
mod recording;
mod roofline;
mod scratch;
mod select;
pub mod shaders;
mod statistics;
mod tiers;
mod timing;
mod transfer;
mod validation;
mod weights;

pub use context::Context;
pub use device::VulkanDevice;
pub use error::VulkanError;
pub use library::{Candidate, Extensions, Library, LibraryOptions};
pub use profile::{GpuProfile, Heap, MatrixShape, MatrixTypes};
pub use statistics::{KernelStatistics, SharedStatistics};
pub use tiers::Limit;
pub use validation::{SharedMessages, ValidationMessage};
