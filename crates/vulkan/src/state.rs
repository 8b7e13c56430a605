//! Everything that loading and submitting change, behind one lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard};

use unicorn_core::{
    Batch, BlockId, DeviceError, DeviceOptions, DeviceProfile, Fence, KvType, RopeSpec, StateLayout, StreamId,
};

use crate::blocks::{AttentionBlock, Cache, GpuBlock, ShortConvBlock};
use crate::context::Context;
use crate::error::VulkanError;
use crate::load::Loader;
use crate::memory::Buffer;
use crate::pipeline::Pipelines;
use crate::place::Place;
use crate::profile::GpuProfile;
use crate::replay::Bound;
use crate::scratch::{Capacity, Scratch, Sizes};
use crate::select::{self, BlockShape, FlashTiling, Lacking, Router};
use crate::stream::{Shared, Stream, slice_shapes};
use crate::timing::Timings;
use crate::told::Told;
use crate::transfer;
use crate::waiter::Submissions;

/// What the device's handle and its threads share.
pub(crate) struct Inner {
    pub(crate) profile: DeviceProfile,
    pub(crate) context: Arc<Context>,
    pub(crate) state: Mutex<State>,
    pub(crate) submissions: Arc<Submissions<Told>>,
    /// The newest work of each stream, submitted or still waiting for what it depends on.
    pub(crate) last: Mutex<HashMap<StreamId, Fence>>,
    /// Bytes of residual streams that crossed without a copy.
    pub(crate) shared: AtomicU64,
    /// No thread could be started that waits for the GPU: whoever submits work waits for it.
    pub(crate) waits_itself: AtomicBool,
}

pub(crate) struct State {
    // Dropped in this order: recordings use pipelines and buffers.
    pub(crate) streams: HashMap<StreamId, Stream>,
    pub(crate) shared: HashMap<StreamId, Arc<Shared>>,
    pub(crate) blocks: HashMap<BlockId, GpuBlock>,
    pub(crate) turns: Vec<(RopeSpec, Arc<Buffer>)>,
    /// u32 each: tokens that heads keep for later embeddings.
    pub(crate) slots: Buffer,
    pub(crate) loader: Loader,
    pub(crate) pipelines: Pipelines,
    pub(crate) sizes: Sizes,
    pub(crate) layout: Option<StateLayout>,
    pub(crate) kv_bytes: u64,
    pub(crate) next_block: u32,
    pub(crate) timings: Option<Timings>,
    pub(crate) bound: Bound,
    pub(crate) options: DeviceOptions,
    /// The context's profile with the kernels to avoid: what selection goes by.
    pub(crate) gpu: GpuProfile,
}

impl State {
    /// A stream and where it crosses, if it does.
    pub(crate) fn crossing(&mut self, stream: StreamId) -> Option<(&Shared, &mut Stream)> {
        Some((&**self.shared.get(&stream)?, self.streams.get_mut(&stream)?))
    }

    pub(crate) fn router(&self) -> Router<'_> {
        let kv = self.layout.as_ref().map(|l| l.ty).unwrap_or_default();
        Router { gpu: &self.gpu, kv, options: &self.options }
    }

    /// How attention of a batch is cut into tiles; `None` where it runs row by row.
    pub(crate) fn flash_tiling(&self, blocks: &[BlockId], batch: &Batch) -> Option<FlashTiling> {
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

impl Inner {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Errors where a kernel that a block may need is missing or must not run.
    pub(crate) fn require_kernels(&self, router: Router<'_>, block: &BlockShape) -> Result<(), DeviceError> {
        let device = || self.profile.name.clone();
        let lacking = router.lacking(block, crate::shaders::exists);
        lacking.map_or(Ok(()), |Lacking { op, ty }| Err(DeviceError::NoKernel { device: device(), op, ty }))
    }

    pub(crate) fn fail(&self, e: VulkanError) -> DeviceError {
        e.into_device_error(&self.profile.name)
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>) -> DeviceError {
        DeviceError::Unsupported { device: self.profile.name.clone(), what: what.into() }
    }

    pub(crate) fn invalid(&self, what: impl Into<String>) -> DeviceError {
        DeviceError::Invalid { device: self.profile.name.clone(), what: what.into() }
    }

    /// Forgets all recordings, whose addresses or kernels are about to change. Waits for what runs them.
    pub(crate) fn forget_recordings(&self, state: &mut State) -> Result<(), DeviceError> {
        for stream in state.streams.values_mut() {
            self.context.wait(stream.pending, "earlier work on the stream").map_err(|e| self.fail(e))?;
            stream.recordings.clear();
        }
        Ok(())
    }

    /// The stream with room for `needs`. Where it has to grow, what is under way on it is waited for; streams grow a few times in a life.
    pub(crate) fn stream<'s>(
        &self,
        state: &'s mut State,
        id: StreamId,
        needs: Capacity,
    ) -> Result<&'s mut Stream, DeviceError> {
        let sizes = state.sizes;
        let old = state.streams.get(&id);
        let fits = old.is_some_and(|s| s.scratch.capacity.covers(&needs) && s.scratch.sizes == sizes);
        if !fits {
            if let Some(s) = old {
                self.context.wait(s.pending, "earlier work on the stream").map_err(|e| self.fail(e))?;
            }
            let capacity = match old {
                Some(s) => s.scratch.capacity.grown(&needs),
                None => Capacity::FIRST.grown(&needs),
            };
            let lent = state.shared.get(&id).and_then(|shared| shared.in_place());
            // The residual may be waiting for its next block. Its old buffer goes before the new one comes: both may not fit.
            let mut kept = Vec::new();
            let rows = old.map_or(0, |s| s.rows);
            if let Some(s) = old.filter(|s| s.scratch.sizes.width == sizes.width && lent.is_none()) {
                kept = vec![0u8; rows * sizes.width * 4];
                transfer::download(&self.context, &s.scratch.residual, 0, &mut kept)
                    .map_err(|e| self.fail(e))?;
            }
            let rows = if kept.is_empty() && lent.is_none() { 0 } else { rows };
            state.streams.remove(&id);
            let scratch = Scratch::new(&self.context, sizes, capacity, lent).map_err(|e| self.fail(e))?;
            if !kept.is_empty() {
                state.loader.uploader.write(&scratch.residual, 0, &kept)?;
            }
            state.loader.uploader.write(&scratch.tickets, 0, &vec![0; scratch.tickets.bytes() as usize])?;
            state.streams.insert(id, Stream::new(&self.context, scratch, rows));
        }
        state.streams.get_mut(&id).ok_or_else(|| self.invalid("the stream vanished"))
    }

    /// Errors where the kernels cannot keep a block's heads in a cache of this type.
    pub(crate) fn require_cache(
        &self,
        head_dim: usize,
        kv: KvType,
        gpu: &GpuProfile,
    ) -> Result<(), DeviceError> {
        let (ty, subgroup) = (kv.tensor_type(), select::subgroup(gpu));
        if !head_dim.is_multiple_of(ty.block_len()) {
            return Err(self.unsupported(format!("a {ty} KV cache for heads of {head_dim}")));
        }
        // Eight lanes find the largest of 32 values together.
        if kv == KvType::Q8_0 && subgroup < 8 {
            return Err(self.unsupported(format!("a Q8_0 KV cache with subgroups of {subgroup}")));
        }
        Ok(())
    }

    /// The keys' and the values' cache of a block.
    fn reserve_block(&self, a: &AttentionBlock, layout: &StateLayout) -> Result<[Buffer; 2], DeviceError> {
        let bytes = a.spec.cache_bytes(layout).unwrap_or(0) / 2;
        let new =
            || Buffer::new(&self.context, Place::Device, bytes, "the KV cache").map_err(|e| self.fail(e));
        Ok([new()?, new()?])
    }

    /// The states of a block.
    fn reserve_states(&self, c: &ShortConvBlock, layout: &StateLayout) -> Result<Buffer, DeviceError> {
        let bytes = (layout.pages(c.spec.state()) * c.spec.state_floats() * 4) as u64;
        Buffer::new(&self.context, Place::Device, bytes, "recurrent states").map_err(|e| self.fail(e))
    }

    pub(crate) fn reserve(&self, layout: &StateLayout) -> Result<(), DeviceError> {
        let mut state = self.lock();
        let state = &mut *state;
        let router = Router { kv: layout.ty, ..state.router() };
        for block in state.blocks.values() {
            if let GpuBlock::Attention(a) = block {
                self.require_cache(a.spec.head_dim, layout.ty, router.gpu)?;
                self.require_kernels(router, &block.shape())?;
            }
            if let Some(spec) = block.state().filter(|spec| layout.group(*spec).is_none()) {
                return Err(self.invalid(format!("no pages for mixers that keep {spec}")));
            }
        }
        self.forget_recordings(state)?;
        state.layout = None;
        state.kv_bytes = 0;
        state.turns.clear();
        for block in state.blocks.values_mut() {
            match block {
                GpuBlock::Attention(a) => a.cache = None,
                GpuBlock::ShortConv(c) => c.states = None,
                GpuBlock::Embedding(_) | GpuBlock::Ffn(_) | GpuBlock::Head(_) => {}
                GpuBlock::EncoderEmbedding(_) | GpuBlock::EncoderAttention(_) => {}
                GpuBlock::EncoderFfn(_) | GpuBlock::EncoderHead(_) => {}
            }
        }
        for block in state.blocks.values_mut() {
            if let GpuBlock::ShortConv(c) = block {
                let states = self.reserve_states(c, layout)?;
                state.kv_bytes += states.bytes();
                c.states = Some(states);
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
        state.layout = Some(layout.clone());
        // The model is loaded by now.
        state.loader.uploader.rest();
        Ok(())
    }
}

/// Cosine and sine of every (position, pair), times the magnitude; angles in f64, since shader sines lose precision at large arguments.
fn turn_table(spec: &RopeSpec, positions: usize) -> Vec<f32> {
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
