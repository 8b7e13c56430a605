//! Memory of the host that devices share.

use unicorn_core::{DeviceError, SharedBuffer};

/// Memory of the host that devices copy to and from.
pub(crate) fn host_buffer(rows: usize, width: usize, what: &str) -> Result<SharedBuffer, DeviceError> {
    SharedBuffer::new(rows, width).ok_or_else(|| DeviceError::OutOfMemory {
        device: "host".into(),
        what: what.into(),
        requested: (rows as u64).saturating_mul(width as u64).saturating_mul(4),
        free: 0,
    })
}
