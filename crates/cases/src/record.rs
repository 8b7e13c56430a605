//! Work whose results nobody looks at: it shows which kernels a device records and compiles for the case table and for models of real
//! shapes.

use std::sync::Arc;

use unicorn_core::{
    Batch, Block, BlockId, Device, DeviceError, KvLayout, KvType, Select, SequenceId, Slice, StreamId,
    TensorType, Work,
};

use crate::synthetic::SyntheticSource;
use crate::{Span, shapes, table};

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
    let source = SyntheticSource::new(1);
    let mut loaded = Loaded { device, blocks: Vec::new() };
    for block in &plan.blocks {
        loaded.blocks.push(device.load(block, &source)?);
    }
    if plan.blocks.iter().any(|b| matches!(b, Block::Attention { .. })) {
        let needed = |spans: &Vec<Span>| spans.len() + spans.iter().map(pages_of).max().unwrap_or(0);
        let pages = plan.batches.iter().map(needed).max().unwrap_or(1);
        let positions = pages * PAGE_TOKENS;
        device.reserve_kv(KvLayout { page_tokens: PAGE_TOKENS, pages, positions, ty: plan.kv })?;
    }
    for spans in &plan.batches {
        loaded.submit_all(plan, spans)?;
    }
    Ok(())
}

/// Unloaded on drop.
struct Loaded<'a> {
    device: &'a dyn Device,
    blocks: Vec<BlockId>,
}

impl Loaded<'_> {
    fn submit_all(&self, plan: &Plan, spans: &[Span]) -> Result<(), DeviceError> {
        let head = plan.blocks.iter().any(|b| matches!(b, Block::Head { .. }));
        let selects = if head { &[Select::Logits, Select::Top(5)][..] } else { &[Select::Logits] };
        // A model's step asks for the last row of each sequence, perplexity for all rows; a case asks for all.
        let whole = if plan.blocks.len() > 1 { Outputs::Last } else { Outputs::All };
        for select in selects {
            self.submit(&plan.blocks, &self.blocks, &Arc::new(batch(spans, whole, *select)))?;
        }
        if plan.blocks.len() > 1 {
            let mut seen = Vec::new();
            for (block, id) in plan.blocks.iter().zip(&self.blocks) {
                // The layers of a model are alike.
                if seen.contains(&std::mem::discriminant(block)) {
                    continue;
                }
                seen.push(std::mem::discriminant(block));
                let batch = Arc::new(batch(spans, Outputs::All, Select::Logits));
                self.submit(std::slice::from_ref(block), std::slice::from_ref(id), &batch)?;
            }
        }
        Ok(())
    }

    fn submit(&self, blocks: &[Block], ids: &[BlockId], batch: &Arc<Batch>) -> Result<(), DeviceError> {
        if let Some(width) = blocks.first().and_then(input_width) {
            self.device.write_residual(STREAM, width, &vec![1.0; batch.rows() * width])?;
        }
        let work = Work { stream: STREAM, blocks: ids.to_vec(), batch: batch.clone() };
        self.device.wait(self.device.submit(&work)?)
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        for block in &self.blocks {
            self.device.unload(*block);
        }
    }
}

/// Width of the residual stream that a block takes; an embedding takes none.
fn input_width(block: &Block) -> Option<usize> {
    match block {
        Block::Embedding { .. } => None,
        Block::Attention { spec, .. } => Some(spec.width),
        Block::Ffn { spec, .. } => Some(spec.width),
        Block::Head { spec, .. } => Some(spec.width),
    }
}

/// Which rows ask for their output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outputs {
    /// The last of each sequence.
    Last,
    All,
}

/// One sequence per span. They share all pages but the last, so that many deep sequences need few: nobody looks at what is in them, and
/// decode steps write to pages of their own as those of a model do.
fn batch(spans: &[Span], which: Outputs, select: Select) -> Batch {
    let (mut slices, mut outputs) = (Vec::new(), Vec::new());
    let mut row = 0;
    let shared = spans.len() as u32..;
    for (id, span) in spans.iter().enumerate() {
        slices.push(Slice {
            sequence: SequenceId(id as u64),
            start: span.past as u32,
            tokens: vec![0; span.tokens],
            pages: shared.clone().take(pages_of(span).saturating_sub(1)).chain([id as u32]).collect(),
        });
        let rows = row..row + span.tokens as u32;
        row = rows.end;
        outputs.extend(rows.filter(|r| which == Outputs::All || r + 1 == row));
    }
    Batch { slices, outputs, select }
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
        let spans = [Span::new(31, 2), Span::new(0, 3)];
        assert_eq!(batch(&spans, Outputs::All, Select::Logits).outputs, [0, 1, 2, 3, 4]);
        let batch = batch(&spans, Outputs::Last, Select::Logits);
        assert_eq!(batch.outputs, [1, 4]);
        assert_eq!(batch.slices[0].pages, [2, 0]);
        assert_eq!(batch.slices[1].pages, [1]);
        assert_eq!(batch.rows(), 5);
    }
}
