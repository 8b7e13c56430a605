//! Texts that become vectors, beside requests that generate: they go through the same queue, batches and pages.
//!
//! A model that generates reads such a text as it reads a prompt, in chunks. An encoder sees all of a text at once, so that a text is never
//! cut; as many as a chunk has room for share a batch.

use unicorn_core::{RowOutput, SequenceId};

use super::Engine;
use super::sequence::Sequence;
use crate::embed::{EmbedRequest, Pooler};
use crate::request::{Event, FinishReason, Request};
use crate::{AdmissionError, Guides};

impl Engine {
    /// Admits a text to the queue, to become a vector: [`Event::Embedding`] brings it, and [`Event::Finished`] follows. It can be cancelled
    /// as any request, and waits and runs beside them.
    ///
    /// Errors name what is wrong with it, or that the queue is full; nothing of it is kept then.
    pub fn add_embedding(&mut self, request: EmbedRequest) -> Result<SequenceId, AdmissionError> {
        let pooler = Pooler::new(&request);
        let EmbedRequest { tokens: prompt, priority, group, scope, .. } = request;
        let request = Request { prompt, max_tokens: Some(0), priority, group, scope, ..Request::default() };
        self.enqueue(request, Guides::default(), Some(pooler))
    }

    /// True for a model that only turns texts into vectors.
    pub(super) fn encodes(&self) -> bool {
        self.spec.is_encoder()
    }

    /// Which of the `ready` sequences an encoder takes next, all of their tokens each, as [`Engine::reserve`] wants them: the oldest ones
    /// that fit into a chunk together, and at least one.
    pub(super) fn whole_texts(&self, ready: &[usize]) -> Vec<(usize, usize, Vec<u32>)> {
        let alone = ready.iter().find(|i| self.running[**i].alone);
        let candidates = alone.map_or(ready, std::slice::from_ref);
        let (mut left, mut texts) = (self.options.prefill_chunk.min(self.caution.rows()), Vec::new());
        for &i in candidates {
            let tokens = self.running[i].pending();
            if tokens > left && !texts.is_empty() {
                break;
            }
            left = left.saturating_sub(tokens);
            texts.push((i, tokens, Vec::new()));
        }
        texts
    }

    /// Takes in the hidden states of `count` tokens of a text that have been computed. With the last of them the vector is reported, and
    /// the reason to end comes back.
    pub(super) fn pool(
        &mut self,
        sequence: &mut Sequence,
        count: usize,
        rows: &[RowOutput<'_>],
    ) -> Option<FinishReason> {
        sequence.advance(count, 0);
        let pooler = sequence.embedding.as_mut()?;
        pooler.add(rows.iter().filter_map(|row| match row {
            RowOutput::Hidden(row) => Some(*row),
            RowOutput::Logits(_) | RowOutput::Top(_) => None,
        }));
        if sequence.computed < sequence.tokens.len() {
            return None;
        }
        let Some(vector) = pooler.finish() else { return Some(FinishReason::NotFinite) };
        self.events.push(Event::Embedding { sequence: sequence.id, vector });
        Some(FinishReason::Embedded)
    }
}
