//! Kinds of memory, and where the host sees it.

/// Where a buffer should live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Fast for the GPU; mapped too where the GPU shares the host's memory.
    Device,
    /// Written by the host, read by the GPU (write-combined).
    Upload,
    /// Written by the host in few bytes, read by the GPU often: device memory that is mapped, where there is any.
    Near,
    /// Written by the GPU, read by the host (cached).
    Readback,
}

/// Start of mapped memory.
#[derive(Clone, Copy)]
pub(crate) struct Mapped(pub(crate) *mut u8);

// SAFETY: the pointer is only dereferenced in methods whose contracts order host and device access.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}
