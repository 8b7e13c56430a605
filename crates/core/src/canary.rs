//! A canary looks over the shoulder of devices that serve: now and then one row of one block of a real batch is taken out, computed again
//! elsewhere and compared. The seam between the engine, which takes rows out, and who judges them.

use std::sync::Arc;
use std::time::Duration;

use crate::{Batch, OutputRow, SharedBuffer, Span, StateLayout, TopEntry};

/// Positions whose keys and values are taken out at most beside a row of attention: deeper rows are not looked at.
pub const CANARY_POSITIONS: usize = 2048;

/// Decides what is looked at, and judges it. Called on the thread of the engine: nothing here may take long.
pub trait Canary: Send + Sync {
    /// False where nothing is looked at any more: there is nothing on these devices to compare with, and only what was counted before is told.
    fn looks(&self) -> bool {
        true
    }

    /// What to look at in a batch that is about to start; for most batches nothing.
    fn pick(&self, launch: &Launch<'_>) -> Option<Pick>;

    /// What was looked at. A pick without one failed, or met no row that can be looked at: see [`Canary::missed`].
    fn sample(&self, sample: Sample);

    /// Nothing comes of a pick.
    fn missed(&self);

    /// What is wrong and not to be used any more, once that is certain. The engine stops then.
    fn doubt(&self) -> Option<Doubt>;

    /// What has been done so far.
    fn counts(&self) -> CanaryCounts;
}

/// A batch before it starts.
pub struct Launch<'a> {
    /// Number of the batch: later ones have higher numbers.
    pub flight: u64,
    /// The batch.
    pub batch: &'a Batch,
    /// What may be looked at.
    pub blocks: &'a [Watched],
}

/// A block that can be looked at.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Index in the model.
    pub block: usize,
    /// Number of the device that runs it.
    pub device: usize,
    /// [`crate::Device::describe`], one line each: blocks with equal ones run the same kernels.
    pub kernels: Arc<str>,
}

/// What to look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pick {
    /// Index of the block.
    pub block: usize,
    /// The row of the batch, where it can be looked at.
    pub row: Option<usize>,
    /// Otherwise chooses one of the rows that can.
    pub draw: u64,
}

/// One row of a batch before and after one block.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Number of the batch.
    pub flight: u64,
    /// The block.
    pub watched: Watched,
    /// Shape of the batch.
    pub spans: Vec<Span>,
    /// Rows whose logits were asked for.
    pub outputs: usize,
    /// Row of the batch.
    pub row: usize,
    /// Its position in its sequence.
    pub position: usize,
    /// Its token; `None` where only the device knows.
    pub token: Option<u32>,
    /// The residual stream before the block, `[width]`; empty for an embedding.
    pub before: Vec<f32>,
    /// The residual stream after it, `[width]`; empty for a head.
    pub after: Vec<f32>,
    /// What a head was asked for and what it gave.
    pub output: Option<(OutputRow, HeadRow)>,
    /// What attention saw and wrote.
    pub state: Option<SampleState>,
    /// What taking it out has cost: the time in which the device was left without work.
    pub took: Duration,
}

/// One row of a head's output.
#[derive(Clone, PartialEq, Debug)]
pub enum HeadRow {
    /// All logits.
    Logits(Vec<f32>),
    /// The largest.
    Top(Vec<TopEntry>),
}

/// Pages of a mixer's keys and values, as they were after the block.
#[derive(Clone, Debug)]
pub struct SampleState {
    /// The layout that they are in.
    pub layout: StateLayout,
    /// Index of the first page among those of the sequence: what is before it the row does not see.
    pub first_page: usize,
    /// As [`crate::StateCopy`] leaves them, a page in a row.
    pub pages: Arc<SharedBuffer>,
}

/// Something that computes wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Doubt {
    /// Number of the device.
    pub device: usize,
    /// What it is, for people.
    pub what: String,
    /// The last batch that is known to be right; `None` where none is.
    pub since: Option<u64>,
}

/// What a canary has done.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct CanaryCounts {
    /// Rows that were computed again.
    pub samples: u64,
    /// How many of these were wrong.
    pub wrong: u64,
    /// Kernels that are not used any more.
    pub quarantined: u64,
    /// Seconds that it took from those who wait for answers, and those in which the samples were computed again.
    pub seconds: f64,
}
