//! What an engine tells of itself while it runs.

use super::Engine;
use super::counters::{Counters, SequenceInfo, SequenceState};
use super::sequence::Sequence;

impl Engine {
    /// What there is and what has been done.
    pub fn counters(&self) -> Counters {
        let (pages_free, pages) = self.pools.pages();
        Counters {
            waiting: self.waiting.len(),
            running: self.running.len(),
            pages,
            pages_free,
            pages_kept: self.prefixes.pages(),
            canary: self.options.overseer.0.as_ref().map(|canary| canary.counts()).unwrap_or_default(),
            ..self.counted
        }
    }

    /// The sequences that run, then those that wait, each in its order.
    pub fn sequences_info(&self) -> Vec<SequenceInfo> {
        let info = |sequence: &Sequence, state| SequenceInfo {
            id: sequence.id,
            state,
            prompt_tokens: sequence.prompt_tokens,
            computed_tokens: sequence.computed,
            generated_tokens: sequence.generated(),
        };
        let running = self.running.iter().map(|s| {
            let state = if s.decodes() { SequenceState::Decode } else { SequenceState::Prefill };
            info(s, state)
        });
        running.chain(self.waiting.iter().map(|s| info(s, SequenceState::Waiting))).collect()
    }
}
