//! The pump: launch what can be launched, wait for a batch to land, choose tokens, launch again.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use unicorn_core::{Batch, BatchError, DeviceError, OutputRow, RowOutput, SLOTS, Select, SequenceId, Slice};

use super::sequence::{Fault, Sequence};
use super::{Engine, batching};
use crate::EngineError;
use crate::drafts::Drafting;
use crate::executor::{Ended, Landed};
use crate::placement::Phase;
use crate::request::{Event, Failure, FinishReason};
use crate::sampling::{Sampled, Unchosen};
use crate::store_copies::Copied;

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

/// What a slice was made of.
struct Parts<'a> {
    /// Rows whose logits score the prompt.
    scored: Vec<usize>,
    /// Tokens of the sequence; guesses follow.
    count: usize,
    drafts: &'a [u32],
}

impl Parts<'_> {
    /// Of a slice with these rows that are read. Those before the prompt's last token score it; behind the first of the others are guesses.
    fn new(slice: &Slice, mut rows: Vec<usize>, prompt_tokens: usize) -> Parts<'_> {
        let scoring = |row: &usize| slice.start as usize + row + 1 < prompt_tokens;
        let chosen = rows.split_off(rows.partition_point(scoring));
        let count = chosen.first().map_or(slice.tokens.len(), |row| row + 1);
        Parts { scored: rows, count, drafts: &slice.tokens[count..] }
    }
}

impl Engine {
    /// Keeps the devices busy and returns what happened: waits until a batch has landed if none has, chooses tokens, and launches what
    /// they make possible before it returns, so that the devices work while the caller does. With nothing to do, only events of
    /// cancelled sequences come back. With a store it may return with no event where pages went there or came from there.
    ///
    /// A failing device ends only the sequences that it fails for, with an event. Errors once a device is lost and what came before
    /// was reported; nothing can run any more then, but the sequences are all there: see [`Engine::survivors`].
    pub fn step(&mut self) -> Result<Vec<Event>, EngineError> {
        self.heed_canary();
        self.launch_all();
        let mut wait = self.events.is_empty();
        while let Some(ended) = self.executor.ended(wait) {
            self.take_in(ended);
            // Once a device is lost everything in flight comes back with errors.
            wait = self.stopped.is_some();
        }
        match self.stopped.clone() {
            None => self.launch_all(),
            Some(reason) if self.events.is_empty() => return Err(EngineError::Stopped { reason }),
            Some(_) => {}
        }
        Ok(std::mem::take(&mut self.events))
    }

    /// Waits for everything in flight, without launching more.
    pub(super) fn drain(&mut self) {
        while let Some(ended) = self.executor.ended(true) {
            self.take_in(ended);
        }
    }

    pub(super) fn take_in(&mut self, ended: Ended) {
        if let Ended::Copies(Copied { outcome: Err(error), .. }) = &ended {
            self.heed(error);
        }
        match ended {
            Ended::Batch(landed) => self.land(landed),
            Ended::Copies(copied) if copied.saved => self.saved(&copied),
            Ended::Copies(copied) => self.restored(&copied),
            Ended::Woken => {}
        }
    }

    fn launch_all(&mut self) {
        if self.stopped.is_none() {
            self.admit();
            self.launch_batches();
            // Behind what somebody waits for.
            self.save_some();
        }
    }

    fn launch_batches(&mut self) {
        while self.stopped.is_none() && self.executor.has_room() {
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
            match self.batch(&planned).map_err(invalid) {
                Ok(batch) => self.launch(batch, phase, &planned),
                Err(error) => self.refuse(&planned, error),
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

    /// Indices of the running sequences that can be launched.
    fn ready(&self) -> Vec<usize> {
        (0..self.running.len()).filter(|i| self.running[*i].is_ready()).collect()
    }

    /// The sequences of the next batch with their numbers of tokens, pages reserved, and where it runs: `None` where the phases do not
    /// differ. Empty when nothing can be launched now.
    fn plan(&mut self) -> (Vec<Planned>, Option<Phase>) {
        let ready = self.ready();
        if self.encodes() {
            let phase = self.phase(usize::MAX);
            return (self.reserve(self.whole_texts(&ready)), phase);
        }
        if let Some(&alone) = ready.iter().find(|i| self.running[**i].alone) {
            let phase = self.phase(self.running[alone].pending());
            let count = self.running[alone].pending().min(self.chunk(phase));
            let mut wanted = vec![(alone, count)];
            self.bound_scores(&mut wanted);
            let wanted = wanted.into_iter().map(|(i, count)| (i, count, Vec::new())).collect();
            return (self.reserve(wanted), phase);
        }
        let ahead = self.ahead();
        if !ahead.is_empty() {
            return (ahead, None);
        }
        if !self.executor.has_two_ways() {
            return (self.plan_of(&ready, None), None);
        }
        // Tokens that someone waits for first; each phase has its own devices to keep busy.
        for phase in [Phase::Decode, Phase::Prefill].map(Some) {
            // Anew for each phase: taking pages for one may have sent sequences back to the queue.
            let mut ready = self.ready();
            ready.retain(|i| self.phase(self.running[*i].pending()) == phase);
            if !ready.is_empty() && self.executor.in_flight_of(phase) < self.room(phase).flights {
                let planned = self.plan_of(&ready, phase);
                if !planned.is_empty() {
                    return (planned, phase);
                }
            }
        }
        (Vec::new(), None)
    }

    /// Tokens of a batch at most. Where others wait for their next tokens, prompts get only as much as takes no longer than is allowed.
    fn chunk(&self, phase: Option<Phase>) -> usize {
        let room = self.room(phase);
        let room = batching::Room { chunk: room.chunk.min(self.caution.rows()), ..room };
        let decoding = self.running.iter().filter(|s| s.decodes()).count();
        if decoding == 0 || !self.mixes {
            return room.chunk;
        }
        let rows = self.speed.rows_within(Duration::from_millis(self.options.stall_ms_max));
        room.chunk.min(rows.saturating_add(decoding.div_ceil(room.lanes)))
    }

    /// A batch of some of the `ready` sequences, for the devices of a phase: see [`batching::next`].
    fn plan_of(&mut self, ready: &[usize], phase: Option<Phase>) -> Vec<Planned> {
        // Where prompts have devices of their own, a sequence there reads its tokens again, and nobody decodes.
        let reads = phase == Some(Phase::Prefill);
        let of = |s: &Sequence| batching::Ready {
            pending: s.pending(),
            prompt: s.tokens.len().saturating_sub(s.reused_tokens),
            decodes: s.decodes() && !reads,
        };
        let turns: Vec<batching::Ready> = ready.iter().map(|i| of(&self.running[*i])).collect();
        let decoding = if reads { 0 } else { self.running.iter().filter(|s| s.decodes()).count() };
        let flying = self.executor.in_flight_of(phase);
        let room = batching::Room { chunk: self.chunk(phase), ..self.room(phase) };
        let next = batching::next(&turns, decoding, flying, room);
        let mut wanted: Vec<(usize, usize)> =
            next.into_iter().map(|(i, tokens)| (ready[i], tokens)).collect();
        self.bound_scores(&mut wanted);
        let wanted = self.draft(wanted);
        self.reserve(wanted)
    }

    /// Cuts what is planned of prompts that are scored, so that a batch has no more rows of logits than there is room for, but for one.
    fn bound_scores(&self, wanted: &mut Vec<(usize, usize)>) {
        let most = self.options.outputs_max.unwrap_or(self.options.sequences_max);
        let mut room = most.saturating_sub(wanted.len()).max(1);
        for (i, count) in wanted.iter_mut() {
            let sequence = &self.running[*i];
            if let Some(scores) = &sequence.scores {
                let (taken, rows) = scores.within(sequence.launched, *count, room);
                *count = taken;
                room -= rows;
            }
        }
        wanted.retain(|w| w.1 > 0);
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
        let (running, prefixes) = (&mut self.running, &mut self.prefixes);
        let fits =
            running.iter_mut().all(|s| prefixes.grow(&mut s.pages, s.launched, s.launched + 1, 0).is_ok());
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

    /// Takes the pages for `(index of a running sequence, tokens, drafts)`, in their order. When pages run out, what is kept goes, then
    /// drafts, then the last running one with nothing in flight returns to the queue; when that does not help, the rest has to wait.
    fn reserve(&mut self, wanted: Vec<(usize, usize, Vec<u32>)>) -> Vec<Planned> {
        // Places change when one goes back to the queue.
        let planned = |(i, count, drafts): (usize, usize, Vec<u32>)| {
            let id = self.running[i].id;
            Planned { id, count, drafts, slot: None }
        };
        let wanted: Vec<Planned> = wanted.into_iter().map(planned).collect();
        let mut planned: Vec<Planned> = Vec::new();
        for Planned { id, count, mut drafts, slot } in wanted {
            // Preempted meanwhile.
            let Some(at) = self.running.iter().position(|s| s.id == id) else { continue };
            let start = self.running[at].launched;
            loop {
                let pages = &mut self.running[at].pages;
                if self.prefixes.grow(pages, start, start + count, drafts.len()).is_ok() {
                    planned.push(Planned { id, count, drafts, slot });
                    break;
                }
                if !drafts.is_empty() {
                    drafts.clear();
                    continue;
                }
                let busy = |s: &Sequence| s.flights > 0 || planned.iter().any(|p| p.id == s.id);
                if self.running.len() == 1 && !busy(&self.running[0]) {
                    if !self.ending.is_empty() || self.restoring() > 0 {
                        // What is in flight of ended ones holds pages still, and so does what comes from a store.
                        break;
                    }
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
                last.name_pages(self.keeper.as_ref());
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
        let (start, all) = (sequence.launched, end + planned.drafts.len());
        Slice {
            sequence: sequence.id,
            tokens: [known, &planned.drafts].concat(),
            start: start as u32,
            tables: sequence.pages.tables(start, all),
            snapshots: sequence.pages.snapshots(start, all),
            slot: planned.slot,
        }
    }

    /// A batch of these sequences; logits are computed after the last token of each that has no more to compute, after each draft, and where a
    /// prompt is scored.
    fn batch(&self, planned: &[Planned]) -> Result<Batch, BatchError> {
        let (mut slices, mut outputs) = (Vec::new(), Vec::new());
        let mut rows = 0;
        for plan in planned {
            let Some(sequence) = self.running.iter().find(|s| s.id == plan.id) else { continue };
            slices.push(self.slice(sequence, plan));
            if let Some(scores) = &sequence.scores {
                let wanted = (0..plan.count).filter(|i| scores.wants(sequence.launched + i));
                outputs.extend(wanted.map(|i| OutputRow::new(rows + i as u32, Select::Logits)));
            }
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

    fn launch(&mut self, batch: Batch, phase: Option<Phase>, planned: &[Planned]) {
        self.save_left();
        let kept: Vec<u32> = batch.keeps().map(|(_, slot)| slot).collect();
        let mut pages: Vec<_> = self.running.iter_mut().map(|s| (s.id, &mut s.pages)).collect();
        let flight = Engine::send(&mut self.executor, batch, phase, &mut pages);
        for Planned { id, count, .. } in planned {
            if let Some(sequence) = self.running.iter_mut().find(|s| s.id == *id) {
                sequence.launched += count;
                sequence.kept = Some(sequence.slot).filter(|slot| kept.contains(slot));
                sequence.flights += 1;
                sequence.latest = flight;
                sequence.sent = Instant::now();
            }
        }
    }

    /// A batch could not be launched: each of its sequences is tried alone, and one that was alone ends.
    fn refuse(&mut self, planned: &[Planned], error: DeviceError) {
        let error = Arc::new(error);
        self.heed(&error);
        let alone = planned.len() == 1;
        for Planned { id, drafts, .. } in planned {
            let Some(at) = self.running.iter().position(|s| s.id == *id) else { continue };
            let sequence = &mut self.running[at];
            if alone && drafts.is_empty() && !error.is_lost() {
                let sequence = self.running.remove(at);
                self.finish(sequence, FinishReason::Device(Failure(error.clone())));
            } else {
                sequence.alone = true;
                sequence.kept = None;
            }
        }
    }

    /// Nothing runs any more once a device is lost.
    fn heed(&mut self, error: &Arc<DeviceError>) {
        if error.is_lost() {
            self.stopped.get_or_insert_with(|| Failure(error.clone()));
        }
    }

    /// Records what a batch brought, chooses tokens and ends sequences.
    fn land(&mut self, landed: Landed) {
        let start = Instant::now();
        let Landed { batch, result, flight, launched, phase, leans } = landed;
        if result.is_ok() {
            let turns = phase.is_none() && self.room(None).lanes == 1;
            self.speed.landed(batch.rows(), batch.slices().len(), launched, turns);
        }
        let less = match &result {
            Ok(_) => {
                self.caution.landed();
                false
            }
            Err(error) => {
                self.heed(error);
                // A text that an encoder reads is never cut.
                let shrinks = !self.encodes() || batch.slices().len() > 1;
                let less = error.is_out_of_memory() && self.caution.failed(batch.rows(), shrinks);
                self.counted.batches_cut += u64::from(less);
                less
            }
        };
        let shared = less || leans || batch.slices().len() > 1;
        let rows = match &result {
            Ok(Some(output)) => output.rows(&batch).unwrap_or_default(),
            _ => Vec::new(),
        };
        let (mut end, mut read) = (0, 0);
        for slice in batch.slices() {
            let start = end;
            end += slice.tokens.len();
            let here = batch.outputs()[read..].iter().take_while(|o| (o.row as usize) < end);
            let asked: Vec<usize> = here.map(|o| o.row as usize - start).collect();
            let brought = rows.get(read..read + asked.len()).unwrap_or_default();
            read += asked.len();
            if let Some(at) = self.ending.iter().position(|s| s.id == slice.sequence) {
                self.land_ended(at);
                continue;
            }
            let Some(at) = self.running.iter().position(|s| s.id == slice.sequence) else { continue };
            let mut sequence = self.running.remove(at);
            sequence.flights -= 1;
            let parts = Parts::new(slice, asked, sequence.prompt_tokens);
            let reason = match &result {
                Ok(_) if sequence.failure.is_some() || sequence.cancelled => None,
                Ok(_) => {
                    sequence.alone = false;
                    if sequence.embedding.is_some() {
                        self.pool(&mut sequence, parts.count, brought)
                    } else {
                        self.score(&mut sequence, slice, parts.scored.iter().zip(brought));
                        let chosen = &brought[parts.scored.len().min(brought.len())..];
                        sequence.timed = batch.outputs().len() == batch.rows();
                        self.choose_all(&mut sequence, phase, &parts, chosen)
                    }
                }
                Err(error) => {
                    let shared = shared || !parts.drafts.is_empty();
                    if !parts.drafts.is_empty() {
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

    /// Takes in the rows that score a prompt, and reports them once there are all.
    fn score<'a>(
        &mut self,
        sequence: &mut Sequence,
        slice: &Slice,
        rows: impl Iterator<Item = (&'a usize, &'a RowOutput<'a>)>,
    ) {
        let Some(scores) = &mut sequence.scores else { return };
        for (row, output) in rows {
            let position = slice.start as usize + row;
            if let (RowOutput::Logits(logits), Some(token)) = (output, sequence.tokens.get(position + 1)) {
                scores.add(position, logits, *token);
            }
        }
        if let Some(whole) = sequence.scores.take_if(|scores| scores.is_whole()) {
            let logprobs = whole.into_list();
            sequence.told = true;
            self.events.push(Event::PromptLogprobs { sequence: sequence.id, logprobs });
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

    /// Takes in the tokens of a slice that have been computed and chooses what follows them, and what follows each draft for as long as the
    /// draft is what was chosen. The reason to end, if there is one.
    fn choose_all(
        &mut self,
        sequence: &mut Sequence,
        phase: Option<Phase>,
        parts: &Parts<'_>,
        rows: &[RowOutput<'_>],
    ) -> Option<FinishReason> {
        let (count, drafts) = (parts.count, parts.drafts);
        if rows.is_empty() {
            self.advance(sequence, phase, count, 0);
            return (sequence.pending() == 0 && sequence.flights == 0).then_some(FinishReason::Length);
        }
        let mut reason = None;
        let mut accepted = 0;
        for (i, row) in rows.iter().enumerate() {
            reason = self.choose(sequence, *row);
            let right = i < drafts.len() && sequence.tokens.last() == drafts.get(i);
            if reason.is_some() || !right {
                break;
            }
            accepted += 1;
        }
        self.advance(sequence, phase, count, accepted);
        if accepted < drafts.len() {
            sequence.rewind();
        }
        let (len, seconds) = (sequence.tokens.len(), sequence.sent.elapsed().as_secs_f64());
        if let Some(drafting) = sequence.drafting.as_mut().filter(|_| count == 1) {
            // Beside prompts a step takes as long as they do.
            let seconds = Some(seconds).filter(|_| sequence.timed);
            drafting.learn(drafts.len(), accepted, len, seconds);
            self.counted.drafted_tokens += drafts.len() as u64;
            self.counted.accepted_tokens += accepted as u64;
        }
        reason
    }

    /// A batch with `count` tokens of a sequence, drafts left out, has landed well on the devices of a phase, and so many drafts behind them
    /// were right. Only now others may know of that, and of what was brought for it.
    fn advance(&mut self, sequence: &mut Sequence, phase: Option<Phase>, count: usize, accepted: usize) {
        let start = sequence.computed;
        sequence.advance(count, accepted);
        let full = sequence.computed / self.pools.page_tokens();
        let more = phase.is_some_and(|phase| sequence.pages.arrived(phase, start, sequence.computed));
        if full > sequence.published || more {
            sequence.published = full;
            let computed = &sequence.tokens[..sequence.computed];
            self.prefixes.publish(sequence.scope, computed, &sequence.pages);
        }
        // A device that computes garbage shows it by the first token.
        if sequence.keep && sequence.decodes() && full > sequence.wanted {
            sequence.wanted = full;
            self.prefixes.want_text(sequence.scope, &sequence.tokens[..sequence.computed]);
        }
        // Others may have begun with what the sequence itself no longer sees.
        sequence.pages.slide(sequence.computed);
    }

    /// Puts a sequence back in its place, or ends it for this reason or for one that waited until nothing of it was in flight.
    fn settle(&mut self, at: usize, mut sequence: Sequence, reason: Option<FinishReason>) {
        if let Some(reason) = reason {
            return self.finish(sequence, reason);
        }
        if sequence.flights > 0 {
            return self.running.insert(at, sequence);
        }
        if sequence.cancelled {
            return self.finish(sequence, FinishReason::Cancelled);
        }
        if let Some(fault) = &sequence.failure {
            // Of a lost device no sequence is the cause.
            if !fault.shared && !fault.failure.0.is_lost() {
                let failure = fault.failure.clone();
                return self.finish(sequence, FinishReason::Device(failure));
            }
            sequence.retry();
            if self.executor.has_two_ways() {
                // What failed may be the way of its state from one phase's devices to the other's.
                sequence.preempt();
            }
        }
        self.running.insert(at, sequence);
    }

    /// Chooses the next token; the reason to end, if there is one.
    fn choose(&mut self, sequence: &mut Sequence, row: RowOutput<'_>) -> Option<FinishReason> {
        let sampled = match row {
            RowOutput::Logits(logits) => sequence.sampler.sample(&sequence.tokens, logits),
            RowOutput::Top(top) => sequence.sampler.sample_top(&sequence.tokens, top),
            // Only texts that become vectors ask for these.
            RowOutput::Hidden(_) => Err(Unchosen::NoCandidate),
        };
        let Sampled { token, logprobs } = match sampled {
            Ok(sampled) => sampled,
            Err(Unchosen::NoCandidate) => return Some(FinishReason::NoCandidate),
            Err(Unchosen::NotFinite) => return Some(FinishReason::NotFinite),
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
        sequence.told = true;
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
