//! Argument records: what each dispatch of a recording is given, in one uniform buffer that the kernels read through the caches for
//! constants. A command buffer holds the records' offsets alone, so a record may be longer than push constants, and may be rewritten between
//! two runs without recording anew.

use std::sync::Arc;

use ash::vk;

use crate::context::Context;
use crate::error::VulkanError;
use crate::memory::Buffer;
use crate::pipeline::Pipelines;
use crate::place::Place;

/// The records of a recording, in its order.
pub(crate) struct Records {
    /// Where the GPU reads fast and the host writes: device memory that is mapped, if there is any.
    buffer: Arc<Buffer>,
    offsets: Vec<u32>,
    pool: vk::DescriptorPool,
    set: vk::DescriptorSet,
    context: Arc<Context>,
}

impl Records {
    /// Lays out and writes one record for each dispatch.
    ///
    /// Errors when memory is short, or a record is longer than the device allows.
    pub(crate) fn new<'r>(
        context: &Arc<Context>,
        pipelines: &Pipelines,
        records: impl Iterator<Item = &'r [u8]>,
    ) -> Result<Records, VulkanError> {
        let (mut bytes, mut offsets, mut longest) = (Vec::new(), Vec::new(), 16);
        for record in records {
            bytes.resize(bytes.len().next_multiple_of(context.uniform_align), 0);
            offsets.push(bytes.len() as u32);
            bytes.extend_from_slice(record);
            longest = longest.max(record.len() as u64);
        }
        if longest > context.uniform_bytes_max {
            return Err(VulkanError::Limit {
                device: context.profile().name.clone(),
                what: "a record of arguments".into(),
                asked: format!("{longest} bytes"),
                most: context.uniform_bytes_max,
            });
        }
        // Every record is seen as long as the longest, the last one too.
        let room = bytes.len() as u64 + longest;
        let buffer = match pipelines.stand_in() {
            Some(buffer) => {
                offsets.fill(0);
                buffer.clone()
            }
            None => Arc::new(Buffer::new(context, Place::Near, room, "arguments of kernels")?),
        };
        buffer.write(0, &bytes);
        let sizes = [vk::DescriptorPoolSize::default()
            .ty(vk::DescriptorType::UNIFORM_BUFFER_DYNAMIC)
            .descriptor_count(1)];
        let info = vk::DescriptorPoolCreateInfo::default().max_sets(1).pool_sizes(&sizes);
        // SAFETY: plain creation; destroyed on drop.
        let pool = unsafe { context.device.create_descriptor_pool(&info, None) }?;
        let set = vk::DescriptorSet::null();
        let mut records = Records { buffer, offsets, pool, set, context: context.clone() };
        let layouts = [pipelines.arguments_layout()];
        let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(pool).set_layouts(&layouts);
        // SAFETY: pool and layout are alive.
        records.set = unsafe { context.device.allocate_descriptor_sets(&info) }?[0];
        let part = [vk::DescriptorBufferInfo::default().buffer(records.buffer.handle).range(longest)];
        let write = [vk::WriteDescriptorSet::default()
            .dst_set(records.set)
            .descriptor_type(vk::DescriptorType::UNIFORM_BUFFER_DYNAMIC)
            .buffer_info(&part)];
        // SAFETY: nothing uses the set yet, and the buffer lives as long.
        unsafe { context.device.update_descriptor_sets(&write, &[]) };
        Ok(records)
    }

    /// Gives a dispatch its record.
    pub(crate) fn bind(&self, commands: vk::CommandBuffer, layout: vk::PipelineLayout, dispatch: usize) {
        let (sets, offsets) = ([self.set], [self.offsets[dispatch]]);
        let point = vk::PipelineBindPoint::COMPUTE;
        // SAFETY: called while the buffer records; the offset and the longest record behind it lie in the buffer.
        unsafe { self.context.device.cmd_bind_descriptor_sets(commands, point, layout, 0, &sets, &offsets) };
    }

    /// Gives a dispatch other arguments, as many bytes as before. The caller has waited for the last run.
    #[cfg(test)]
    pub(crate) fn rewrite(&self, dispatch: usize, record: &[u8]) {
        self.buffer.write(u64::from(self.offsets[dispatch]), record);
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        if self.context.is_hung() {
            return;
        }
        // SAFETY: callers wait for the last run before dropping.
        unsafe { self.context.device.destroy_descriptor_pool(self.pool, None) };
    }
}
