//! The pump: launch what can be launched, wait for a batch to land, choose tokens, launch again.

use std::sync::Arc;
use std::time::Instant;

use unicorn_core::{Batch, BatchError, DeviceError, OutputRow, RowOutput, Select, SequenceId, Slice};

use super::sequence::{Fault, Sequence};
use super::{Engine, batching};
use crate::EngineError;
use crate::executor::Landed;
use crate::placement::Phase;
use crate::request::{Event, Failure, FinishReason};
use crate::sampling::{SampleError, Sampled};

impl Engine {
    /// Keeps the devices busy and returns what happened: waits until a batch has landed if none has, chooses tokens, and launches what
    /// they make possible before it returns, so that the devices work while the caller does. With nothing to do, only events of
    /// cancelled sequences come back.
    ///
    /// A failing device ends only the sequences that it fails for, with an event. Errors once a device is lost and
    /// the events that this caused were reported; nothing can run any more then.
    pub fn step(&mut self) -> Result<Vec<Event>, EngineError> {
        self.launch_all();
        let mut wait = self.events.is_empty();
        while let Some(landed) = self.executor.landed(wait) {
            self.land(landed);
            // Once a device is lost everything in flight comes back with errors.
            wait = self.stopped.is_some();
        }
        match self.stopped.clone() {
            None => self.launch_all(),
            Some(reason) => {
                self.end_all(&reason);
                if self.events.is_empty() {
                    return Err(EngineError::Stopped { reason });
                }
            }
        }
        Ok(std::mem::take(&mut self.events))
    }

    fn end_all(&mut self, reason: &Failure) {
        for sequence in std::mem::take(&mut self.running).into_iter().chain(std::mem::take(&mut self.waiting))
        {
            self.finish(sequence, FinishReason::Device(reason.clone()));
        }
        self.prefixes.clear();
    }

    /// Waits for everything in flight, without launching more.
    pub(super) fn drain(&mut self) {
        while let Some(landed) = self.executor.landed(true) {
            self.land(landed);
        }
    }

    fn launch_all(&mut self) {
        if self.stopped.is_some() {
            return;
        }
        self.admit();
        while self.executor.has_room() {
            let (planned, phase) = self.plan();
            if planned.is_empty() {
                return;
            }
            // What was admitted is right, so a wrong batch is a fault of the engine; it ends what it concerns and nothing else.
            let invalid =
                |error: BatchError| DeviceError::Invalid { device: "engine".into(), what: error.to_string() };
            let launched = self.batch(&planned).map_err(invalid).and_then(|batch| self.launch(batch, phase));
            if let Err(error) = launched {
                self.refuse(&planned, error);
            }
        }
    }

    /// Moves waiting sequences to the running ones, in order, while there is a place and the pages for all their tokens so far: a
    /// prompt that is certain to be preempted is not begun.
    fn admit(&mut self) {
        while self.running.len() < self.options.sequences_max {
            let Some(next) = self.waiting.front() else { return };
            let running = self.running.iter().map(|s| (&s.pages, s.tokens.len()));
            if !self.running.is_empty() && !self.pools.fits(next.tokens.len(), running) {
                return;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            let (pages, reused) = self.prefixes.take(&sequence.tokens);
            sequence.start(pages, reused);
            let at = self.running.partition_point(|s| s.id < sequence.id);
            self.running.insert(at, sequence);
        }
    }

    /// The sequences of the next batch with their numbers of tokens, pages reserved, and where it runs. Empty when nothing can be launched
    /// now.
    fn plan(&mut self) -> (Vec<(SequenceId, usize)>, Phase) {
        let ready: Vec<usize> = (0..self.running.len()).filter(|i| self.running[*i].is_ready()).collect();
        if let Some(&alone) = ready.iter().find(|i| self.running[**i].alone) {
            let count = self.running[alone].pending().min(self.options.prefill_chunk);
            return (self.reserve(&[(alone, count)]), self.phase(self.running[alone].pending()));
        }
        if !self.executor.has_two_ways() {
            return (self.plan_of(&ready, Phase::Prefill), Phase::Prefill);
        }
        // Tokens that someone waits for first; each phase has its own devices to keep busy.
        for phase in [Phase::Decode, Phase::Prefill] {
            let of = |i: &usize| self.phase(self.running[*i].pending()) == phase;
            let ready: Vec<usize> = ready.iter().copied().filter(of).collect();
            if !ready.is_empty() && self.executor.in_flight_of(phase) <= self.lanes(phase) {
                let planned = self.plan_of(&ready, phase);
                if !planned.is_empty() {
                    return (planned, phase);
                }
            }
        }
        (Vec::new(), Phase::Prefill)
    }

    /// A batch of some of the `ready` sequences, for the devices of a phase: see [`batching::next`].
    fn plan_of(&mut self, ready: &[usize], phase: Phase) -> Vec<(SequenceId, usize)> {
        // Where prompts have devices of their own, a sequence there reads its tokens again, and nobody decodes.
        let reads = self.executor.has_two_ways() && phase == Phase::Prefill;
        let of = |s: &Sequence| batching::Ready {
            pending: s.pending(),
            prompt: s.tokens.len().saturating_sub(s.reused_tokens),
            decodes: s.decodes() && !reads,
        };
        let turns: Vec<batching::Ready> = ready.iter().map(|i| of(&self.running[*i])).collect();
        let decoding = if reads { 0 } else { self.running.iter().filter(|s| s.decodes()).count() };
        let flying = self.executor.in_flight_of(phase);
        let next = batching::next(&turns, decoding, flying, self.room(phase));
        let wanted: Vec<(usize, usize)> = next.into_iter().map(|(i, tokens)| (ready[i], tokens)).collect();
        self.reserve(&wanted)
    }

    /// Takes the pages for `(index of a running sequence, tokens)`, the oldest first. When pages run out, kept sequences go, then the
    /// youngest running one with nothing in flight returns to the queue; when that does not help, the rest has to wait.
    fn reserve(&mut self, wanted: &[(usize, usize)]) -> Vec<(SequenceId, usize)> {
        let wanted: Vec<(SequenceId, usize)> =
            wanted.iter().map(|(i, n)| (self.running[*i].id, *n)).collect();
        let mut planned: Vec<(SequenceId, usize)> = Vec::new();
        for (id, count) in wanted {
            // Preempted meanwhile.
            let Some(at) = self.running.iter().position(|s| s.id == id) else { continue };
            let end = self.running[at].launched + count;
            loop {
                if self.running[at].pages.grow(end).is_ok() {
                    planned.push((id, count));
                    break;
                }
                if self.prefixes.evict() {
                    continue;
                }
                let busy = |s: &Sequence| s.flights > 0 || planned.iter().any(|p| p.0 == s.id);
                if self.running.len() == 1 && !busy(&self.running[0]) {
                    let sequence = self.running.remove(0);
                    self.finish(sequence, FinishReason::OutOfKvPages);
                    break;
                }
                let Some(youngest) = self.running.iter().rposition(|s| !busy(s)).filter(|y| *y >= at) else {
                    // Older ones hold the pages, or what holds them is in flight: this one waits for them.
                    break;
                };
                let mut youngest = self.running.remove(youngest);
                let itself = youngest.id == id;
                youngest.preempt();
                self.waiting.push_front(youngest);
                if itself {
                    break;
                }
            }
        }
        planned
    }

    fn slice(&self, sequence: &Sequence, count: usize) -> Slice {
        let end = sequence.launched + count;
        debug_assert!(sequence.pages.writable_from(sequence.launched));
        Slice {
            sequence: sequence.id,
            tokens: sequence.tokens[sequence.launched..end].to_vec(),
            start: sequence.launched as u32,
            tables: sequence.pages.tables(end),
        }
    }

    /// A batch of these sequences; logits are computed after the last token of each that has no more to compute.
    fn batch(&self, planned: &[(SequenceId, usize)]) -> Result<Batch, BatchError> {
        let (mut slices, mut outputs) = (Vec::new(), Vec::new());
        let mut rows = 0;
        for (id, count) in planned {
            let Some(sequence) = self.running.iter().find(|s| s.id == *id) else { continue };
            slices.push(self.slice(sequence, *count));
            rows += *count as u32;
            if *count == sequence.pending() && sequence.max_tokens != Some(0) {
                let select = match sequence.sampler.select() {
                    Select::Top(k) => Select::Top(k.min(self.spec.vocab)),
                    Select::Logits => Select::Logits,
                };
                outputs.push(OutputRow { row: rows - 1, select });
            }
        }
        Batch::new(slices, outputs, &self.limits)
    }

    fn launch(&mut self, batch: Batch, phase: Phase) -> Result<(), DeviceError> {
        let tokens: Vec<(SequenceId, usize)> =
            batch.slices().iter().map(|s| (s.sequence, s.tokens.len())).collect();
        let mut pages: Vec<_> = self.running.iter_mut().map(|s| (s.id, &mut s.pages)).collect();
        Engine::send(&mut self.executor, batch, phase, &mut pages)?;
        for (id, tokens) in tokens {
            if let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) {
                sequence.launched += tokens;
                sequence.flights += 1;
            }
        }
        Ok(())
    }

    fn refuse(&mut self, planned: &[(SequenceId, usize)], error: DeviceError) {
        let error = Arc::new(error);
        for (id, _) in planned {
            if let Some(at) = self.running.iter().position(|s| s.id == *id) {
                let sequence = self.running.remove(at);
                self.finish(sequence, FinishReason::Device(Failure(error.clone())));
            }
        }
    }

    /// Records what a batch brought, chooses tokens and ends sequences.
    fn land(&mut self, landed: Landed) {
        let start = Instant::now();
        let Landed { batch, result, flight } = landed;
        if let Err(error) = &result
            && error.is_lost()
        {
            self.stopped.get_or_insert_with(|| Failure(error.clone()));
        }
        let shared = batch.slices().len() > 1;
        let mut outputs = batch.outputs().iter().zip(match &result {
            Ok(Some(output)) => output.rows(&batch).unwrap_or_default(),
            _ => Vec::new(),
        });
        let mut end = 0;
        for slice in batch.slices() {
            end += slice.tokens.len();
            // At most the last row of a slice is read.
            let read = batch.outputs().iter().any(|o| o.row as usize + 1 == end);
            let row = if read { outputs.next().map(|(_, row)| row) } else { None };
            let Some(at) = self.running.iter().position(|s| s.id == slice.sequence) else { continue };
            let mut sequence = self.running.remove(at);
            sequence.flights -= 1;
            let reason = match &result {
                Ok(_) if sequence.failure.is_some() || sequence.cancelled => None,
                Ok(_) => {
                    sequence.alone = false;
                    sequence.advance(slice.tokens.len());
                    match row {
                        Some(row) => self.choose(&mut sequence, row),
                        None => {
                            (sequence.pending() == 0 && sequence.flights == 0).then_some(FinishReason::Length)
                        }
                    }
                }
                Err(error) => {
                    sequence.failure.get_or_insert(Fault { failure: Failure(error.clone()), shared });
                    None
                }
            };
            self.settle(at, sequence, reason);
        }
        if !batch.outputs().is_empty() {
            self.executor.note_sampling(flight, batch.outputs().len(), start);
        }
    }

    /// Puts a sequence back in its place, or ends it for this reason or for one that waited until nothing of it was in flight.
    fn settle(&mut self, at: usize, mut sequence: Sequence, reason: Option<FinishReason>) {
        let reason = reason.or_else(|| {
            let failed = sequence.failure.as_ref().filter(|f| !f.shared);
            match failed {
                _ if sequence.flights > 0 => None,
                _ if sequence.cancelled => Some(FinishReason::Cancelled),
                Some(fault) => Some(FinishReason::Device(fault.failure.clone())),
                None => None,
            }
        });
        match reason {
            // A sequence has one batch in flight at its last token, so none of its pages is in use.
            Some(reason) => {
                debug_assert_eq!(sequence.flights, 0, "a sequence ends with batches in flight");
                self.finish(sequence, reason)
            }
            None => {
                if sequence.flights == 0 && sequence.failure.is_some() {
                    sequence.retry();
                    if self.executor.has_two_ways() {
                        // What failed may be the way of its state from one phase's devices to the other's.
                        sequence.preempt();
                    }
                }
                self.running.insert(at, sequence);
            }
        }
    }

    /// Chooses the next token; the reason to end, if there is one.
    fn choose(&mut self, sequence: &mut Sequence, row: RowOutput<'_>) -> Option<FinishReason> {
        let sampled = match row {
            RowOutput::Logits(logits) => sequence.sampler.sample(&sequence.tokens, logits),
            RowOutput::Top(top) => sequence.sampler.sample_top(&sequence.tokens, top, self.spec.vocab),
        };
        let Sampled { token, logprobs } = match sampled {
            Ok(sampled) => sampled,
            Err(SampleError::NoCandidate) => return Some(FinishReason::NoCandidate),
            Err(error) => {
                let (device, what, reason) = ("engine".into(), "sampling".into(), error.to_string());
                let error = DeviceError::Failed { device, what, reason };
                return Some(FinishReason::Device(Failure(Arc::new(error))));
            }
        };
        sequence.push(token);
        if sequence.stop_tokens.contains(&token) {
            return Some(FinishReason::Stop);
        }
        self.events.push(Event::Token { sequence: sequence.id, token, logprobs });
        if sequence.max_tokens.is_some_and(|max| sequence.generated() >= max) {
            Some(FinishReason::Length)
        } else if sequence.tokens.len() > self.options.context {
            Some(FinishReason::Context)
        } else {
            None
        }
    }
}
