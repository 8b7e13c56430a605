//! The `Device` of a GPU.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use unicorn_core::{
    Batch, Block, BlockId, Device, DeviceError, DeviceKind, DeviceOptions, DeviceProfile, HeadOutput,
    KernelTime, KvLayout, KvType, MemoryUse, RateKind, Roofline, Select, Slice, StreamId, TensorType, Ticket,
    TopEntry, WeightSource, Work,
};

use crate::blocks::{AttentionBlock, Builder, Cache, GpuBlock};
use crate::context::Context;
use crate::cut::{self, Pace};
use crate::error::VulkanError;
use crate::load::{self, Loader};
use crate::lru::Lru;
use crate::memory::Buffer;
use crate::pipeline::Pipelines;
use crate::place::Place;
use crate::profile::GpuProfile;
use crate::recording::Recording;
use crate::replay::{Bound, Recorded};
use crate::scratch::{Capacity, Scratch, Sizes};
use crate::select::{self, BlockShape, FlashTile, FlashTiling, Lacking, Path, Router, SliceShape};
use crate::timing::Timings;
use crate::transfer;

/// A GPU through Vulkan compute shaders.
pub struct VulkanDevice {
    profile: DeviceProfile,
    context: Arc<Context>,
    state: Mutex<State>,
}

struct State {
    // Dropped in this order: recordings use pipelines and buffers.
    streams: HashMap<StreamId, Stream>,
    blocks: HashMap<BlockId, GpuBlock>,
    turns: Vec<(unicorn_core::RopeSpec, Arc<Buffer>)>,
    loader: Loader,
    pipelines: Pipelines,
    sizes: Sizes,
    kv: Option<KvLayout>,
    kv_bytes: u64,
    next_block: u32,
    timings: Option<Timings>,
    bound: Bound,
    options: DeviceOptions,
    /// The context's profile with the kernels to avoid: what selection goes by.
    gpu: GpuProfile,
}

impl State {
    fn router(&self) -> Router<'_> {
        let kv = self.kv.map(|k| k.ty).unwrap_or_default();
        Router { gpu: &self.gpu, kv, options: &self.options }
    }

    /// How attention of a batch is cut into tiles; `None` where it runs row by row.
    fn flash_tiling(&self, blocks: &[BlockId], batch: &Batch) -> Option<FlashTiling> {
        let slices = slice_shapes(batch);
        let suits = select::flash_suits(&slices);
        let router = self.router();
        let attention = blocks.iter().filter_map(|id| self.blocks.get(id));
        let mut flash = attention.filter_map(|block| match block {
            GpuBlock::Attention(a) => {
                let path = router.path(&block.shape(), batch.rows());
                Some(router.flash(&a.shape(), path, suits))
            }
            _ => None,
        });
        // Blocks of one batch are cut alike: where kernels are to be avoided they may have to go row by row for one of them.
        let flash =
            if self.gpu.avoid.is_empty() && !self.options.batch_invariant { suits } else { flash.all(|f| f) };
        flash.then(|| select::flash_tiling(&slices, self.sizes.heads, &self.gpu))
    }
}

/// Options of [`VulkanDevice::open`].
#[derive(Clone, PartialEq, Debug, Default)]
pub struct VulkanOptions {
    /// Folder for compiled pipelines; without one each start compiles them anew.
    pub cache_folder: Option<PathBuf>,
    /// GPU seconds that one submission may take; without it bounded on integrated GPUs alone.
    pub submit_seconds_max: Option<f64>,
}

/// Dispatches of all recordings that a stream keeps: some tens of megabytes of command buffers.
const RECORDED_DISPATCHES_MAX: usize = 1 << 16;

/// One residual stream with its recordings.
struct Stream {
    recordings: Lru<Shape, Recorded>,
    scratch: Scratch,
    rows: usize,
    outputs: Option<(usize, Select)>,
    pending: u64,
}

/// What a recording depends on.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Shape {
    blocks: Vec<BlockId>,
    rows: usize,
    outputs: usize,
    top: Option<usize>,
    /// Positions that its sequences may have, 0 where that does not matter.
    positions: usize,
    /// The outputs are all rows in order.
    all_outputs: bool,
    /// No row reads a position that another row writes.
    alone: bool,
    /// Tiles and key splits of flash attention; `None` where the decode kernels run.
    flash: Option<(usize, usize)>,
    /// Whether dispatches are timed.
    timed: bool,
    /// First position and rows of every sequence, where dispatches are timed: their work is counted from them.
    spans: Vec<(usize, usize)>,
}

impl VulkanDevice {
    /// Takes an open GPU with default options.
    #[cfg(test)]
    pub(crate) fn new(context: Context, name: &str) -> Result<VulkanDevice, VulkanError> {
        VulkanDevice::open(context, name, &VulkanOptions::default())
    }

    /// Takes an open GPU, with options. `name` is its name on the command line.
    pub fn open(context: Context, name: &str, options: &VulkanOptions) -> Result<VulkanDevice, VulkanError> {
        let context = Arc::new(context);
        let gpu = context.profile();
        let local = gpu.heaps.iter().filter(|h| h.device_local || gpu.integrated);
        let mut features = vec![gpu.driver.clone(), format!("subgroup {}", select::subgroup(gpu))];
        features.extend(gpu.integer_dot.then(|| "integer dot".to_string()));
        features.extend(gpu.matrices.iter().map(|m| format!("matrix {}x{}x{} {:?}", m.m, m.n, m.k, m.types)));
        features.extend(gpu.matrix2.then(|| "NV cooperative matrix 2".to_string()));
        let profile = DeviceProfile {
            name: name.to_string(),
            kind: DeviceKind::Vulkan,
            description: gpu.name.clone(),
            memory_bytes: local.map(|h| h.bytes).sum(),
            unified_memory: gpu.integrated || gpu.software,
            workers: gpu.cores.unwrap_or(1) as usize,
            features,
        };
        let pipelines = Pipelines::new(&context, options.cache_folder.as_deref())?;
        let seconds_max = options.submit_seconds_max.or_else(|| cut::seconds_max(context.profile()));
        let state = State {
            streams: HashMap::new(),
            blocks: HashMap::new(),
            turns: Vec::new(),
            loader: Loader::new(&context),
            pipelines,
            sizes: Sizes::default(),
            kv: None,
            kv_bytes: 0,
            next_block: 0,
            timings: None,
            options: DeviceOptions::default(),
            gpu: context.profile().clone(),
            bound: Bound { seconds_max, pace: Pace::default() },
        };
        Ok(VulkanDevice { profile, context, state: Mutex::new(state) })
    }

    /// What went wrong without stopping anything, for people: so far, a pipeline cache that could not be used.
    pub fn notes(&self) -> Vec<String> {
        self.lock().pipelines.notes()
    }

    /// Sees that the validation layer tells a mistake made on purpose, synchronization included; the message is taken back.
    ///
    /// Errors where validation was not asked for or the mistake is not told.
    pub fn prove_validation(&self) -> Result<(), VulkanError> {
        crate::prove::prove_validation(&self.context)
    }

    /// The open GPU.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Errors where a kernel that a block may need is missing or must not run.
    fn require_kernels(&self, router: Router<'_>, block: &BlockShape) -> Result<(), DeviceError> {
        let device = || self.profile.name.clone();
        let lacking = router.lacking(block, crate::shaders::exists);
        lacking.map_or(Ok(()), |Lacking { op, ty }| Err(DeviceError::NoKernel { device: device(), op, ty }))
    }

    fn fail(&self, e: VulkanError) -> DeviceError {
        e.into_device_error(&self.profile.name)
    }

    fn unsupported(&self, what: impl Into<String>) -> DeviceError {
        DeviceError::Unsupported { device: self.profile.name.clone(), what: what.into() }
    }

    fn invalid(&self, what: impl Into<String>) -> DeviceError {
        DeviceError::Invalid { device: self.profile.name.clone(), what: what.into() }
    }

    /// Checks a batch against the KV geometry: every page in range, enough pages for every slice, every output row in range.
    fn check(&self, batch: &Batch, kv: Option<KvLayout>) -> Result<(), DeviceError> {
        let rows = batch.rows();
        if rows == 0 {
            return Err(self.invalid("the batch is empty"));
        }
        if let Some(row) = batch.outputs.iter().find(|o| **o as usize >= rows) {
            return Err(self.invalid(format!("output row {row} of a batch of {rows} rows")));
        }
        let Some(kv) = kv else { return Ok(()) };
        for s in &batch.slices {
            let end = s.start as usize + s.tokens.len();
            if end > kv.positions {
                return Err(self.invalid(format!("position {end} of at most {}", kv.positions)));
            }
            if end > s.pages.len() * kv.page_tokens {
                return Err(self.invalid(format!("{} pages cannot hold {end} positions", s.pages.len())));
            }
            if let Some(page) = s.pages.iter().find(|p| **p as usize >= kv.pages) {
                return Err(self.invalid(format!("page {page} of a pool of {}", kv.pages)));
            }
        }
        Ok(())
    }

    /// The stream with room for `needs`; its earlier work is done.
    fn stream<'s>(
        &self,
        state: &'s mut State,
        id: StreamId,
        needs: Capacity,
    ) -> Result<&'s mut Stream, DeviceError> {
        let sizes = state.sizes;
        let old = state.streams.get(&id);
        if let Some(s) = old {
            self.context.wait(s.pending, "earlier work on the stream").map_err(|e| self.fail(e))?;
        }
        let fits = old.is_some_and(|s| s.scratch.capacity.covers(&needs) && s.scratch.sizes == sizes);
        if !fits {
            let capacity = match old {
                Some(s) => s.scratch.capacity.grown(&needs),
                None => Capacity { rows: 8, outputs: 8, row_splits: 8, pages: 64, top: 1 }.grown(&needs),
            };
            // The residual may be waiting for its next block. Its old buffer goes before the new one comes: both may not fit.
            let mut kept = Vec::new();
            let rows = old.map_or(0, |s| s.rows);
            if let Some(s) = old.filter(|s| s.scratch.sizes.width == sizes.width) {
                kept = vec![0u8; rows * sizes.width * 4];
                transfer::download(&self.context, &s.scratch.residual, 0, &mut kept)
                    .map_err(|e| self.fail(e))?;
            }
            state.streams.remove(&id);
            let scratch = Scratch::new(&self.context, sizes, capacity).map_err(|e| self.fail(e))?;
            state.loader.uploader.write(&scratch.residual, 0, &kept)?;
            state.loader.uploader.write(&scratch.tickets, 0, &vec![0; scratch.tickets.bytes() as usize])?;
            let rows = if kept.is_empty() { 0 } else { rows };
            let recordings = Lru::new(RECORDED_DISPATCHES_MAX);
            let stream = Stream { recordings, scratch, rows, outputs: None, pending: 0 };
            state.streams.insert(id, stream);
        }
        state.streams.get_mut(&id).ok_or_else(|| self.invalid("the stream vanished"))
    }

    /// Errors where the kernels cannot keep a block's heads in a cache of this type.
    fn require_cache(&self, a: &AttentionBlock, kv: KvType, gpu: &GpuProfile) -> Result<(), DeviceError> {
        let (ty, subgroup) = (kv.tensor_type(), select::subgroup(gpu));
        if !a.spec.head_dim.is_multiple_of(ty.block_len()) {
            return Err(self.unsupported(format!("a {ty} KV cache for heads of {}", a.spec.head_dim)));
        }
        // Eight lanes find the largest of 32 values together.
        if kv == KvType::Q8_0 && subgroup < 8 {
            return Err(self.unsupported(format!("a Q8_0 KV cache with subgroups of {subgroup}")));
        }
        Ok(())
    }

    /// The keys' and the values' cache of a block.
    fn reserve_block(&self, a: &AttentionBlock, kv: KvLayout) -> Result<[Buffer; 2], DeviceError> {
        let element_bytes =
            a.spec.head_dim / kv.ty.tensor_type().block_len() * kv.ty.tensor_type().block_bytes();
        let bytes = (kv.pages * kv.page_tokens * a.spec.kv_heads * element_bytes) as u64;
        let new =
            || Buffer::new(&self.context, Place::Device, bytes, "the KV cache").map_err(|e| self.fail(e));
        Ok([new()?, new()?])
    }
}

/// Cosine and sine of every (position, pair), times the magnitude; angles in f64, since shader sines lose precision at large arguments.
fn turn_table(spec: &unicorn_core::RopeSpec, positions: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(positions * spec.frequencies.len() * 2);
    for p in 0..positions {
        for f in spec.frequencies.iter() {
            let (sin, cos) = (p as f64 * *f as f64).sin_cos();
            out.push(cos as f32 * spec.magnitude);
            out.push(sin as f32 * spec.magnitude);
        }
    }
    out
}

impl Device for VulkanDevice {
    fn profile(&self) -> &DeviceProfile {
        &self.profile
    }

    fn measure(&self) -> Result<Roofline, DeviceError> {
        let state = self.lock();
        crate::roofline::measure(&self.context, &state.pipelines).map_err(|e| self.fail(e))
    }

    fn configure(&self, options: &DeviceOptions) -> Result<(), DeviceError> {
        let mut state = self.lock();
        let gpu = GpuProfile { avoid: options.avoid.clone(), ..state.gpu.clone() };
        let router = Router { gpu: &gpu, options, ..state.router() };
        state.blocks.values().try_for_each(|block| self.require_kernels(router, &block.shape()))?;
        for stream in state.streams.values_mut() {
            self.context.wait(stream.pending, "earlier work on the stream").map_err(|e| self.fail(e))?;
            stream.recordings.clear();
        }
        state.gpu = gpu;
        state.options = options.clone();
        Ok(())
    }

    fn rate_kind(&self, ty: TensorType) -> RateKind {
        if ty.is_quantized() { RateKind::Integer } else { RateKind::Float }
    }

    fn load(&self, block: &Block, source: &dyn WeightSource) -> Result<BlockId, DeviceError> {
        let mut state = self.lock();
        if let Some(what) = load::unsupported(block) {
            return Err(self.unsupported(what));
        }
        self.require_kernels(state.router(), &BlockShape::of(block))?;
        let loaded = state.loader.load(block, source)?;
        state.sizes = state.sizes.max(load::sizes(&loaded));
        let id = BlockId(state.next_block);
        state.next_block += 1;
        state.blocks.insert(id, loaded);
        Ok(id)
    }

    fn unload(&self, block: BlockId) {
        let mut state = self.lock();
        // Recordings hold addresses of what is freed now.
        for stream in state.streams.values_mut() {
            let _ = self.context.wait(stream.pending, "earlier work on the stream");
            stream.recordings.clear();
        }
        state.blocks.remove(&block);
        state.sizes = state.blocks.values().map(load::sizes).fold(Sizes::default(), Sizes::max);
    }

    fn reserve_kv(&self, layout: KvLayout) -> Result<(), DeviceError> {
        let mut state = self.lock();
        let state = &mut *state;
        let router = Router { kv: layout.ty, ..state.router() };
        for block in state.blocks.values() {
            if let GpuBlock::Attention(a) = block {
                self.require_cache(a, layout.ty, router.gpu)?;
                self.require_kernels(router, &block.shape())?;
            }
        }
        for stream in state.streams.values_mut() {
            self.context.wait(stream.pending, "earlier work on the stream").map_err(|e| self.fail(e))?;
            stream.recordings.clear();
        }
        state.kv = None;
        state.kv_bytes = 0;
        state.turns.clear();
        for block in state.blocks.values_mut() {
            if let GpuBlock::Attention(a) = block {
                a.cache = None;
            }
        }
        let ids: Vec<BlockId> = state.blocks.keys().copied().collect();
        for id in ids {
            let Some(GpuBlock::Attention(a)) = state.blocks.get(&id) else { continue };
            // The caches first: where they find no room, nothing else has been made.
            let [keys, values] = self.reserve_block(a, layout)?;
            let turns = match state.turns.iter().find(|t| t.0 == a.spec.rope) {
                Some(t) => t.1.clone(),
                None => {
                    let table = turn_table(&a.spec.rope, layout.positions);
                    let up = &state.loader.uploader;
                    let buffer =
                        Arc::new(crate::weights::upload_f32(&self.context, up, &table, "RoPE turns")?);
                    state.turns.push((a.spec.rope.clone(), buffer.clone()));
                    buffer
                }
            };
            state.kv_bytes += keys.bytes() + values.bytes();
            let cache = Cache { keys, values, turns };
            if let Some(GpuBlock::Attention(a)) = state.blocks.get_mut(&id) {
                a.cache = Some(cache);
            }
        }
        state.kv = Some(layout);
        // The model is loaded by now.
        state.loader.uploader.rest();
        Ok(())
    }

    fn submit(&self, work: &Work) -> Result<Ticket, DeviceError> {
        let mut guard = self.lock();
        let state = &mut *guard;
        // Other blocks need no pages.
        let attends = |id: &BlockId| matches!(state.blocks.get(id), Some(GpuBlock::Attention(_)));
        self.check(&work.batch, state.kv.filter(|_| work.blocks.iter().any(attends)))?;
        let batch = &work.batch;
        let rows = batch.rows();
        let longest = batch.slices.iter().map(|s| s.start as usize + s.tokens.len()).max().unwrap_or(1);
        let positions = select::served_positions(longest);
        let plan = state.flash_tiling(&work.blocks, batch);
        let row_splits = plan.as_ref().map_or_else(|| select::decode_records(rows, positions), |p| p.records);
        let alone =
            !state.options.batch_invariant && rows_are_alone(batch, state.kv.map_or(1, |kv| kv.page_tokens));
        let pages: usize = batch.slices.iter().map(|s| s.pages.len()).sum();
        let top = match batch.select {
            Select::Logits => None,
            Select::Top(k) => Some(k),
        };
        let needs = Capacity {
            rows,
            outputs: batch.outputs.len().max(1),
            row_splits,
            pages: pages.max(1),
            top: top.unwrap_or(1),
        };
        let timed = state.timings.is_some() && state.gpu.timestamp_ns > 0.0;
        let all_outputs = batch.outputs.iter().copied().eq(0..rows as u32);
        self.stream(state, work.stream, needs)?;
        let spans = || batch.slices.iter().map(|s| (s.start as usize, s.tokens.len())).collect();
        let shape = Shape {
            blocks: work.blocks.clone(),
            rows,
            outputs: batch.outputs.len(),
            top,
            // Tiles come from a buffer, so one recording serves every depth; but where submissions are bounded it is cut by what they cost.
            positions: if plan.is_some() && state.bound.seconds_max.is_none() { 0 } else { positions },
            flash: plan.as_ref().map(|p| (p.tiles.len(), p.splits)),
            all_outputs,
            alone,
            timed,
            spans: if timed { spans() } else { Vec::new() },
        };
        let starts_here = work.blocks.first().and_then(|b| state.blocks.get(b));
        let embeds = matches!(starts_here, Some(GpuBlock::Embedding(_)));
        let stream =
            state.streams.get_mut(&work.stream).ok_or_else(|| self.invalid("the stream vanished"))?;
        match stream.recordings.get(&shape) {
            Some(recorded) => {
                recorded.learn(&self.context, &state.pipelines, &mut state.bound).map_err(|e| self.fail(e))?
            }
            None => {
                let recorded = self.record(state, work, &shape)?;
                let weight = recorded.recording.dispatches.len();
                if let Some(stream) = state.streams.get_mut(&work.stream) {
                    stream.recordings.insert(shape.clone(), recorded, weight);
                }
            }
        }
        let stream =
            state.streams.get_mut(&work.stream).ok_or_else(|| self.invalid("the stream vanished"))?;
        if !embeds && stream.rows != rows {
            let held = stream.rows;
            return Err(self.invalid(format!("the stream holds {held} rows, the batch has {rows}")));
        }
        stream.rows = rows;
        write_batch(&stream.scratch, batch, plan.as_ref());
        let recorded = stream.recordings.get(&shape).ok_or_else(|| self.invalid("the recording vanished"))?;
        let submitted = recorded.submit("blocks");
        // Pieces that were submitted before one failed may still run.
        stream.pending = *submitted.as_ref().unwrap_or(&self.context.last_submitted());
        let value = submitted.map_err(|e| self.fail(e))?;
        let ends_in_head = work.blocks.iter().any(|b| matches!(state.blocks.get(b), Some(GpuBlock::Head(_))));
        if ends_in_head {
            stream.outputs = Some((batch.outputs.len(), batch.select));
        }
        if let Some(timings) = &mut state.timings {
            self.context.wait(value, "profiled work").map_err(|e| self.fail(e))?;
            let times = recorded.commands.times().map_err(|e| self.fail(e))?.unwrap_or_default();
            timings.add(&recorded.recording, &times);
        }
        Ok(Ticket(value))
    }

    fn wait(&self, ticket: Ticket) -> Result<(), DeviceError> {
        self.context.wait(ticket.0, "submitted blocks").map_err(|e| self.fail(e))
    }

    fn read_residual(&self, stream: StreamId, first: usize, out: &mut [f32]) -> Result<(), DeviceError> {
        let mut state = self.lock();
        let width = state.sizes.width;
        let state = &mut *state;
        let s = state.streams.get(&stream).ok_or_else(|| self.invalid("unknown stream"))?;
        if width == 0 || first * width + out.len() > s.rows * width {
            return Err(self.invalid(format!("rows past the {} of the stream", s.rows)));
        }
        let mut bytes = vec![0u8; out.len() * 4];
        let offset = (first * width * 4) as u64;
        transfer::download(&self.context, &s.scratch.residual, offset, &mut bytes)
            .map_err(|e| self.fail(e))?;
        for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
            *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
        Ok(())
    }

    fn write_residual(&self, stream: StreamId, width: usize, rows: &[f32]) -> Result<(), DeviceError> {
        let mut state = self.lock();
        if width == 0
            || !rows.len().is_multiple_of(width)
            || (state.sizes.width != 0 && width != state.sizes.width)
        {
            return Err(self.invalid(format!(
                "{} values are no rows of width {}",
                rows.len(),
                state.sizes.width
            )));
        }
        let count = rows.len() / width;
        let needs = Capacity { rows: count, outputs: 1, row_splits: count, pages: 1, top: 1 };
        // What is there is replaced: none of it is kept, and no upload of it may end after the one below.
        if let Some(s) = state.streams.get_mut(&stream) {
            s.rows = 0;
        }
        self.stream(&mut state, stream, needs)?;
        self.context.wait_uploads().map_err(|e| self.fail(e))?;
        let state = &mut *state;
        let s = state.streams.get_mut(&stream).ok_or_else(|| self.invalid("unknown stream"))?;
        if !self.context.compile_only() {
            let raw: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
            state.loader.uploader.write(&s.scratch.residual, 0, &raw)?;
        }
        s.rows = count;
        Ok(())
    }

    fn take_output(&self, stream: StreamId) -> Result<HeadOutput, DeviceError> {
        let mut state = self.lock();
        let vocab = state.sizes.vocab;
        let s = state.streams.get_mut(&stream).ok_or_else(|| self.invalid("unknown stream"))?;
        let (outputs, select) =
            s.outputs.take().ok_or_else(|| self.invalid("no head block ran on the stream"))?;
        self.context.wait(s.pending, "the head").map_err(|e| self.fail(e))?;
        match select {
            Select::Logits => {
                let mut bytes = vec![0u8; outputs * vocab * 4];
                s.scratch.logits_host.read(0, &mut bytes);
                let word = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                Ok(HeadOutput::Logits(bytes.chunks_exact(4).map(word).collect()))
            }
            Select::Top(k) => {
                let k = k.min(vocab);
                let mut bytes = vec![0u8; outputs * k * 8];
                s.scratch.top.read(0, &mut bytes);
                let entry = |b: &[u8]| TopEntry {
                    token: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                    logit: f32::from_le_bytes([b[4], b[5], b[6], b[7]]),
                };
                let all: Vec<TopEntry> = bytes.chunks_exact(8).map(entry).collect();
                Ok(HeadOutput::Top(all.chunks(k.max(1)).map(<[TopEntry]>::to_vec).collect()))
            }
        }
    }

    fn memory(&self) -> MemoryUse {
        let state = self.lock();
        // Everything that the driver was asked for, so that the parts add up to what is resident.
        let resident = self.context.resident();
        let (weights, kv) = (state.loader.matrix_bytes(), state.kv_bytes);
        MemoryUse {
            weights,
            kv,
            scratch: resident.saturating_sub(weights + kv),
            copied: self.context.copied(),
        }
    }

    fn describe(&self, block: BlockId) -> Vec<String> {
        let state = self.lock();
        state.blocks.get(&block).map(|b| state.router().describe(&b.shape())).unwrap_or_default()
    }

    fn set_profiling(&self, on: bool) {
        self.lock().timings = on.then(Timings::default);
    }

    fn kernel_times(&self) -> Vec<KernelTime> {
        self.lock().timings.as_ref().map(Timings::list).unwrap_or_default()
    }
}

impl VulkanDevice {
    fn record(&self, state: &State, work: &Work, shape: &Shape) -> Result<Recorded, DeviceError> {
        let stream = state.streams.get(&work.stream).ok_or_else(|| self.invalid("unknown stream"))?;
        let kv =
            state.kv.unwrap_or(KvLayout { page_tokens: 32, pages: 0, positions: 0, ty: Default::default() });
        let mut builder = Builder {
            gpu: &state.gpu,
            router: state.router(),
            scratch: &stream.scratch,
            recording: Recording::default(),
            path: Path::Vector,
            rows: shape.rows,
            outputs: shape.outputs,
            positions: shape.positions,
            flash: shape.flash,
            spans: work.batch.slices.iter().map(|s| (s.start as usize, s.tokens.len())).collect(),
            kv,
            alone: shape.alone,
            prepared: false,
        };
        let find = |id: &BlockId| {
            state.blocks.get(id).ok_or_else(|| self.invalid(format!("block {} is not loaded", id.0)))
        };
        let router = state.router();
        let path = |block: &GpuBlock| {
            let rows = if let GpuBlock::Head(_) = block { shape.outputs } else { shape.rows };
            router.path(&block.shape(), rows)
        };
        for (i, id) in work.blocks.iter().enumerate() {
            let next = match work.blocks.get(i + 1) {
                Some(id) => match find(id)? {
                    _ if state.options.batch_invariant => None,
                    GpuBlock::Head(_) if !shape.all_outputs => None,
                    block if path(block) == Path::Matrix => None,
                    block => block.input(),
                },
                None => None,
            };
            let block = find(id)?;
            builder.path = path(block);
            match block {
                GpuBlock::Embedding(e) => e.record(&mut builder, next),
                GpuBlock::Ffn(f) => f.record(&mut builder, next),
                GpuBlock::Head(h) => h.record(&mut builder, work.batch.select),
                GpuBlock::Attention(a) => {
                    let cache = a.cache.as_ref().ok_or_else(|| self.invalid("no KV cache is reserved"))?;
                    a.record(&mut builder, cache, next);
                }
            }
        }
        let recording: Recording = builder.recording;
        #[cfg(test)]
        assert_selected(&router, work.blocks.iter().filter_map(|id| state.blocks.get(id)), &recording);
        Recorded::new(&self.context, &state.pipelines, recording, shape.timed, state.bound)
            .map_err(|e| self.fail(e))
    }
}

/// Asserts that loading checked every kernel of a recording.
#[cfg(test)]
fn assert_selected<'b>(
    router: &Router<'_>,
    blocks: impl Iterator<Item = &'b GpuBlock>,
    recording: &Recording,
) {
    let selected: Vec<_> = blocks.flat_map(|b| router.kernels(&b.shape())).collect();
    for d in &recording.dispatches {
        let known = selected.iter().any(|s| (s.op, &s.shader) == (d.op, &d.kernel.shader));
        assert!(known, "{}: {} is recorded and was not selected", d.op, d.kernel.shader);
    }
}

/// Whether every slice is one row whose page no other slice holds: then no row reads or writes what another writes, and one dispatch can
/// fill the cache and attend to it.
fn rows_are_alone(batch: &Batch, page_tokens: usize) -> bool {
    // Every slice's own page and the slice, in order: a batch has many pages, and this runs once a token.
    let page = |s: &Slice| s.pages.get(s.start as usize / page_tokens.max(1)).copied();
    let mut own: Vec<_> = (0..).zip(&batch.slices).filter_map(|(i, s)| Some((page(s)?, i))).collect();
    own.sort_unstable();
    let foreign = |i: usize, p: u32| {
        let at = own.partition_point(|&(page, _)| page < p);
        own[at..].iter().take_while(|o| o.0 == p).any(|o| o.1 != i)
    };
    batch.slices.iter().all(|s| s.tokens.len() == 1)
        && (0..).zip(&batch.slices).all(|(i, s)| !s.pages.iter().any(|&p| foreign(i, p)))
}

/// What attention kernels are chosen by.
fn slice_shapes(batch: &Batch) -> Vec<SliceShape> {
    let shape =
        |s: &Slice| SliceShape { start: s.start as usize, rows: s.tokens.len(), pages: s.pages.len() };
    batch.slices.iter().map(shape).collect()
}

/// Writes the batch where the kernels read it.
fn write_batch(scratch: &Scratch, batch: &Batch, flash: Option<&FlashTiling>) {
    let mut rows = Vec::with_capacity(batch.rows() * 16);
    let mut pages: Vec<u8> = Vec::new();
    let mut first_page = 0u32;
    for s in &batch.slices {
        for (i, token) in s.tokens.iter().enumerate() {
            for word in [*token, s.start + i as u32, first_page, 0] {
                rows.extend(word.to_le_bytes());
            }
        }
        pages.extend(s.pages.iter().flat_map(|p| p.to_le_bytes()));
        first_page += s.pages.len() as u32;
    }
    let outputs: Vec<u8> = batch.outputs.iter().flat_map(|o| o.to_le_bytes()).collect();
    let base = scratch.batch.address();
    let tiles: Vec<u8> = flash.iter().flat_map(|f| f.tiles.iter().flat_map(FlashTile::bytes)).collect();
    scratch.batch.write(0, &rows);
    scratch.batch.write(scratch.tiles_address() - base, &tiles);
    scratch.batch.write(scratch.outputs_address() - base, &outputs);
    scratch.batch.write(scratch.pages_address() - base, &pages);
}

#[cfg(test)]
mod tests {
    use unicorn_core::SequenceId;

    use super::*;

    #[test]
    fn rows_are_alone_where_no_other_sequence_holds_the_page_they_write() {
        let slice = |id: u64, start: u32, rows: usize, pages: &[u32]| Slice {
            sequence: SequenceId(id),
            tokens: vec![1; rows],
            start,
            pages: pages.to_vec(),
        };
        let alone = |slices: Vec<Slice>| {
            rows_are_alone(&Batch { slices, outputs: vec![0], select: Select::Logits }, 4)
        };
        let one = || slice(1, 5, 1, &[7, 8]);
        assert!(alone(vec![one(), slice(2, 0, 1, &[3]), slice(3, 9, 1, &[5, 6, 4])]));
        // A prefix that both read and neither writes is no hindrance.
        assert!(alone(vec![one(), slice(2, 4, 1, &[7, 9])]));
        // The page that one writes is read by the other, in either order.
        assert!(!alone(vec![one(), slice(2, 9, 1, &[7, 8, 9])]));
        assert!(!alone(vec![slice(2, 9, 1, &[7, 8, 9]), one()]));
        assert!(!alone(vec![one(), one()]));
        assert!(!alone(vec![slice(1, 5, 2, &[7, 8])]));
    }
}
