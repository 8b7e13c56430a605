//! What is kept of submitted work until its end is told.

use std::sync::Arc;

use unicorn_core::{Batch, Crossing};

use crate::memory::Buffer;
use crate::pages::Pages;
use crate::stream::Shared;

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
    /// Logits and selected tokens, where a head that is read was its last block.
    pub(crate) head: Option<(Arc<Buffer>, Arc<Buffer>)>,
}
