//! Running one case on a device and comparing with the oracle.

use std::sync::Arc;

use unicorn_core::quant::Random;
use unicorn_core::{
    Adjustment, Batch, BatchLimits, Block, BlockId, Device, DeviceError, Edits, HeadOutput, KvType,
    OutputRow, RowOutput, Select, SequenceId, Slice, Span, StateGroup, StateLayout, StreamId, TokenMask,
    TopEntry, WeightSource,
};

use crate::synthetic::SyntheticSource;
use crate::{Case, Feed, Tolerance, states};

/// Values that a comparison rests on at least: small outputs are computed again with fresh input until there are as many.
const VALUES_MIN: usize = 256;
/// Largest part of a case's past that is computed in one batch.
const PAST_CHUNK: usize = 256;
const PAGE_TOKENS: usize = 32;
const STREAM: StreamId = StreamId(0);
/// Pages of recurrent state of a sequence: two to go from one to the other, one for a snapshot.
const STATES: usize = 3;
/// Rows of a sequence's past of recurrent state that are computed in one batch.
const STATE_CHUNK: usize = 3;
/// The best tokens that rows ask for.
const TOP: usize = 5;
/// Largest error of a hidden state after a norm in f32.
const HIDDEN_ERROR: f32 = 1e-5;

/// Why a case could not be compared.
#[derive(thiserror::Error, Debug)]
pub enum CaseError {
    /// A device refused or failed.
    #[error("{case} (seed {seed}): {source}")]
    Device {
        /// Case name.
        case: String,
        /// Seed of weights and input.
        seed: u64,
        /// What the device said.
        source: DeviceError,
    },
    /// A device broke its contract in a way that is no matter of tolerance.
    #[error("{case} (seed {seed}): {what}")]
    Contract {
        /// Case name.
        case: String,
        /// Seed of weights and input.
        seed: u64,
        /// What was wrong.
        what: String,
    },
}

impl CaseError {
    /// True when a device said that it has no kernel for the case: a gap, not a fault.
    pub fn is_unsupported(&self) -> bool {
        use DeviceError::{NoKernel, Unsupported};
        matches!(self, CaseError::Device { source: NoKernel { .. } | Unsupported { .. }, .. })
    }
}

/// How close a device came.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// Case name.
    pub case: String,
    /// Seed of weights and input: the same seed gives the same comparison.
    pub seed: u64,
    /// Root mean square of the error, relative to that of the reference; infinite when a value was not finite.
    pub nrmse: f64,
    /// Largest error, relative to the root mean square of the reference.
    pub max_error: f64,
    /// What is allowed.
    pub tolerance: Tolerance,
}

impl Outcome {
    /// True within tolerance.
    pub fn passed(&self) -> bool {
        self.is_within(1.0)
    }

    /// True within so many times the tolerance.
    fn is_within(&self, times: f64) -> bool {
        self.nrmse <= times * self.tolerance.nrmse && self.max_error <= times * self.tolerance.max_error
    }
}

/// Past its tolerance by less than this, a result may be so by chance.
pub(crate) const CHANCE: f64 = 2.0;
/// Other seeds that then decide.
const RETRIALS: u64 = 2;

/// Compares as [`run`] does, and rules chance out: inputs are random, tolerances hold for nearly all of them, and the table has hundreds of
/// cases. A case a little past its tolerance runs again with other seeds, and is wrong if it is with any of them; what comes back is the
/// first outcome then, else the last.
pub fn judge(case: &Case, device: &dyn Device, oracle: &dyn Device, seed: u64) -> Result<Outcome, CaseError> {
    let first = run(case, device, oracle, seed)?;
    if first.passed() || !first.is_within(CHANCE) {
        return Ok(first);
    }
    let mut last = None;
    for retrial in 1..=RETRIALS {
        let again = run(case, device, oracle, seed.rotate_left(17) ^ retrial)?;
        if !again.passed() {
            return Ok(first);
        }
        last = Some(again);
    }
    Ok(last.unwrap_or(first))
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { case, seed, nrmse, max_error, tolerance } = self;
        let verdict = if self.passed() { "ok" } else { "FAILED" };
        write!(
            f,
            "{verdict:6} {case}: nrmse {nrmse:.2e} of {:.1e}, max error {max_error:.2e} of {:.1e}, seed {seed}",
            tolerance.nrmse, tolerance.max_error
        )
    }
}

/// Runs a case with weights and input drawn from `seed` on `device` and on `oracle`, which must be different devices.
///
/// What is compared: the logits of a head, the rows of an embedding, and what any other block adds to the residual stream,
/// also while it fills the cache with the case's past. Blocks are unloaded again; the KV cache is reserved anew.
pub fn run(case: &Case, device: &dyn Device, oracle: &dyn Device, seed: u64) -> Result<Outcome, CaseError> {
    let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(seed));
    let device_error = |source| CaseError::Device { case: case.name.clone(), seed, source };
    let want = Loaded::new(oracle, case, &source).map_err(device_error)?;
    let got = Loaded::new(device, case, &source).map_err(device_error)?;
    let kind = device.profile().kind;
    let mut run = Run { case, seed, random: Random::new(seed), got, want, error: Error::default() };
    run.all()?;
    Ok(Outcome {
        case: case.name.clone(),
        seed,
        nrmse: run.error.nrmse(),
        max_error: run.error.max_error(),
        tolerance: case.tolerance.on(kind, &case.block, case.most_rows()),
    })
}

/// The case's block on one device; unloaded on drop.
struct Loaded<'a> {
    device: &'a dyn Device,
    feed: Feed<'a>,
    block: BlockId,
    limits: Arc<BatchLimits>,
}

impl<'a> Loaded<'a> {
    fn new(
        device: &'a dyn Device,
        case: &Case,
        source: &Arc<dyn WeightSource>,
    ) -> Result<Loaded<'a>, DeviceError> {
        let groups = |pages: usize| case.block.state().map(|spec| vec![StateGroup { spec, pages }]);
        let layout = |pages: usize, ty| {
            let positions = pages * PAGE_TOKENS;
            groups(pages).map(|groups| StateLayout { page_tokens: PAGE_TOKENS, positions, ty, groups })
        };
        // A device holds what it loads against the state that is reserved: that of an earlier case may not fit these heads.
        if let Some(small) = layout(1, KvType::F16) {
            device.reserve(&small)?;
        }
        let block = device.load(&case.block, source)?;
        // Twice the pages needed, so that wrong page numbers have somewhere wrong to point.
        let state = layout(2 * case.batch.iter().map(|span| pages_of(case, span)).sum::<usize>(), case.kv);
        let vocab = match &case.block {
            Block::Embedding { spec, .. } => spec.vocab,
            Block::Head { spec, .. } => spec.vocab,
            Block::EncoderEmbedding { spec, .. } => spec.vocab,
            _ => 1,
        };
        let limits = Arc::new(BatchLimits { vocab, state });
        let loaded = Loaded { device, feed: Feed::new(device, STREAM), block, limits };
        if let Some(state) = &loaded.limits.state {
            device.reserve(state)?;
        }
        Ok(loaded)
    }

    /// Runs the block over a residual stream, or over tokens, and returns what it leaves there, with what a head produced.
    fn run(
        &self,
        x: Option<&[f32]>,
        width: usize,
        batch: &Arc<Batch>,
    ) -> Result<(Vec<f32>, Option<HeadOutput>), DeviceError> {
        let output = self.feed.run(&[self.block], batch, x, width)?;
        Ok((self.feed.residual(batch.rows() * width), output))
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        self.device.unload(self.block);
    }
}

fn pages_of(case: &Case, span: &Span) -> usize {
    match case.block.state() {
        Some(spec) if spec.is_recurrent() => STATES,
        _ => (span.past + span.tokens).div_ceil(PAGE_TOKENS),
    }
}

struct Run<'a> {
    case: &'a Case,
    seed: u64,
    random: Random,
    got: Loaded<'a>,
    want: Loaded<'a>,
    error: Error,
}

impl Run<'_> {
    fn all(&mut self) -> Result<(), CaseError> {
        match &self.case.block {
            Block::Attention { spec, .. } => {
                let sequences = self.sequences();
                self.past(&sequences, spec.width)?;
                let spans: Vec<_> = self.case.batch.iter().map(|s| (s.past, s.tokens)).collect();
                let batch = self.batch(&sequences, &spans, &[])?;
                self.block(batch, spec.width)
            }
            Block::ShortConv { spec, .. } => self.recurrent(spec.width),
            Block::Ffn { spec, .. } => self.repeat(spec.width, |run, batch| run.block(batch, spec.width)),
            Block::Head { spec, .. } => self.repeat(spec.vocab, |run, batch| run.head(batch, spec.width)),
            Block::Embedding { spec, .. } => {
                self.repeat(spec.width, |run, batch| run.stream(batch, spec.width, false))
            }
            Block::EncoderEmbedding { spec, .. } => {
                self.repeat(spec.width, |run, batch| run.stream(batch, spec.width, false))
            }
            Block::EncoderAttention { spec, .. } => {
                self.repeat(spec.width, |run, batch| run.stream(batch, spec.width, true))
            }
            Block::EncoderFfn { spec, .. } => {
                self.repeat(spec.width, |run, batch| run.stream(batch, spec.width, true))
            }
            Block::EncoderHead { spec } => {
                self.repeat(spec.width, |run, batch| run.hidden(batch, spec.width))
            }
        }
    }

    /// Repeats `once` until enough values were compared; `cols` values come from each row.
    fn repeat(
        &mut self,
        cols: usize,
        mut once: impl FnMut(&mut Self, Arc<Batch>) -> Result<(), CaseError>,
    ) -> Result<(), CaseError> {
        let times = VALUES_MIN.div_ceil(self.case.rows() * cols).max(1);
        for _ in 0..times {
            let spans: Vec<_> = self.case.batch.iter().map(|s| (s.past, s.tokens)).collect();
            let sequences: Vec<_> = (0..spans.len() as u64).map(|id| (SequenceId(id), Vec::new())).collect();
            let tokens = self.tokens();
            let batch = self.batch(&sequences, &spans, &tokens)?;
            once(self, batch)?;
        }
        Ok(())
    }

    /// Each sequence with pages drawn without repetition from the whole pool, in no order.
    fn sequences(&mut self) -> Vec<(SequenceId, Vec<u32>)> {
        let pages_of = |span: &Span| pages_of(self.case, span);
        let needed: usize = self.case.batch.iter().map(pages_of).sum();
        let mut pool: Vec<u32> = (0..2 * needed as u32).collect();
        for i in 0..needed {
            let other = i + self.random.below(pool.len() - i);
            pool.swap(i, other);
        }
        let mut free = pool.into_iter();
        let mut sequence =
            |(i, span): (usize, &Span)| (SequenceId(i as u64), free.by_ref().take(pages_of(span)).collect());
        self.case.batch.iter().enumerate().map(&mut sequence).collect()
    }

    /// Fills the cache with the case's past, sequence by sequence.
    fn past(&mut self, sequences: &[(SequenceId, Vec<u32>)], width: usize) -> Result<(), CaseError> {
        for (sequence, span) in sequences.iter().zip(&self.case.batch) {
            for start in (0..span.past).step_by(PAST_CHUNK) {
                let tokens = PAST_CHUNK.min(span.past - start);
                let batch = self.batch(std::slice::from_ref(sequence), &[(start, tokens)], &[])?;
                self.block(batch, width)?;
            }
        }
        Ok(())
    }

    /// Fills the past from state to state, a few rows at a time. Then the batch: every other sequence updates its state in place, the rest leave
    /// it, and keep one within. Then all go on from where they ended, and from what was kept within.
    fn recurrent(&mut self, width: usize) -> Result<(), CaseError> {
        let (sequences, spans) = (self.sequences(), self.case.batch.clone());
        let mut at = vec![0; spans.len()];
        for (index, ((sequence, pages), span)) in sequences.iter().zip(&spans).enumerate() {
            for start in (0..span.past).step_by(STATE_CHUNK) {
                let tokens = STATE_CHUNK.min(span.past - start);
                let (from, to) = (pages[at[index]], pages[1 - at[index]]);
                at[index] = 1 - at[index];
                self.states(width, vec![state_slice(*sequence, start, tokens, from, None, to)])?;
            }
        }
        let (mut batch, mut ends, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for (index, ((sequence, pages), span)) in sequences.iter().zip(&spans).enumerate() {
            let (from, other, end) = (pages[at[index]], pages[1 - at[index]], span.past + span.tokens);
            let to = if index % 2 == 0 { from } else { other };
            let within = span.past + span.tokens.div_ceil(2);
            let snapshot = (within < end).then_some((within as u32, pages[2]));
            batch.push(state_slice(*sequence, span.past, span.tokens, from, snapshot, to));
            ends.push(state_slice(*sequence, end, 1 + index % 2, to, None, to));
            kept.extend(snapshot.map(|(_, page)| state_slice(*sequence, within, 2, page, None, page)));
        }
        [batch, ends, kept]
            .into_iter()
            .filter(|slices| !slices.is_empty())
            .try_for_each(|s| self.states(width, s))
    }

    fn states(&mut self, width: usize, slices: Vec<Slice>) -> Result<(), CaseError> {
        let batch =
            Batch::new(slices, Vec::new(), &self.got.limits).map_err(|e| self.contract(e.to_string()))?;
        self.block(Arc::new(batch), width)
    }

    /// Compares what a mixer or ffn adds.
    fn block(&mut self, batch: Arc<Batch>, width: usize) -> Result<(), CaseError> {
        let x = self.random.normals(batch.rows() * width, 1.0);
        let want = self.want.run(Some(&x), width, &batch).map_err(|e| self.device_error(e))?.0;
        let got = self.got.run(Some(&x), width, &batch).map_err(|e| self.device_error(e))?.0;
        for ((want, got), x) in want.iter().zip(&got).zip(&x) {
            self.error.add(*want as f64 - *x as f64, *got as f64 - *x as f64);
        }
        Ok(())
    }

    /// Random tokens for an embedding, the last row of the table among them; none for other blocks.
    fn tokens(&mut self) -> Vec<u32> {
        let vocab = match &self.case.block {
            Block::Embedding { spec, .. } => spec.vocab,
            Block::EncoderEmbedding { spec, .. } => spec.vocab,
            _ => return Vec::new(),
        };
        let mut tokens: Vec<u32> = (0..self.case.rows()).map(|_| self.random.below(vocab) as u32).collect();
        tokens.last_mut().into_iter().for_each(|last| *last = vocab as u32 - 1);
        tokens
    }

    /// Compares what a block writes anew, from tokens or from what was there.
    fn stream(&mut self, batch: Arc<Batch>, width: usize, reads: bool) -> Result<(), CaseError> {
        let x = reads.then(|| self.random.normals(batch.rows() * width, 1.0));
        let want = self.want.run(x.as_deref(), width, &batch).map_err(|e| self.device_error(e))?.0;
        let got = self.got.run(x.as_deref(), width, &batch).map_err(|e| self.device_error(e))?.0;
        want.iter().zip(&got).for_each(|(want, got)| self.error.add(*want as f64, *got as f64));
        Ok(())
    }

    /// Compares the hidden states of all rows, and of every third.
    fn hidden(&mut self, batch: Arc<Batch>, width: usize) -> Result<(), CaseError> {
        let x = self.random.normals(batch.rows() * width, 1.0);
        for step in [1, 3] {
            let outputs = batch.outputs().iter().step_by(step).cloned().collect();
            let asked = Batch::of_whole_sequences(batch.slices().to_vec(), outputs, batch.limits());
            let asked = Arc::new(asked.map_err(|e| self.contract(e.to_string()))?);
            let [want, got] = [&self.want, &self.got]
                .map(|on| on.run(Some(&x), width, &asked).map_err(|e| self.device_error(e)))
                .map(|output| Ok(output?.1.unwrap_or_default().hidden));
            let (want, got): (Vec<f32>, Vec<f32>) = (want?, got?);
            if got.len() != want.len() || want.is_empty() {
                return Err(self.contract(format!("{} hidden values, wanted {}", got.len(), want.len())));
            }
            want.iter().zip(&got).for_each(|(want, got)| self.error.add(*want as f64, *got as f64));
        }
        Ok(())
    }

    /// Holds hidden states and logits that are asked for side by side against those of the oracle, and selections against these logits: with
    /// fewer rows of logits another kernel may run than before.
    fn beside(&mut self, x: &[f32], width: usize, batch: &Batch) -> Result<(), CaseError> {
        let vocab = batch.limits().vocab;
        let asked = |selects: bool| {
            let select = |row: u32| match row % 3 {
                0 => Select::Hidden,
                1 if selects => Select::Top(TOP.min(vocab)),
                _ => Select::Logits,
            };
            let outputs = (0..batch.rows() as u32).map(|row| OutputRow::new(row, select(row))).collect();
            let asked = Batch::new(batch.slices().to_vec(), outputs, batch.limits());
            asked.map(Arc::new).map_err(|e| self.contract(e.to_string()))
        };
        let (plain, selecting) = (asked(false)?, asked(true)?);
        let run = |on: &Loaded<'_>, batch| {
            Ok(on.run(Some(x), width, batch).map_err(|e| self.device_error(e))?.1.unwrap_or_default())
        };
        let (want, got) = (run(&self.want, &plain)?, run(&self.got, &plain)?);
        let selected = run(&self.got, &selecting)?;
        let (Some(want), Some(got), Some(selected)) =
            (want.rows(&plain), got.rows(&plain), selected.rows(&selecting))
        else {
            return Err(self.contract("the output is not what was asked for".into()));
        };
        for ((want, got), selected) in want.into_iter().zip(got).zip(selected) {
            match (want, got) {
                (RowOutput::Hidden(want), RowOutput::Hidden(got)) => {
                    let near = |(w, g): (&f32, &f32)| (w - g).abs() <= HIDDEN_ERROR * (1.0 + w.abs());
                    if want.len() != got.len() || !want.iter().zip(got).all(near) {
                        return Err(self.contract("hidden states are others".into()));
                    }
                }
                (RowOutput::Logits(want), RowOutput::Logits(got)) if want.len() == got.len() => {
                    want.iter().zip(got).for_each(|(want, got)| self.error.add(*want as f64, *got as f64));
                    self.selection(got, selected)?;
                }
                _ => return Err(self.contract("rows are not what was asked for".into())),
            }
        }
        Ok(())
    }

    /// Compares logits, then checks that the device's selection is that of its own logits, with and without edits.
    fn head(&mut self, batch: Arc<Batch>, width: usize) -> Result<(), CaseError> {
        let x = self.random.normals(batch.rows() * width, 1.0);
        let want = self.logits(&self.want, &x, width, &batch)?;
        let got = self.logits(&self.got, &x, width, &batch)?;
        if want.len() != got.len() {
            return Err(self.contract(format!("{} logits, wanted {}", got.len(), want.len())));
        }
        want.iter().zip(&got).for_each(|(want, got)| self.error.add(*want as f64, *got as f64));
        self.beside(&x, width, &batch)?;
        let vocab = batch.limits().vocab;
        // Every other row asks for its best ones, then all of them do.
        for (alternating, edited) in [(true, false), (false, false), (true, true), (false, true)] {
            let select = |row: u32| {
                if alternating && row % 2 == 1 { Select::Logits } else { Select::Top(TOP.min(vocab)) }
            };
            let outputs = (0..batch.rows() as u32).map(|row| {
                let edits = if edited { self.edits(row, vocab) } else { Edits::default() };
                OutputRow { edits, ..OutputRow::new(row, select(row)) }
            });
            let outputs = outputs.collect();
            let asked = Batch::new(batch.slices().to_vec(), outputs, batch.limits());
            let asked = Arc::new(asked.map_err(|e| self.contract(e.to_string()))?);
            let output = self.got.run(Some(&x), width, &asked).map_err(|e| self.device_error(e))?.1;
            let rows = output.as_ref().and_then(|o| o.rows(&asked));
            let rows = rows.ok_or_else(|| self.contract("the output is not what was asked for".into()))?;
            for ((logits, row), asked) in got.chunks_exact(vocab).zip(rows).zip(asked.outputs()) {
                let mut edited = logits.to_vec();
                asked.edits.apply(0, &mut edited);
                self.selection(&edited, row)?;
            }
        }
        Ok(())
    }

    /// Random edits: a mask of few tokens, which are fewer than are asked for, one of half of them, or none; and adjustments or none.
    fn edits(&mut self, row: u32, vocab: usize) -> Edits {
        let random = &mut self.random;
        let narrow: Vec<u32> = (0..3).map(|_| random.below(vocab) as u32).collect();
        let mut tokens: Vec<u32> = (0..40).map(|_| random.below(vocab) as u32).collect();
        let mask = match row % 3 {
            0 => {
                // What a narrow mask leaves is adjusted too.
                tokens.extend(&narrow);
                Some(TokenMask::of(vocab, narrow))
            }
            1 => Some(TokenMask::new((0..vocab.div_ceil(32)).map(|_| 1 | random.bits() as u32).collect())),
            _ => None,
        };
        tokens.sort_unstable();
        tokens.dedup();
        let adjustments = tokens.into_iter().filter(|_| row % 4 != 3).map(|token| Adjustment {
            token,
            bias: random.normal(),
            divisor: random.normal().abs() + 0.1,
            penalties: [random.normal(), random.normal()],
        });
        Edits { adjustments: adjustments.collect(), mask: mask.map(Arc::new) }
    }

    /// Holds what a row returned against the logits of that row.
    fn selection(&self, logits: &[f32], row: RowOutput<'_>) -> Result<(), CaseError> {
        let list = match row {
            RowOutput::Logits(again) if again == logits => return Ok(()),
            RowOutput::Logits(_) => return Err(self.contract("logits beside selections are others".into())),
            RowOutput::Hidden(_) => {
                return Err(self.contract("hidden states of a row that asks for none".into()));
            }
            RowOutput::Top(list) => list,
        };
        let entries = (0..).zip(logits).map(|(token, logit)| TopEntry { token, logit: *logit });
        let mut best: Vec<TopEntry> = entries.filter(TopEntry::is_choosable).collect();
        best.sort_by(TopEntry::rank);
        best.truncate(TOP);
        if best != list {
            return Err(self.contract(format!("the best are {list:?}, logits say {best:?}")));
        }
        Ok(())
    }

    fn logits(
        &self,
        on: &Loaded<'_>,
        x: &[f32],
        width: usize,
        batch: &Arc<Batch>,
    ) -> Result<Vec<f32>, CaseError> {
        let output = on.run(Some(x), width, batch).map_err(|e| self.device_error(e))?.1;
        match output {
            Some(output) if output.rows(batch).is_some() => Ok(output.logits),
            _ => Err(self.contract("the output is not what was asked for".into())),
        }
    }

    /// One slice per sequence, `(start, tokens)` each; all rows are outputs. Without `tokens` all are token 0.
    fn batch(
        &self,
        sequences: &[(SequenceId, Vec<u32>)],
        spans: &[(usize, usize)],
        tokens: &[u32],
    ) -> Result<Arc<Batch>, CaseError> {
        let mut next = tokens.iter().copied().chain(std::iter::repeat(0));
        let limits = &self.got.limits;
        let slice = |((sequence, pages), (start, count)): (&(SequenceId, Vec<u32>), &(usize, usize))| {
            let pages = pages[..pages.len().min((start + count).div_ceil(PAGE_TOKENS))].to_vec();
            Slice {
                sequence: *sequence,
                tokens: next.by_ref().take(*count).collect(),
                slot: None,
                snapshots: Vec::new(),
                start: *start as u32,
                tables: limits.state.iter().map(|_| pages.clone()).collect(),
            }
        };
        let slices = sequences.iter().zip(spans).map(slice).collect();
        let rows: u32 = spans.iter().map(|s| s.1 as u32).sum();
        let encodes = self.case.is_of_encoder();
        let select = if encodes { Select::Hidden } else { Select::Logits };
        let outputs = (0..rows).map(|row| OutputRow::new(row, select)).collect();
        let make = if encodes { Batch::of_whole_sequences } else { Batch::new };
        make(slices, outputs, limits).map(Arc::new).map_err(|e| self.contract(e.to_string()))
    }

    fn device_error(&self, source: DeviceError) -> CaseError {
        CaseError::Device { case: self.case.name.clone(), seed: self.seed, source }
    }

    fn contract(&self, what: String) -> CaseError {
        CaseError::Contract { case: self.case.name.clone(), seed: self.seed, what }
    }
}

/// A slice with one group of recurrent state.
fn state_slice(
    sequence: SequenceId,
    start: usize,
    tokens: usize,
    from: u32,
    within: Option<(u32, u32)>,
    to: u32,
) -> Slice {
    let (tokens, start, tables) = (vec![0; tokens], start as u32, Vec::new());
    let mut slice = Slice { sequence, tokens, start, tables, snapshots: Vec::new(), slot: None };
    states::name(&mut slice, from, within, to);
    slice
}

/// Sums for the relative errors.
#[derive(Default)]
struct Error {
    count: usize,
    squares_error: f64,
    squares_want: f64,
    max: f64,
}

impl Error {
    fn add(&mut self, want: f64, got: f64) {
        let error = if got.is_finite() { (got - want).abs() } else { f64::INFINITY };
        self.count += 1;
        self.squares_error += error * error;
        self.squares_want += want * want;
        self.max = self.max.max(error);
    }

    fn nrmse(&self) -> f64 {
        if self.squares_error == 0.0 { 0.0 } else { (self.squares_error / self.squares_want).sqrt() }
    }

    fn max_error(&self) -> f64 {
        if self.max == 0.0 { 0.0 } else { self.max / (self.squares_want / self.count as f64).sqrt() }
    }
}
