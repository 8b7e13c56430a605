//! The pump: launch what can be launched, wait for a batch to land, choose tokens, launch again.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use unicorn_core::{Batch, BatchError, DeviceError, OutputRow, RowOutput, SLOTS, Select, SequenceId, Slice};

use super::sequence::{Fault, Sequence};
use super::{Engine, batching, queue};
use crate::EngineError;
use crate::drafts::Drafting;
use crate::executor::Landed;
use crate::placement::Phase;
use crate::request::{Event, Failure, FinishReason};
use crate::sampling::{NoCandidate, Sampled};

/// What a sequence adds to the next batch.
struct Planned {
    id: SequenceId,
    /// Tokens that it has.
    count: usize,
    /// Guesses behind its last token.
    drafts: Vec<u32>,
    /// The one token is not known yet: a device has it in this slot.
    slot: Option<u32>,
}

impl Planned {
    /// True where a token is chosen after the last of these.
    fn is_read(&self, sequence: &Sequence) -> bool {
        sequence.launched + self.count >= sequence.tokens.len() && sequence.max_tokens != Some(0)
    }
}

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
        let waiting = std::iter::from_fn(|| self.waiting.pop()).collect::<Vec<_>>();
        for sequence in std::mem::take(&mut self.running).into_iter().chain(waiting) {
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
            let planned = self.constrain(planned);
            if planned.is_empty() {
                continue;
            }
            // What was admitted is right, so a wrong batch is a fault of the engine; it ends what it concerns and nothing else.
            let invalid =
                |error: BatchError| DeviceError::Invalid { device: "engine".into(), what: error.to_string() };
            let batch = self.batch(&planned).map_err(invalid);
            if let Err(error) = batch.and_then(|batch| self.launch(batch, phase, &planned)) {
                self.refuse(&planned, error);
            }
        }
    }

    /// Asks the constraints of those whose next token will be read, and ends those whose constraint fails.
    fn constrain(&mut self, planned: Vec<Planned>) -> Vec<Planned> {
        let vocab = self.spec.vocab;
        let constrain = |plan: &Planned| {
            let Some(at) = self.running.iter().position(|s| s.id == plan.id) else { return false };
            let sequence = &mut self.running[at];
            let asked = if plan.is_read(sequence) { sequence.constrain(vocab) } else { Ok(()) };
            let Err(reason) = asked else { return true };
            let sequence = self.running.remove(at);
            self.finish(sequence, FinishReason::Constraint(reason));
            false
        };
        planned.into_iter().filter(constrain).collect()
    }

    /// Moves waiting sequences to the running ones, in order, while there is a place and the pages for all their tokens so far: a
    /// prompt that is certain to be preempted is not begun.
    fn admit(&mut self) {
        // What ended may leave a beginning behind that a waiting one can use.
        if !self.ending.is_empty() {
            return;
        }
        while self.running.len() < self.options.sequences_max {
            let Some(next) = self.waiting.front() else { return };
            let running = self.running.iter().map(|s| (&s.pages, s.tokens.len()));
            if !self.running.is_empty() && !self.pools.fits(next.tokens.len(), running) {
                return;
            }
            let Some(mut sequence) = self.waiting.pop() else { return };
            let known = if sequence.takes_prefix() { &sequence.tokens[..] } else { &[] };
            let (pages, reused) = self.prefixes.take(sequence.scope, known);
            if sequence.start(pages, reused) {
                self.counted.prompt_tokens += sequence.prompt_tokens as u64;
                self.counted.reused_tokens += reused as u64;
            }
            let taken = |slot: &u32| self.running.iter().any(|s| s.slot == *slot);
            sequence.slot = (0..).find(|slot| !taken(slot)).unwrap_or(u32::MAX);
            let at = self.running.partition_point(|s| queue::rank(s) < queue::rank(&sequence));
            self.running.insert(at, sequence);
        }
    }

    /// Indices of the running sequences that can be launched.
    fn ready(&self) -> Vec<usize> {
        (0..self.running.len()).filter(|i| self.running[*i].is_ready()).collect()
    }

    /// The sequences of the next batch with their numbers of tokens, pages reserved, and where it runs. Empty when nothing can be launched
    /// now.
    fn plan(&mut self) -> (Vec<Planned>, Phase) {
        let ready = self.ready();
        if self.encodes() {
            return (self.reserve(&self.whole_texts(&ready)), Phase::Prefill);
        }
        if let Some(&alone) = ready.iter().find(|i| self.running[**i].alone) {
            let count = self.running[alone].pending().min(self.options.prefill_chunk);
            let phase = Engine::phase(self.running[alone].pending());
            return (self.reserve(&[(alone, count, Vec::new())]), phase);
        }
        let ahead = self.ahead();
        if !ahead.is_empty() {
            return (ahead, Phase::Prefill);
        }
        if !self.executor.has_two_ways() {
            return (self.plan_of(&ready, Phase::Prefill), Phase::Prefill);
        }
        // Tokens that someone waits for first; each phase has its own devices to keep busy.
        for phase in [Phase::Decode, Phase::Prefill] {
            // Anew for each phase: taking pages for one may have sent sequences back to the queue.
            let mut ready = self.ready();
            ready.retain(|i| Engine::phase(self.running[*i].pending()) == phase);
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
    fn plan_of(&mut self, ready: &[usize], phase: Phase) -> Vec<Planned> {
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
        let wanted = self.draft(wanted);
        self.reserve(&wanted)
    }

    /// True where a device may feed its head's tokens to its embedding.
    fn feeds_itself(&self) -> bool {
        self.options.ahead && !self.executor.has_two_ways() && self.executor.is_whole()
    }

    /// The next tokens of all running sequences, still unknown, when all of them are in the one batch in flight and nothing but the tokens
    /// is missing: were some left behind, there would be two batches where one is enough. Whether a sequence ends with what is on its way
    /// is seen when that lands; the step was for nothing then.
    fn ahead(&mut self) -> Vec<Planned> {
        let context = self.options.context;
        let one = self.feeds_itself() && self.executor.in_flight() == 1 && self.ending.is_empty();
        if !one || !self.running.iter().all(|s| s.goes_ahead(context).is_some()) {
            return Vec::new();
        }
        let fits = self.running.iter_mut().all(|s| s.pages.grow(s.launched + 1).is_ok());
        let plan = |s: &Sequence| Planned { id: s.id, count: 1, drafts: Vec::new(), slot: s.kept };
        if fits { self.running.iter().map(plan).collect() } else { Vec::new() }
    }

    /// Adds guesses to sequences whose last token is among what is planned. They take what prompts leave of a chunk.
    fn draft(&mut self, wanted: Vec<(usize, usize)>) -> Vec<(usize, usize, Vec<u32>)> {
        let mut room = self.options.prefill_chunk.saturating_sub(wanted.iter().map(|w| w.1).sum());
        let with_drafts = |(i, count): (usize, usize)| {
            let sequence = &mut self.running[i];
            let end = sequence.launched + count;
            let mut drafts = Vec::new();
            if sequence.decodes() && count == 1 && end == sequence.tokens.len() {
                let most = room.min(self.options.context.saturating_sub(end));
                drafts = sequence.draft(most, self.spec.vocab);
                room -= drafts.len();
            }
            (i, count, drafts)
        };
        wanted.into_iter().map(with_drafts).collect()
    }

    /// Takes the pages for `(index of a running sequence, tokens, drafts)`, in their order. When pages run out, drafts go, then kept
    /// sequences, then the last running one with nothing in flight returns to the queue; when that does not help, the rest has to wait.
    fn reserve(&mut self, wanted: &[(usize, usize, Vec<u32>)]) -> Vec<Planned> {
        let wanted: Vec<Planned> = wanted
            .iter()
            .map(|(i, count, drafts)| Planned {
                id: self.running[*i].id,
                count: *count,
                drafts: drafts.clone(),
                slot: None,
            })
            .collect();
        let mut planned: Vec<Planned> = Vec::new();
        for Planned { id, count, mut drafts, slot } in wanted {
            // Preempted meanwhile.
            let Some(at) = self.running.iter().position(|s| s.id == id) else { continue };
            let end = self.running[at].launched + count;
            loop {
                if self.running[at].pages.grow(end + drafts.len()).is_ok() {
                    planned.push(Planned { id, count, drafts, slot });
                    break;
                }
                if !drafts.is_empty() {
                    drafts.clear();
                    continue;
                }
                if self.prefixes.evict() {
                    continue;
                }
                let busy = |s: &Sequence| s.flights > 0 || planned.iter().any(|p| p.id == s.id);
                if self.running.len() == 1 && !busy(&self.running[0]) {
                    let sequence = self.running.remove(0);
                    self.finish(sequence, FinishReason::OutOfKvPages);
                    break;
                }
                let Some(last) = self.running.iter().rposition(|s| !busy(s)).filter(|last| *last >= at)
                else {
                    // Those before it hold the pages, or what holds them is in flight: this one waits for them.
                    break;
                };
                let mut last = self.running.remove(last);
                let itself = last.id == id;
                last.preempt();
                self.counted.preemptions += 1;
                self.waiting.give_back(last);
                if itself {
                    break;
                }
            }
        }
        planned
    }

    fn slice(&self, sequence: &Sequence, planned: &Planned) -> Slice {
        let end = sequence.launched + planned.count;
        debug_assert!(sequence.pages.writable_from(sequence.launched));
        let known = match planned.slot {
            Some(_) => &[0],
            None => &sequence.tokens[sequence.launched..end],
        };
        Slice {
            sequence: sequence.id,
            tokens: [known, &planned.drafts].concat(),
            start: sequence.launched as u32,
            tables: sequence.pages.tables(end + planned.drafts.len()),
            slot: planned.slot,
        }
    }

    /// A batch of these sequences; logits are computed after the last token of each that has no more to compute, and after each draft.
    fn batch(&self, planned: &[Planned]) -> Result<Batch, BatchError> {
        let (mut slices, mut outputs) = (Vec::new(), Vec::new());
        let mut rows = 0;
        for plan in planned {
            let Some(sequence) = self.running.iter().find(|s| s.id == plan.id) else { continue };
            slices.push(self.slice(sequence, plan));
            rows += plan.count as u32;
            if let Some(pooler) = &sequence.embedding {
                outputs.extend(pooler.outputs(sequence.launched, plan.count, rows as usize - plan.count));
            } else if plan.is_read(sequence) {
                outputs.extend(self.outputs(sequence, plan, rows - 1));
            }
            rows += plan.drafts.len() as u32;
        }
        let make = if self.encodes() { Batch::of_whole_sequences } else { Batch::new };
        make(slices, outputs, &self.limits)
    }

    /// The output rows of a sequence, the first after its last token.
    fn outputs(&self, sequence: &Sequence, plan: &Planned, first: u32) -> Vec<OutputRow> {
        let text = match plan.drafts.as_slice() {
            [] => Cow::Borrowed(&sequence.tokens),
            drafts => Cow::Owned([&sequence.tokens[..], drafts].concat()),
        };
        let output = |(row, history): (u32, usize)| {
            let (select, edits) = sequence.sampler.ask(&text[..history], self.spec.vocab);
            // A choice among one token is no choice: the device may go on with it by itself.
            let alone = select == Select::Top(1) && edits.is_empty();
            let free = sequence.drafting.is_none() && sequence.constraint.is_none();
            // What is asked for the token after it must not depend on it.
            let keep = alone
                && free
                && !sequence.sampler.looks_back()
                && self.feeds_itself()
                && (sequence.slot as usize) < SLOTS;
            OutputRow { row, select, edits, keep: keep.then_some(sequence.slot) }
        };
        (first..).zip(sequence.tokens.len()..=text.len()).map(output).collect()
    }

    fn launch(&mut self, batch: Batch, phase: Phase, planned: &[Planned]) -> Result<(), DeviceError> {
        let kept: Vec<u32> = batch.keeps().map(|(_, slot)| slot).collect();
        let mut pages: Vec<_> = self.running.iter_mut().map(|s| (s.id, &mut s.pages)).collect();
        Engine::send(&mut self.executor, batch, phase, &mut pages)?;
        for Planned { id, count, .. } in planned {
            if let Some(sequence) = self.running.iter_mut().find(|s| s.id == *id) {
                sequence.launched += count;
                sequence.kept = Some(sequence.slot).filter(|slot| kept.contains(slot));
                sequence.flights += 1;
                sequence.sent = Instant::now();
            }
        }
        Ok(())
    }

    fn refuse(&mut self, planned: &[Planned], error: DeviceError) {
        let error = Arc::new(error);
        for Planned { id, .. } in planned {
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
        let rows = match &result {
            Ok(Some(output)) => output.rows(&batch).unwrap_or_default(),
            _ => Vec::new(),
        };
        let mut end = 0;
        for slice in batch.slices() {
            let start = end;
            end += slice.tokens.len();
            let within = |o: &OutputRow| (start..end).contains(&(o.row as usize));
            // Drafts are what follows the first row that is read.
            let mut first = batch.outputs().iter().find(|o| within(o)).map_or(end, |o| o.row as usize + 1);
            if self.is_embedding(slice.sequence) {
                first = end;
            }
            let (count, drafts) = (first - start, &slice.tokens[first - start..]);
            let rows = batch.outputs().iter().zip(&rows).filter(|(o, _)| within(o)).map(|(_, row)| *row);
            if let Some(at) = self.ending.iter().position(|s| s.id == slice.sequence) {
                self.land_ended(at);
                continue;
            }
            let Some(at) = self.running.iter().position(|s| s.id == slice.sequence) else { continue };
            let mut sequence = self.running.remove(at);
            sequence.flights -= 1;
            let reason = match &result {
                Ok(_) if sequence.failure.is_some() || sequence.cancelled => None,
                Ok(_) => {
                    sequence.alone = false;
                    if sequence.embedding.is_some() {
                        self.pool(&mut sequence, count, &rows.collect::<Vec<_>>())
                    } else {
                        self.choose_all(&mut sequence, count, drafts, rows.collect())
                    }
                }
                Err(error) => {
                    let shared = shared || !drafts.is_empty();
                    if !drafts.is_empty() {
                        sequence.drafting.iter_mut().for_each(Drafting::stop);
                    }
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

    /// A batch of an ended sequence has landed: its pages are free once it was the last.
    fn land_ended(&mut self, at: usize) {
        self.ending[at].flights -= 1;
        if self.ending[at].flights == 0 {
            let sequence = self.ending.remove(at);
            self.release(sequence);
        }
    }

    /// Takes in `count` tokens of a sequence that have been computed and chooses what follows them, and what follows each draft for as long
    /// as the draft is what was chosen. The reason to end, if there is one.
    fn choose_all(
        &mut self,
        sequence: &mut Sequence,
        count: usize,
        drafts: &[u32],
        rows: Vec<RowOutput<'_>>,
    ) -> Option<FinishReason> {
        if rows.is_empty() {
            sequence.advance(count, 0);
            return (sequence.pending() == 0 && sequence.flights == 0).then_some(FinishReason::Length);
        }
        let mut reason = None;
        let mut accepted = 0;
        for (i, row) in rows.into_iter().enumerate() {
            reason = self.choose(sequence, row);
            let right = i < drafts.len() && sequence.tokens.last() == drafts.get(i);
            if reason.is_some() || !right {
                break;
            }
            accepted += 1;
        }
        sequence.advance(count, accepted);
        if accepted < drafts.len() {
            sequence.rewind();
        }
        let (len, seconds) = (sequence.tokens.len(), sequence.sent.elapsed().as_secs_f64());
        // Prompts are no steps to compare with.
        if let Some(drafting) = sequence.drafting.as_mut().filter(|_| count == 1) {
            drafting.learn(drafts.len(), accepted, len, seconds);
            self.counted.drafted_tokens += drafts.len() as u64;
            self.counted.accepted_tokens += accepted as u64;
        }
        reason
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
            Some(reason) => self.finish(sequence, reason),
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
            RowOutput::Top(top) => sequence.sampler.sample_top(&sequence.tokens, top),
            // Only texts that become vectors ask for these.
            RowOutput::Hidden(_) => Err(NoCandidate),
        };
        let Sampled { token, logprobs } = match sampled {
            Ok(sampled) => sampled,
            Err(NoCandidate) => return Some(FinishReason::NoCandidate),
        };
        sequence.push(token);
        self.counted.generated_tokens += 1;
        let complete = match sequence.accept(token) {
            Ok(complete) => complete,
            Err(reason) => return Some(FinishReason::Constraint(reason)),
        };
        if sequence.stop_tokens.contains(&token) {
            return Some(FinishReason::Stop);
        }
        self.events.push(Event::Token { sequence: sequence.id, token, logprobs });
        if complete {
            Some(FinishReason::Stop)
        } else if sequence.max_tokens.is_some_and(|max| sequence.generated() >= max) {
            Some(FinishReason::Length)
        } else if sequence.tokens.len() > self.options.context {
            Some(FinishReason::Context)
        } else {
            None
        }
    }
}
