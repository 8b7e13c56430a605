//! The model without requests: for perplexity, benchmarks and comparisons of logits.

use unicorn_core::{Batch, HeadOutput, Select, SequenceId, Slice};

use super::Engine;
use crate::EngineError;
use crate::kv::PageList;

/// One sequence that the caller feeds by hand. Its pages are freed on drop.
pub struct Evaluator<'a> {
    engine: &'a mut Engine,
    pages: PageList,
    position: usize,
}

/// No request ever has this id.
const SEQUENCE: SequenceId = SequenceId(u64::MAX);

impl<'a> Evaluator<'a> {
    pub(super) fn new(engine: &'a mut Engine) -> Evaluator<'a> {
        let pages = engine.pool.list();
        Evaluator { engine, pages, position: 0 }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        self.engine
    }

    /// Tokens fed so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Goes back to an earlier position: what was fed after it is forgotten.
    pub fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
        self.pages.truncate(self.position);
    }

    /// Runs `tokens` as one batch at the current position. `outputs` are the rows (ascending, each below `tokens.len()`) whose logits
    /// are wanted; without any, `None` comes back.
    ///
    /// Errors when the context or the pool is full, a token is out of range or a device fails; the position is unchanged then.
    pub fn feed(
        &mut self,
        tokens: &[u32],
        outputs: &[u32],
        select: Select,
    ) -> Result<Option<HeadOutput>, EngineError> {
        let (context, vocab, start) = (self.engine.options.context, self.engine.spec.vocab, self.position);
        if let Some(reason) = self.engine.stopped.clone() {
            return Err(EngineError::Stopped { reason });
        }
        if start + tokens.len() > context {
            return Err(EngineError::Context { tokens: tokens.len(), start, context });
        }
        if let Some(&token) = tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(EngineError::TokenOutOfRange { token, vocab });
        }
        let ascending = outputs.windows(2).all(|w| w[0] < w[1]);
        if let Some(&last) = outputs.last().filter(|last| !ascending || **last as usize >= tokens.len()) {
            let reason = format!("rows must ascend and stay below {}", tokens.len());
            return Err(EngineError::option("outputs", last as usize, reason));
        }
        if tokens.is_empty() {
            return Ok(None);
        }
        let end = start + tokens.len();
        loop {
            match self.pages.grow(end) {
                Ok(()) => break,
                Err(full) if !self.engine.prefixes.evict() => return Err(full.into()),
                Err(_) => {}
            }
        }
        let pages = self.pages.ids(end);
        let slice = Slice { sequence: SEQUENCE, tokens: tokens.to_vec(), start: start as u32, pages };
        let batch = Batch { slices: vec![slice], outputs: outputs.to_vec(), select };
        let mut output = None;
        for (_, result) in self.engine.run(batch) {
            let part = result.map_err(|error| match self.engine.stopped.clone() {
                Some(reason) => EngineError::Stopped { reason },
                None => EngineError::Run(error),
            })?;
            output = join(output, part);
        }
        self.position = end;
        Ok(output)
    }

    /// Runs `tokens` in batches of the engine's chunk size; returns the logits after the last one, `[vocab]`, if `last` asks for them.
    pub fn prefill(&mut self, tokens: &[u32], last: bool) -> Result<Option<Vec<f32>>, EngineError> {
        let chunk = self.engine.options.prefill_chunk;
        let mut logits = None;
        let chunks = tokens.len().div_ceil(chunk);
        for (i, part) in tokens.chunks(chunk).enumerate() {
            let row = [part.len() as u32 - 1];
            let outputs = if last && i + 1 == chunks { &row[..] } else { &[] };
            if let Some(HeadOutput::Logits(row)) = self.feed(part, outputs, Select::Logits)? {
                logits = Some(row);
            }
        }
        Ok(logits)
    }
}

/// Appends the rows of a later part.
fn join(first: Option<HeadOutput>, second: Option<HeadOutput>) -> Option<HeadOutput> {
    match (first, second) {
        (Some(HeadOutput::Logits(mut a)), Some(HeadOutput::Logits(b))) => {
            a.extend(b);
            Some(HeadOutput::Logits(a))
        }
        (Some(HeadOutput::Top(mut a)), Some(HeadOutput::Top(b))) => {
            a.extend(b);
            Some(HeadOutput::Top(a))
        }
        (first, second) => second.or(first),
    }
}
