//! A row that a device computed while it served, computed again: the judgement of a canary, by the same tolerances as the table of cases.

use std::sync::Arc;

use unicorn_core::{
    AttentionSpec, Batch, BatchLimits, Block, BlockId, Device, DeviceError, DeviceKind, HeadRow, KvType,
    OutputRow, PageId, Sample, SampleState, Select, SequenceId, SharedBuffer, Signal, Slice, StateCopy,
    StateGroup, StateLayout, StateWay, StreamId, TensorType, WeightSource, quant,
};

use crate::run::CHANCE;
use crate::{Feed, Tolerance};

const STREAM: StreamId = StreamId(0);
/// Elements of a block that the exact oracle expands to f32 at most: 1 GiB.
const EXACT_ELEMENTS_MAX: usize = 1 << 28;
/// Against an oracle that cannot be checked itself, so many times the tolerance are allowed: real activations have outliers, which the table's
/// random ones have not.
const UNCHECKED: f64 = 8.0;
/// Where two oracles differ, rounding matters for this row: so many times their difference are allowed.
const ROUNDING: f64 = 4.0;
/// Roundings of the residual stream that are no error: what a block adds is a difference of two f32.
const STREAM_ROUNDINGS: f64 = 4.0 * f32::EPSILON as f64;

/// What computes samples again.
pub struct Oracles<'a> {
    /// Other kernels than those that are judged, with activations rounded as fast kernels do.
    pub near: &'a dyn Device,
    /// Plain loops in float64.
    pub exact: &'a dyn Device,
}

/// How a sample compares.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Judged {
    /// Whether it is what it should be.
    pub right: bool,
    /// Root mean square of the error, relative to that of what it should be; infinite where something is not finite.
    pub nrmse: f64,
    /// Largest error, relative to the same.
    pub max_error: f64,
    /// What is allowed.
    pub allowed: Tolerance,
}

/// What a block made of a row: what it added to the residual stream, an embedding's row, or logits; and the keys and values of the position.
struct Values {
    main: Vec<f64>,
    state: Vec<f64>,
}

/// What was taken out of a device.
struct Taken<'a> {
    /// `(index, value)`.
    main: Vec<(usize, f64)>,
    /// The number of entries asked for, of a list of the best logits.
    best: Option<usize>,
    state: Vec<f64>,
    block: &'a Block,
    sample: &'a Sample,
}

/// Computes a sample again and compares. First with fast kernels; where these differ, with the exact ones, and then the difference of both
/// oracles tells how much rounding matters for this very row.
///
/// `kind` is that of the device that is judged. Errors when an oracle cannot run the block, which says nothing about the sample.
pub fn replay(
    sample: &Sample,
    block: &Block,
    source: &Arc<dyn WeightSource>,
    kind: DeviceKind,
    oracles: &Oracles<'_>,
) -> Result<Judged, DeviceError> {
    let kv = sample.state.as_ref().map_or(KvType::F32, |s| s.layout.ty);
    let rows = if matches!(block, Block::Head { .. }) {
        sample.outputs
    } else {
        sample.spans.iter().map(|s| s.tokens).sum()
    };
    let tolerance = Tolerance::of(block, kv, kind, rows);
    let taken = Taken::new(sample, block);
    let near = compute(sample, block, source, oracles.near)?;
    let first = taken.judge(&near, tolerance.times(CHANCE));
    let elements: usize = block.weights().iter().map(|w| w.elements()).sum();
    if first.right {
        return Ok(first);
    }
    if elements > EXACT_ELEMENTS_MAX {
        return Ok(taken.judge(&near, tolerance.times(UNCHECKED)));
    }
    let exact = compute(sample, block, source, oracles.exact)?;
    let rounding = Taken {
        main: near.main.iter().copied().enumerate().collect(),
        best: None,
        state: near.state,
        block,
        sample,
    };
    let rounding = rounding.judge(&exact, tolerance);
    let more = |allowed: f64, by: f64| CHANCE * allowed + ROUNDING * if by.is_finite() { by } else { 0.0 };
    let allowed = Tolerance {
        nrmse: more(tolerance.nrmse, rounding.nrmse),
        max_error: more(tolerance.max_error, rounding.max_error),
    };
    Ok(taken.judge(&exact, allowed))
}

impl Taken<'_> {
    fn new<'a>(sample: &'a Sample, block: &'a Block) -> Taken<'a> {
        let (mut main, mut best) = (Vec::new(), None);
        match &sample.output {
            Some((_, HeadRow::Logits(logits))) => main.extend(logits.iter().map(|l| *l as f64).enumerate()),
            Some((asked, HeadRow::Top(top))) => {
                main.extend(top.iter().map(|e| (e.token as usize, e.logit as f64)));
                best = match asked.select {
                    Select::Top(k) => Some(k),
                    Select::Logits | Select::Hidden => None,
                };
            }
            None => main.extend(added(sample, block, &sample.after).into_iter().enumerate()),
        }
        let state = match (block, &sample.state) {
            (Block::Attention { spec, .. }, Some(state)) => state_at(spec, state, sample.position),
            _ => Vec::new(),
        };
        Taken { main, best, state, block, sample }
    }

    fn judge(&self, want: &Values, allowed: Tolerance) -> Judged {
        let noise = |i: usize| match self.block {
            Block::Ffn { .. } | Block::Attention { .. } => {
                let x = self.sample.before.get(i).copied().unwrap_or(0.0) as f64;
                (x.abs() + want.main[i].abs()) * STREAM_ROUNDINGS
            }
            _ => 0.0,
        };
        let mut main = Errors::of(&want.main);
        for (index, got) in &self.main {
            main.add(want.main.get(*index).copied(), *got, noise(*index));
        }
        self.missing(want, &mut main);
        let mut state = Errors::of(&want.state);
        for (want, got) in want.state.iter().zip(&self.state) {
            state.add(Some(*want), *got, 0.0);
        }
        let (nrmse, max_error) = (main.nrmse().max(state.nrmse()), main.max_error().max(state.max_error()));
        let within = |errors: &Errors| {
            // The mean of few values spreads.
            let spread = 1.0 + 4.0 / (errors.count.max(1) as f64).sqrt();
            errors.nrmse() <= allowed.nrmse * spread && errors.max_error() <= allowed.max_error
        };
        Judged { right: within(&main) && within(&state), nrmse, max_error, allowed }
    }

    /// A logit that is larger than the last of a full list of the best ones should have been in it.
    fn missing(&self, want: &Values, errors: &mut Errors) {
        let Some(least) = self.best.filter(|k| *k == self.main.len()).and_then(|_| self.main.last()) else {
            return;
        };
        let listed = |index: usize| self.main.iter().any(|(i, _)| *i == index);
        let left_out = want.main.iter().enumerate().filter(|(i, w)| **w > least.1 && !listed(*i));
        let most = left_out.map(|(_, w)| w - least.1).fold(0.0, f64::max);
        errors.max = errors.max.max(most);
    }
}

/// Sums for relative errors.
struct Errors {
    /// Root mean square of what the values should be.
    rms: f64,
    count: usize,
    squares: f64,
    max: f64,
}

impl Errors {
    fn of(want: &[f64]) -> Errors {
        let finite = || want.iter().filter(|w| w.is_finite());
        let squares: f64 = finite().map(|w| w * w).sum();
        Errors { rms: (squares / finite().count().max(1) as f64).sqrt(), count: 0, squares: 0.0, max: 0.0 }
    }

    fn add(&mut self, want: Option<f64>, got: f64, noise: f64) {
        let error = match want {
            Some(want) if want == got => 0.0,
            Some(want) if want.is_finite() && got.is_finite() => ((got - want).abs() - noise).max(0.0),
            _ => f64::INFINITY,
        };
        self.count += 1;
        self.squares += error * error;
        self.max = self.max.max(error);
    }

    fn relative(&self, error: f64) -> f64 {
        if error == 0.0 { 0.0 } else { error / self.rms }
    }

    fn nrmse(&self) -> f64 {
        self.relative((self.squares / self.count.max(1) as f64).sqrt())
    }

    fn max_error(&self) -> f64 {
        self.relative(self.max)
    }
}

/// What a block added to the row, or the row itself after an embedding.
fn added(sample: &Sample, block: &Block, after: &[f32]) -> Vec<f64> {
    match block {
        Block::Embedding { .. } => after.iter().map(|a| *a as f64).collect(),
        _ => after.iter().zip(&sample.before).map(|(a, b)| *a as f64 - *b as f64).collect(),
    }
}

/// Runs the one row on an oracle; the block is unloaded again.
fn compute(
    sample: &Sample,
    block: &Block,
    source: &Arc<dyn WeightSource>,
    oracle: &dyn Device,
) -> Result<Values, DeviceError> {
    let layout = layout_of(sample, block);
    if let Some(layout) = &layout {
        oracle.reserve(layout)?;
    }
    let id = oracle.load(block, source)?;
    let values = run(sample, block, oracle, id, layout);
    oracle.unload(id);
    values
}

/// The pages that were taken out, and one that stands for those before them.
fn layout_of(sample: &Sample, block: &Block) -> Option<StateLayout> {
    let (state, spec) = (sample.state.as_ref()?, block.state()?);
    let pages = state.pages.rows() + 1;
    let positions = (sample.position / state.layout.page_tokens + 1) * state.layout.page_tokens;
    Some(StateLayout { positions, groups: vec![StateGroup { spec, pages }], ..state.layout.clone() })
}

fn run(
    sample: &Sample,
    block: &Block,
    oracle: &dyn Device,
    id: BlockId,
    layout: Option<StateLayout>,
) -> Result<Values, DeviceError> {
    let invalid = |what: String| DeviceError::Invalid { device: "canary".into(), what };
    let (vocab, width) = match block {
        Block::Embedding { spec, .. } => (spec.vocab, spec.width),
        Block::Head { spec, .. } => (spec.vocab, spec.width),
        Block::Attention { spec, .. } => (1, spec.width),
        Block::Ffn { spec, .. } => (1, spec.width),
        _ => return Err(invalid("a row of such a block cannot be computed alone".into())),
    };
    let (mut tables, mut start) = (Vec::new(), 0);
    if let (Some(layout), Some(state)) = (&layout, &sample.state) {
        oracle.reserve(layout)?;
        let pages: Vec<PageId> = (0..state.pages.rows() as PageId).collect();
        copy(oracle, id, &pages, StateWay::Restore(state.pages.clone()))?;
        let before = std::iter::repeat_n(pages.len() as PageId, state.first_page);
        tables.push(before.chain(pages).collect());
        start = sample.position as u32;
    }
    let asked = sample
        .output
        .as_ref()
        .map(|(asked, _)| OutputRow { edits: asked.edits.clone(), ..OutputRow::new(0, Select::Logits) });
    let token = if matches!(block, Block::Embedding { .. }) { sample.token.unwrap_or(0) } else { 0 };
    let slice = Slice {
        sequence: SequenceId(0),
        tokens: vec![token],
        start,
        tables,
        snapshots: Vec::new(),
        slot: None,
    };
    let limits = Arc::new(BatchLimits { vocab, state: layout });
    let batch =
        Batch::new(vec![slice], asked.into_iter().collect(), &limits).map_err(|e| invalid(e.to_string()))?;
    let feed = Feed::new(oracle, STREAM);
    let x = (!matches!(block, Block::Embedding { .. })).then_some(&sample.before[..]);
    let output = feed.run(&[id], &Arc::new(batch), x, width)?;
    let main = match output {
        Some(output) => output.logits.iter().map(|l| *l as f64).collect(),
        None => added(sample, block, &feed.residual(width)),
    };
    let state = match (block, &sample.state) {
        (Block::Attention { spec, .. }, Some(state)) => {
            let page = sample.position / state.layout.page_tokens - state.first_page;
            let host = SharedBuffer::new(1, state.pages.width())
                .ok_or_else(|| invalid("no memory for a page".into()))?;
            let host = Arc::new(host);
            copy(oracle, id, &[page as PageId], StateWay::Save(host.clone()))?;
            let first_page = state.first_page + page;
            state_at(spec, &SampleState { pages: host, first_page, ..state.clone() }, sample.position)
        }
        _ => Vec::new(),
    };
    Ok(Values { main, state })
}

fn copy(oracle: &dyn Device, mixer: BlockId, pages: &[PageId], way: StateWay) -> Result<(), DeviceError> {
    let done = Signal::new();
    let fence = done.fence();
    oracle.copy_state(StateCopy { mixer, pages: pages.to_vec(), way, after: Vec::new(), done });
    fence.wait().map_err(DeviceError::Reported)
}

/// Keys, then values, of a position, `[2][kv head][head_dim]`: see [`StateCopy`] for how a page has them.
fn state_at(spec: &AttentionSpec, state: &SampleState, position: usize) -> Vec<f64> {
    let StateLayout { page_tokens, ty, .. } = state.layout;
    let (page, slot) = (position / page_tokens - state.first_page, position % page_tokens);
    let mut bytes = vec![0; state.pages.width() * 4];
    state.pages.read_part(page, 0, &mut bytes);
    let Some(row) = ty.tensor_type().row_bytes(spec.head_dim) else { return Vec::new() };
    let mut out = vec![0.0; spec.head_dim];
    let mut all = Vec::with_capacity(2 * spec.kv_heads * spec.head_dim);
    for head in bytes.chunks_exact(row * page_tokens).take(2 * spec.kv_heads) {
        match ty {
            KvType::F32 | KvType::F16 => {
                quant::dequantize(ty.tensor_type(), &head[slot * row..(slot + 1) * row], &mut out);
            }
            KvType::Q8_0 => {
                let (values, scales) = head.split_at(page_tokens * spec.head_dim);
                let values = values[slot * spec.head_dim..].chunks_exact(32);
                let scales = scales[slot * spec.head_dim / 32 * 2..].chunks_exact(2);
                let blocks = scales.zip(values).take(spec.head_dim / 32);
                let blocks: Vec<u8> = blocks.flat_map(|(scale, values)| [scale, values].concat()).collect();
                quant::dequantize(TensorType::Q8_0, &blocks, &mut out);
            }
        }
        all.extend(out.iter().map(|v| *v as f64));
    }
    all
}
