//! Host to device copies. Where the GPU shares the host's memory the bytes are written in place; elsewhere they go through a ring of
//! pinned buffers, so that reads and splits on several threads run while copies do.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use ash::vk;
use unicorn_core::DeviceError;

use crate::context::Context;
use crate::error::VulkanError;
use crate::memory::Buffer;
use crate::place::Place;

/// Bytes of one piece of an upload: enough that a copy's fixed costs vanish, and so few that the slots of all threads stay small.
pub(crate) const PIECE_BYTES: u64 = 2 << 20;
/// Slots beyond one per thread: copies under way while all threads read.
pub(crate) const SLOTS_SPARE: usize = 4;
/// Reading and splitting saturates memory long before it has every core of a large machine.
const THREADS_MAX: usize = 16;
/// Threads beyond one per core: they wait for the disk while all cores split.
const THREADS_WAITING: usize = 2;

/// Which way bytes go between the host and device memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Out,
    In,
}

/// A buffer that the host reaches too, with commands of its own.
pub(crate) struct Slot {
    context: Arc<Context>,
    pub(crate) staging: Buffer,
    pool: vk::CommandPool,
    commands: vk::CommandBuffer,
    busy_until: u64,
}

/// Uploads bytes into device buffers.
pub(crate) struct Uploader {
    context: Arc<Context>,
    /// Slots that no thread fills, in order of their copies.
    ring: Mutex<VecDeque<Slot>>,
    /// Host buffers between two pieces.
    spare: Mutex<Vec<Vec<u8>>>,
    threads: usize,
    /// Where memory is mapped, write there; tests try the ring on such devices too.
    in_place: bool,
}

/// A range of a buffer: offset and length in bytes.
pub(crate) type ByteRange = (u64, u64);

impl Uploader {
    pub(crate) fn new(context: &Arc<Context>) -> Uploader {
        Uploader {
            context: context.clone(),
            ring: Mutex::default(),
            spare: Mutex::default(),
            threads: threads(),
            in_place: true,
        }
    }

    /// Everything through the ring, by this many threads.
    #[cfg(test)]
    pub(crate) fn staged(context: &Arc<Context>, threads: usize) -> Uploader {
        Uploader { in_place: false, threads, ..Uploader::new(context) }
    }

    /// Frees what only loading needs; the next upload makes it anew.
    pub(crate) fn rest(&self) {
        lock(&self.ring).clear();
        lock(&self.spare).clear();
    }

    /// Fills `pieces` of `buffer` on several threads, started in order. `fill(i, host, parts)` gives piece `i` its content: `parts` are the
    /// piece's ranges, as mapped device memory or in the ring, to be written once and never read, and `host` is memory of the thread's
    /// own for what it reads first. Pieces do not overlap and have at most [`PIECE_BYTES`] each.
    ///
    /// Returns the first error of `fill` or of the driver; the buffer's content is undefined then. Copies may still be under way on
    /// return; work submitted later sees them.
    pub(crate) fn fill_pieces<const N: usize>(
        &self,
        buffer: &Buffer,
        pieces: &[[ByteRange; N]],
        fill: impl Fn(usize, &mut Vec<u8>, [&mut [u8]; N]) -> Result<(), DeviceError> + Sync,
    ) -> Result<(), DeviceError> {
        if self.context.compile_only() {
            return Ok(());
        }
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let first_error = Mutex::new(None);
        let work = || {
            let mut host = lock(&self.spare).pop().unwrap_or_default();
            while !failed.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(parts) = pieces.get(i) else { break };
                if let Err(error) = self.piece(buffer, parts, |out| fill(i, &mut host, out)) {
                    failed.store(true, Ordering::Relaxed);
                    lock(&first_error).get_or_insert(error);
                }
            }
            lock(&self.spare).push(host);
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(pieces.len()) {
                // Where no thread can be had, those that there are do all.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        let error = first_error.into_inner().unwrap_or_else(|e| e.into_inner());
        error.map_or(Ok(()), Err)
    }

    fn piece<const N: usize>(
        &self,
        buffer: &Buffer,
        parts: &[ByteRange; N],
        fill: impl FnOnce([&mut [u8]; N]) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let device = &self.context.profile().name;
        let fail = |e: VulkanError| e.into_device_error(device);
        let outside = || DeviceError::Invalid {
            device: device.clone(),
            what: format!("{parts:?} leave a buffer of {} bytes", buffer.bytes()),
        };
        if self.in_place && buffer.is_mapped() {
            // SAFETY: the ranges are being loaded, so no GPU work uses them, and pieces and their parts do not overlap.
            let out = parts.map(|(at, len)| unsafe { buffer.mapped_slice(at, len as usize) });
            let Some(out) = all(out) else { return Err(outside()) };
            return fill(out);
        }
        let mut slot = self.take_slot().map_err(fail)?;
        // In the slot the parts follow each other, each at a multiple of 16.
        let mut end = 0;
        let staged = parts.map(|(_, len)| {
            let at = end;
            end = (at + len).next_multiple_of(16);
            at
        });
        // SAFETY: the slot's last copy is done, it is this thread's alone, and the ranges do not overlap.
        let out =
            std::array::from_fn(|i| unsafe { slot.staging.mapped_slice(staged[i], parts[i].1 as usize) });
        let filled = all(out).map_or_else(|| Err(outside()), fill);
        filled.and_then(|()| {
            let regions: Vec<vk::BufferCopy> = (0..N)
                .filter(|i| parts[*i].1 > 0)
                .map(|i| vk::BufferCopy { src_offset: staged[i], dst_offset: parts[i].0, size: parts[i].1 })
                .collect();
            // Submissions are numbered in order, so the ring's order is that of the copies as long as both happen under its lock.
            let mut ring = lock(&self.ring);
            slot.busy_until = slot.copy(buffer, &regions).map_err(fail)?;
            self.context.count_copy(parts.iter().map(|p| p.1).sum());
            ring.push_back(slot);
            Ok(())
        })
    }

    /// A slot whose copy is done: the oldest, or a new one while there are few.
    fn take_slot(&self) -> Result<Slot, VulkanError> {
        let mut ring = lock(&self.ring);
        let oldest = if ring.len() > SLOTS_SPARE { ring.pop_front() } else { None };
        drop(ring);
        match oldest {
            Some(slot) => {
                self.context.wait(slot.busy_until, "an upload")?;
                Ok(slot)
            }
            // Room for three parts, each rounded up.
            None => Slot::new(&self.context, Place::Upload, PIECE_BYTES + 64, "an upload ring"),
        }
    }

    /// Copies `data` to `offset` of `buffer`. The copy may still be under way on return; work submitted later sees it.
    pub(crate) fn write(&self, buffer: &Buffer, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.fill(buffer, offset, data.len() as u64, |at, out| {
            out.copy_from_slice(&data[at as usize..][..out.len()]);
            // Elsewhere the ring counts it.
            if self.in_place && buffer.is_mapped() {
                self.context.count_copy(out.len() as u64);
            }
            Ok(())
        })
    }

    /// Fills `bytes` bytes at `offset` of `buffer` by calling `read(position, out)` for pieces, on several threads.
    pub(crate) fn fill(
        &self,
        buffer: &Buffer,
        offset: u64,
        bytes: u64,
        read: impl Fn(u64, &mut [u8]) -> Result<(), DeviceError> + Sync,
    ) -> Result<(), DeviceError> {
        let starts = (0..bytes).step_by(PIECE_BYTES as usize);
        let pieces: Vec<[ByteRange; 1]> =
            starts.map(|at| [(offset + at, PIECE_BYTES.min(bytes - at))]).collect();
        self.fill_pieces(buffer, &pieces, |i, _, [out]| read(i as u64 * PIECE_BYTES, out))
    }
}

/// Threads that read and split.
pub(crate) fn threads() -> usize {
    (std::thread::available_parallelism().map_or(1, |n| n.get()) + THREADS_WAITING).min(THREADS_MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// All of them, if all are there.
fn all<const N: usize>(slices: [Option<&mut [u8]>; N]) -> Option<[&mut [u8]; N]> {
    slices.iter().all(Option::is_some).then(|| slices.map(Option::unwrap_or_default))
}

impl Slot {
    pub(crate) fn new(
        context: &Arc<Context>,
        place: Place,
        bytes: u64,
        what: &str,
    ) -> Result<Slot, VulkanError> {
        let staging = Buffer::new(context, place, bytes, what)?;
        let device = &context.device;
        let info = vk::CommandPoolCreateInfo::default()
            .queue_family_index(context.queue_family())
            .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
        // SAFETY: plain creation; destroyed on drop.
        let pool = unsafe { device.create_command_pool(&info, None) }?;
        let context = context.clone();
        let mut slot = Slot { context, staging, pool, commands: vk::CommandBuffer::null(), busy_until: 0 };
        let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
        // SAFETY: the pool is alive.
        slot.commands = unsafe { slot.context.device.allocate_command_buffers(&info) }?[0];
        Ok(slot)
    }

    /// Copies between the slot and buffers, whose kernels before have ended or come first in the compute queue, as those behind come later.
    /// Returns where it ends.
    pub(crate) fn exchange(
        &mut self,
        direction: Direction,
        copies: &[(vk::Buffer, &[vk::BufferCopy])],
        what: &str,
    ) -> Result<u64, VulkanError> {
        let (device, commands) = (&self.context.device, self.commands);
        let barrier = |from: [vk::PipelineStageFlags2; 2]| {
            vk::MemoryBarrier2::default()
                .src_stage_mask(from[0])
                .src_access_mask(vk::AccessFlags2::MEMORY_WRITE)
                .dst_stage_mask(from[1])
                .dst_access_mask(vk::AccessFlags2::MEMORY_READ | vk::AccessFlags2::MEMORY_WRITE)
        };
        let (all, copy) = (vk::PipelineStageFlags2::ALL_COMMANDS, vk::PipelineStageFlags2::COPY);
        let behind = if direction == Direction::Out { vk::PipelineStageFlags2::HOST } else { all };
        let (before, after) = ([barrier([all, copy])], [barrier([copy, behind])]);
        // SAFETY: the slot's last submission is done; the slot and the buffers outlive the copy (dropping them waits for it).
        unsafe {
            let begin =
                vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
            device.begin_command_buffer(commands, &begin)?;
            device.cmd_pipeline_barrier2(commands, &vk::DependencyInfo::default().memory_barriers(&before));
            for (buffer, regions) in copies {
                let (from, to) = match direction {
                    Direction::Out => (*buffer, self.staging.handle),
                    Direction::In => (self.staging.handle, *buffer),
                };
                device.cmd_copy_buffer(commands, from, to, regions);
            }
            device.cmd_pipeline_barrier2(commands, &vk::DependencyInfo::default().memory_barriers(&after));
            device.end_command_buffer(commands)?;
        }
        self.busy_until = self.context.submit(commands, what)?;
        Ok(self.busy_until)
    }

    /// Submits a copy out of the slot.
    fn copy(&self, buffer: &Buffer, regions: &[vk::BufferCopy]) -> Result<u64, VulkanError> {
        let (device, commands) = (&self.context.device, self.commands);
        // SAFETY: the slot's last submission is done; both buffers outlive the copy (dropping one waits for it).
        unsafe {
            let begin =
                vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
            device.begin_command_buffer(commands, &begin)?;
            device.cmd_copy_buffer(commands, self.staging.handle, buffer.handle, regions);
            device.end_command_buffer(commands)?;
        }
        self.context.submit_upload(commands)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let done = self.context.wait(self.busy_until, "an upload");
        if done.is_err() && self.context.is_hung() {
            return;
        }
        // SAFETY: the slot's last submission is done, or the device is lost.
        unsafe { self.context.device.destroy_command_pool(self.pool, None) };
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
    let mut slot = Slot::new(context, Place::Readback, out.len() as u64, "a download")?;
    let region = [vk::BufferCopy { src_offset: offset, dst_offset: 0, size: out.len() as u64 }];
    let ends = slot.exchange(Direction::Out, &[(buffer.handle, &region)], "a download")?;
    context.wait(ends, "a download")?;
    slot.staging.read(0, out);
    Ok(())
}
