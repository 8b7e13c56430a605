//! Recordings: the dispatches of a batch shape as plain data, with the hazards between them found from what each reads and writes.
//! A recording can be printed, compared, and turned into a command buffer that is replayed token after token.

use std::ops;
use std::sync::Arc;

use ash::vk;

use crate::context::Context;
use crate::error::VulkanError;
use crate::kernel::Kernel;
use crate::lane::{Lane, Point};
use crate::pipeline::{PUSH_BYTES, Pipelines};

/// A range of device addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Range {
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
pub(crate) enum Groups {
    /// As given.
    Fixed([u32; 3]),
}

/// One dispatch.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Dispatch {
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

/// A copy between buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// Buffer and offset to read from.
    pub from: (vk::Buffer, u64),
    /// Buffer and offset to write to.
    pub to: (vk::Buffer, u64),
    /// Bytes; none is no copy.
    pub bytes: u64,
}

/// Dispatches in order, with the copies around them.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Recording {
    /// The dispatches.
    pub dispatches: Vec<Dispatch>,
    /// Copies before the first dispatch.
    pub before: Vec<Copy>,
    /// Copies after the last dispatch.
    pub after: Vec<Copy>,
}

impl Recording {
    /// Adds a dispatch.
    pub(crate) fn push(&mut self, dispatch: Dispatch) {
        self.dispatches.push(dispatch);
    }

    /// For each dispatch, whether a barrier must come before it: it touches what one since the last barrier wrote, or writes what one read.
    pub(crate) fn barriers(&self) -> Vec<bool> {
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

/// What is timed on the GPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Timing {
    /// Nothing.
    Off,
    /// Each piece from its first dispatch to its last.
    Pieces,
    /// Each dispatch; they are serialized, so that each time is one dispatch's.
    Dispatches,
}

/// Command buffers made from a recording, one for each piece of it. Replayable: no one-time flag, at most one execution in flight.
pub(crate) struct Commands {
    context: Arc<Context>,
    pool: vk::CommandPool,
    buffers: Vec<vk::CommandBuffer>,
    pieces: Vec<ops::Range<usize>>,
    timing: Timing,
    queries: Option<vk::QueryPool>,
}

impl Commands {
    /// Encodes a recording as one piece. With `timestamps`, a time is taken before the first and after every dispatch, and dispatches are
    /// serialized so that each time is one dispatch's.
    pub(crate) fn encode(
        context: &Arc<Context>,
        pipelines: &Pipelines,
        recording: &Recording,
        timestamps: bool,
    ) -> Result<Commands, VulkanError> {
        let timing = if timestamps { Timing::Dispatches } else { Timing::Off };
        let whole = 0..recording.dispatches.len();
        Commands::encode_pieces(context, pipelines, recording, vec![whole], timing)
    }

    /// Encodes a recording as consecutive pieces, each a submission of its own.
    ///
    /// Errors when a kernel does not compile or a dispatch is larger than the device allows.
    pub(crate) fn encode_pieces(
        context: &Arc<Context>,
        pipelines: &Pipelines,
        recording: &Recording,
        pieces: Vec<ops::Range<usize>>,
        timing: Timing,
    ) -> Result<Commands, VulkanError> {
        recording.dispatches.iter().try_for_each(|d| check(context, d))?;
        pipelines.prepare(recording.dispatches.iter().map(|d| &d.kernel))?;
        let device = &context.device;
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(context.queue_family());
        // SAFETY: plain creation; destroyed on drop.
        let pool = unsafe { device.create_command_pool(&info, None) }?;
        let mut commands =
            Commands { context: context.clone(), pool, buffers: Vec::new(), pieces, timing, queries: None };
        let info = vk::CommandBufferAllocateInfo::default()
            .command_pool(pool)
            .command_buffer_count(commands.pieces.len() as u32);
        // SAFETY: the pool is alive.
        commands.buffers = unsafe { device.allocate_command_buffers(&info) }?;
        if timing != Timing::Off {
            let info = vk::QueryPoolCreateInfo::default()
                .query_type(vk::QueryType::TIMESTAMP)
                .query_count(commands.query_count());
            // SAFETY: plain creation; destroyed on drop.
            commands.queries = Some(unsafe { device.create_query_pool(&info, None) }?);
        }
        let barriers = recording.barriers();
        for piece in 0..commands.pieces.len() {
            commands.record(pipelines, recording, &barriers, piece)?;
        }
        Ok(commands)
    }

    /// Dispatches of each piece.
    pub(crate) fn pieces(&self) -> &[ops::Range<usize>] {
        &self.pieces
    }

    /// Queries: per piece one before and one after, or one before and one after each dispatch.
    fn query_count(&self) -> u32 {
        let dispatches = self.pieces.last().map_or(0, |p| p.end);
        match self.timing {
            Timing::Off => 0,
            Timing::Pieces => 2 * self.pieces.len() as u32,
            Timing::Dispatches => (dispatches + self.pieces.len()) as u32,
        }
    }

    /// First query of a piece.
    fn first_query(&self, piece: usize) -> u32 {
        match self.timing {
            Timing::Dispatches => (self.pieces[piece].start + piece) as u32,
            _ => 2 * piece as u32,
        }
    }

    fn record(
        &self,
        pipelines: &Pipelines,
        recording: &Recording,
        barriers: &[bool],
        piece: usize,
    ) -> Result<(), VulkanError> {
        use vk::PipelineStageFlags2 as Stage;
        let device = &self.context.device;
        let b = self.buffers[piece];
        let each = self.timing == Timing::Dispatches;
        let stamp = |stage: Stage, query: u32| {
            if let Some(q) = self.queries {
                // SAFETY: called while the buffer records; the pool has this query.
                unsafe { device.cmd_write_timestamp2(b, stage, q, self.first_query(piece) + query) };
            }
        };
        // SAFETY: the buffer is in the initial state; all handles used below are alive until the context goes.
        unsafe {
            device.begin_command_buffer(b, &vk::CommandBufferBeginInfo::default())?;
            if let Some(q) = self.queries.filter(|_| piece == 0) {
                device.cmd_reset_query_pool(b, q, 0, self.query_count());
            }
            stamp(Stage::ALL_COMMANDS, 0);
            // What the host wrote and what the previous submission left must be visible.
            self.barrier(b, Stage::ALL_COMMANDS | Stage::HOST, vk::AccessFlags2::MEMORY_WRITE);
            if piece == 0 && !recording.before.is_empty() {
                self.copy(b, &recording.before);
                self.barrier(b, Stage::COPY, vk::AccessFlags2::TRANSFER_WRITE);
            }
            for (i, d) in recording.dispatches[self.pieces[piece].clone()].iter().enumerate() {
                if barriers[self.pieces[piece].start + i] || each {
                    self.barrier(b, Stage::COMPUTE_SHADER, vk::AccessFlags2::SHADER_STORAGE_WRITE);
                }
                let pipeline = pipelines.get(&d.kernel)?;
                self.begin_label(b, d.op);
                device.cmd_bind_pipeline(b, vk::PipelineBindPoint::COMPUTE, pipeline.handle);
                device.cmd_push_constants(b, pipelines.layout(), vk::ShaderStageFlags::COMPUTE, 0, &d.push);
                match d.groups {
                    Groups::Fixed([x, y, z]) => device.cmd_dispatch(b, x, y, z),
                }
                self.end_label(b);
                if each {
                    stamp(Stage::COMPUTE_SHADER, i as u32 + 1);
                }
            }
            if self.timing == Timing::Pieces {
                stamp(Stage::COMPUTE_SHADER, 1);
            }
            if piece + 1 == self.pieces.len() && !recording.after.is_empty() {
                self.barrier(b, Stage::COMPUTE_SHADER, vk::AccessFlags2::SHADER_STORAGE_WRITE);
                self.copy(b, &recording.after);
            }
            let host = [vk::MemoryBarrier2::default()
                .src_stage_mask(Stage::COMPUTE_SHADER | Stage::COPY)
                .src_access_mask(vk::AccessFlags2::SHADER_WRITE | vk::AccessFlags2::TRANSFER_WRITE)
                .dst_stage_mask(Stage::HOST)
                .dst_access_mask(vk::AccessFlags2::HOST_READ)];
            device.cmd_pipeline_barrier2(b, &vk::DependencyInfo::default().memory_barriers(&host));
            device.end_command_buffer(b)?;
        }
        Ok(())
    }

    fn copy(&self, commands: vk::CommandBuffer, copies: &[Copy]) {
        for copy in copies.iter().filter(|c| c.bytes > 0) {
            let region =
                [vk::BufferCopy { src_offset: copy.from.1, dst_offset: copy.to.1, size: copy.bytes }];
            // SAFETY: called while the buffer records; the ranges lie in buffers that outlive the recording.
            unsafe { self.context.device.cmd_copy_buffer(commands, copy.from.0, copy.to.0, &region) };
        }
    }

    /// Makes earlier writes visible to the dispatches and copies that follow.
    fn barrier(
        &self,
        commands: vk::CommandBuffer,
        after: vk::PipelineStageFlags2,
        written: vk::AccessFlags2,
    ) {
        let barrier = [vk::MemoryBarrier2::default()
            .src_stage_mask(after)
            .src_access_mask(written)
            .dst_stage_mask(vk::PipelineStageFlags2::COMPUTE_SHADER | vk::PipelineStageFlags2::COPY)
            .dst_access_mask(
                vk::AccessFlags2::SHADER_STORAGE_READ
                    | vk::AccessFlags2::SHADER_STORAGE_WRITE
                    | vk::AccessFlags2::TRANSFER_READ
                    | vk::AccessFlags2::TRANSFER_WRITE,
            )];
        let info = vk::DependencyInfo::default().memory_barriers(&barrier);
        // SAFETY: called while the buffer records.
        unsafe { self.context.device.cmd_pipeline_barrier2(commands, &info) };
    }

    fn begin_label(&self, commands: vk::CommandBuffer, op: &str) {
        let (Some(labels), Ok(name)) = (&self.context.labels, std::ffi::CString::new(op)) else { return };
        let label = vk::DebugUtilsLabelEXT::default().label_name(&name);
        // SAFETY: called while the buffer records; `end_label` follows.
        unsafe { labels.cmd_begin_debug_utils_label(commands, &label) };
    }

    fn end_label(&self, commands: vk::CommandBuffer) {
        if let Some(labels) = &self.context.labels {
            // SAFETY: called while the buffer records, after `begin_label`.
            unsafe { labels.cmd_end_debug_utils_label(commands) };
        }
    }

    /// Submits the pieces in order, the first behind `after`; the value marks the end of the last. `what` is named when the device is
    /// lost.
    pub(crate) fn submit(&self, after: Point, what: &str) -> Result<u64, VulkanError> {
        let (mut last, mut after) = (0, after);
        for buffer in &self.buffers {
            last = self.context.submit_after(Lane::Compute, *buffer, after, what)?;
            after = Point::default();
        }
        Ok(last)
    }

    /// Submits once and waits.
    pub(crate) fn run(&self, what: &str) -> Result<(), VulkanError> {
        let value = self.submit(Point::default(), what)?;
        self.context.wait(value, what)
    }

    /// Seconds of each dispatch in the last finished run; `None` when encoded without timestamps, or where nothing executes.
    pub(crate) fn times(&self) -> Result<Option<Vec<f64>>, VulkanError> {
        let Some(stamps) = self.stamps(Timing::Dispatches)? else { return Ok(None) };
        let mut out = Vec::with_capacity(stamps.len());
        for (i, piece) in self.pieces.iter().enumerate() {
            let first = self.first_query(i) as usize;
            out.extend(stamps[first..=first + piece.len()].windows(2).map(|w| w[1] - w[0]));
        }
        Ok(Some(out))
    }

    /// Seconds of each piece in the last finished run; `None` when encoded without times of pieces, or where nothing executes.
    pub(crate) fn piece_times(&self) -> Result<Option<Vec<f64>>, VulkanError> {
        let stamps = self.stamps(Timing::Pieces)?;
        Ok(stamps.map(|s| s.chunks_exact(2).map(|w| w[1] - w[0]).collect()))
    }

    /// The last run's timestamps in seconds since its first, where this is what is timed.
    fn stamps(&self, timing: Timing) -> Result<Option<Vec<f64>>, VulkanError> {
        let told = self.timing == timing && !self.context.compile_only();
        let Some(q) = self.queries.filter(|_| told) else { return Ok(None) };
        let mut ticks = vec![0u64; self.query_count() as usize];
        let flags = vk::QueryResultFlags::TYPE_64 | vk::QueryResultFlags::WAIT;
        // SAFETY: the pool has this many queries, all written by the run.
        unsafe { self.context.device.get_query_pool_results(q, 0, &mut ticks, flags) }
            .map_err(|e| self.context.named(e, "reading timestamps"))?;
        let tick = self.context.profile().timestamp_ns as f64 * 1e-9;
        let first = ticks.first().copied().unwrap_or(0);
        let since = |t: &u64| t.wrapping_sub(first) & self.context.timestamp_mask;
        Ok(Some(ticks.iter().map(|t| since(t) as f64 * tick).collect()))
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        if self.context.is_hung() {
            return;
        }
        // SAFETY: callers wait for the submission before dropping.
        unsafe {
            if let Some(q) = self.queries {
                self.context.device.destroy_query_pool(q, None);
            }
            self.context.device.destroy_command_pool(self.pool, None);
        }
    }
}

/// Holds a dispatch against the device's limits. Some drivers take no more than 65535 workgroups in any dimension.
fn check(context: &Context, d: &Dispatch) -> Result<(), VulkanError> {
    let limit = |asked: String, most: u64| VulkanError::Limit {
        device: context.profile().name.clone(),
        what: format!("{} ({})", d.op, d.kernel.shader),
        asked,
        most,
    };
    if d.push.len() > PUSH_BYTES as usize {
        return Err(limit(format!("{} bytes of push constants", d.push.len()), PUSH_BYTES as u64));
    }
    let Groups::Fixed(groups) = d.groups;
    match (0..3).find(|i| groups[*i] > context.groups_max[*i]) {
        None => Ok(()),
        Some(i) => Err(limit(
            format!("{} workgroups in {}", groups[i], ["x", "y", "z"][i]),
            context.groups_max[i] as u64,
        )),
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
