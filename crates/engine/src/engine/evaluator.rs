//! The model without requests: for perplexity, benchmarks and comparisons of logits.

use std::ops::Range;

use unicorn_core::{Batch, HeadOutput, OutputRow, Select, SequenceId, Slice};

use super::Engine;
use crate::EngineError;
use crate::executor::{BatchResult, Ended, Landed};
use crate::kv::StatePages;
use crate::request::Failure;

/// One sequence that the caller feeds by hand. Its pages are freed on drop.
pub(crate) struct Evaluator<'a> {
    engine: &'a mut Engine,
    pages: StatePages,
    position: usize,
}

/// The rows of what is fed whose logits are wanted.
struct OutputRows<'a> {
    outputs: &'a [u32],
    select: Select,
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
    /// there, everything is; with recurrent state it goes on to the last position whose state is kept. Returns the position reached.
    pub fn rewind(&mut self, position: usize) -> usize {
        self.position = self.pages.truncate(self.position.min(position));
        self.position
    }

    /// Runs `tokens` at the current position, in batches of the engine's chunk size. `outputs` are the rows (ascending, each below
    /// `tokens.len()`) whose logits are wanted; without any, `None` comes back.
    ///
    /// Errors when the context or a pool is full, a token is out of range or a device fails; the position is what it was then, or an earlier
    /// one where state has moved on.
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
        if self.engine.encodes() {
            return Err(EngineError::Encoder);
        }
        if start + tokens.len() > context {
            return Err(EngineError::Context { tokens: tokens.len(), start, context });
        }
        let ascending = outputs.windows(2).all(|w| w[0] < w[1]);
        if let Some(&last) = outputs.last().filter(|last| !ascending || **last as usize >= tokens.len()) {
            let reason = format!("rows must ascend and stay below {}", tokens.len());
            return Err(EngineError::option("outputs", last as usize, reason));
        }
        let rows = OutputRows { outputs, select };
        let mut output = None;
        let ran = self.run(tokens, &rows).and_then(|results| self.join(results, &mut output));
        if let Err(error) = ran {
            self.position = self.pages.truncate(start);
            return Err(error);
        }
        Ok(output)
    }

    /// Runs `tokens` in batches, one behind the other and as many at once as there is room for. Pages of a window are given up as soon as
    /// what sees them has landed.
    fn run(&mut self, tokens: &[u32], rows: &OutputRows<'_>) -> Result<Vec<BatchResult>, EngineError> {
        let (start, phase) = (self.position, self.engine.phase(tokens.len()));
        let mut launched = 0;
        let mut flights: Vec<(u64, usize, Option<BatchResult>)> = Vec::new();
        loop {
            let failed = flights.iter().any(|f| matches!(f.2, Some(Err(_))));
            while launched < tokens.len() && !failed && self.engine.executor.has_room() {
                let next = self.engine.next_part(tokens.len(), launched, phase);
                if next == 0 {
                    break;
                }
                let end = launched + next;
                let made = self
                    .reserve(start + launched, start + end)
                    .and_then(|()| self.batch(tokens, start, launched..end, rows));
                let batch = match made {
                    Ok(batch) => batch,
                    // What lands next may give up pages of a window.
                    Err(EngineError::Kv(_)) if self.engine.executor.in_flight() > 0 => break,
                    // What is in flight reads pages that the caller may free.
                    Err(error) => {
                        self.engine.drain();
                        return Err(error);
                    }
                };
                self.engine.save_left();
                let pages = &mut [(SEQUENCE, &mut self.pages)];
                let flight = Engine::send(&mut self.engine.executor, batch, phase, pages);
                flights.extend(flight.map(|id| (id, end, None)));
                launched = end;
            }
            let Some(landed) = self.landed() else { break };
            if let Some(flight) = flights.iter_mut().find(|f| f.0 == landed.flight) {
                flight.2 = Some(landed.result);
            }
            let landed = flights.iter().take_while(|f| matches!(f.2, Some(Ok(_)))).last();
            if let Some(end) = landed.map(|f| f.1).filter(|end| start + end > self.position) {
                if let Some(phase) = phase {
                    self.pages.arrived(phase, self.position, start + end);
                }
                self.position = start + end;
                self.pages.slide(self.position);
            }
        }
        Ok(flights.into_iter().filter_map(|f| f.2).collect())
    }

    /// The next batch that has landed; `None` when none is in flight.
    fn landed(&mut self) -> Option<Landed> {
        loop {
            match self.engine.executor.ended(true)? {
                Ended::Batch(landed) => return Some(landed),
                other => self.engine.take_in(other),
            }
        }
    }

    fn batch(
        &self,
        tokens: &[u32],
        start: usize,
        part: Range<usize>,
        rows: &OutputRows<'_>,
    ) -> Result<Batch, EngineError> {
        let here = rows.outputs.iter().filter(|o| part.contains(&(**o as usize)));
        let select = rows.select;
        let outputs = here.map(|o| OutputRow::new(o - part.start as u32, select)).collect();
        let (from, to) = (start + part.start, start + part.end);
        let (tables, snapshots) = (self.pages.tables(from, to), self.pages.snapshots(from, to));
        let (tokens, start) = (tokens[part.clone()].to_vec(), from as u32);
        let slice = Slice { sequence: SEQUENCE, tokens, start, tables, snapshots, slot: None };
        Ok(Batch::new(vec![slice], outputs, &self.engine.limits)?)
    }

    fn reserve(&mut self, start: usize, end: usize) -> Result<(), EngineError> {
        Ok(self.engine.prefixes.grow(&mut self.pages, start, end, 0)?)
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
