//! Argument records: what each dispatch of a recording is given, in one buffer that the kernels read. A command buffer holds the records'
//! addresses alone, so a record may be of any length, and may be rewritten between two runs without recording anew.

use std::sync::Arc;

use crate::context::Context;
use crate::error::VulkanError;
use crate::memory::Buffer;
use crate::place::Place;

/// Records start at multiples of this, as `shaders/lib/common.glsl` tells the compiler.
const ALIGN: u64 = 64;

/// The records of a recording, in its order.
pub(crate) struct Records {
    /// Where the GPU reads fast and the host writes: device memory that is mapped, if there is any.
    buffer: Buffer,
    offsets: Vec<u64>,
}

impl Records {
    /// Lays out and writes one record for each dispatch.
    ///
    /// Errors when memory is short.
    pub(crate) fn new<'r>(
        context: &Arc<Context>,
        records: impl Iterator<Item = &'r [u8]>,
    ) -> Result<Records, VulkanError> {
        let (mut bytes, mut offsets) = (Vec::new(), Vec::new());
        for record in records {
            bytes.resize(bytes.len().next_multiple_of(ALIGN as usize), 0);
            offsets.push(bytes.len() as u64);
            bytes.extend_from_slice(record);
        }
        // Room to start at an aligned address wherever the buffer lies.
        let buffer = Buffer::new(context, Place::Near, bytes.len() as u64 + ALIGN, "arguments of kernels")?;
        let first = buffer.address().next_multiple_of(ALIGN) - buffer.address();
        offsets.iter_mut().for_each(|offset| *offset += first);
        buffer.write(first, &bytes);
        Ok(Records { buffer, offsets })
    }

    /// Device address of a dispatch's record.
    pub(crate) fn address(&self, dispatch: usize) -> u64 {
        self.buffer.address() + self.offsets[dispatch]
    }

    /// Gives a dispatch other arguments, as many bytes as before. The caller has waited for the last run.
    #[cfg(test)]
    pub(crate) fn rewrite(&self, dispatch: usize, record: &[u8]) {
        self.buffer.write(self.offsets[dispatch], record);
    }
}
