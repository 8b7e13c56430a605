//! The errors of the device, with its name.

use unicorn_core::DeviceError;

use super::topology::free_bytes;

/// Name of the device in messages and on the command line.
pub(super) const NAME: &str = "cpu";

/// A precondition is broken.
pub(super) fn invalid(what: impl Into<String>) -> DeviceError {
    DeviceError::Invalid { device: NAME.to_owned(), what: what.into() }
}

/// Memory for `what` cannot be had.
pub(super) fn out_of_memory(what: impl Into<String>, requested: u64) -> DeviceError {
    DeviceError::OutOfMemory { device: NAME.to_owned(), what: what.into(), requested, free: free_bytes() }
}

/// The device does not do this.
pub(super) fn unsupported(what: impl Into<String>) -> DeviceError {
    DeviceError::Unsupported { device: NAME.to_owned(), what: what.into() }
}

/// It went wrong under way.
pub(super) fn failed(what: impl Into<String>, reason: impl ToString) -> DeviceError {
    DeviceError::Failed { device: NAME.to_owned(), what: what.into(), reason: reason.to_string() }
}
