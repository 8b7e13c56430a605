//! One step: admit, plan, reserve pages, run, sample.

use std::collections::{HashMap, HashSet};

use unicorn_core::{Batch, HeadOutput, Select, SequenceId, Slice, TopEntry};

use super::sequence::Sequence;
use super::{Engine, batching};
use crate::EngineError;
use crate::request::{Event, FinishReason};
use crate::sampling::{SampleError, Sampled};

/// Logits of one row, as the head returned them.
enum Row {
    Logits(Vec<f32>),
    Top(Vec<TopEntry>),
}

/// What the run brought a sequence: its row, if it asked for one, or the failure of its device.
type Outcome = Result<Option<Row>, String>;

impl Engine {
    /// Does one batch: every decoding sequence advances by a token, prompts by a share of the chunk. Returns what happened,
    /// events of cancelled sequences included; with nothing to do, only those.
    ///
    /// A failing device ends only the sequences that it fails for, with an event. Errors once a device is lost and
    /// the events that this caused were reported; nothing can run any more then.
    pub fn step(&mut self) -> Result<Vec<Event>, EngineError> {
        if let Some(reason) = self.stopped.clone() {
            self.end_all(&reason);
            if self.events.is_empty() {
                return Err(EngineError::Stopped { reason });
            }
            return Ok(std::mem::take(&mut self.events));
        }
        self.admit();
        let planned = self.reserve();
        if !planned.is_empty() {
            let outcomes = self.run_planned(&planned);
            self.advance(&planned, outcomes);
        }
        if let Some(reason) = self.stopped.clone() {
            self.end_all(&reason);
        }
        Ok(std::mem::take(&mut self.events))
    }

    fn end_all(&mut self, reason: &str) {
        for sequence in std::mem::take(&mut self.running).into_iter().chain(std::mem::take(&mut self.waiting))
        {
            self.finish(sequence, FinishReason::Device(reason.to_string()));
        }
        self.prefixes.clear();
    }

    /// Moves waiting sequences to the running ones, in order, while there is a place and the pages for all their tokens so far: a
    /// prompt that is certain to be preempted is not begun.
    fn admit(&mut self) {
        while self.running.len() < self.options.sequences_max {
            let Some(next) = self.waiting.front() else { return };
            let mut held = HashSet::new();
            self.running.iter().for_each(|s| held.extend(s.pages.all_ids()));
            let promised: usize = self
                .running
                .iter()
                .map(|s| self.pool.pages_for(s.tokens.len()).saturating_sub(s.pages.len()))
                .sum();
            let needed = self.pool.pages_for(next.tokens.len()) + promised + held.len();
            if needed > self.pool.pages() && !self.running.is_empty() {
                return;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            let (pages, reused) = self.prefixes.take(&sequence.tokens);
            sequence.start(pages, reused);
            let at = self.running.partition_point(|s| s.id < sequence.id);
            self.running.insert(at, sequence);
        }
    }

    /// Decides how many tokens each running sequence gets and takes the pages for them, the oldest first. When pages run out, kept
    /// sequences go, then the youngest running one returns to the queue.
    fn reserve(&mut self) -> Vec<(SequenceId, usize)> {
        let pending: Vec<usize> = self.running.iter().map(Sequence::pending).collect();
        let counts = batching::plan(&pending, self.options.prefill_chunk);
        let mut planned = Vec::new();
        for (i, count) in counts.into_iter().enumerate() {
            // Preempted sequences leave at the end, so indices up to here stay true.
            let Some(end) = self.running.get(i).map(|s| s.computed + count) else { break };
            while self.running.get(i).is_some() {
                if self.running[i].pages.grow(end).is_ok() {
                    planned.push((self.running[i].id, count));
                    break;
                }
                if self.prefixes.evict() {
                    continue;
                }
                let alone = self.running.len() == 1;
                let Some(mut youngest) = self.running.pop() else { break };
                if alone {
                    self.finish(youngest, FinishReason::OutOfKvPages);
                } else {
                    youngest.preempt();
                    self.waiting.push_front(youngest);
                }
            }
        }
        planned.retain(|p| p.1 > 0);
        planned
    }

    fn slice(&self, sequence: &Sequence, count: usize) -> Slice {
        let end = sequence.computed + count;
        debug_assert!(sequence.pages.writable_from(sequence.computed));
        Slice {
            sequence: sequence.id,
            tokens: sequence.tokens[sequence.computed..end].to_vec(),
            start: sequence.computed as u32,
            pages: sequence.pages.ids(end),
        }
    }

    /// A batch of these sequences; logits are computed after the last token of each that has no more to compute.
    fn batch(&self, planned: &[(SequenceId, usize)]) -> Batch {
        let mut batch = Batch { slices: Vec::new(), outputs: Vec::new(), select: Select::Top(1) };
        let mut rows = 0;
        for (id, count) in planned {
            let Some(sequence) = self.running.iter().find(|s| s.id == *id) else { continue };
            batch.slices.push(self.slice(sequence, *count));
            rows += *count as u32;
            if *count == sequence.pending() && sequence.max_tokens != Some(0) {
                batch.outputs.push(rows - 1);
                batch.select = match (batch.select, sequence.sampler.select()) {
                    (Select::Top(a), Select::Top(b)) => Select::Top(a.max(b)),
                    _ => Select::Logits,
                };
            }
        }
        batch
    }

    /// Runs the planned tokens. Where a batch of several sequences fails and the device survives, each affected sequence is
    /// tried once more alone, so that only those end that really fail.
    fn run_planned(&mut self, planned: &[(SequenceId, usize)]) -> HashMap<SequenceId, Outcome> {
        let mut outcomes = self.run_once(planned);
        let failed = planned.iter().filter(|p| matches!(outcomes.get(&p.0), Some(Err(_))));
        let failed: Vec<(SequenceId, usize)> = failed.copied().collect();
        if planned.len() > 1 {
            for one in failed {
                if self.stopped.is_some() {
                    break;
                }
                outcomes.extend(self.run_once(&[one]));
            }
        }
        outcomes
    }

    fn run_once(&mut self, planned: &[(SequenceId, usize)]) -> HashMap<SequenceId, Outcome> {
        let batch = self.batch(planned);
        let vocab = self.spec.vocab;
        let mut outcomes: HashMap<SequenceId, Outcome> = planned.iter().map(|p| (p.0, Ok(None))).collect();
        for (part, result) in self.run(batch) {
            match result {
                Err(error) => {
                    for slice in &part.slices {
                        outcomes.insert(slice.sequence, Err(error.to_string()));
                    }
                }
                Ok(None) => {}
                Ok(Some(output)) => {
                    for (id, row) in owners(&part).into_iter().zip(rows(output, vocab)) {
                        outcomes.insert(id, Ok(Some(row)));
                    }
                }
            }
        }
        outcomes
    }

    /// Records what was computed, chooses tokens and ends sequences.
    fn advance(&mut self, planned: &[(SequenceId, usize)], mut outcomes: HashMap<SequenceId, Outcome>) {
        let counts: HashMap<SequenceId, usize> = planned.iter().copied().collect();
        for mut sequence in std::mem::take(&mut self.running) {
            let (Some(count), Some(outcome)) = (counts.get(&sequence.id), outcomes.remove(&sequence.id))
            else {
                self.running.push(sequence);
                continue;
            };
            let end = match outcome {
                Err(reason) => Some(FinishReason::Device(reason)),
                Ok(row) => {
                    sequence.computed += count;
                    match row {
                        Some(row) => self.choose(&mut sequence, row),
                        None => (sequence.pending() == 0).then_some(FinishReason::Length),
                    }
                }
            };
            match end {
                Some(reason) => self.finish(sequence, reason),
                None => self.running.push(sequence),
            }
        }
    }

    /// Chooses the next token; the reason to end, if there is one.
    fn choose(&mut self, sequence: &mut Sequence, row: Row) -> Option<FinishReason> {
        let Sampled { token, logprobs } = match sample(sequence, row, self.spec.vocab) {
            Ok(sampled) => sampled,
            Err(SampleError::NoCandidate) => return Some(FinishReason::NoCandidate),
            Err(error) => return Some(FinishReason::Device(error.to_string())),
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

fn sample(sequence: &Sequence, row: Row, vocab: usize) -> Result<Sampled, SampleError> {
    match row {
        Row::Logits(logits) => sequence.sampler.sample(&sequence.tokens, &logits),
        Row::Top(top) => sequence.sampler.sample_top(&sequence.tokens, &top, vocab),
    }
}

/// The sequence of each output row.
fn owners(batch: &Batch) -> Vec<SequenceId> {
    let rows: Vec<SequenceId> =
        batch.slices.iter().flat_map(|s| std::iter::repeat_n(s.sequence, s.tokens.len())).collect();
    batch.outputs.iter().map(|o| rows[*o as usize]).collect()
}

fn rows(output: HeadOutput, vocab: usize) -> Vec<Row> {
    match output {
        HeadOutput::Logits(all) if all.len() == vocab => vec![Row::Logits(all)],
        HeadOutput::Logits(all) => all.chunks_exact(vocab).map(|row| Row::Logits(row.to_vec())).collect(),
        HeadOutput::Top(lists) => lists.into_iter().map(Row::Top).collect(),
    }
}
