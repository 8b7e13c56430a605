//! From requests to tokens: admission, batching, KV pages, schedule over a placement, sampling.
//!
//! Invariants: this crate names no backend (it sees devices only through [`unicorn_core::Device`]), reads no environment and
//! does no I/O. It has no threads of its own and never polls: [`Engine::step`] is the only thing that runs a model. Placement and
//! schedule are pure functions of plain data. The same request with the same seed gives the same tokens whatever
//! the batch around it, the chunking of its prompt, a reused prefix, drafts, or a preemption in the middle.

pub mod agree;
pub mod bench;
mod budget;
mod constraint;
mod drafts;
mod embed;
mod engine;
mod error;
mod executor;
mod host_buffer;
mod kv;
mod kv_store;
mod memory;
mod need;
mod ngram;
mod pages;
pub mod perplexity;
mod place;
mod placement;
pub mod planner;
mod prefix;
mod request;
mod sampling;
mod schedule;
mod states;
mod store_copies;
mod taps;
#[cfg(test)]
mod testing;
mod timeline;

pub use budget::{Leeway, fit};
pub use constraint::{Constraint, Guides};
pub use drafts::{Drafter, LENGTH_MAX as DRAFT_MAX};
pub use embed::EmbedRequest;
pub use engine::{
    Counters, DeviceReport, Engine, EngineOptions, LoadProgress, Overseer, Report, SequenceInfo,
    SequenceState, Survivors,
};
pub use error::{AdmissionError, EngineError, KvFull, PlacementError};
pub use executor::RunStats;
pub use kv_store::KvStore;
pub use memory::{DeviceMemory, Excess, MemoryLimit, MemoryPlan, MemoryScope, MemoryShort};
pub use need::Need;
pub use ngram::NgramDrafter;
pub use place::{PlaceError, PlaceRules};
pub use placement::{Placement, Placements};
pub use request::{Event, Failure, FinishReason, Request, Timings};
pub use sampling::{DryOptions, OptionError, SamplingOptions, TokenLogprobs};
pub use timeline::{Activity, Lane, Occupancy, Span, Stalls, Timeline};
