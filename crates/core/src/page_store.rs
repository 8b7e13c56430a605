//! Where pages of state outlive who computed them.

use std::sync::Arc;

use crate::{Fence, SharedBuffer, Signal};

/// What a page holds, by content: a hash chained over the model, its layout, who may see the page, and all tokens up to the page's end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PageKey(pub [u8; 32]);

/// Pages on their way to or from a store. On the host they lie as [`crate::StateCopy`] leaves them: each part has one mixer's words of all
/// pages, the `i`-th page in row `i`. In the store a page is its rows of all parts, in their order.
#[derive(Clone)]
pub struct PageRecords {
    /// One key a page.
    pub keys: Vec<PageKey>,
    /// One buffer a mixer, with as many rows as there are keys or more.
    pub parts: Vec<Arc<SharedBuffer>>,
}

/// Keeps pages beyond the memory of devices. Nothing here waits: what takes time ends with a signal. A store may lose any page at any time; it never gives
/// back anything but what was written under the same key.
pub trait PageStore: Send + Sync {
    /// True when a page is there, as far as is known without looking at its content.
    fn has(&self, key: &PageKey) -> bool;

    /// Fills the parts. Fails as a whole where a page is gone, damaged or of another size.
    fn read(&self, records: PageRecords, done: Signal);

    /// Keeps the pages once all of `after` have ended well. The signal is given when the parts may be used again; a page that could not be
    /// kept, for lack of room or because a write failed, is no error: it is not there.
    fn write(&self, records: PageRecords, after: Vec<Fence>, done: Signal);
}
