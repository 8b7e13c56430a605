//! Recordings: the dispatches of a batch shape as plain data, with the hazards between them found from what each reads and writes.
//! A recording can be printed, compared, and turned into a command buffer that is replayed token after token.

use std::sync::Arc;

use ash::vk;

use crate::context::Context;
use crate::error::VulkanError;
use crate::pipeline::{Kernel, PUSH_BYTES, Pipelines};

/// A range of device addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First byte.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Range {
    fn overlaps(&self, other: &Range) -> bool {
        self.address < other.address + other.bytes && other.address < self.address + self.bytes
    }
}

/// How many workgroups run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Groups {
    /// As given.
    Fixed([u32; 3]),
}

/// One dispatch.
#[derive(Clone, PartialEq, Debug)]
pub struct Dispatch {
    /// What it is for, shown in profiles and debug labels: the op's name.
    pub op: &'static str,
    /// The kernel.
    pub kernel: Kernel,
    /// Push constant bytes.
    pub push: Vec<u8>,
    /// Workgroups.
    pub groups: Groups,
    /// Ranges read, constant weights left out.
    pub reads: Vec<Range>,
    /// Ranges written.
    pub writes: Vec<Range>,
    /// Bytes of weights and KV that it reads.
    pub bytes: u64,
    /// Arithmetic operations.
    pub flops: u64,
}

/// Dispatches in order.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recording {
    /// The dispatches.
    pub dispatches: Vec<Dispatch>,
}

impl Recording {
    /// Adds a dispatch.
    pub fn push(&mut self, dispatch: Dispatch) {
        self.dispatches.push(dispatch);
    }

    /// For each dispatch, whether a barrier must come before it: it touches what one since the last barrier wrote, or writes what one read.
    pub fn barriers(&self) -> Vec<bool> {
        let mut reads: Vec<Range> = Vec::new();
        let mut writes: Vec<Range> = Vec::new();
        let hit = |set: &[Range], of: &[Range]| set.iter().any(|a| of.iter().any(|b| a.overlaps(b)));
        let mut out = Vec::with_capacity(self.dispatches.len());
        for d in &self.dispatches {
            let needed = hit(&writes, &d.reads) || hit(&writes, &d.writes) || hit(&reads, &d.writes);
            if needed {
                reads.clear();
                writes.clear();
            }
            reads.extend(&d.reads);
            writes.extend(&d.writes);
            out.push(needed);
        }
        out
    }
}

/// A command buffer made from a recording. Replayable: no one-time flag, at most one execution in flight.
pub struct Commands {
    context: Arc<Context>,
    pool: vk::CommandPool,
    pub(crate) buffer: vk::CommandBuffer,
    queries: Option<vk::QueryPool>,
    count: u32,
}

impl Commands {
    /// Encodes a recording. With `timestamps`, a time is taken before the first and after every dispatch, and dispatches are serialized so
    /// that each time is one dispatch's.
    pub fn encode(
        context: &Arc<Context>,
        pipelines: &Pipelines,
        recording: &Recording,
        timestamps: bool,
    ) -> Result<Commands, VulkanError> {
        let device = &context.device;
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(context.queue_family);
        // SAFETY: plain creation; destroyed on drop.
        let pool = unsafe { device.create_command_pool(&info, None) }?;
        let mut commands = Commands {
            context: context.clone(),
            pool,
            buffer: vk::CommandBuffer::null(),
            queries: None,
            count: recording.dispatches.len() as u32,
        };
        let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
        // SAFETY: the pool is alive.
        commands.buffer = unsafe { device.allocate_command_buffers(&info) }?[0];
        if timestamps {
            let info = vk::QueryPoolCreateInfo::default()
                .query_type(vk::QueryType::TIMESTAMP)
                .query_count(commands.count + 1);
            // SAFETY: plain creation; destroyed on drop.
            commands.queries = Some(unsafe { device.create_query_pool(&info, None) }?);
        }
        commands.record(pipelines, recording)?;
        Ok(commands)
    }

    fn record(&self, pipelines: &Pipelines, recording: &Recording) -> Result<(), VulkanError> {
        let device = &self.context.device;
        let b = self.buffer;
        let barriers = recording.barriers();
        // SAFETY: the buffer is in the initial state; all handles used below are alive until the context goes.
        unsafe {
            device.begin_command_buffer(b, &vk::CommandBufferBeginInfo::default())?;
            if let Some(q) = self.queries {
                device.cmd_reset_query_pool(b, q, 0, self.count + 1);
                device.cmd_write_timestamp2(b, vk::PipelineStageFlags2::ALL_COMMANDS, q, 0);
            }
            // What the host wrote and what the previous submission left must be visible.
            self.barrier(
                vk::PipelineStageFlags2::ALL_COMMANDS | vk::PipelineStageFlags2::HOST,
                vk::AccessFlags2::MEMORY_WRITE,
            );
            for (i, d) in recording.dispatches.iter().enumerate() {
                if barriers[i] || self.queries.is_some() {
                    self.barrier(
                        vk::PipelineStageFlags2::COMPUTE_SHADER,
                        vk::AccessFlags2::SHADER_STORAGE_WRITE,
                    );
                }
                let pipeline = pipelines.get(&d.kernel)?;
                device.cmd_bind_pipeline(b, vk::PipelineBindPoint::COMPUTE, pipeline.handle);
                debug_assert!(d.push.len() <= PUSH_BYTES as usize);
                device.cmd_push_constants(b, pipelines.layout(), vk::ShaderStageFlags::COMPUTE, 0, &d.push);
                match d.groups {
                    Groups::Fixed([x, y, z]) => device.cmd_dispatch(b, x, y, z),
                }
                if let Some(q) = self.queries {
                    device.cmd_write_timestamp2(b, vk::PipelineStageFlags2::COMPUTE_SHADER, q, i as u32 + 1);
                }
            }
            let host = [vk::MemoryBarrier2::default()
                .src_stage_mask(vk::PipelineStageFlags2::COMPUTE_SHADER)
                .src_access_mask(vk::AccessFlags2::SHADER_WRITE)
                .dst_stage_mask(vk::PipelineStageFlags2::HOST)
                .dst_access_mask(vk::AccessFlags2::HOST_READ)];
            device.cmd_pipeline_barrier2(b, &vk::DependencyInfo::default().memory_barriers(&host));
            device.end_command_buffer(b)?;
        }
        Ok(())
    }

    /// Makes earlier writes visible to the dispatches that follow.
    fn barrier(&self, after: vk::PipelineStageFlags2, written: vk::AccessFlags2) {
        let barrier = [vk::MemoryBarrier2::default()
            .src_stage_mask(after)
            .src_access_mask(written)
            .dst_stage_mask(vk::PipelineStageFlags2::COMPUTE_SHADER)
            .dst_access_mask(vk::AccessFlags2::SHADER_STORAGE_READ | vk::AccessFlags2::SHADER_STORAGE_WRITE)];
        let info = vk::DependencyInfo::default().memory_barriers(&barrier);
        // SAFETY: called while the buffer records.
        unsafe { self.context.device.cmd_pipeline_barrier2(self.buffer, &info) };
    }

    /// Submits once and waits.
    pub fn run(&self, what: &str) -> Result<(), VulkanError> {
        let value = self.context.submit(self.buffer)?;
        self.context.wait(value, what)
    }

    /// Seconds of each dispatch in the last finished run; `None` when encoded without timestamps, or where nothing executes.
    pub fn times(&self) -> Result<Option<Vec<f64>>, VulkanError> {
        let Some(q) = self.queries.filter(|_| !self.context.compile_only()) else { return Ok(None) };
        let mut ticks = vec![0u64; self.count as usize + 1];
        let flags = vk::QueryResultFlags::TYPE_64 | vk::QueryResultFlags::WAIT;
        // SAFETY: the pool has this many queries, all written by the run.
        unsafe { self.context.device.get_query_pool_results(q, 0, &mut ticks, flags) }?;
        let ns = self.context.profile().timestamp_ns as f64;
        Ok(Some(ticks.windows(2).map(|w| w[1].wrapping_sub(w[0]) as f64 * ns * 1e-9).collect()))
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        // SAFETY: callers wait for the submission before dropping.
        unsafe {
            if let Some(q) = self.queries {
                self.context.device.destroy_query_pool(q, None);
            }
            self.context.device.destroy_command_pool(self.pool, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dispatch(reads: &[u64], writes: &[u64]) -> Dispatch {
        let ranges = |all: &[u64]| all.iter().map(|a| Range { address: *a, bytes: 16 }).collect();
        Dispatch {
            op: "test",
            kernel: Kernel { shader: "norm".into(), constants: Vec::new(), subgroup: 0 },
            push: Vec::new(),
            groups: Groups::Fixed([1, 1, 1]),
            reads: ranges(reads),
            writes: ranges(writes),
            bytes: 0,
            flops: 0,
        }
    }

    #[test]
    fn barriers_stand_only_where_data_depends() {
        let mut recording = Recording::default();
        recording.push(dispatch(&[0], &[100]));
        recording.push(dispatch(&[0], &[200])); // independent
        recording.push(dispatch(&[108], &[300])); // reads what the first wrote
        recording.push(dispatch(&[100], &[400])); // already behind that barrier
        recording.push(dispatch(&[500], &[100])); // writes what the last two read
        recording.push(dispatch(&[600], &[104])); // writes what the last wrote
        assert_eq!(recording.barriers(), [false, false, true, false, true, true]);
    }
}
