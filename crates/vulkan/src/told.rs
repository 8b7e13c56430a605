//! What is kept of submitted work until its end is told.

use std::sync::Arc;

use unicorn_core::{Batch, Crossing, SharedBuffer};

use crate::memory::Buffer;
use crate::stream::Shared;
use crate::transfer::Slot;

/// What tells how something that was submitted ended.
pub(crate) enum Told {
    /// Work.
    Work(ToldWork),
    /// A copy of pages of state.
    Pages(Pages),
}

/// What tells how work ended.
pub(crate) struct ToldWork {
    pub(crate) batch: Arc<Batch>,
    /// Ways that its stream crosses, each with this many bytes.
    pub(crate) crossing: Crossing,
    pub(crate) bytes: usize,
    /// Where its stream crosses.
    pub(crate) shared: Option<Arc<Shared>>,
    /// What is read of a head that was its last block.
    pub(crate) head: Option<HeadBuffers>,
}

/// Logits, selected tokens, logits that were taken out to be adjusted, and hidden states.
pub(crate) struct HeadBuffers {
    pub(crate) logits: Arc<Buffer>,
    pub(crate) top: Arc<Buffer>,
    pub(crate) taken: Arc<Buffer>,
    pub(crate) hidden: Arc<Buffer>,
    /// Of a hidden state.
    pub(crate) width: usize,
}

/// Pages of state on their way.
pub(crate) struct Pages {
    pub(crate) slot: Slot,
    /// Where they are wanted, once they are out.
    pub(crate) saved: Option<Arc<SharedBuffer>>,
    pub(crate) pages: usize,
    pub(crate) page_bytes: u64,
}
