//! From work whose dependencies have ended to a submission, and from its end to what it produced.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use unicorn_core::{Batch, DeviceError, Fence, HeadOutput, TopEntry, Work};

use crate::blocks::{Builder, GpuBlock};
use crate::edits::{self, EditShape, TAKE_THREADS, mask_words};
use crate::error::VulkanError;
use crate::lane::{Lane, Point};
use crate::memory::Buffer;
use crate::recording::{Copy, Recording};
use crate::replay::Recorded;
use crate::scratch::{Capacity, Scratch};
use crate::select::{self, FlashTiling, Path};
use crate::state::{Inner, State};
use crate::stream::{Shape, Wanted, Ways, table_words};
use crate::told::{HeadBuffers, Told, ToldWork};
use crate::waiter::{Submitted, Watch};

impl Inner {
    /// Submits work once what it depends on has ended: now, or on the thread that ends the last of it. What the compute queue has already
    /// counts as ended, since its kernels run in order; but a stream that comes in first waits for all that was done with it before.
    pub(crate) fn submit(self: &Arc<Self>, work: Work) {
        let after: Vec<Fence> =
            work.after.iter().filter(|f| !self.submissions.has(f.id())).cloned().collect();
        let before = {
            let mut last = self.last.lock().unwrap_or_else(|e| e.into_inner());
            last.insert(work.stream, work.done.fence())
        };
        let before = before.filter(|f| work.crossing.import || !self.submissions.has(f.id()));
        let inner = self.clone();
        Fence::all(&after, before.as_ref(), move |outcome| match outcome {
            Ok(()) => inner.start(work),
            Err(source) => {
                let device = inner.profile.name.clone();
                work.done.give(Err(Arc::new(DeviceError::Dependency { device, source })));
            }
        });
    }

    fn start(&self, work: Work) {
        let started = Instant::now();
        if let Err(error) = self.stage(&work) {
            work.done.give(Err(Arc::new(error)));
            return;
        }
        let mut state = self.lock();
        match self.enqueue(&mut state, &work) {
            Ok(ends) => {
                let what = Told::Work(self.told(&state, &work));
                // Under the lock, so that the order is that of the queue.
                self.submissions.push(Submitted { ends, started, done: work.done, what });
                drop(state);
                self.tell_unwatched();
            }
            Err(error) => {
                drop(state);
                work.done.give(Err(Arc::new(error)));
            }
        }
    }

    /// Waits for what was submitted, where no thread does.
    pub(crate) fn tell_unwatched(&self) {
        while self.waits_itself.load(Ordering::Relaxed)
            && let Some(submitted) = self.submissions.pop()
        {
            self.wait_and_tell(submitted, &mut None);
        }
    }

    /// Brings a stream that comes in to where the GPU copies it from, where that is not where it lies. The lock is not held meanwhile.
    fn stage(&self, work: &Work) -> Result<(), DeviceError> {
        if !work.crossing.import {
            return Ok(());
        }
        let (shared, bytes) = {
            let state = self.lock();
            let Some(shared) = state.shared.get(&work.stream).filter(|s| !s.imported) else { return Ok(()) };
            self.check(&state, work)?;
            (shared.clone(), self.crossing_bytes(state.sizes.width, &work.batch))
        };
        shared.bring(&self.context, bytes).map_err(|e| self.fail(e))
    }

    /// What is needed once work that was just submitted has ended.
    fn told(&self, state: &State, work: &Work) -> ToldWork {
        let scratch = state.streams.get(&work.stream).map(|s| &s.scratch);
        let head = work.blocks.last().is_some_and(|b| {
            matches!(state.blocks.get(b), Some(GpuBlock::Head(_) | GpuBlock::EncoderHead(_)))
        });
        // Where nothing executes there is nothing to read.
        let reads = head && !work.batch.outputs().is_empty() && !self.context.compile_only();
        ToldWork {
            batch: work.batch.clone(),
            crossing: work.crossing,
            bytes: scratch.map_or(0, |s| self.crossing_bytes(s.sizes.width, &work.batch)),
            shared: state.shared.get(&work.stream).cloned(),
            head: scratch.filter(|_| reads).map(|s| HeadBuffers {
                logits: s.logits_host.clone(),
                top: s.top.clone(),
                taken: s.taken.clone(),
                hidden: s.hidden_host.clone(),
                width: s.sizes.width,
            }),
        }
    }

    /// Puts work on the queues; returns where its parts end.
    fn enqueue(&self, state: &mut State, work: &Work) -> Result<Point, DeviceError> {
        self.check(state, work)?;
        let (shape, tiling) = self.shape(state, work)?;
        // What comes in is copied while the rest is prepared.
        let ends = self.copy_in(state, work).and_then(|inward| {
            let ends = self.run(state, work, &shape, tiling.as_ref(), Point::at(Lane::Inward, inward))?;
            self.copy_out(state, work, ends)
        });
        let Some(stream) = state.streams.get_mut(&work.stream) else {
            return Err(self.invalid("the stream vanished"));
        };
        // Parts that were submitted before one failed may still run.
        let behind = *ends.as_ref().unwrap_or(&self.context.last_submitted());
        stream.pending = stream.pending.max(behind);
        if ends.is_err() {
            // The stream is free for others once this error is told.
            let _ = self.context.wait(stream.pending, "what was submitted before a failure");
        }
        ends
    }

    /// How the stream of work crosses.
    fn ways(&self, state: &State, work: &Work) -> Ways {
        let bytes = self.crossing_bytes(state.sizes.width, &work.batch) as u64;
        let shared = state.shared.get(&work.stream);
        shared.map(|s| s.ways(&self.context, work.crossing, bytes)).unwrap_or_default()
    }

    /// Starts the copy of a stream that comes in on a queue of its own; returns where it ends, 0 where there is none.
    fn copy_in(&self, state: &mut State, work: &Work) -> Result<u64, DeviceError> {
        let ways = self.ways(state, work);
        let Some((shared, stream)) = state.crossing(work.stream).filter(|_| ways.apart.import) else {
            return Ok(0);
        };
        // All work on the stream has ended. Its memory may have been filled just now.
        let after = stream.pending.max(self.context.uploaded());
        let copy = shared.copy_in(&stream.scratch.residual, ways.bytes);
        stream.ferry.bring(copy, after).map_err(|e| self.fail(e))
    }

    /// Lets the copy of a stream that goes out on a queue of its own follow the kernels; returns where all parts end.
    fn copy_out(&self, state: &mut State, work: &Work, ends: Point) -> Result<Point, DeviceError> {
        let ways = self.ways(state, work);
        let Some((shared, stream)) = state.crossing(work.stream).filter(|_| ways.apart.export) else {
            return Ok(ends);
        };
        let copy = shared.copy_out(&stream.scratch.residual, ways.bytes);
        let after = Point::from(ends.get(Lane::Compute));
        let outward = stream.ferry.take(copy, after).map_err(|e| self.fail(e))?;
        Ok(ends.with(Lane::Outward, outward))
    }

    /// Puts the recording of work on the compute queue, behind its copy in and any earlier copy out; returns where both parts end.
    fn run(
        &self,
        state: &mut State,
        work: &Work,
        shape: &Shape,
        tiling: Option<&FlashTiling>,
        arrival: Point,
    ) -> Result<Point, DeviceError> {
        if state.streams.get_mut(&work.stream).is_some_and(|s| s.recordings.get(shape).is_none()) {
            let recorded = self.record(state, work, shape)?;
            let weight = recorded.recording.dispatches.len();
            if let Some(stream) = state.streams.get_mut(&work.stream) {
                // What makes room for it may be under way.
                if stream.recordings.would_evict(weight) {
                    self.context.wait(stream.pending, "earlier work").map_err(|e| self.fail(e))?;
                }
                stream.recordings.insert(shape.clone(), recorded, weight);
            }
        }
        let State { streams, pipelines, bound, timings, .. } = state;
        let stream = streams.get_mut(&work.stream).ok_or_else(|| self.invalid("the stream vanished"))?;
        stream.write(&work.batch, tiling);
        stream.rows = work.batch.rows();
        // The kernels overwrite what an earlier copy out may still read.
        let after = Point::at(Lane::Outward, stream.pending.get(Lane::Outward)).max(arrival);
        let recorded = stream.recordings.get(shape).ok_or_else(|| self.invalid("the recording vanished"))?;
        recorded.learn(&self.context, pipelines, bound).map_err(|e| self.fail(e))?;
        let value = recorded.submit(after, "blocks").map_err(|e| self.fail(e))?;
        if let Some(timings) = timings {
            self.context.wait(value, "profiled work").map_err(|e| self.fail(e))?;
            let times = recorded.commands.times().map_err(|e| self.fail(e))?.unwrap_or_default();
            timings.add(&recorded.recording, &times);
        }
        Ok(arrival.with(Lane::Compute, value))
    }

    /// What neither the batch's type nor the stream's buffers say.
    fn check(&self, state: &State, work: &Work) -> Result<(), DeviceError> {
        let batch = &work.batch;
        let Some(first) = work.blocks.first() else { return Err(self.invalid("work without blocks")) };
        let mut mixes = false;
        for id in &work.blocks {
            let vocab = batch.limits().vocab;
            match state.blocks.get(id) {
                Some(GpuBlock::Attention(_) | GpuBlock::ShortConv(_)) => mixes = true,
                Some(GpuBlock::Ffn(_) | GpuBlock::EncoderFfn(_)) => {}
                Some(GpuBlock::EncoderEmbedding(e)) if vocab <= e.spec.vocab => {
                    let positions = e.spec.positions;
                    if batch.whole().is_none_or(|longest| longest > positions) {
                        let what = format!("no batch of whole sequences of {positions} tokens at most");
                        return Err(self.invalid(what));
                    }
                }
                Some(GpuBlock::EncoderAttention(_)) => {
                    let parts = "an encoder's attention over a batch of parts of sequences";
                    batch.whole().ok_or_else(|| self.invalid(parts))?;
                }
                Some(GpuBlock::EncoderHead(_)) => {
                    if batch.hidden_rows() != batch.outputs().len() {
                        return Err(self.invalid("logits of an encoder, which has none"));
                    }
                }
                Some(GpuBlock::Embedding(e)) if vocab <= e.table.rows => {}
                Some(GpuBlock::Head(h)) if vocab == h.weight.rows => {}
                Some(_) => return Err(self.invalid(format!("a batch for another vocabulary, of {vocab}"))),
                None => return Err(self.invalid(format!("block {} is not loaded", id.0))),
            }
        }
        if mixes && (state.layout.is_none() || batch.limits().state != state.layout) {
            return Err(self.invalid("the batch was made for other state than is reserved"));
        }
        let crosses = work.crossing.import || work.crossing.export;
        match state.shared.get(&work.stream) {
            None if crosses => return Err(self.invalid("a stream that crosses has no shared buffer")),
            Some(shared) if crosses || shared.in_place().is_some() => {
                let (rows, width) = (shared.memory.rows(), shared.memory.width());
                if batch.rows() > rows || width != state.sizes.width {
                    let wanted = (batch.rows(), state.sizes.width);
                    return Err(
                        self.invalid(format!("{wanted:?} values in a shared buffer of {rows} x {width}"))
                    );
                }
            }
            _ => {}
        }
        let embeds =
            matches!(state.blocks.get(first), Some(GpuBlock::Embedding(_) | GpuBlock::EncoderEmbedding(_)));
        let Some(stream) = state.streams.get(&work.stream) else {
            let empty = !embeds && !work.crossing.import;
            return if empty { Err(self.invalid("a stream that holds nothing")) } else { Ok(()) };
        };
        if !stream.holds(batch) {
            let idle = self.context.has_reached(stream.pending, "a stream").map_err(|e| self.fail(e))?;
            if !idle {
                return Err(self.invalid("a stream takes another batch before the one before has ended"));
            }
        }
        if !embeds && !work.crossing.import && stream.rows != batch.rows() {
            let (held, rows) = (stream.rows, batch.rows());
            return Err(self.invalid(format!("the stream holds {held} rows, the batch has {rows}")));
        }
        Ok(())
    }

    /// What the recording of this work depends on, and the tiles of its attention; the stream has room for it then.
    fn shape(&self, state: &mut State, work: &Work) -> Result<(Shape, Option<FlashTiling>), DeviceError> {
        let batch = &work.batch;
        let rows = batch.rows();
        let longest = batch.slices().iter().map(|s| s.end()).max().unwrap_or(1);
        let positions = select::served_positions(longest);
        let tiling = state.flash_tiling(&work.blocks, batch);
        let attends = |id| matches!(state.blocks.get(id), Some(GpuBlock::Attention(_)));
        let attends = work.blocks.iter().any(attends);
        let recurs = |id| matches!(state.blocks.get(id), Some(GpuBlock::ShortConv(_)));
        let recurs = work.blocks.iter().any(recurs);
        let row_splits = match &tiling {
            Some(tiling) => tiling.records,
            None if attends => select::decode_records(rows, positions),
            None => 1,
        };
        let edits = EditShape::of(batch);
        let pages = table_words(batch);
        let needs = Capacity {
            rows,
            outputs: edits::scored(batch).count().max(1),
            hidden: batch.hidden_rows(),
            row_splits,
            pages,
            groups: batch.slices().first().map_or(1, |s| s.tables.len().max(1)),
            top: batch.top().unwrap_or(1),
            masks: mask_words(batch),
            takes: edits.takes * TAKE_THREADS,
        };
        let timed = state.timings.is_some() && state.gpu.timestamp_ns > 0.0;
        // A row writes pages that no other slice sees, or there would be no batch: single rows are alone.
        let alone = !state.options.batch_invariant && batch.slices().iter().all(|s| s.tokens.len() == 1);
        let shape = Shape {
            blocks: work.blocks.clone(),
            rows,
            outputs: edits::scored(batch).count(),
            hidden: batch.hidden_rows(),
            wanted: Wanted::of(batch),
            edits,
            feeds: batch.feeds().collect(),
            keeps: edits::keeps(batch).collect(),
            crossing: self.ways(state, work).recorded,
            // Tiles come from a buffer, so one recording serves every depth; but where submissions are bounded it is cut by what they cost.
            positions: if tiling.is_some() && state.bound.seconds_max.is_none() { 0 } else { positions },
            flash: tiling.as_ref().map(|t| (t.tiles.len(), t.splits)),
            all_outputs: edits::scored(batch).map(|o| o.row).eq(0..rows as u32),
            alone,
            slices: if recurs { batch.slices().len() } else { 0 },
            timed,
            spans: if timed { spans(batch) } else { Vec::new() },
        };
        self.stream(state, work.stream, needs)?;
        Ok((shape, tiling))
    }

    fn record(&self, state: &State, work: &Work, shape: &Shape) -> Result<Recorded, DeviceError> {
        let stream = state.streams.get(&work.stream).ok_or_else(|| self.invalid("unknown stream"))?;
        let mut builder = Builder {
            gpu: &state.gpu,
            router: state.router(),
            scratch: &stream.scratch,
            recording: Recording::default(),
            path: Path::Vector,
            rows: shape.rows,
            outputs: shape.outputs,
            hidden: shape.hidden,
            positions: shape.positions,
            flash: shape.flash,
            spans: spans(&work.batch),
            kv: state.layout.as_ref().map(|l| l.ty).unwrap_or_default(),
            page_tokens: state.layout.as_ref().map_or(32, |l| l.page_tokens),
            groups: state.layout.as_ref().map_or(&[][..], |l| &l.groups),
            alone: shape.alone,
            prepared: false,
        };
        let slot_of = |slot: u32| (state.slots.handle, slot as u64 * 4);
        let find = |id| state.blocks.get(id).ok_or_else(|| self.invalid("a block that is not loaded"));
        let router = state.router();
        let path = |block: &GpuBlock| {
            let rows = if let GpuBlock::Head(_) = block { shape.outputs } else { shape.rows };
            router.path(&block.shape(), rows)
        };
        for (i, id) in work.blocks.iter().enumerate() {
            let next = match work.blocks.get(i + 1) {
                Some(id) => match find(id)? {
                    GpuBlock::Head(_) if !shape.all_outputs => None,
                    block if path(block) == Path::Matrix => None,
                    block => block.input(),
                },
                None => None,
            };
            let block = find(id)?;
            builder.path = path(block);
            match block {
                GpuBlock::Embedding(e) => {
                    e.record(&mut builder, next);
                    let to = |row: usize| (stream.scratch.batch.handle, (row * Scratch::ROW_BYTES) as u64);
                    let feed =
                        |(row, slot): &(usize, u32)| Copy { from: slot_of(*slot), to: to(*row), bytes: 4 };
                    builder.recording.before.extend(shape.feeds.iter().map(feed));
                }
                GpuBlock::ShortConv(c) => {
                    let states = c.states.as_ref().ok_or_else(|| self.invalid("no state is reserved"))?;
                    c.record(&mut builder, states, next);
                }
                GpuBlock::Ffn(f) => f.record(&mut builder, next),
                GpuBlock::EncoderEmbedding(e) => e.record(&mut builder),
                GpuBlock::EncoderAttention(a) => a.record(&mut builder),
                GpuBlock::EncoderFfn(f) => f.record(&mut builder),
                GpuBlock::EncoderHead(h) => h.record(&mut builder),
                GpuBlock::Head(h) => {
                    h.record(&mut builder, &shape.wanted, shape.edits);
                    let stride = 8 * work.batch.top().unwrap_or(0);
                    let from = |output: usize| (stream.scratch.top.handle, (output * stride) as u64);
                    let keep = |(output, slot): &(usize, u32)| Copy {
                        from: from(*output),
                        to: slot_of(*slot),
                        bytes: 4,
                    };
                    builder.recording.after.extend(shape.keeps.iter().map(keep));
                }
                GpuBlock::Attention(a) => {
                    let cache = a.cache.as_ref().ok_or_else(|| self.invalid("no state is reserved"))?;
                    a.record(&mut builder, cache, next);
                }
            }
        }
        let mut recording: Recording = builder.recording;
        if let Some(shared) = state.shared.get(&work.stream) {
            shared.record(&mut recording, &stream.scratch.residual, self.ways(state, work));
        }
        #[cfg(test)]
        assert_selected(&router, work.blocks.iter().filter_map(|id| state.blocks.get(id)), &recording);
        Recorded::new(&self.context, &state.pipelines, recording, shape.timed, state.bound)
            .map_err(|e| self.fail(e))
    }

    fn crossing_bytes(&self, width: usize, batch: &Batch) -> usize {
        if self.context.compile_only() { 0 } else { batch.rows() * width * 4 }
    }

    /// Tells the end of all submitted work, until the device goes. `eager`: stays awake for a while where there is none.
    pub(crate) fn serve(&self, eager: bool) {
        let (mut watch, mut reached) = (Watch::new(), Point::default());
        while self.submissions.hand_over(&mut watch, eager) {
            match self.context.wait_any(watch.next(&reached), "submitted blocks") {
                Ok(point) => {
                    reached = point;
                    watch.advance(&reached).into_iter().for_each(|ended| self.tell(ended, Ok(())));
                }
                Err(error) => {
                    let mut error = Some(error);
                    watch.give_up().for_each(|submitted| self.wait_and_tell(submitted, &mut error));
                }
            }
        }
    }

    /// Waits for submitted work and tells how it ended. `error` is why it may not have: the first that fails tells it.
    fn wait_and_tell(&self, submitted: Submitted<Told>, error: &mut Option<VulkanError>) {
        let ended = self.context.wait(submitted.ends, "submitted blocks");
        self.tell(submitted, ended.map_err(|e| error.take().unwrap_or(e)));
    }

    /// Tells how submitted work ended.
    fn tell(&self, submitted: Submitted<Told>, ended: Result<(), VulkanError>) {
        let Submitted { done, what, .. } = submitted;
        let fence = done.fence().id();
        let result = ended.and_then(|()| match &what {
            Told::Work(work) => self.gather(work),
            Told::Pages(pages) => {
                self.land_pages(pages);
                Ok(None)
            }
        });
        let result = result.map_err(|e| Arc::new(self.fail(e)));
        done.give(result);
        self.submissions.forget(fence);
    }

    /// What ended work left behind. The state stays free for others meanwhile: what is read here is read before the stream's next batch.
    fn gather(&self, told: &ToldWork) -> Result<Option<HeadOutput>, VulkanError> {
        if let Some(shared) = &told.shared {
            let crossed = told.bytes as u64;
            let by_bus = if shared.in_place().is_some() { 0 } else { crossed };
            if told.crossing.import {
                self.context.count_copy(by_bus);
                self.shared.fetch_add(crossed - by_bus, Ordering::Relaxed);
            }
            if told.crossing.export {
                self.context.count_copy(by_bus);
                shared.take(&self.context, told.bytes)?;
            }
        }
        Ok(told.head.as_ref().map(|read| output(&told.batch, read)))
    }
}

/// What a head computed for a batch.
fn output(batch: &Batch, read: &HeadBuffers) -> HeadOutput {
    let words = |buffer: &Buffer, count: usize| -> Vec<u32> {
        let mut bytes = vec![0u8; count * 4];
        if count > 0 {
            buffer.read(0, &mut bytes);
        }
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let logits = words(&read.logits, batch.logit_rows() * batch.limits().vocab);
    let logits = logits.into_iter().map(f32::from_bits).collect();
    let most = batch.top().unwrap_or(0);
    let hidden = words(&read.hidden, batch.hidden_rows() * read.width);
    let hidden = hidden.into_iter().map(f32::from_bits).collect();
    let pairs = words(&read.top, edits::scored(batch).count() * most * 2);
    let entry = |pair: &[u32]| TopEntry { token: pair[0], logit: f32::from_bits(pair[1]) };
    let selected: Vec<TopEntry> = pairs.chunks_exact(2).map(entry).collect();
    let taken = words(&read.taken, edits::take_count(batch)).into_iter().map(f32::from_bits);
    edits::output(batch, logits, hidden, &selected, most, taken)
}

fn spans(batch: &Batch) -> Vec<(usize, usize)> {
    batch.slices().iter().map(|s| (s.start as usize, s.tokens.len())).collect()
}

/// Asserts that loading checked every kernel of a recording.
#[cfg(test)]
fn assert_selected<'b>(
    router: &select::Router<'_>,
    blocks: impl Iterator<Item = &'b GpuBlock>,
    recording: &Recording,
) {
    let selected: Vec<_> = blocks.flat_map(|b| router.kernels(&b.shape())).collect();
    for d in &recording.dispatches {
        let known = selected.iter().any(|s| (s.op, &s.shader) == (d.op, &d.kernel.shader));
        assert!(known, "{}: {} is recorded and was not selected", d.op, d.kernel.shader);
    }
}
