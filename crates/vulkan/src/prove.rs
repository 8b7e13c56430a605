//! Sees that the validation layer is awake.

use std::sync::Arc;

use ash::vk;

use crate::context::Context;
use crate::error::VulkanError;
use crate::memory::Buffer;
use crate::place::Place;

/// Makes a mistake on purpose, two writes of the same bytes without a barrier, and sees that it is told: a layer that says nothing
/// may as well be asleep. The command buffer is never submitted, and the message is taken back.
///
/// Errors where validation was not asked for or the mistake is not told.
pub(crate) fn prove_validation(context: &Arc<Context>) -> Result<(), VulkanError> {
    let missing = || VulkanError::Missing {
        device: context.profile().name.clone(),
        missing: "synchronization validation".into(),
    };
    let messages = context.validation_messages().ok_or_else(missing)?;
    let before = messages.lock().unwrap_or_else(|e| e.into_inner()).len();
    let buffer = Buffer::with_memory(context, Place::Device, 64, "a proof of validation")?;
    let device = &context.device;
    let info = vk::CommandPoolCreateInfo::default().queue_family_index(context.queue_family());
    // SAFETY: plain creation; destroyed below.
    let pool = unsafe { device.create_command_pool(&info, None) }?;
    // SAFETY: the commands are recorded and never run, so the race between them never happens; the pool frees the command buffer.
    let recorded = unsafe {
        let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
        let recorded = device.allocate_command_buffers(&info).and_then(|commands| {
            device.begin_command_buffer(commands[0], &vk::CommandBufferBeginInfo::default())?;
            device.cmd_fill_buffer(commands[0], buffer.handle, 0, 64, 1);
            device.cmd_fill_buffer(commands[0], buffer.handle, 0, 64, 2);
            device.end_command_buffer(commands[0])
        });
        device.destroy_command_pool(pool, None);
        recorded
    };
    recorded?;
    let mut messages = messages.lock().unwrap_or_else(|e| e.into_inner());
    let told = messages.iter().skip(before).any(|m| m.error && m.rule.contains("SYNC-HAZARD"));
    messages.truncate(before);
    if told { Ok(()) } else { Err(missing()) }
}
