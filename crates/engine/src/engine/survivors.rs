//! What a lost device leaves behind: sequences are more than their state, and go on elsewhere.

use unicorn_core::SequenceId;

use super::sequence::Sequence;
use super::{Counters, Engine};
use crate::request::{Event, Failure, FinishReason};

/// The sequences of an engine that has stopped, on their way to another one of the same model. They have their tokens, random numbers,
/// constraints and drafts, and no state: it is computed again.
#[derive(Debug)]
pub struct Survivors {
    /// Why the engine stopped.
    reason: Failure,
    /// The oldest first, of each priority.
    sequences: Vec<Sequence>,
    next_id: u64,
    counted: Counters,
    /// What the engine had not reported yet.
    events: Vec<Event>,
}

impl Survivors {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// True where there is nothing to go on with.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Most losses that one of them has lived through; 0 without any.
    pub fn losses(&self) -> u32 {
        self.sequences.iter().map(|s| s.losses).max().unwrap_or(0)
    }

    /// Why the engine stopped.
    pub fn reason(&self) -> &Failure {
        &self.reason
    }

    /// Ends those that have lived through more than `losses`. The events say why.
    pub fn end_beyond(&mut self, losses: u32) -> Vec<Event> {
        let (end, go_on) = std::mem::take(&mut self.sequences).into_iter().partition(|s| s.losses > losses);
        self.sequences = go_on;
        self.end(end)
    }

    /// Ends all of them. The events say why.
    pub fn end_all(mut self) -> Vec<Event> {
        let all = std::mem::take(&mut self.sequences);
        self.end(all)
    }

    fn end(&mut self, sequences: Vec<Sequence>) -> Vec<Event> {
        let reason = || FinishReason::Device(self.reason.clone());
        let mut events = std::mem::take(&mut self.events);
        events.extend(sequences.iter().map(|s| ended(s, reason())));
        events
    }

    /// Ends one of them; `None` where it is not there.
    pub fn cancel(&mut self, id: SequenceId) -> Option<Event> {
        let at = self.sequences.iter().position(|s| s.id == id)?;
        Some(ended(&self.sequences.remove(at), FinishReason::Cancelled))
    }
}

fn ended(sequence: &Sequence, reason: FinishReason) -> Event {
    Event::Finished { sequence: sequence.id, reason, timings: sequence.timings() }
}

impl Engine {
    /// Takes all sequences out of an engine that has stopped; `None` of one that goes on.
    pub fn survivors(&mut self) -> Option<Survivors> {
        let reason = self.stopped.clone()?;
        self.drain();
        let waiting: Vec<Sequence> = self.waiting.drain().collect();
        let ran = std::mem::take(&mut self.running).into_iter().map(|mut sequence| {
            sequence.losses += 1;
            sequence
        });
        let mut sequences: Vec<Sequence> = ran.chain(waiting).collect();
        sequences.iter_mut().for_each(Sequence::survive);
        let events = std::mem::take(&mut self.events);
        self.prefixes.clear();
        Some(Survivors { reason, sequences, next_id: self.next_id, counted: self.counted, events })
    }

    /// Takes in what another engine of the same model left behind; it goes on as if nothing had happened, from its tokens. To be called before
    /// this engine has sequences of its own.
    ///
    /// What is too long for this engine ends, as for lack of context.
    pub fn adopt(&mut self, survivors: Survivors) {
        let Survivors { sequences, next_id, counted, events, .. } = survivors;
        self.next_id = self.next_id.max(next_id);
        self.counted = counted;
        self.events.extend(events);
        for mut sequence in sequences {
            sequence.pages = self.pools.empty();
            sequence.name_pages(self.keeper.as_ref());
            match sequence.tokens.len() <= self.prompt_max() {
                true if sequence.was_started() => self.waiting.give_back(sequence),
                true => self.waiting.push(sequence),
                false => self.finish(sequence, FinishReason::Context),
            }
        }
    }
}
