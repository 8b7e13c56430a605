//! Measured limits: bandwidths of reading and of copying memory larger than the caches, and the multiply-add rates of the shader cores and
//! of the matrix units.

use std::sync::Arc;
use std::time::Instant;

use unicorn_core::Roofline;

use crate::arguments::Arguments;
use crate::context::Context;
use crate::error::VulkanError;
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::pipeline::Pipelines;
use crate::place::Place;
use crate::recording::{Commands, Dispatch, Groups, Recording};
use crate::select;

const THREADS: u32 = 256;
const REPEATS: usize = 5;
/// Operations of one round of `roof_math` per thread: 8 chains, two operations per multiply-add.
const FLOAT_OPS: u64 = 16;
/// Operations of one round of `roof_math` per thread with dot products of four bytes.
const INTEGER_OPS: u64 = 64;
/// Products of a round of `roof_matrix` per subgroup.
const MATRIX_CHAINS: u64 = 16;
/// A round of `roof_matrix` is so much more work than one of `roof_math`: for matrix units, and for software that has none.
const MATRIX_ROUND: usize = 16;
const MATRIX_ROUND_SOFTWARE: usize = 64;

/// Takes well under a second on a GPU; a software driver gets smaller work.
pub(crate) fn measure(context: &Arc<Context>, pipelines: &Pipelines) -> Result<Roofline, VulkanError> {
    let gpu = context.profile();
    let (bytes, groups, rounds) = if gpu.software { (256u64 << 20, 64, 256) } else { (1 << 30, 4096, 4096) };
    let y = Buffer::new(context, Place::Device, groups as u64 * THREADS as u64 * 4, "a measurement")?;
    let x = Buffer::new(context, Place::Device, bytes, "a measurement")?;
    let kernel = |shader: &str, constants: Vec<u32>| Kernel {
        shader: shader.into(),
        constants,
        subgroup: select::subgroup(gpu),
    };
    let seconds = |kernel: Kernel, arguments: Arguments| -> Result<f64, VulkanError> {
        let mut recording = Recording::default();
        recording.push(Dispatch {
            op: "measure",
            kernel,
            arguments: arguments.bytes(),
            groups: Groups::Fixed([groups, 1, 1]),
            reads: Vec::new(),
            writes: Vec::new(),
            bytes: 0,
            flops: 0,
        });
        let timed = gpu.timestamp_ns > 0.0 && !gpu.software;
        let commands = Commands::encode(context, pipelines, &recording, timed)?;
        let mut best = f64::INFINITY;
        for _ in 0..REPEATS {
            let begin = Instant::now();
            commands.run("a measurement")?;
            let wall = begin.elapsed().as_secs_f64();
            best = best.min(commands.times()?.and_then(|t| t.first().copied()).unwrap_or(wall));
        }
        Ok(best)
    };
    let threads = groups as u64 * THREADS as u64;
    let read = seconds(
        kernel("roof_read", vec![THREADS]),
        Arguments::new().addresses([x.address(), y.address()]).u32((bytes / 16) as usize),
    )?;
    let math = |integer: u32| {
        seconds(
            kernel("roof_math", vec![THREADS, integer]),
            Arguments::new().address(y.address()).u32(rounds).u32(1),
        )
    };
    let ops = |per_round: u64| (threads * rounds as u64 * per_round) as f64;
    let matrix = |edge: u32| {
        let threads = select::workgroup(THREADS as usize, gpu);
        let rounds = rounds / if gpu.software { MATRIX_ROUND_SOFTWARE } else { MATRIX_ROUND };
        let arguments = Arguments::new().address(y.address()).u32(rounds).u32(1);
        let subgroups = groups as u64 * u64::from(threads / select::subgroup(gpu));
        let operations = subgroups * rounds as u64 * MATRIX_CHAINS * 2 * u64::from(edge).pow(3);
        Ok::<f64, VulkanError>(
            operations as f64 / seconds(kernel("roof_matrix", vec![threads, edge]), arguments)?,
        )
    };
    let half = bytes / 2;
    let copy = seconds(
        kernel("roof_copy", vec![THREADS]),
        Arguments::new().addresses([x.address(), x.address() + half]).u32((half / 16) as usize),
    )?;
    Ok(Roofline {
        read_bytes_per_second: bytes as f64 / read,
        integer_ops_per_second: ops(INTEGER_OPS) / math(1)?,
        float_ops_per_second: ops(FLOAT_OPS) / math(0)?,
        matrix_ops_per_second: select::cooperative(gpu).map(|shape| matrix(shape.m)).transpose()?,
        copy_bytes_per_second: Some(2.0 * half as f64 / copy),
    })
}
