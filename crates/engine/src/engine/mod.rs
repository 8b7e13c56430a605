//! The engine: a state machine that turns requests into tokens. It is a pump: batches are launched as soon as something is ready,
//! and each that lands makes room for the next.

mod admission;
pub(crate) mod batching;
mod caution;
mod counters;
mod doubt;
mod embedding;
mod evaluator;
mod info;
mod keeper;
mod options;
mod queue;
mod report;
mod restoring;
mod saving;
mod scores;
mod sequence;
mod speed;
mod step;
mod survivors;

use std::sync::Arc;

use unicorn_core::{Batch, BatchLimits, Device, ModelSpec, SequenceId, Waker, WeightSource};

use crate::RunStats;
use crate::constraint::Constrained;
use crate::drafts::Drafting;
use crate::embed::Pooler;
use crate::executor::{Brought, Executor};
use crate::kv::{StatePages, StatePools};
use crate::memory::MemoryPlan;
use crate::need::{Reservation, room};
use crate::placement::{Phase, Placements};
use crate::prefix::PrefixCache;
use crate::request::{Event, Failure, FinishReason, Request};
use crate::sampling::Sampler;
use crate::{AdmissionError, EngineError, Guides, Placement, PlacementError, Timeline};

use batching::Room;
use caution::Caution;
pub use counters::{Counters, SequenceInfo, SequenceState};
pub(crate) use evaluator::Evaluator;
use keeper::Keeper;
pub use options::{EngineOptions, Overseer};
use queue::Queue;
pub use report::{DeviceReport, Report};
use sequence::Sequence;
use speed::Speed;
pub use survivors::Survivors;

/// How far loading has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadProgress {
    /// Bytes of weights on their devices.
    pub loaded_bytes: u64,
    /// Bytes in all; a tensor that two devices hold counts twice.
    pub total_bytes: u64,
}

/// One model on its devices, with the sequences that it is working on. Has no threads: call [`Engine::step`] until
/// [`Engine::is_idle`], and with a store as long as it [has more to do](Engine::has_background). Dropping it unloads the model; what was not
/// saved by then, or by [`Engine::flush`], is lost.
pub struct Engine {
    spec: Arc<ModelSpec>,
    options: EngineOptions,
    executor: Executor,
    /// What batches are held against.
    limits: Arc<BatchLimits>,
    pools: StatePools,
    prefixes: PrefixCache,
    waiting: Queue,
    /// Those of higher priority first, among equals the oldest first.
    running: Vec<Sequence>,
    /// Ended with a batch in flight, which nobody waits for but their pages.
    ending: Vec<Sequence>,
    /// Events that the next step reports.
    events: Vec<Event>,
    next_id: u64,
    /// What has been done so far; what there is now is found out when asked for.
    counted: Counters,
    /// How many batches of either phase may be on their way.
    rooms: [Room; 2],
    /// Prompts are read on devices where answers are generated too.
    mixes: bool,
    speed: Speed,
    /// What goes to a store and comes from it, where there is one.
    keeper: Option<Keeper>,
    caution: Caution,
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
        placements: impl Into<Placements>,
        options: EngineOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Engine, EngineError> {
        options.validate(spec.context_max)?;
        let options = EngineOptions { prefill_chunk: options.prefill_chunk.min(options.context), ..options };
        let placements = placements.into();
        for placement in placements.ways() {
            // It was checked against some spec and some number of devices; these must be the same.
            Placement::new(spec, placement.devices(), placement.assignment().to_vec())?;
            if let Some(block) = placement.assignment().iter().position(|d| *d >= devices.len()) {
                let device = placement.device(block);
                return Err(PlacementError::Device { block, device, devices: devices.len() }.into());
            }
        }
        let plan = MemoryPlan::new(spec, &devices, &placements, &options)?;
        plan.check(&options.memory_limits).map_err(|short| EngineError::Memory(Box::new(short)))?;
        let Reservation { streams, rows, ahead, layout } = Reservation::of(spec, &placements, &options);
        let rooms = [&placements.prefill, &placements.decode].map(|placement| room(placement, &options));
        let devices_of = |placement: &Placement| placement.assignment().to_vec();
        let (reading, writing) = (devices_of(&placements.prefill), devices_of(&placements.decode));
        let mixes = reading.iter().any(|device| writing.contains(device));
        let mut executor = load(Arc::new(spec.clone()), source, devices, placements, streams, progress)?;
        if let Some(canary) = options.overseer.looking() {
            executor.watch(canary);
        }
        executor.reserve(&layout, rows)?;
        let pools = StatePools::new(&layout, ahead);
        // A model without state has nothing to keep.
        let store = options.store.as_ref().filter(|_| !layout.groups.is_empty());
        let keeper = store.map(|store| Keeper::new(store, spec, &layout));
        let mut prefixes = PrefixCache::new(&pools, options.kept_max, executor.has_two_ways());
        if let Some(keeper) = &keeper {
            prefixes = prefixes.with_keys(keeper.keys.clone());
        }
        Ok(Engine {
            spec: executor.spec().clone(),
            prefixes,
            keeper,
            limits: Arc::new(BatchLimits { vocab: spec.vocab, state: Some(layout) }),
            options,
            executor,
            pools,
            waiting: Queue::default(),
            running: Vec::new(),
            ending: Vec::new(),
            events: Vec::new(),
            next_id: 0,
            counted: Counters::default(),
            rooms,
            mixes,
            speed: Speed::default(),
            caution: Caution::default(),
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
        self.add_guided(request, Guides::default())
    }

    /// As [`Engine::add`], with guesses of the next tokens and what the text has to obey.
    ///
    /// Guesses change no token as far as a device's results do not depend on the batch. A text with a constraint is not guessed: the constraint
    /// would have to be asked along each guess and taken back, which costs as much as the guess may save.
    pub fn add_guided(&mut self, request: Request, guides: Guides) -> Result<SequenceId, AdmissionError> {
        if self.encodes() {
            return Err(AdmissionError::Encoder);
        }
        self.enqueue(request, guides, None)
    }

    fn enqueue(
        &mut self,
        request: Request,
        guides: Guides,
        embedding: Option<Pooler>,
    ) -> Result<SequenceId, AdmissionError> {
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
        let sampler = Sampler::new(request.sampling.clone(), request.logprobs, request.mask.clone())?;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let Guides { drafter, constraint } = guides;
        let drafting = drafter.filter(|_| constraint.is_none()).map(Drafting::new);
        let constraint = constraint.map(|c| Constrained::new(c, request.mask.clone()));
        let mut sequence = Sequence::new(id, request, sampler, drafting, constraint, self.pools.empty());
        sequence.embedding = embedding;
        sequence.name_pages(self.keeper.as_ref());
        self.waiting.push(sequence);
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
        if let Some(mask) = request.mask.as_ref().filter(|mask| !mask.fits(vocab)) {
            return Err(AdmissionError::Mask { words: mask.words().len(), vocab });
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
        } else if let Some(sequence) = self.waiting.remove(id) {
            self.finish(sequence, FinishReason::Cancelled);
        } else {
            return false;
        }
        true
    }

    /// True once a device is lost: nothing more is taken in, and [`Engine::step`] errors when all that came before was reported.
    pub fn has_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// True when no sequence waits, runs or holds pages of a batch in flight, and every event was reported.
    pub fn is_idle(&self) -> bool {
        let sequences = [self.running.is_empty(), self.ending.is_empty(), self.waiting.is_empty()];
        sequences == [true; 3] && self.events.is_empty()
    }

    /// Ends a [`Engine::step`] that waits for nothing but a store, from any thread: for who hands requests to the thread that steps.
    pub fn waker(&self) -> Waker {
        self.executor.waker()
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
    pub fn stats(&self) -> RunStats {
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
        sequence.keep &= !matches!(reason, FinishReason::Device(_) | FinishReason::NotFinite);
        self.events.push(Event::Finished { sequence: sequence.id, reason, timings });
        match sequence.flights {
            0 => self.release(sequence),
            _ => self.ending.push(sequence),
        }
    }

    /// Keeps or gives up the pages of an ended sequence, with nothing of it in flight. Of one that was preempted others may have pages still.
    fn release(&mut self, mut sequence: Sequence) {
        let pages = std::mem::replace(&mut sequence.pages, self.pools.empty());
        if sequence.keep && sequence.computed > 0 {
            self.prefixes.keep(sequence.scope, &sequence.tokens[..sequence.computed], pages);
        } else {
            drop(pages);
            self.prefixes.forget(sequence.scope, &sequence.tokens);
        }
    }

    /// Batches that the devices of a phase can work on at once.
    pub(crate) fn lanes(&self, phase: Phase) -> usize {
        self.room(Some(phase)).lanes
    }

    /// How many batches of a phase may be on their way; `None` where the phases do not differ.
    fn room(&self, phase: Option<Phase>) -> Room {
        self.rooms[phase.map_or(0, |phase| phase as usize)]
    }

    /// Where a sequence goes on: one token runs where tokens are generated. `None` where the phases do not differ.
    fn phase(&self, pending: usize) -> Option<Phase> {
        let phase = if pending == 1 { Phase::Decode } else { Phase::Prefill };
        self.executor.has_two_ways().then_some(phase)
    }

    /// Launches a batch once the devices of its phase have the state that it sees. `pages` are those of its sequences, and maybe of others.
    fn send(
        executor: &mut Executor,
        batch: Batch,
        phase: Option<Phase>,
        pages: &mut [(SequenceId, &mut StatePages)],
    ) -> Option<u64> {
        let mut brought = Brought::default();
        for (phase, slice) in phase.into_iter().flat_map(|p| batch.slices().iter().map(move |s| (p, s))) {
            let Some((_, pages)) = pages.iter_mut().find(|p| p.0 == slice.sequence) else { continue };
            let missing = pages.elsewhere(phase, slice.start as usize);
            brought.add(executor.bring(phase, slice.sequence, &missing));
            pages.written(phase, slice.start as usize, slice.end());
        }
        executor.launch(Arc::new(batch), phase, brought)
    }

    /// How many of `tokens`, of which so many are launched, come next where nothing else runs: as many as of a request's prompt. 0 where
    /// something has to land first.
    fn next_part(&self, tokens: usize, launched: usize, phase: Option<Phase>) -> usize {
        let turn = batching::Ready { pending: tokens - launched, prompt: tokens, decodes: false };
        let flying = self.executor.in_flight_of(phase);
        batching::next(&[turn], 0, flying, self.room(phase)).first().map_or(0, |next| next.1)
    }
}

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
    placements: Placements,
    flights_max: usize,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Executor, EngineError> {
    let total_bytes = placements.weight_bytes(&spec);
    let mut seen = std::collections::HashSet::new();
    let mut loaded_bytes = 0;
    let mut executor = Executor::new(spec.clone(), placements, devices, flights_max);
    progress(LoadProgress { loaded_bytes, total_bytes });
    for (index, block) in spec.blocks.iter().enumerate() {
        let loaded = executor.load_next(|device, block| device.load(block, source));
        let devices = loaded.map_err(|source| EngineError::load(index, block, source))?;
        for device in devices {
            let new = block.weights().into_iter().filter(|w| seen.insert((device, w.span)));
            loaded_bytes += new.map(|w| w.span.bytes).sum::<u64>();
        }
        progress(LoadProgress { loaded_bytes, total_bytes });
    }
    Ok(executor)
}

#[cfg(test)]
mod tests;
