//! `unicorn bench ffn`: SwiGLU feed-forward blocks on random weights, fused and, where the device has the choice, in parts.

mod measure;
mod report;

use std::io::Write;
use std::sync::Arc;

use unicorn_cases::synthetic::{SyntheticLayout, SyntheticSource};
use unicorn_core::{
    Activation, Block, Device, DeviceError, DeviceKind, DeviceOptions, FfnSpec, FfnWeights, NormSpec,
    TensorType,
};

use crate::args::BenchFfnArgs;
use crate::config::Config;
use crate::devices;
use crate::exit::{Exit, usage};
use crate::output::{Out, say};
use measure::{Measured, measure};
use report::{FfnReport, Shape, render};

/// Most elements of one matrix: 64 GB in F32.
const ELEMENTS_MAX: usize = 1 << 34;
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
    let copies = WEIGHT_BYTES_MIN.div_ceil(first.bytes_per_row().max(1)).clamp(1, COPIES_MAX);
    let opened = devices::open_limited(&args.device, args.tier, config)?;
    let roof = opened.limits(config)?;
    let device = opened.device;
    let source = SyntheticSource::new(0);
    if let Some(tokens) =
        args.tokens.iter().find(|n| n.saturating_mul(args.width.max(args.hidden)) > ACTIVATIONS_MAX)
    {
        return Err(usage(format!(
            "--tokens {tokens}: at a width of {} at most {}",
            args.width.max(args.hidden),
            ACTIVATIONS_MAX / args.width.max(args.hidden)
        )));
    }
    let mut ids = vec![device.load(&first, &source)?];
    for _ in 1..copies {
        ids.push(device.load(&block(&mut layout, args.width, args.hidden, ty)?, &source)?);
    }
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
            reports.push(report::report(&*device, &first, shape, fused, &measured, &roof));
        }
    }
    // The lines to compare stand side by side.
    reports.sort_by_key(|r| (r.tokens, !r.fused));
    let mut out = Out::stdout();
    out.write_all(render(&reports, copies, args.output)?.as_bytes())?;
    out.flush()?;
    Ok(Exit::Done)
}

/// Switches fusion on or off; false where the device has no such choice.
fn choose(device: &Arc<dyn Device>, options: &DeviceOptions, fused: bool) -> Result<bool, DeviceError> {
    match device.configure(&DeviceOptions { fused_ffn: fused, ..options.clone() }) {
        Ok(()) => Ok(true),
        Err(DeviceError::Unsupported { .. }) if !fused => Ok(false),
        Err(error) => Err(error),
    }
}

/// One block with weights of its own, or a usage error where its shape does not fit the type or any memory.
fn block(layout: &mut SyntheticLayout, width: usize, hidden: usize, ty: TensorType) -> anyhow::Result<Block> {
    for (name, value) in [("--width", width), ("--hidden", hidden)] {
        if ty.row_bytes(value).is_none() {
            return Err(usage(format!("{name} {value}: {ty} needs a multiple of {}", ty.block_len())));
        }
    }
    if width.checked_mul(hidden).is_none_or(|n| n > ELEMENTS_MAX) {
        return Err(usage(format!("a matrix of {width} x {hidden} is too large")));
    }
    let weights = FfnWeights {
        norm: layout.norm("norm", width),
        gate: layout.matrix("gate", ty, hidden, width),
        up: layout.matrix("up", ty, hidden, width),
        down: layout.matrix("down", ty, width, hidden),
        post_norm: None,
    };
    let spec =
        FfnSpec { width, hidden, activation: Activation::Silu, norm: NormSpec::rms(1e-5), post_norm: None };
    Ok(Block::Ffn { spec, weights: Box::new(weights) })
}

#[cfg(test)]
mod tests {
    use unicorn_cpu::ReferenceDevice;

    use super::*;

    #[test]
    fn shapes_that_do_not_fit_are_usage_errors() {
        let block = |width, hidden, ty| block(&mut SyntheticLayout::default(), width, hidden, ty);
        assert!(block(256, 300, TensorType::Q4_K).unwrap_err().to_string().contains("--hidden 300"));
        assert!(block(1 << 20, 1 << 20, TensorType::F16).is_err());
        assert!(block(usize::MAX, 1, TensorType::F32).is_err());
    }

    #[test]
    fn a_device_without_the_choice_is_measured_as_it_is() {
        let device: Arc<dyn Device> = Arc::new(ReferenceDevice::new());
        let options = DeviceOptions::default();
        assert!(choose(&device, &options, true).unwrap());
        assert!(!choose(&device, &options, false).unwrap());
    }
}
