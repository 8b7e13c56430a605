//! Copies of a residual stream between the host's memory and the device's on queues of their own, beside kernels of other streams.

use std::sync::Arc;

use ash::vk;

use crate::context::Context;
use crate::error::VulkanError;
use crate::lane::{Lane, Point};
use crate::recording::Copy;

/// The copies of one stream, recorded once for as long as they stay the same.
pub(crate) struct Ferry {
    inward: Way,
    outward: Way,
}

impl Ferry {
    pub(crate) fn new(context: &Arc<Context>) -> Ferry {
        Ferry { inward: Way::new(context, Lane::Inward), outward: Way::new(context, Lane::Outward) }
    }

    /// Submits the copy of a stream that comes in; returns where it ends.
    pub(crate) fn bring(&mut self, copy: Copy, after: Point) -> Result<u64, VulkanError> {
        self.inward.submit(copy, after)
    }

    /// Submits the copy of a stream that goes out; returns where it ends.
    pub(crate) fn take(&mut self, copy: Copy, after: Point) -> Result<u64, VulkanError> {
        self.outward.submit(copy, after)
    }
}

/// A lane with a command buffer for it.
struct Way {
    context: Arc<Context>,
    lane: Lane,
    made: Option<(vk::CommandPool, vk::CommandBuffer)>,
    recorded: Option<Copy>,
    last: u64,
}

impl Way {
    fn new(context: &Arc<Context>, lane: Lane) -> Way {
        Way { context: context.clone(), lane, made: None, recorded: None, last: 0 }
    }

    fn submit(&mut self, copy: Copy, after: Point) -> Result<u64, VulkanError> {
        let commands = match self.made {
            Some((_, commands)) if self.recorded == Some(copy) => commands,
            _ => self.record(copy)?,
        };
        let what = "a residual stream that crosses";
        self.last = self.context.submit_after(self.lane, commands, after, what)?;
        Ok(self.last)
    }

    fn record(&mut self, copy: Copy) -> Result<vk::CommandBuffer, VulkanError> {
        // Another copy is another batch's, and the one before has ended by then.
        self.context.wait(Point::at(self.lane, self.last), "an earlier crossing")?;
        self.recorded = None;
        let (_, commands) = match self.made {
            Some(made) => made,
            None => self.make()?,
        };
        let device = &self.context.device;
        // A stream may go out again before its last copy has ended: the batch is the same then, and so is the copy.
        let begin =
            vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::SIMULTANEOUS_USE);
        let region = [vk::BufferCopy { src_offset: copy.from.1, dst_offset: copy.to.1, size: copy.bytes }];
        let host = [vk::MemoryBarrier2::default()
            .src_stage_mask(vk::PipelineStageFlags2::COPY)
            .src_access_mask(vk::AccessFlags2::TRANSFER_WRITE)
            .dst_stage_mask(vk::PipelineStageFlags2::HOST)
            .dst_access_mask(vk::AccessFlags2::HOST_READ)];
        // SAFETY: the buffer is not under way, and beginning resets it; the stream's buffers outlive this, and who drops them waits. What
        // lanes wait for and signal orders memory between them.
        unsafe {
            device.begin_command_buffer(commands, &begin)?;
            device.cmd_copy_buffer(commands, copy.from.0, copy.to.0, &region);
            if self.lane == Lane::Outward {
                device.cmd_pipeline_barrier2(commands, &vk::DependencyInfo::default().memory_barriers(&host));
            }
            device.end_command_buffer(commands)?;
        }
        self.recorded = Some(copy);
        Ok(commands)
    }

    fn make(&mut self) -> Result<(vk::CommandPool, vk::CommandBuffer), VulkanError> {
        let device = &self.context.device;
        let family = self.context.lane(self.lane).map_or(self.context.queue_family(), |queue| queue.family);
        let info = vk::CommandPoolCreateInfo::default()
            .queue_family_index(family)
            .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
        // SAFETY: plain creation; destroyed below or on drop.
        let pool = unsafe { device.create_command_pool(&info, None) }?;
        let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
        // SAFETY: the pool is alive.
        match unsafe { device.allocate_command_buffers(&info) } {
            Ok(buffers) => Ok(*self.made.insert((pool, buffers[0]))),
            Err(error) => {
                // SAFETY: nothing was made from it.
                unsafe { device.destroy_command_pool(pool, None) };
                Err(error.into())
            }
        }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        let done = self.context.wait(Point::at(self.lane, self.last), "a crossing");
        if done.is_err() && self.context.is_hung() {
            return;
        }
        if let Some((pool, _)) = self.made {
            // SAFETY: the last copy has ended, or the device is lost.
            unsafe { self.context.device.destroy_command_pool(pool, None) };
        }
    }
}
