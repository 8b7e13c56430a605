//! One submission: checks, shared memory, the parallel region, what is left afterwards.

use unicorn_core::{Batch, DeviceError, HeadOutput, KernelTime, KvLayout, Select, Work};

use super::attention::{BatchRows, Plan};
use super::blocks::{
    Buffers, HeadResult, Loaded, Needs, Region, RopeTable, SharedActivations, ThreadScratch, head_group,
};
use super::device::{NAME, State, invalid, out_of_memory};
use super::level::SimdLevel;
use super::pool::Pool;
use super::rope::{fill_table_row, table_row_len};
use super::shared::{PerThread, SharedSlice};
use crate::reference::{check_outputs, check_pages, check_tokens};

/// Rows of rotations that a thread computes at a time.
const ROTATION_ROWS: usize = 8;

/// A residual stream `[x.len() / width, width]` and what its last head produced.
#[derive(Default)]
pub(super) struct Stream {
    pub(super) width: usize,
    pub(super) x: Vec<f32>,
    pub(super) output: Option<HeadOutput>,
}

/// Buffers that submissions reuse.
#[derive(Default)]
pub(super) struct Memory {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    y: Vec<f32>,
    hidden: Vec<f32>,
    partials: Vec<f32>,
    logits: Vec<f32>,
    ropes: Vec<Vec<f32>>,
    activations: SharedActivations,
    threads: Option<PerThread<ThreadScratch>>,
    /// For each page the slice that writes it, plus one; only marks of the current batch are set.
    writers: Vec<u32>,
}

impl Memory {
    /// Bytes held.
    pub(super) fn bytes(&mut self) -> usize {
        let buffers =
            [&self.q, &self.k, &self.v, &self.attended, &self.y, &self.hidden, &self.partials, &self.logits];
        let floats: usize = buffers.into_iter().chain(&self.ropes).map(Vec::capacity).sum();
        let threads: usize = self.threads.iter_mut().flat_map(PerThread::iter_mut).map(|t| t.bytes()).sum();
        (floats + self.writers.capacity()) * 4 + threads + self.activations.bytes()
    }

    fn grow(&mut self, needs: &Needs) -> Result<(), DeviceError> {
        let Memory { q, k, v, attended, y, hidden, partials, logits, .. } = self;
        let wanted = [
            (q, needs.q),
            (k, needs.kv),
            (v, needs.kv),
            (attended, needs.q),
            (y, needs.y),
            (hidden, needs.hidden),
            (partials, needs.partials),
            (logits, needs.logits),
        ];
        wanted.into_iter().try_for_each(|(buffer, floats)| grow(buffer, floats, "activations"))
    }
}

/// Makes a buffer at least this long; the content is lost.
fn grow(buffer: &mut Vec<f32>, floats: usize, what: &str) -> Result<(), DeviceError> {
    if buffer.len() < floats {
        buffer.clear();
        let full = buffer.try_reserve_exact(floats);
        full.map_err(|_| out_of_memory(what, floats as u64 * 4))?;
        buffer.resize(floats, 0.0);
    }
    Ok(())
}

/// What the blocks of one submission need beside memory.
struct Prepared<'a> {
    blocks: Vec<&'a Loaded>,
    plans: Vec<Plan>,
    /// Rope specs in use.
    ropes: Vec<usize>,
    needs: Needs,
    /// Floats of the logits when the head returns them all.
    all_logits: Option<usize>,
}

impl State {
    /// Checks and runs the work; afterwards it is done.
    pub(super) fn run(&mut self, work: &Work, pool: &Pool, level: SimdLevel) -> Result<(), DeviceError> {
        let batch = &*work.batch;
        let State { blocks, streams, ropes, memory, times, layout, .. } = self;
        let found =
            work.blocks.iter().map(|id| blocks.get(id).ok_or_else(|| invalid(format!("no block {}", id.0))));
        let found = found.collect::<Result<Vec<_>, _>>()?;
        let stream = streams.entry(work.stream).or_default();
        check(&found, batch, stream, *layout, &mut memory.writers)?;
        let prepared = prepare(found, batch);
        let Some(first) = prepared.blocks.first() else { return Ok(()) };
        let rows = BatchRows::new(batch);
        if let Loaded::Embedding(_) = first {
            stream.width = first.width();
            let floats = rows.slice.len() * stream.width;
            grow(&mut stream.x, floats, "a residual stream")?;
            stream.x.truncate(floats);
            stream.output = None;
        }
        memory.grow(&prepared.needs)?;
        let mut all_logits = Vec::new();
        if let Some(floats) = prepared.all_logits {
            grow(&mut all_logits, floats, "logits")?;
        }
        for (index, rope) in prepared.ropes.iter().enumerate() {
            if memory.ropes.len() == index {
                memory.ropes.push(Vec::new());
            }
            grow(&mut memory.ropes[index], rows.slice.len() * table_row_len(&ropes[*rope]), "rotations")?;
        }
        let threads =
            memory.threads.get_or_insert_with(|| PerThread::new(pool.threads(), ThreadScratch::default));
        threads.iter_mut().for_each(|t| t.tops.clear());
        let logits = if prepared.all_logits.is_some() { &mut all_logits } else { &mut memory.logits };
        let tables = prepared.ropes.iter().zip(&mut memory.ropes);
        let tables = tables.map(|(rope, values)| RopeTable {
            rope: *rope,
            row: table_row_len(&ropes[*rope]),
            values: SharedSlice::new(values),
        });
        let tables: Vec<RopeTable> = tables.collect();
        let region = Region {
            level,
            batch,
            rows: &rows,
            x: SharedSlice::new(&mut stream.x),
            buffers: Buffers {
                q: SharedSlice::new(&mut memory.q),
                k: SharedSlice::new(&mut memory.k),
                v: SharedSlice::new(&mut memory.v),
                attended: SharedSlice::new(&mut memory.attended),
                y: SharedSlice::new(&mut memory.y),
                hidden: SharedSlice::new(&mut memory.hidden),
                partials: SharedSlice::new(&mut memory.partials),
                logits: SharedSlice::new(logits),
            },
            activations: &memory.activations,
            threads,
            plans: &prepared.plans,
            ropes: &tables,
            profiling: times.is_some(),
        };
        if !rows.slice.is_empty() {
            let done = pool.run(&|worker| {
                for table in region.ropes {
                    worker.step(rows.slice.len(), ROTATION_ROWS, |part| {
                        for row in part {
                            let position = rows.position(batch, row) as u32;
                            // SAFETY: every row is given to one thread.
                            let out = unsafe { table.values.write(row * table.row..(row + 1) * table.row) };
                            fill_table_row(&ropes[table.rope], position, out);
                        }
                    });
                }
                for block in &prepared.blocks {
                    // SAFETY: every thread runs this same list over the region's own buffers.
                    unsafe { block.run(worker, &region) };
                }
            });
            done.map_err(|e| DeviceError::Failed {
                device: NAME.to_owned(),
                what: format!("a batch of {} rows", rows.slice.len()),
                reason: e.to_string(),
            })?;
        }
        if let Some(Loaded::Head(_)) = prepared.blocks.last() {
            let result = match batch.select {
                Select::Logits => HeadResult::Logits(all_logits),
                Select::Top(k) => HeadResult::Top(k),
            };
            stream.output = Some(result.finish(batch.outputs.len(), threads.iter_mut()));
        }
        if let Some(times) = times {
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
        Ok(())
    }
}

/// Plans, rotations and memory that the blocks need.
fn prepare<'a>(blocks: Vec<&'a Loaded>, batch: &Batch) -> Prepared<'a> {
    let rows = batch.rows();
    let mut prepared = Prepared {
        blocks: Vec::new(),
        plans: Vec::new(),
        ropes: Vec::new(),
        needs: Needs::default(),
        all_logits: None,
    };
    for block in &blocks {
        let needs = match block {
            Loaded::Embedding(_) => Needs::default(),
            Loaded::Ffn(block) => block.needs(rows),
            Loaded::Attention(block) => {
                if !prepared.ropes.contains(&block.rope) {
                    prepared.ropes.push(block.rope);
                }
                let key = block.plan_key();
                let at = prepared.plans.iter().position(|p| p.key == key).unwrap_or_else(|| {
                    prepared.plans.push(Plan::new(key, batch));
                    prepared.plans.len() - 1
                });
                block.needs(rows, &prepared.plans[at])
            }
            Loaded::Head(block) => {
                let group = head_group(batch.select, batch.outputs.len(), block.spec.vocab);
                let logits = group * block.spec.vocab;
                if batch.select == Select::Logits {
                    prepared.all_logits = Some(logits);
                    Needs::default()
                } else {
                    Needs { logits, ..Needs::default() }
                }
            }
        };
        prepared.needs = prepared.needs.join(needs);
    }
    prepared.blocks = blocks;
    prepared
}

/// Errors when the batch, the stream or the order of blocks breaks a precondition.
fn check(
    blocks: &[&Loaded],
    batch: &Batch,
    stream: &Stream,
    layout: Option<KvLayout>,
    writers: &mut Vec<u32>,
) -> Result<(), DeviceError> {
    let too_long =
        |s: &unicorn_core::Slice| (s.start as usize).saturating_add(s.tokens.len()) > u32::MAX as usize;
    if batch.slices.iter().any(too_long) {
        return Err(invalid("positions past 2^32"));
    }
    let rows = batch.rows();
    let embeds = matches!(blocks.first(), Some(Loaded::Embedding(_)));
    let width = if embeds { blocks[0].width() } else { stream.width };
    let mut pages_checked = false;
    for (index, block) in blocks.iter().enumerate() {
        if block.width() != width {
            return Err(invalid(format!("a block of width {} on a stream of width {width}", block.width())));
        }
        match block {
            Loaded::Embedding(_) if index > 0 => return Err(invalid("an embedding behind other blocks")),
            Loaded::Embedding(block) => check_tokens(batch, block.spec.vocab).map_err(invalid)?,
            Loaded::Attention(block) if block.kv.is_some() => {
                let layout = layout.ok_or_else(|| invalid("no KV cache was reserved"))?;
                if !pages_checked {
                    check_pages(batch, &layout).map_err(invalid)?;
                    check_writers(batch, &layout, writers)?;
                    pages_checked = true;
                }
            }
            Loaded::Attention(_) => return Err(invalid("no KV cache was reserved")),
            Loaded::Ffn(_) => {}
            Loaded::Head(_) if index + 1 < blocks.len() => return Err(invalid("a head before other blocks")),
            Loaded::Head(_) => check_outputs(batch).map_err(invalid)?,
        }
    }
    if !embeds && !blocks.is_empty() && stream.x.len() != rows * width {
        let held = stream.x.len();
        return Err(invalid(format!("a stream of {held} values for a batch of {rows} rows of {width}")));
    }
    Ok(())
}

/// Errors when a page that one slice writes is used by another, or twice by itself: threads would race on it.
fn check_writers(batch: &Batch, layout: &KvLayout, writers: &mut Vec<u32>) -> Result<(), DeviceError> {
    writers.resize(layout.pages, 0);
    let written = |slice: &unicorn_core::Slice| {
        let end = slice.start as usize + slice.tokens.len();
        (slice.start as usize / layout.page_tokens, end.div_ceil(layout.page_tokens))
    };
    let used = |slice: &unicorn_core::Slice| if slice.tokens.is_empty() { 0 } else { written(slice).1 };
    let mut clash = None;
    for (index, slice) in batch.slices.iter().enumerate() {
        for page in &slice.pages[written(slice).0.min(used(slice))..used(slice)] {
            if std::mem::replace(&mut writers[*page as usize], index as u32 + 1) != 0 {
                clash = Some((slice.sequence, *page));
            }
        }
    }
    for (index, slice) in batch.slices.iter().enumerate() {
        for (at, page) in slice.pages[..used(slice)].iter().enumerate() {
            let writer = writers[*page as usize];
            if writer != 0 && (writer != index as u32 + 1 || at < written(slice).0) {
                clash = Some((slice.sequence, *page));
            }
        }
    }
    for slice in &batch.slices {
        slice.pages[..used(slice)].iter().for_each(|page| writers[*page as usize] = 0);
    }
    match clash {
        Some((sequence, page)) => Err(invalid(format!(
            "sequence {}: page {page} is written and used twice in one batch",
            sequence.0
        ))),
        None => Ok(()),
    }
}
