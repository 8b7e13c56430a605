//! Host to device copies. Where the GPU shares the host's memory the bytes are written in place; elsewhere they go through a ring of
//! pinned buffers, so that the next read runs while the last copy does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ash::vk;
use unicorn_core::DeviceError;

use crate::context::Context;
use crate::error::VulkanError;
use crate::memory::{Buffer, Place};

const SLOT_BYTES: u64 = 4 << 20;
const SLOTS: usize = 4;

struct Slot {
    staging: Buffer,
    pool: vk::CommandPool,
    commands: vk::CommandBuffer,
    busy_until: u64,
}

/// Uploads bytes into device buffers and counts them.
pub(crate) struct Uploader {
    context: Arc<Context>,
    ring: Mutex<(Vec<Slot>, usize)>,
    copied: AtomicU64,
}

impl Uploader {
    pub(crate) fn new(context: &Arc<Context>) -> Uploader {
        Uploader { context: context.clone(), ring: Mutex::new((Vec::new(), 0)), copied: AtomicU64::new(0) }
    }

    /// Bytes that went through the ring, so were copied twice.
    pub(crate) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// Copies `data` to `offset` of `buffer`. The copy may still be under way on return; work submitted later sees it.
    pub(crate) fn write(&self, buffer: &Buffer, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.fill(buffer, offset, data.len() as u64, |at, out| {
            out.copy_from_slice(&data[at as usize..][..out.len()]);
            Ok(())
        })
    }

    /// Fills `bytes` bytes at `offset` of `buffer` by calling `read(position, out)` for consecutive pieces.
    pub(crate) fn fill(
        &self,
        buffer: &Buffer,
        offset: u64,
        bytes: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if bytes == 0 || self.context.compile_only() {
            return Ok(());
        }
        // SAFETY: the range is being loaded, so no GPU work uses it yet and no other slice of it exists.
        if let Some(out) = unsafe { buffer.mapped_slice(offset, bytes as usize) } {
            return read(0, out);
        }
        let device = self.context.profile().name.clone();
        for at in (0..bytes).step_by(SLOT_BYTES as usize) {
            let len = SLOT_BYTES.min(bytes - at);
            self.piece(buffer, offset + at, len, |out| read(at, out))
                .map_err(|e| e.unwrap_or_else(|v| v.into_device_error(&device)))?;
            self.copied.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    }

    /// One piece through the ring's next slot. Errors of the reader come back as `Ok(error)` inside the `Err`.
    fn piece(
        &self,
        buffer: &Buffer,
        offset: u64,
        len: u64,
        read: impl FnOnce(&mut [u8]) -> Result<(), DeviceError>,
    ) -> Result<(), Result<DeviceError, VulkanError>> {
        let mut ring = self.ring.lock().unwrap_or_else(|e| e.into_inner());
        if ring.0.len() < SLOTS {
            let slot = self.slot().map_err(Err)?;
            ring.0.push(slot);
        }
        let next = ring.1 % ring.0.len().max(1);
        ring.1 += 1;
        let slot = &mut ring.0[next];
        self.context.wait(slot.busy_until, "an upload").map_err(Err)?;
        // SAFETY: the slot's last copy is done, and the ring is locked.
        match unsafe { slot.staging.mapped_slice(0, len as usize) } {
            Some(out) => read(out).map_err(Ok)?,
            None => return Err(Err(VulkanError::Call(vk::Result::ERROR_MEMORY_MAP_FAILED))),
        }
        slot.busy_until = self.copy(slot, buffer, offset, len).map_err(Err)?;
        Ok(())
    }

    fn slot(&self) -> Result<Slot, VulkanError> {
        let staging = Buffer::new(&self.context, Place::Upload, SLOT_BYTES, "an upload ring")?;
        let device = &self.context.device;
        let info = vk::CommandPoolCreateInfo::default()
            .queue_family_index(self.context.queue_family)
            .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
        // SAFETY: plain creation; destroyed on drop.
        let pool = unsafe { device.create_command_pool(&info, None) }?;
        let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
        // SAFETY: the pool is alive.
        let commands = unsafe { device.allocate_command_buffers(&info) }?[0];
        Ok(Slot { staging, pool, commands, busy_until: 0 })
    }

    fn copy(&self, slot: &Slot, buffer: &Buffer, offset: u64, len: u64) -> Result<u64, VulkanError> {
        let device = &self.context.device;
        let region = [vk::BufferCopy { src_offset: 0, dst_offset: offset, size: len }];
        // SAFETY: the slot's last submission is done; both buffers outlive the copy (callers wait before dropping).
        unsafe {
            let begin =
                vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
            device.begin_command_buffer(slot.commands, &begin)?;
            device.cmd_copy_buffer(slot.commands, slot.staging.handle, buffer.handle, &region);
            device.end_command_buffer(slot.commands)?;
        }
        self.context.submit(slot.commands)
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        let ring = self.ring.get_mut().unwrap_or_else(|e| e.into_inner());
        for slot in &ring.0 {
            let _ = self.context.wait(slot.busy_until, "an upload");
            // SAFETY: the slot's last submission is done.
            unsafe { self.context.device.destroy_command_pool(slot.pool, None) };
        }
    }
}

/// Copies device memory to the host and waits. Reads in place where the memory is mapped.
pub(crate) fn download(
    context: &Arc<Context>,
    buffer: &Buffer,
    offset: u64,
    out: &mut [u8],
) -> Result<(), VulkanError> {
    if out.is_empty() || context.compile_only() {
        return Ok(());
    }
    if buffer.is_mapped() {
        buffer.read(offset, out);
        return Ok(());
    }
    let staging = Buffer::new(context, Place::Readback, out.len() as u64, "a download")?;
    let uploader = Uploader::new(context);
    let slot = uploader.slot()?;
    let device = &context.device;
    let region = [vk::BufferCopy { src_offset: offset, dst_offset: 0, size: out.len() as u64 }];
    // SAFETY: both buffers outlive the wait below.
    unsafe {
        let begin = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        device.begin_command_buffer(slot.commands, &begin)?;
        device.cmd_copy_buffer(slot.commands, buffer.handle, staging.handle, &region);
        device.end_command_buffer(slot.commands)?;
    }
    let value = context.submit(slot.commands)?;
    context.wait(value, "a download")?;
    // SAFETY: the submission is done.
    unsafe { device.destroy_command_pool(slot.pool, None) };
    staging.read(0, out);
    Ok(())
}
