//! One submission: memory for it, the parallel region, and what is left afterwards. What must hold before is in
//! [`super::check`].

use std::collections::HashMap;

use unicorn_core::{Batch, DeviceError, HeadOutput, KernelTime, RopeSpec, SLOTS, Work};

use super::attention::{BatchRows, Partition};
use super::blocks::{
    Buffers, Loaded, Needs, Region, RopeTable, ThreadScratch, all_logits, head_group, head_output,
};
use super::check::check_work;
use super::errors::{failed, invalid};
use super::level::SimdLevel;
use super::pool::{Pool, Worker};
use super::rope::{fill_table_row, table_row_len};
use super::shared::{PerThread, SharedSlice};
use super::state::State;
use super::workspace::{Workspace, grow};

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
    /// Floats of the logits that are returned.
    wanted: usize,
    /// Floats of the hidden states that are returned.
    states: usize,
}

/// Checks and runs the work; returns what a head at its end produced.
pub(super) fn run(
    state: &mut State,
    work: &Work,
    pool: &Pool,
    level: SimdLevel,
) -> Result<Option<HeadOutput>, DeviceError> {
    let batch = &*work.batch;
    let State { blocks, streams, ropes, workspace, slots, times, layout, shared, .. } = state;
    slots.resize(SLOTS, 0);
    let find = |id| blocks.get(id).ok_or_else(|| invalid(format!("no block {}", id.0)));
    let found = work.blocks.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let stream = streams.entry(work.stream).or_default();
    check_work(&found, work, stream, layout.as_ref())?;
    let prepared = Prepared::new(found, batch);
    stream.reshape(batch.rows(), prepared.blocks[0].width())?;
    if work.crossing.import {
        *shared += (stream.rows * stream.width * 4) as u64;
    }
    let [mut wanted, mut states] = make_room(&prepared, workspace, ropes)?;
    let threads =
        workspace.threads.get_or_insert_with(|| PerThread::new(pool.threads(), ThreadScratch::default));
    threads.iter_mut().for_each(|t| t.tops.clear());
    let tables = rotations(&prepared, &mut workspace.ropes, ropes);
    // Where every row asks for all logits they are computed where they are returned.
    let (logits, rest) =
        if all_logits(batch) { (&mut wanted, &mut Vec::new()) } else { (&mut workspace.logits, &mut wanted) };
    let tokens = batch.row_tokens(slots);
    let region = Region {
        level,
        batch,
        tokens: &tokens,
        rows: &prepared.rows,
        x: stream.x(),
        buffers: Buffers {
            q: SharedSlice::new(&mut workspace.q),
            k: SharedSlice::new(&mut workspace.k),
            v: SharedSlice::new(&mut workspace.v),
            attended: SharedSlice::new(&mut workspace.attended),
            y: SharedSlice::new(&mut workspace.y),
            hidden: SharedSlice::new(&mut workspace.hidden),
            partials: SharedSlice::new(&mut workspace.partials),
            logits: SharedSlice::new(logits),
            wanted: SharedSlice::new(rest),
            states: SharedSlice::new(&mut states),
        },
        activations: &workspace.activations,
        threads,
        partitions: &prepared.partitions,
        ropes: &tables,
        profiling: times.is_some(),
    };
    let done = pool.run(&|worker| walk(worker, &region, &prepared.blocks, ropes));
    done.map_err(|e| failed(format!("a batch of {} rows", batch.rows()), e))?;
    let head = matches!(prepared.blocks.last(), Some(Loaded::Head(_) | Loaded::EncoderHead(_)));
    let head = head && !batch.outputs().is_empty();
    let output = head.then(|| head_output(batch, [wanted, states], threads.iter_mut()));
    if let Some(output) = &output {
        output.kept(batch).for_each(|(slot, token)| slots[slot] = token);
    }
    if let Some(times) = times {
        book(times, threads);
    }
    Ok(output)
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

/// Grows all buffers. Returns those for logits and for hidden states that are returned.
fn make_room(
    prepared: &Prepared<'_>,
    workspace: &mut Workspace,
    ropes: &[RopeSpec],
) -> Result<[Vec<f32>; 2], DeviceError> {
    let rows = prepared.rows.slice.len();
    workspace.grow(&prepared.needs)?;
    for (index, rope) in prepared.ropes.iter().enumerate() {
        if workspace.ropes.len() == index {
            workspace.ropes.push(Vec::new());
        }
        grow(&mut workspace.ropes[index], rows * table_row_len(&ropes[*rope]), "rotations")?;
    }
    let (mut wanted, mut states) = (Vec::new(), Vec::new());
    grow(&mut wanted, prepared.wanted, "logits")?;
    grow(&mut states, prepared.states, "hidden states")?;
    Ok([wanted, states])
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
            wanted: 0,
            states: 0,
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
            Loaded::ShortConv(block) => block.needs(rows),
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
                let vocab = block.spec.vocab;
                self.wanted = batch.logit_rows() * vocab;
                self.states = batch.hidden_rows() * block.spec.width;
                let logits = if all_logits(batch) { 0 } else { head_group(batch, vocab) * vocab };
                Needs { logits, ..Needs::default() }
            }
            Loaded::EncoderEmbedding(_) => Needs::default(),
            Loaded::EncoderAttention(block) => block.needs(rows),
            Loaded::EncoderFfn(block) => block.needs(rows),
            Loaded::EncoderHead(block) => {
                self.states = batch.outputs().len() * block.spec.width;
                Needs::default()
            }
        }
    }
}
