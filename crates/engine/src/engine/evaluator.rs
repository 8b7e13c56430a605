//! The model without requests: for perplexity, benchmarks and comparisons of logits.

use std::sync::Arc;

use unicorn_core::{Batch, HeadOutput, OutputRow, Select, SequenceId, Slice};

use super::Engine;
use crate::EngineError;
use crate::executor::BatchResult;
use crate::kv::StatePages;
use crate::request::Failure;

/// One sequence that the caller feeds by hand. Its pages are freed on drop.
pub(crate) struct Evaluator<'a> {
    engine: &'a mut Engine,
    pages: StatePages,
    position: usize,
}

/// No request ever has this id.
const SEQUENCE: SequenceId = SequenceId(u64::MAX);

impl Engine {
    /// Direct access to the model: token by token, with logits, outside of any request. Waiting and running sequences stand still
    /// meanwhile; kept ones give way where pages are short.
    pub(crate) fn evaluator(&mut self) -> Evaluator<'_> {
        self.drain();
        Evaluator::new(self)
    }
}

impl<'a> Evaluator<'a> {
    /// Nothing may be in flight.
    fn new(engine: &'a mut Engine) -> Evaluator<'a> {
        let pages = engine.pools.empty();
        Evaluator { engine, pages, position: 0 }
    }

    /// Tokens fed so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Goes back to an earlier position: what was fed after it is forgotten. Where a sliding window has given up what is seen from
    /// there, everything is. Returns the position reached.
    pub fn rewind(&mut self, position: usize) -> usize {
        self.position = self.pages.truncate(self.position.min(position));
        self.position
    }

    /// Runs `tokens` at the current position, in batches of the engine's chunk size. `outputs` are the rows (ascending, each below
    /// `tokens.len()`) whose logits are wanted; without any, `None` comes back.
    ///
    /// Errors when the context or a pool is full, a token is out of range or a device fails; the position is what it was then, or 0
    /// where a sliding window has moved on.
    pub fn feed(
        &mut self,
        tokens: &[u32],
        outputs: &[u32],
        select: Select,
    ) -> Result<Option<HeadOutput>, EngineError> {
        let (context, start) = (self.engine.options.context, self.position);
        if let Some(reason) = self.engine.stopped.clone() {
            return Err(EngineError::Stopped { reason });
        }
        if start + tokens.len() > context {
            return Err(EngineError::Context { tokens: tokens.len(), start, context });
        }
        let ascending = outputs.windows(2).all(|w| w[0] < w[1]);
        if let Some(&last) = outputs.last().filter(|last| !ascending || **last as usize >= tokens.len()) {
            let reason = format!("rows must ascend and stay below {}", tokens.len());
            return Err(EngineError::option("outputs", last as usize, reason));
        }
        let lanes = self.engine.lanes();
        let chunk = self.engine.options.prefill_chunk.div_ceil(lanes);
        // Pages of a window are given up behind what has landed: no more is launched at once than the pools are made for.
        let ahead = chunk * (lanes + 1);
        let mut output = None;
        for (i, part) in tokens.chunks(ahead).enumerate() {
            let ran = self.run(part, i * ahead, chunk, outputs, select);
            if let Err(error) = ran.and_then(|results| self.join(results, &mut output)) {
                self.position = self.pages.truncate(start);
                return Err(error);
            }
            self.position += part.len();
            self.pages.slide(self.position);
        }
        Ok(output)
    }

    /// Runs `tokens`, which begin at row `first` of what is fed, in batches of `chunk`, one behind the other.
    fn run(
        &mut self,
        tokens: &[u32],
        first: usize,
        chunk: usize,
        outputs: &[u32],
        select: Select,
    ) -> Result<Vec<BatchResult>, EngineError> {
        self.reserve(self.position + tokens.len())?;
        let mut batches = Vec::new();
        for (i, part) in tokens.chunks(chunk).enumerate() {
            let (start, row) = (self.position + i * chunk, first + i * chunk);
            let here = outputs.iter().filter(|o| (row..row + part.len()).contains(&(**o as usize)));
            let outputs = here.map(|o| OutputRow { row: o - row as u32, select }).collect();
            let tables = self.pages.tables(start + part.len());
            let slice = Slice { sequence: SEQUENCE, tokens: part.to_vec(), start: start as u32, tables };
            batches.push(Arc::new(Batch::new(vec![slice], outputs, &self.engine.limits)?));
        }
        Ok(self.engine.executor.run(batches))
    }

    fn reserve(&mut self, end: usize) -> Result<(), EngineError> {
        loop {
            match self.pages.grow(end) {
                Ok(()) => return Ok(()),
                Err(full) if !self.engine.prefixes.evict() => return Err(full.into()),
                Err(_) => {}
            }
        }
    }

    /// Appends the rows of all batches.
    fn join(
        &mut self,
        results: Vec<BatchResult>,
        output: &mut Option<HeadOutput>,
    ) -> Result<(), EngineError> {
        for result in results {
            match (result, &mut *output) {
                (Ok(Some(rows)), Some(output)) => output.append(rows),
                (Ok(Some(rows)), None) => *output = Some(rows),
                (Ok(None), _) => {}
                (Err(error), _) if error.is_lost() => {
                    let reason = self.engine.stopped.get_or_insert(Failure(error)).clone();
                    return Err(EngineError::Stopped { reason });
                }
                (Err(error), _) => return Err(EngineError::Run(error)),
            }
        }
        Ok(())
    }

    /// Runs `tokens`; returns the logits after the last one, `[vocab]`, if `last` asks for them.
    pub fn prefill(&mut self, tokens: &[u32], last: bool) -> Result<Option<Vec<f32>>, EngineError> {
        let row = tokens.len().saturating_sub(1) as u32;
        let outputs = if last && !tokens.is_empty() { &[row][..] } else { &[] };
        Ok(self.feed(tokens, outputs, Select::Logits)?.map(|output| output.logits))
    }
}
