//! The engine: a state machine that turns requests into tokens. It is a pump: batches are launched as soon as something is ready,
//! and each that lands makes room for the next.

mod batching;
mod evaluator;
mod options;
mod report;
mod sequence;
mod step;

use std::collections::VecDeque;
use std::sync::Arc;

use unicorn_core::{BatchLimits, Device, ModelSpec, SequenceId, WeightSource};

#[cfg(test)]
use crate::RunStats;
use crate::executor::Executor;
use crate::kv::StatePools;
use crate::memory::MemoryPlan;
use crate::need::Reservation;
use crate::prefix::PrefixCache;
use crate::request::{Event, Failure, FinishReason, Request};
use crate::sampling::Sampler;
use crate::{AdmissionError, EngineError, Placement, PlacementError, Timeline};

pub(crate) use evaluator::Evaluator;
pub use options::EngineOptions;
pub use report::{DeviceReport, Report};
use sequence::Sequence;

/// How far loading has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadProgress {
    /// Bytes of weights on their devices.
    pub loaded_bytes: u64,
    /// Bytes in all; a tensor that two devices hold counts twice.
    pub total_bytes: u64,
}

/// One model on its devices, with the sequences that it is working on. Has no threads: call [`Engine::step`] until
/// [`Engine::is_idle`]. Dropping it unloads the model.
pub struct Engine {
    spec: Arc<ModelSpec>,
    options: EngineOptions,
    executor: Executor,
    /// See [`Engine::lanes`].
    lanes: usize,
    /// What batches are held against.
    limits: Arc<BatchLimits>,
    pools: StatePools,
    prefixes: PrefixCache,
    waiting: VecDeque<Sequence>,
    /// Oldest first.
    running: Vec<Sequence>,
    /// Events that the next step reports.
    events: Vec<Event>,
    next_id: u64,
    /// Set when a device was lost.
    stopped: Option<Failure>,
}

impl Engine {
    /// Loads every block on its device and reserves the KV cache. `progress` is called after each block.
    ///
    /// Errors when an option or the placement does not fit, the devices would take more memory than the options allow, or a device refuses a block or the KV cache; what was loaded by then
    /// is unloaded.
    pub fn new(
        spec: &ModelSpec,
        source: &Arc<dyn WeightSource>,
        devices: Vec<Arc<dyn Device>>,
        placement: Placement,
        options: EngineOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Engine, EngineError> {
        options.validate(spec.context_max)?;
        let options = EngineOptions { prefill_chunk: options.prefill_chunk.min(options.context), ..options };
        // The placement was checked against some spec and some number of devices; these must be the same.
        let placement = Placement::new(spec, placement.devices(), placement.assignment().to_vec())?;
        if let Some(block) = placement.assignment().iter().position(|d| *d >= devices.len()) {
            let device = placement.device(block);
            return Err(PlacementError::Device { block, device, devices: devices.len() }.into());
        }
        let plan = MemoryPlan::new(spec, &devices, &placement, &options)?;
        plan.check(&options.memory_limits).map_err(|short| EngineError::Memory(Box::new(short)))?;
        let Reservation { lanes, streams, rows, ahead, layout } = Reservation::of(spec, &placement, &options);
        let executor = load(Arc::new(spec.clone()), source, devices, placement, streams, progress)?;
        executor.reserve(&layout, rows)?;
        let pools = StatePools::new(&layout, ahead);
        Ok(Engine {
            spec: executor.spec().clone(),
            prefixes: PrefixCache::new(&pools, options.kept_max),
            limits: Arc::new(BatchLimits { vocab: spec.vocab, state: Some(layout) }),
            options,
            executor,
            lanes,
            pools,
            waiting: VecDeque::new(),
            running: Vec::new(),
            events: Vec::new(),
            next_id: 0,
            stopped: None,
        })
    }

    /// The model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The options.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Longest prompt that can be admitted, in tokens.
    pub(crate) fn prompt_max(&self) -> usize {
        self.options.context.min(self.pools.tokens_max())
    }

    /// Admits a request to the queue.
    ///
    /// Errors name what is wrong with it, or that the queue is full; nothing of it is kept then.
    pub fn add(&mut self, request: Request) -> Result<SequenceId, AdmissionError> {
        if let Some(reason) = &self.stopped {
            return Err(AdmissionError::Stopped { reason: reason.clone() });
        }
        self.check(&request)?;
        // The free running places count as room for waiting requests, so that `queue_max` 0 still serves.
        let places = self.options.sequences_max.saturating_sub(self.running.len());
        let room = self.options.queue_max.saturating_add(places);
        if self.waiting.len() >= room {
            return Err(AdmissionError::QueueFull { queued: self.waiting.len() });
        }
        let sampler = Sampler::new(request.sampling.clone(), request.logprobs)?;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back(Sequence::new(id, request, sampler, self.pools.empty()));
        Ok(id)
    }

    fn check(&self, request: &Request) -> Result<(), AdmissionError> {
        let (prompt, context, vocab) = (&request.prompt, self.prompt_max(), self.spec.vocab);
        if prompt.is_empty() {
            return Err(AdmissionError::EmptyPrompt);
        }
        if prompt.len() > context {
            return Err(AdmissionError::PromptTooLong { prompt: prompt.len(), context });
        }
        let sampling = &request.sampling;
        sampling.validate()?;
        in_range("prompt", vocab, prompt.iter().copied())?;
        in_range("stop", vocab, request.stop_tokens.iter().copied())?;
        in_range("logit_bias", vocab, sampling.logit_bias.iter().map(|b| b.0))?;
        in_range("dry breaker", vocab, sampling.dry.breakers.iter().flatten().copied())
    }

    /// Ends a waiting or running sequence. Its pages are free and its last event comes as soon as nothing of it is in flight. False when
    /// there is no such sequence any more.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        if let Some(at) = self.running.iter().position(|s| s.id == id && !s.cancelled) {
            if self.running[at].flights > 0 {
                self.running[at].cancelled = true;
            } else {
                let sequence = self.running.remove(at);
                self.finish(sequence, FinishReason::Cancelled);
            }
        } else if let Some(sequence) =
            self.waiting.iter().position(|s| s.id == id).and_then(|at| self.waiting.remove(at))
        {
            self.finish(sequence, FinishReason::Cancelled);
        } else {
            return false;
        }
        true
    }

    /// True when no sequence waits or runs and every event was reported.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.events.is_empty()
    }

    /// Sequences that wait and that run.
    #[cfg(test)]
    pub(crate) fn sequences(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Pages of state that no running or kept sequence holds, and all, in all groups together.
    #[cfg(test)]
    pub(crate) fn state_pages(&self) -> (usize, usize) {
        self.pools.pages()
    }

    /// Forgets all kept sequences.
    #[cfg(test)]
    pub(crate) fn clear_kept(&mut self) {
        self.prefixes.clear();
    }

    /// Counters of submits and of bytes that crossed between devices.
    #[cfg(test)]
    pub(crate) fn stats(&self) -> RunStats {
        self.executor.stats()
    }

    /// Keeps what the devices do and when from now on, or stops keeping it; returns what was kept.
    pub fn keep_timeline(&mut self, keep: bool) -> Option<Timeline> {
        self.executor.keep_timeline(keep)
    }

    /// The devices, in the order that the placement numbers them.
    pub fn devices(&self) -> &[Arc<dyn Device>] {
        self.executor.devices()
    }

    fn finish(&mut self, mut sequence: Sequence, reason: FinishReason) {
        let timings = sequence.timings();
        let sound = !matches!(reason, FinishReason::Device(_) | FinishReason::NoCandidate);
        if sequence.keep && sound && sequence.computed > 0 {
            let pages = std::mem::replace(&mut sequence.pages, self.pools.empty());
            self.prefixes.keep(&sequence.tokens[..sequence.computed], pages);
        }
        self.events.push(Event::Finished { sequence: sequence.id, reason, timings });
    }

    /// Batches that the devices can work on at once.
    fn lanes(&self) -> usize {
        self.lanes
    }

    /// Tokens of prompts in a batch, of prompts of `tokens` in all: a chunk, less where that would leave a device without work. Batches
    /// of equal size, as many for each lane: one that runs alone leaves the other devices idle.
    fn share(&self, tokens: usize) -> usize {
        let chunk = self.options.prefill_chunk;
        let lanes = self.lanes();
        if lanes == 1 {
            return chunk;
        }
        let batches = tokens.div_ceil(chunk).max(1).next_multiple_of(lanes);
        tokens.div_ceil(batches).clamp(chunk.min(CHUNK_MIN), chunk)
    }
}

/// Rows that a batch has at least while a prompt has as many: fewer cost a reading of all weights each.
const CHUNK_MIN: usize = 32;

fn in_range(
    what: &'static str,
    vocab: usize,
    mut tokens: impl Iterator<Item = u32>,
) -> Result<(), AdmissionError> {
    match tokens.find(|t| *t as usize >= vocab) {
        Some(token) => Err(AdmissionError::TokenOutOfRange { what, token, vocab }),
        None => Ok(()),
    }
}

/// Loads all blocks; on failure the executor's drop unloads those that were loaded.
fn load(
    spec: Arc<ModelSpec>,
    source: &Arc<dyn WeightSource>,
    devices: Vec<Arc<dyn Device>>,
    placement: Placement,
    flights_max: usize,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Executor, EngineError> {
    let total_bytes = (0..placement.devices()).map(|d| placement.weight_bytes(&spec, d)).sum();
    let mut seen = std::collections::HashSet::new();
    let mut loaded_bytes = 0;
    let blocks = Vec::with_capacity(spec.blocks.len());
    let mut executor = Executor::new(spec.clone(), placement, devices, blocks, flights_max);
    progress(LoadProgress { loaded_bytes, total_bytes });
    for (index, block) in spec.blocks.iter().enumerate() {
        let device = executor.placement().device(index);
        let loaded = executor.devices()[device].load(block, source);
        let id = loaded.map_err(|source| EngineError::load(index, block, source))?;
        executor.push_block(id);
        let new = block.weights().into_iter().filter(|w| seen.insert((device, w.span)));
        loaded_bytes += new.map(|w| w.span.bytes).sum::<u64>();
        progress(LoadProgress { loaded_bytes, total_bytes });
    }
    Ok(executor)
}

#[cfg(test)]
mod tests;
