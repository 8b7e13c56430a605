//! What kernels say that they read and compute, against what the blocks' shapes dictate: the check that every profiled device has to pass.

use std::sync::Arc;

use unicorn_core::{
    Batch, BatchLimits, BatchShape, Block, BlockId, Cost, Crossing, DeviceError, Instrument, KvType,
    OutputRow, Select, SequenceId, Slice, StateGroup, StateLayout, StreamId, TensorType, WeightSource,
    run_to_end, state_groups,
};

use crate::synthetic::SyntheticSource;
use crate::{shapes, states, table};

const TOKENS: usize = 64;
const PAGES: usize = 4;

/// Runs the first layer, a short convolution, and the last norm and head, of SmolLM2 over a prompt and over single tokens, with every kernel counted. Operations
/// of all kernels together are those of [`Block::cost`] but for one in a hundred, and bytes but for one in seven: packed weights and
/// whole pages are other bytes than those of the file.
///
/// Errors with what was seen.
pub fn check(device: &dyn Instrument) -> Result<(), String> {
    let spec = shapes::model("smollm2-135m", TensorType::Q8_0).ok_or("no shape")?;
    let count = spec.blocks.len();
    let mixer = table::short_conv::block(TensorType::Q8_0, spec.width, 3);
    let blocks = [&spec.blocks[..3], &[mixer], &spec.blocks[count - 1..]].concat();
    let mut layout = StateLayout::paged(TOKENS, PAGES, TOKENS * PAGES, KvType::F16);
    layout.groups = state_groups(&blocks).into_iter().map(|spec| StateGroup { spec, pages: PAGES }).collect();
    let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(1));
    let load = |block: &Block| device.load(block, &source);
    let ids =
        blocks.iter().map(load).collect::<Result<Vec<BlockId>, DeviceError>>().map_err(|e| e.to_string())?;
    device.reserve(&layout).map_err(|e| e.to_string())?;
    let limits = Arc::new(BatchLimits { vocab: spec.vocab, state: Some(layout) });
    let mut checked = Ok(());
    let mut past = 0;
    for rows in [96, 1, 1] {
        let seen = one(device, &ids, &limits, past, rows).and_then(|seen| {
            let shape = BatchShape::one(past, rows, 1);
            let mut cost = Cost::default();
            blocks.iter().for_each(|block| cost.add(&block.cost(&shape, KvType::F16)));
            compare(seen, &cost, rows)
        });
        checked = checked.and(seen);
        past += rows;
    }
    ids.into_iter().for_each(|id| device.unload(id));
    checked
}

/// Operations and bytes that the kernels of one batch say.
fn one(
    device: &dyn Instrument,
    ids: &[BlockId],
    limits: &Arc<BatchLimits>,
    past: usize,
    rows: usize,
) -> Result<(u64, u64), String> {
    let pages: Vec<u32> = (0..(past + rows).div_ceil(TOKENS) as u32).collect();
    let tables = states::tables(limits, &pages);
    let tokens = (0..rows as u32).map(|i| i * 7 % 1000).collect();
    let slice = Slice {
        sequence: SequenceId(0),
        tokens,
        start: past as u32,
        tables,
        snapshots: Vec::new(),
        slot: None,
    };
    let outputs = vec![OutputRow::new(rows as u32 - 1, Select::Logits)];
    let batch = Arc::new(Batch::new(vec![slice], outputs, limits).map_err(|e| e.to_string())?);
    device.set_profiling(true);
    let ran = run_to_end(device, StreamId(0), ids, &batch, Crossing::default());
    let times = device.kernel_times();
    device.set_profiling(false);
    ran.map_err(|e| e.to_string())?;
    Ok((times.iter().map(|t| t.flops).sum(), times.iter().map(|t| t.bytes).sum()))
}

fn compare((flops, bytes): (u64, u64), cost: &Cost, rows: usize) -> Result<(), String> {
    let near = |seen: u64, expected: u64, share: f64| (seen as f64 / expected as f64 - 1.0).abs() <= share;
    if !near(flops, cost.flops(), 0.01) {
        return Err(format!("{rows} rows: kernels say {flops} operations, the blocks take {}", cost.flops()));
    }
    if !near(bytes, cost.bytes(), 1.0 / 7.0) {
        return Err(format!("{rows} rows: kernels say {bytes} bytes, the blocks take {}", cost.bytes()));
    }
    Ok(())
}
