//! Measured limit: copying within the device's memory.

use std::sync::Arc;
use std::time::Instant;

use ash::vk;

use crate::context::Context;
use crate::error::VulkanError;
use crate::memory::{Buffer, Place};

/// Copies in one submission, so that submitting does not count.
const COPIES: u64 = 8;
const REPEATS: usize = 3;

/// Bytes read plus bytes written per second, by the host's clock around several copies of `bytes / 2` each.
pub(crate) fn measure(context: &Arc<Context>, bytes: u64) -> Result<f64, VulkanError> {
    let half = bytes / 2;
    let from = Buffer::new(context, Place::Device, half, "a measurement")?;
    let to = Buffer::new(context, Place::Device, half, "a measurement")?;
    let device = &context.device;
    let info = vk::CommandPoolCreateInfo::default().queue_family_index(context.queue_family);
    // SAFETY: plain creation; destroyed below.
    let pool = unsafe { device.create_command_pool(&info, None) }?;
    let seconds = time(context, pool, &from, &to);
    // SAFETY: what was submitted has been waited for, or the device is lost.
    unsafe { device.destroy_command_pool(pool, None) };
    Ok((COPIES * 2 * half) as f64 / seconds?)
}

/// Seconds of [`COPIES`] copies, the best of a few runs.
fn time(
    context: &Arc<Context>,
    pool: vk::CommandPool,
    from: &Buffer,
    to: &Buffer,
) -> Result<f64, VulkanError> {
    let device = &context.device;
    let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
    let region = [vk::BufferCopy { src_offset: 0, dst_offset: 0, size: from.bytes().min(to.bytes()) }];
    let barrier = [vk::MemoryBarrier2::default()
        .src_stage_mask(vk::PipelineStageFlags2::COPY)
        .src_access_mask(vk::AccessFlags2::TRANSFER_WRITE)
        .dst_stage_mask(vk::PipelineStageFlags2::COPY)
        .dst_access_mask(vk::AccessFlags2::TRANSFER_WRITE)];
    // SAFETY: the pool and both buffers are alive until the submissions have been waited for.
    let commands = unsafe {
        let commands = device.allocate_command_buffers(&info)?[0];
        device.begin_command_buffer(commands, &vk::CommandBufferBeginInfo::default())?;
        for _ in 0..COPIES {
            device.cmd_pipeline_barrier2(commands, &vk::DependencyInfo::default().memory_barriers(&barrier));
            device.cmd_copy_buffer(commands, from.handle, to.handle, &region);
        }
        device.end_command_buffer(commands)?;
        commands
    };
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let begin = Instant::now();
        context.wait(context.submit(commands)?, "a measurement")?;
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok(best)
}
