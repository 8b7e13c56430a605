//! Vocabulary of the Unicorn Execution Engine: tensor types, block specs, batches, the [`Device`] trait, errors.
//!
//! Invariants: this crate knows no device, does no I/O and never reads the environment. Everything that crosses
//! a seam between a model file, the engine and a device is defined here, and nothing else is.

mod batch;
mod block;
mod device;
mod error;
mod norm;
pub mod quant;
pub mod rope;
mod tensor_type;
mod weight;

pub use batch::{Batch, HeadOutput, PageId, Select, SequenceId, Slice, TopEntry};
pub use block::{
    Activation, AttentionSpec, AttentionWeights, Block, BlockKind, EmbeddingSpec, FfnSpec, FfnWeights,
    HeadSpec, ModelSpec,
};
pub use device::{
    BlockId, Device, DeviceKind, DeviceOptions, DeviceProfile, KernelTime, KvLayout, KvType, MemoryUse,
    RateKind, Roofline, StreamId, Ticket, Work,
};
pub use error::{DeviceError, WeightError};
pub use norm::{NormKind, NormSpec};
pub use rope::{RopeSpec, RopeStyle};
pub use tensor_type::TensorType;
pub use weight::{Weight, WeightSource, WeightSpan};
