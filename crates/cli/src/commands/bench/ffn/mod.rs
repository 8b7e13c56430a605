//! `unicorn bench ffn`: SwiGLU feed-forward blocks on random weights, fused and, where the device has the choice, in parts.

mod block;
mod measure;
mod report;

use std::io::Write;
use std::sync::Arc;

use unicorn_cases::synthetic::{SyntheticLayout, SyntheticSource};
use unicorn_core::{
    Block, DeviceError, DeviceKind, DeviceOptions, Instrument, KvType, StateLayout, WeightSource, Workload,
};
use unicorn_engine::{DeviceMemory, MemoryPlan};

use crate::args::BenchFfnArgs;
use crate::config::Config;
use crate::exit::{Exit, usage};
use crate::memory::{self, Refused};
use crate::open_device::{Opened, open_limited};
use crate::output::{Out, say};
use block::block;
use measure::measure;
use report::{FfnReport, Shape, render};

/// Most activations of one kind: 4 GB in f32.
const ACTIVATIONS_MAX: usize = 1 << 30;
/// Weights in turn are at least this many bytes, more than the last cache of any GPU: or they would be read from it.
const WEIGHT_BYTES_MIN: u64 = 256 << 20;
/// Most blocks in turn.
const COPIES_MAX: u64 = 32;
/// Tokens where a GPU is asked nothing else.
const TOKENS_GPU: [usize; 6] = [1, 8, 32, 128, 512, 2048];

/// Loads, runs and prints.
pub fn run(args: &BenchFfnArgs, config: &Config) -> anyhow::Result<Exit> {
    let ty = args.dtype.0;
    let mut layout = SyntheticLayout::default();
    let first = block(&mut layout, args.width, args.hidden, ty)?;
    let copies = WEIGHT_BYTES_MIN.div_ceil(weight_bytes(&first).max(1)).clamp(1, COPIES_MAX);
    let wider = args.width.max(args.hidden);
    if let Some(tokens) = args.tokens.iter().find(|n| n.saturating_mul(wider) > ACTIVATIONS_MAX) {
        let most = ACTIVATIONS_MAX / wider;
        return Err(usage(format!("--tokens {tokens}: at a width of {wider} at most {most}")));
    }
    let opened = open_limited(&args.device, args.tier, config)?;
    let mut blocks = vec![first];
    for _ in 1..copies {
        blocks.push(block(&mut layout, args.width, args.hidden, ty)?);
    }
    let roof = opened.limits(config)?;
    let opened = [opened];
    check_room(&opened, &blocks, args.tokens.iter().copied().max().unwrap_or(1))?;
    let [opened] = opened;
    let device = opened.device;
    let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(0));
    let ids = blocks.iter().map(|b| device.load(b, &source)).collect::<Result<Vec<_>, DeviceError>>()?;
    let gpu = device.profile().kind == DeviceKind::Vulkan;
    let tokens: &[usize] = match &args.tokens[..] {
        [] if gpu => &TOKENS_GPU,
        [] => &[128],
        given => given,
    };
    let mut reports: Vec<FfnReport> = Vec::new();
    for fused in [true, false] {
        if !choose(&device, &opened.options, fused)? {
            continue;
        }
        if config.explains() {
            device.describe(ids[0]).iter().for_each(|line| say!("{line}"));
        }
        for &tokens in tokens {
            let measured = measure(&device, &ids, tokens, args.width, args.repetitions)?;
            let shape = Shape { ty, tokens, width: args.width, hidden: args.hidden };
            reports.push(report::report(&*device, &blocks[0], shape, fused, &measured, &roof));
        }
    }
    // The lines to compare stand side by side.
    reports.sort_by_key(|r| (r.tokens, !r.fused));
    let mut out = Out::stdout();
    out.write_all(render(&reports, copies, args.output)?.as_bytes())?;
    out.flush()?;
    Ok(Exit::Done)
}

/// Errors where a device has no room for these blocks and a batch of `tokens` tokens.
fn check_room(opened: &[Opened; 1], blocks: &[Block], tokens: usize) -> anyhow::Result<()> {
    let [Opened { device, .. }] = opened;
    let layout = StateLayout::paged(32, 0, 0, KvType::default());
    let workload =
        Workload { layout, rows: tokens, sequences: 1, outputs: 0, top: 0, streams: 1, crosses: true };
    let need = device.needs(&blocks.iter().collect::<Vec<&Block>>(), &workload)?;
    let profile = device.profile();
    let memory = DeviceMemory { device: profile.name.clone(), unified: profile.unified_memory, need };
    let plan = MemoryPlan { devices: vec![memory], crossing: 0, context: tokens, kv_type: KvType::default() };
    plan.check(&memory::limits(opened, None)).map_err(Refused::plainly)
}

fn weight_bytes(block: &Block) -> u64 {
    block.weights().iter().map(|w| w.span.bytes).sum()
}

/// Switches fusion on or off; false where the device has no such choice.
fn choose(device: &Arc<dyn Instrument>, options: &DeviceOptions, fused: bool) -> Result<bool, DeviceError> {
    match device.configure(&DeviceOptions { fused_ffn: fused, ..options.clone() }) {
        Ok(()) => Ok(true),
        Err(DeviceError::Unsupported { .. }) if !fused => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use unicorn_cpu::ReferenceDevice;

    use super::*;

    #[test]
    fn a_device_without_the_choice_is_measured_as_it_is() {
        let device: Arc<dyn Instrument> = Arc::new(ReferenceDevice::new());
        let options = DeviceOptions::default();
        assert!(choose(&device, &options, true).unwrap());
        assert!(!choose(&device, &options, false).unwrap());
    }
}
