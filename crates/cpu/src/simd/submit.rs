//! One submission: memory for it, the parallel region, and what is left afterwards. What must hold before is in
//! [`super::check`].

use std::collections::HashMap;

use unicorn_core::{Batch, DeviceError, KernelTime, RopeSpec, Select, Work};

use super::attention::{BatchRows, Partition};
use super::blocks::{Buffers, HeadResult, Loaded, Needs, Region, RopeTable, ThreadScratch, head_group};
use super::check::check_batch;
use super::errors::{failed, invalid};
use super::level::SimdLevel;
use super::pool::{Pool, Worker};
use super::rope::{fill_table_row, table_row_len};
use super::shared::{PerThread, SharedSlice};
use super::state::State;
use super::workspace::{Stream, Workspace, grow};

/// Rows of rotations that a thread computes at a time.
const ROTATION_ROWS: usize = 8;

/// What the blocks of one submission need beside memory.
struct Prepared<'a> {
    blocks: Vec<&'a Loaded>,
    rows: BatchRows,
    partitions: Vec<Partition>,
    /// Rope specs in use, as indices among those of the device.
    ropes: Vec<usize>,
    needs: Needs,
    /// Floats of the logits when the head returns them all.
    all_logits: Option<usize>,
}

/// Checks and runs the work; afterwards it is done.
pub(super) fn run(state: &mut State, work: &Work, pool: &Pool, level: SimdLevel) -> Result<(), DeviceError> {
    let batch = &*work.batch;
    let State { blocks, streams, ropes, workspace, times, layout, .. } = state;
    let find = |id| blocks.get(id).ok_or_else(|| invalid(format!("no block {}", id.0)));
    let found = work.blocks.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let stream = streams.entry(work.stream).or_default();
    check_batch(&found, batch, stream, *layout, &mut workspace.writers)?;
    if found.is_empty() {
        return Ok(());
    }
    let prepared = Prepared::new(found, batch);
    let mut all_logits = make_room(&prepared, stream, workspace, ropes)?;
    let threads =
        workspace.threads.get_or_insert_with(|| PerThread::new(pool.threads(), ThreadScratch::default));
    threads.iter_mut().for_each(|t| t.tops.clear());
    let tables = rotations(&prepared, &mut workspace.ropes, ropes);
    let logits = if prepared.all_logits.is_some() { &mut all_logits } else { &mut workspace.logits };
    let region = Region {
        level,
        batch,
        rows: &prepared.rows,
        x: SharedSlice::new(&mut stream.x),
        buffers: Buffers {
            q: SharedSlice::new(&mut workspace.q),
            k: SharedSlice::new(&mut workspace.k),
            v: SharedSlice::new(&mut workspace.v),
            attended: SharedSlice::new(&mut workspace.attended),
            y: SharedSlice::new(&mut workspace.y),
            hidden: SharedSlice::new(&mut workspace.hidden),
            partials: SharedSlice::new(&mut workspace.partials),
            logits: SharedSlice::new(logits),
        },
        activations: &workspace.activations,
        threads,
        partitions: &prepared.partitions,
        ropes: &tables,
        profiling: times.is_some(),
    };
    if region.row_count() > 0 {
        let done = pool.run(&|worker| walk(worker, &region, &prepared.blocks, ropes));
        done.map_err(|e| failed(format!("a batch of {} rows", region.row_count()), e))?;
    }
    if let Some(Loaded::Head(_)) = prepared.blocks.last() {
        let result = match batch.select {
            Select::Logits => HeadResult::Logits(all_logits),
            Select::Top(k) => HeadResult::Top(k),
        };
        stream.output = Some(result.finish(batch.outputs.len(), threads.iter_mut()));
    }
    if let Some(times) = times {
        book(times, threads);
    }
    Ok(())
}

/// What every thread of the region does: the rotations of all rows, then block after block.
fn walk(worker: &Worker, region: &Region, blocks: &[&Loaded], ropes: &[RopeSpec]) {
    for table in region.ropes {
        worker.step(region.row_count(), ROTATION_ROWS, |part| {
            for row in part {
                let position = region.rows.position(region.batch, row) as u32;
                // SAFETY: every row is given to one thread.
                let out = unsafe { table.values.write(row * table.row..(row + 1) * table.row) };
                fill_table_row(&ropes[table.rope], position, out);
            }
        });
    }
    for block in blocks {
        // SAFETY: every thread runs this same list over the region's own buffers.
        unsafe { block.run(worker, region) };
    }
}

/// Grows the stream that an embedding writes anew, and all buffers. Returns the buffer for logits that the host asked for.
fn make_room(
    prepared: &Prepared<'_>,
    stream: &mut Stream,
    workspace: &mut Workspace,
    ropes: &[RopeSpec],
) -> Result<Vec<f32>, DeviceError> {
    let rows = prepared.rows.slice.len();
    if let Some(Loaded::Embedding(block)) = prepared.blocks.first() {
        stream.width = block.spec.width;
        let floats = rows * stream.width;
        grow(&mut stream.x, floats, "a residual stream")?;
        stream.x.truncate(floats);
        stream.output = None;
    }
    workspace.grow(&prepared.needs)?;
    for (index, rope) in prepared.ropes.iter().enumerate() {
        if workspace.ropes.len() == index {
            workspace.ropes.push(Vec::new());
        }
        grow(&mut workspace.ropes[index], rows * table_row_len(&ropes[*rope]), "rotations")?;
    }
    let mut all_logits = Vec::new();
    if let Some(floats) = prepared.all_logits {
        grow(&mut all_logits, floats, "logits")?;
    }
    Ok(all_logits)
}

/// The tables of rotations of the rope specs in use.
fn rotations<'a>(
    prepared: &Prepared<'_>,
    tables: &'a mut [Vec<f32>],
    ropes: &[RopeSpec],
) -> Vec<RopeTable<'a>> {
    let table = |(rope, values): (&usize, &'a mut Vec<f32>)| RopeTable {
        rope: *rope,
        row: table_row_len(&ropes[*rope]),
        values: SharedSlice::new(values),
    };
    prepared.ropes.iter().zip(tables).map(table).collect()
}

/// Adds what the threads measured to the times per kernel.
fn book(times: &mut HashMap<String, KernelTime>, threads: &mut PerThread<ThreadScratch>) {
    for mark in threads.iter_mut().flat_map(|t| t.marks.drain(..)) {
        let new = || KernelTime {
            kernel: mark.label.name.clone(),
            calls: 0,
            seconds: 0.0,
            bytes: 0,
            flops: 0,
            rate: mark.label.rate,
        };
        let entry = times.entry(mark.label.name.clone()).or_insert_with(new);
        entry.calls += 1;
        entry.seconds += mark.seconds;
        entry.bytes += mark.bytes;
        entry.flops += mark.flops;
    }
}

impl<'a> Prepared<'a> {
    /// Partitions, rotations and memory that the blocks need.
    fn new(blocks: Vec<&'a Loaded>, batch: &Batch) -> Prepared<'a> {
        let mut prepared = Prepared {
            blocks: Vec::new(),
            rows: BatchRows::new(batch),
            partitions: Vec::new(),
            ropes: Vec::new(),
            needs: Needs::default(),
            all_logits: None,
        };
        for block in &blocks {
            let needs = prepared.add(block, batch);
            prepared.needs = prepared.needs.join(needs);
        }
        prepared.blocks = blocks;
        prepared
    }

    /// Memory that a block needs; notes its partition and rotations.
    fn add(&mut self, block: &Loaded, batch: &Batch) -> Needs {
        let rows = batch.rows();
        match block {
            Loaded::Embedding(_) => Needs::default(),
            Loaded::Ffn(block) => block.needs(rows),
            Loaded::Attention(block) => {
                if !self.ropes.contains(&block.rope) {
                    self.ropes.push(block.rope);
                }
                let key = block.partition_key();
                let at = self.partitions.iter().position(|p| p.key == key).unwrap_or_else(|| {
                    self.partitions.push(Partition::new(key, batch));
                    self.partitions.len() - 1
                });
                block.needs(rows, &self.partitions[at])
            }
            Loaded::Head(block) => {
                let group = head_group(batch.select, batch.outputs.len(), block.spec.vocab);
                let logits = group * block.spec.vocab;
                if batch.select == Select::Logits {
                    self.all_logits = Some(logits);
                    Needs::default()
                } else {
                    Needs { logits, ..Needs::default() }
                }
            }
        }
    }
}
