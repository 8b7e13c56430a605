//! Vocabulary of the Unicorn Execution Engine: tensor types, block specs, batches, the [`Device`] trait, errors.
//!
//! Invariants: this crate knows no device, does no I/O and never reads the environment. Everything that crosses
//! a seam between a model file, the engine and a device is defined here, and nothing else is.

mod batch;
mod block;
mod block_error;
mod canary;
mod check;
mod cost;
mod device;
mod encoder;
mod error;
mod fence;
mod head_output;
mod memory;
mod norm;
mod output;
mod page_store;
mod pooling;
pub mod quant;
pub mod rope;
mod shared_buffer;
mod short_conv;
mod state;
mod tensor_type;
mod weight;

pub use batch::{Batch, BatchError, BatchLimits, PageId, SequenceId, Slice};
pub use block::{
    Activation, AttentionSpec, AttentionWeights, Block, BlockKind, EmbeddingSpec, FfnSpec, FfnWeights,
    HeadSpec, ModelSpec, state_groups,
};
pub use block_error::BlockError;
pub use canary::{
    CANARY_POSITIONS, Canary, CanaryCounts, Doubt, HeadRow, Launch, Pick, Sample, SampleState, Watched,
};
pub use cost::{BatchShape, Cost, Span};
pub use device::{
    BlockId, Crossing, Device, DeviceKind, DeviceOptions, DeviceProfile, Instrument, KernelTime, MemoryUse,
    RateKind, Roofline, Sharing, StateCopy, StateWay, StreamId, Work, run_to_end,
};
pub use encoder::{
    EncoderAttentionSpec, EncoderAttentionWeights, EncoderEmbeddingSpec, EncoderEmbeddingWeights,
    EncoderFfnSpec, EncoderFfnWeights, EncoderHeadSpec, LayerNormWeights,
};
pub use error::{DeviceError, WeightError};
pub use fence::{Completion, CompletionQueue, Fence, Outcome, Ran, Signal, WOKEN, Waker};
pub use head_output::{HeadOutput, RowOutput};
pub use memory::{MemoryNeed, MemoryRoom, Workload};
pub use norm::{NormKind, NormSpec};
pub use output::{Adjustment, Edits, OutputRow, SLOTS, Select, TokenMask, TopEntry};
pub use page_store::{PageKey, PageRecords, PageStore};
pub use pooling::Pooling;
pub use rope::{RopeSpec, RopeStyle};
pub use shared_buffer::SharedBuffer;
pub use short_conv::{ShortConvSpec, ShortConvWeights};
pub use state::{KvType, StateGroup, StateLayout, StateSpec};
pub use tensor_type::TensorType;
pub use weight::{Weight, WeightSource, WeightSpan};
