//! Work whose results nobody looks at: it shows which kernels a device records and compiles for the case table and for models of real
//! shapes.

use std::sync::Arc;

use unicorn_core::{
    Adjustment, Batch, BatchError, BatchLimits, Block, BlockId, Device, DeviceError, Edits, KvType,
    OutputRow, Select, SequenceId, Slice, Span, StateGroup, StateLayout, StreamId, TensorType, TokenMask,
    WeightSource, state_groups,
};

use crate::case::is_of_encoder;
use crate::synthetic::SyntheticSource;
use crate::{Feed, shapes, table};

const PAGE_TOKENS: usize = 32;
const STREAM: StreamId = StreamId(0);
/// Layers of a model that are loaded: a first and a following one, since kernels reach across neighbours.
const LAYERS: usize = 2;
/// Tokens of the prompt chunks that a model runs.
const PROMPTS: [usize; 5] = [8, 33, 64, 200, 512];
/// Sequences that decode at once, at most, with matrix-vector products.
const DECODES: usize = 8;
/// A depth at which attention is split.
const DEPTH: usize = 4000;

/// Blocks and the batches that run over them.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Unique: a case's name, or `model/SHAPE/TYPE/kv-TYPE`.
    pub name: String,
    /// Run one after the other; if there are several, then each by itself too, as a placement on several devices does.
    pub blocks: Vec<Block>,
    /// Each is run by itself.
    pub batches: Vec<Vec<Span>>,
    /// Element type of the KV cache.
    pub kv: KvType,
}

/// The plans whose names contain every part of the filter: the case table, then models of every shape and type.
pub fn plans(filter: &str) -> Vec<Plan> {
    let mut plans: Vec<Plan> = table().into_iter().map(of_case).collect();
    for shape in shapes::names() {
        for ty in TensorType::ALL {
            for kv in [KvType::F16, KvType::F32, KvType::Q8_0] {
                // Cache kernels do not see the weights' type: one quantized and one float type are enough for the rarer caches.
                if kv == KvType::F16 || matches!(ty, TensorType::Q8_0 | TensorType::F16) {
                    plans.extend(of_model(shape, ty, kv));
                }
            }
        }
    }
    plans.retain(|p| filter.split_whitespace().all(|part| p.name.contains(part)));
    plans
}

fn of_case(case: crate::Case) -> Plan {
    Plan { name: case.name, blocks: vec![case.block], batches: vec![case.batch], kv: case.kv }
}

fn of_model(shape: &str, ty: TensorType, kv: KvType) -> Option<Plan> {
    let mut blocks = shapes::model(shape, ty)?.blocks;
    // Embedding, layers of a mixer and an ffn each, head.
    let head = blocks.pop()?;
    blocks.truncate(1 + 2 * LAYERS);
    blocks.push(head);
    let name = |ty: TensorType| ty.name().to_lowercase();
    let decode = |past: usize| (1..=DECODES).map(move |n| vec![Span::new(past, 1); n]);
    // More rows: of sequences with one each, and with a few each as speculative decoding has.
    let many = [vec![Span::new(DEPTH, 1); DECODES + 1], vec![Span::new(DEPTH, 3); 4]];
    let prompts = PROMPTS.iter().flat_map(|n| [vec![Span::new(0, *n)], vec![Span::new(DEPTH, *n)]]);
    Some(Plan {
        name: format!("model/{shape}/{}/kv-{}", name(ty), name(kv.tensor_type())),
        blocks,
        batches: decode(0).chain(decode(DEPTH)).chain(many).chain(prompts).collect(),
        kv,
    })
}

/// Loads the plan's blocks and submits its batches, with logits and with the best candidates asked for. Blocks are unloaded again.
pub fn record(plan: &Plan, device: &dyn Device) -> Result<(), DeviceError> {
    let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(1));
    let mut loaded = Loaded { device, feed: Feed::new(device, STREAM), blocks: Vec::new() };
    for block in &plan.blocks {
        loaded.blocks.push(device.load(block, &source)?);
    }
    let limits = Arc::new(limits(plan));
    if let Some(state) = &limits.state {
        device.reserve(state)?;
    }
    for spans in &plan.batches {
        loaded.submit_all(plan, spans, &limits)?;
    }
    Ok(())
}

/// What the plan's batches are held against: state for all of its mixers, if it has any.
fn limits(plan: &Plan) -> BatchLimits {
    let needed = |spans: &Vec<Span>| {
        let written: usize = spans.iter().map(pages_written).sum();
        written + spans.iter().map(|s| pages_of(s) - pages_written(s)).max().unwrap_or(0)
    };
    let pages = plan.batches.iter().map(needed).max().unwrap_or(1);
    let groups = state_groups(&plan.blocks).into_iter().map(|spec| StateGroup { spec, pages }).collect();
    let layout =
        StateLayout { page_tokens: PAGE_TOKENS, positions: pages * PAGE_TOKENS, ty: plan.kv, groups };
    let vocab = plan.blocks.iter().filter_map(|b| match b {
        Block::Embedding { spec, .. } => Some(spec.vocab),
        Block::Head { spec, .. } => Some(spec.vocab),
        Block::EncoderEmbedding { spec, .. } => Some(spec.vocab),
        _ => None,
    });
    let state = Some(layout).filter(|l| !l.groups.is_empty());
    BatchLimits { vocab: vocab.max().unwrap_or(1), state }
}

/// Unloaded on drop.
struct Loaded<'a> {
    device: &'a dyn Device,
    feed: Feed<'a>,
    blocks: Vec<BlockId>,
}

impl Loaded<'_> {
    fn submit_all(&self, plan: &Plan, spans: &[Span], limits: &Arc<BatchLimits>) -> Result<(), DeviceError> {
        let head = plan.blocks.iter().any(|b| matches!(b, Block::Head { .. }));
        let selects = match plan.blocks.iter().any(is_of_encoder) {
            true => &[Select::Hidden][..],
            false if head => &[Select::Logits, Select::Top(5.min(limits.vocab)), Select::Hidden],
            false => &[Select::Logits],
        };
        // A model's step asks for the last row of each sequence, perplexity for all rows; a case asks for all.
        let whole = if plan.blocks.len() > 1 { Outputs::Last } else { Outputs::All };
        for select in selects {
            let batch = self.batch(spans, whole, *select, limits)?;
            self.submit(&plan.blocks, &self.blocks, &batch)?;
            // The head of a model edits as that of a case does.
            if plan.blocks.len() == 1 && matches!(select, Select::Top(_)) {
                self.submit(&plan.blocks, &self.blocks, &self.edited(&batch)?)?;
            }
        }
        if plan.blocks.len() > 1 {
            let mut seen = Vec::new();
            for (block, id) in plan.blocks.iter().zip(&self.blocks) {
                // The layers of a model are alike.
                if seen.contains(&std::mem::discriminant(block)) {
                    continue;
                }
                seen.push(std::mem::discriminant(block));
                let batch = self.batch(spans, Outputs::All, Select::Logits, limits)?;
                self.submit(std::slice::from_ref(block), std::slice::from_ref(id), &batch)?;
            }
        }
        Ok(())
    }

    fn batch(
        &self,
        spans: &[Span],
        which: Outputs,
        select: Select,
        limits: &Arc<BatchLimits>,
    ) -> Result<Arc<Batch>, DeviceError> {
        batch(spans, which, select, limits).map(Arc::new).map_err(|e| self.wrong(e))
    }

    /// The batch with a mask and an adjustment for every output row.
    fn edited(&self, batch: &Batch) -> Result<Arc<Batch>, DeviceError> {
        let mask = Some(Arc::new(TokenMask::of(batch.limits().vocab, [0])));
        let edits = Edits { adjustments: vec![Adjustment::none(0)], mask };
        let rows = batch.outputs().iter().map(|o| OutputRow { edits: edits.clone(), ..o.clone() });
        let made = Batch::new(batch.slices().to_vec(), rows.collect(), batch.limits());
        made.map(Arc::new).map_err(|e| self.wrong(e))
    }

    fn wrong(&self, error: BatchError) -> DeviceError {
        DeviceError::Invalid { device: self.device.profile().name.clone(), what: error.to_string() }
    }

    fn submit(&self, blocks: &[Block], ids: &[BlockId], batch: &Arc<Batch>) -> Result<(), DeviceError> {
        let (width, embeds) = blocks.first().map_or((1, false), stream_width);
        let ones = vec![1.0; batch.rows() * width];
        self.feed.run(ids, batch, Some(&ones[..]).filter(|_| !embeds), width).map(|_| ())
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        for block in &self.blocks {
            self.device.unload(*block);
        }
    }
}

/// Width of the residual stream that a block works on, and whether it writes it anew.
fn stream_width(block: &Block) -> (usize, bool) {
    match block {
        Block::Embedding { spec, .. } => (spec.width, true),
        Block::Attention { spec, .. } => (spec.width, false),
        Block::ShortConv { spec, .. } => (spec.width, false),
        Block::Ffn { spec, .. } => (spec.width, false),
        Block::Head { spec, .. } => (spec.width, false),
        Block::EncoderEmbedding { spec, .. } => (spec.width, true),
        Block::EncoderAttention { spec, .. } => (spec.width, false),
        Block::EncoderFfn { spec, .. } => (spec.width, false),
        Block::EncoderHead { spec } => (spec.width, false),
    }
}

/// Which rows ask for their output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outputs {
    /// The last of each sequence.
    Last,
    All,
}

/// One sequence per span. They share the pages that they only read, so that many deep sequences need few: nobody looks at what is in them.
fn batch(
    spans: &[Span],
    which: Outputs,
    select: Select,
    limits: &Arc<BatchLimits>,
) -> Result<Batch, BatchError> {
    let (mut slices, mut outputs) = (Vec::new(), Vec::new());
    let mut row = 0;
    let mut own = 0..;
    let shared = spans.iter().map(pages_written).sum::<usize>() as u32..;
    for (id, span) in spans.iter().enumerate() {
        slices.push(Slice {
            sequence: SequenceId(id as u64),
            start: span.past as u32,
            tokens: vec![0; span.tokens],
            slot: None,
            tables: {
                let read = shared.clone().take(pages_of(span) - pages_written(span));
                let pages: Vec<u32> = read.chain(own.by_ref().take(pages_written(span))).collect();
                // What a sequence writes is its own, and so may be its state.
                let state = pages.last().map_or(Vec::new(), |page| vec![*page; 2]);
                let table =
                    |g: &StateGroup| if g.spec.is_recurrent() { state.clone() } else { pages.clone() };
                limits.state.iter().flat_map(|s| &s.groups).map(table).collect()
            },
            snapshots: Vec::new(),
        });
        let rows = row..row + span.tokens as u32;
        row = rows.end;
        let asked = rows.filter(|r| which == Outputs::All || r + 1 == row);
        outputs.extend(asked.map(|row| OutputRow::new(row, select)));
    }
    // Where hidden states alone are asked for and nothing lies before, it may be an encoder that is asked.
    let whole = select == Select::Hidden && spans.iter().all(|s| s.past == 0);
    let keeps = limits.state.as_ref().is_some_and(|s| !s.groups.is_empty());
    let make = if whole && !keeps { Batch::of_whole_sequences } else { Batch::new };
    make(slices, outputs, limits)
}

/// Pages that a sequence writes.
fn pages_written(span: &Span) -> usize {
    pages_of(span) - span.past / PAGE_TOKENS
}

fn pages_of(span: &Span) -> usize {
    (span.past + span.tokens).div_ceil(PAGE_TOKENS)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn plans_cover_the_table_and_every_model() {
        let all = plans("");
        let names: HashSet<&str> = all.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        assert!(table().iter().all(|c| names.contains(c.name.as_str())));
        for ty in TensorType::ALL {
            let found = plans(&format!("model/llama-8b/{}/", ty.name().to_lowercase()));
            assert!(!found.is_empty() && found.iter().all(|p| p.blocks.len() == 2 + 2 * LAYERS), "{ty}");
        }
    }

    #[test]
    fn batches_have_pages_and_outputs() {
        let groups = vec![StateGroup { spec: unicorn_core::StateSpec::Paged, pages: 8 }];
        let state = StateLayout { page_tokens: PAGE_TOKENS, positions: 256, ty: KvType::F16, groups };
        let limits = Arc::new(BatchLimits { vocab: 1, state: Some(state) });
        let spans = [Span::new(31, 2), Span::new(64, 2)];
        let rows = |batch: &Batch| batch.outputs().iter().map(|o| o.row).collect::<Vec<u32>>();
        assert_eq!(rows(&batch(&spans, Outputs::All, Select::Logits, &limits).unwrap()), [0, 1, 2, 3]);
        let batch = batch(&spans, Outputs::Last, Select::Logits, &limits).unwrap();
        assert_eq!(rows(&batch), [1, 3]);
        assert_eq!(batch.slices()[0].tables, [[0, 1]]);
        assert_eq!(batch.slices()[1].tables, [[3, 4, 2]]);
        assert_eq!(batch.rows(), 4);
    }

    #[test]
    fn every_batch_of_every_plan_is_one() {
        for plan in plans("") {
            let limits = Arc::new(limits(&plan));
            for spans in &plan.batches {
                let made = batch(spans, Outputs::All, Select::Logits, &limits);
                assert!(made.is_ok(), "{} {spans:?}: {made:?}", plan.name);
            }
        }
    }
}
