//! What the device holds between calls.

use std::collections::HashMap;

use unicorn_core::{BlockId, KernelTime, RopeSpec, StateLayout, StreamId};

use super::blocks::Loaded;
use super::weights::WeightStore;
use super::workspace::{Stream, Workspace};

/// Everything that submissions and loads change.
#[derive(Default)]
pub(super) struct State {
    pub(super) weights: WeightStore,
    pub(super) blocks: HashMap<BlockId, Loaded>,
    pub(super) next_block: u32,
    pub(super) layout: Option<StateLayout>,
    pub(super) streams: HashMap<StreamId, Stream>,
    /// Distinct rope specs of the loaded blocks.
    pub(super) ropes: Vec<RopeSpec>,
    pub(super) workspace: Workspace,
    /// Tokens that the head kept.
    pub(super) slots: Vec<u32>,
    /// Bytes of residual streams that came from other devices without a copy.
    pub(super) shared: u64,
    /// Bytes of pages of state that were copied out or in.
    pub(super) copied: u64,
    /// Per kernel, while profiling is on.
    pub(super) times: Option<HashMap<String, KernelTime>>,
}
