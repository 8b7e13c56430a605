//! Errors that cross the device seam. Each names the thing that failed and the sizes involved.

use std::sync::Arc;

use crate::TensorType;

/// Reading weight bytes failed.
#[derive(thiserror::Error, Debug)]
pub enum WeightError {
    /// A read left the tensor's byte range.
    #[error("read of {len} bytes at {offset} leaves a span of {span} bytes")]
    OutOfSpan {
        /// First byte asked for, relative to the span.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Length of the span.
        span: u64,
    },
    /// The file is shorter than it was when it was opened.
    #[error("{file}: file ends before byte {end}; was it truncated while in use?")]
    Truncated {
        /// Path of the file.
        file: String,
        /// One past the last byte asked for.
        end: u64,
    },
    /// The operating system reported an error.
    #[error("{file}: {source}")]
    Io {
        /// Path of the file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A device could not do what was asked.
#[derive(thiserror::Error, Debug)]
pub enum DeviceError {
    /// An allocation failed.
    #[error("{device}: out of memory for {what}: {requested} bytes asked, {free} bytes free")]
    OutOfMemory {
        /// Device name.
        device: String,
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        requested: u64,
        /// Bytes that were free, as far as the device can tell.
        free: u64,
    },
    /// No kernel exists for this operation, type and device.
    #[error("{device}: no kernel for {op} in {ty}")]
    NoKernel {
        /// Device name.
        device: String,
        /// Operation; where there is a kernel that must not run, with its name.
        op: String,
        /// Type of the operation's weights, or of the KV cache; F32 where it has neither.
        ty: TensorType,
    },
    /// The block asks for something this device does not implement.
    #[error("{device}: {what} is not supported")]
    Unsupported {
        /// Device name.
        device: String,
        /// What is missing.
        what: String,
    },
    /// The caller broke a precondition of the trait.
    #[error("{device}: invalid request: {what}")]
    Invalid {
        /// Device name.
        device: String,
        /// What was wrong.
        what: String,
    },
    /// The device stopped answering; its memory is gone.
    #[error("{device}: device lost during {what}")]
    Lost {
        /// Device name.
        device: String,
        /// What was running.
        what: String,
    },
    /// What the device computes is wrong: nothing on it can be trusted until it is opened without what is to blame.
    #[error("{device}: a kernel was found wrong: {what}")]
    Wrong {
        /// Device name.
        device: String,
        /// What it computes wrong, and how that was seen.
        what: String,
    },
    /// A kernel or worker failed without losing the device.
    #[error("{device}: {what} failed: {reason}")]
    Failed {
        /// Device name.
        device: String,
        /// What was running.
        what: String,
        /// Why.
        reason: String,
    },
    /// Weight bytes could not be read.
    #[error("tensor {tensor}: {source}")]
    Weight {
        /// Tensor name.
        tensor: String,
        /// Why.
        source: WeightError,
    },
    /// Work was not started, because other work that it builds on failed.
    #[error("{device}: not run, because of {source}")]
    Dependency {
        /// Device that would have done it.
        device: String,
        /// What failed.
        source: Arc<DeviceError>,
    },
    /// An error that others were told of too.
    #[error(transparent)]
    Reported(Arc<DeviceError>),
    /// Work ended without a word of how: a fault of the device's code.
    #[error("work was given up by its device")]
    Abandoned,
}

impl DeviceError {
    /// The error at the root of a chain of work that was not run.
    pub fn root(&self) -> &DeviceError {
        match self {
            DeviceError::Dependency { source, .. } | DeviceError::Reported(source) => source.root(),
            other => other,
        }
    }

    /// True where something smaller may fit.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self.root(), DeviceError::OutOfMemory { .. })
    }

    /// True where the device runs and computes wrong.
    pub fn is_wrong(&self) -> bool {
        matches!(self.root(), DeviceError::Wrong { .. })
    }

    /// True where nothing can go on with the device as it is open: its memory is gone, or what is in it is wrong.
    pub fn is_lost(&self) -> bool {
        self.lost_device().is_some()
    }

    /// The name of the device that was lost, or is wrong.
    pub fn lost_device(&self) -> Option<&str> {
        match self.root() {
            DeviceError::Lost { device, .. } | DeviceError::Wrong { device, .. } => Some(device),
            _ => None,
        }
    }
}
