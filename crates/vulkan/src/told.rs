//! What is kept of submitted work until its end is told.

use std::sync::Arc;
use std::time::Instant;

use unicorn_core::{Batch, Crossing, StreamId};

/// What tells how submitted work ended.
pub(crate) struct Told {
    pub(crate) stream: StreamId,
    pub(crate) batch: Arc<Batch>,
    /// A head was its last block.
    pub(crate) head: bool,
    pub(crate) crossing: Crossing,
    pub(crate) started: Instant,
}
