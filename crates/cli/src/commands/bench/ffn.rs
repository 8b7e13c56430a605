//! `unicorn bench ffn`: one SwiGLU feed-forward block on random weights.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use unicorn_cases::synthetic::{SyntheticLayout, SyntheticSource};
use unicorn_core::quant::Random;
use unicorn_core::{
    Activation, Batch, Block, BlockId, Device, FfnSpec, FfnWeights, KernelTime, NormSpec, Select, SequenceId,
    Slice, StreamId, TensorType, Work,
};

use crate::args::{BenchFfnArgs, OutputFormat};
use crate::config::Config;
use crate::exit::{Exit, usage};
use crate::output::{Out, say};
use crate::table::{Align, Table};
use crate::units;

/// Most elements of one matrix: 64 GB in F32.
const ELEMENTS_MAX: usize = 1 << 34;

/// What is printed; the names of the fields are the JSON format.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct FfnReport {
    test: String,
    device: String,
    dtype: String,
    tokens: usize,
    width: usize,
    hidden: usize,
    milliseconds: Milliseconds,
    gflop_per_second: f64,
    tokens_per_second: f64,
    /// Absent where the device does not time its kernels apart.
    gate_up_gflop_per_second: Option<f64>,
    down_gflop_per_second: Option<f64>,
    share_of_roof: f64,
}

/// Time of the block over the whole batch.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct Milliseconds {
    average: f64,
    min: f64,
    max: f64,
}

/// Loads, runs and prints.
pub fn run(args: &BenchFfnArgs, config: &Config) -> anyhow::Result<Exit> {
    let ty = args.dtype.0;
    let block = block(args.width, args.hidden, ty)?;
    let device = args.device.device.open_limited(args.device.threads, args.tier)?;
    let id = device.load(&block, &SyntheticSource::new(0))?;
    if config.explains() {
        device.describe(id).iter().for_each(|line| say!("{line}"));
    }
    let roof = device.measure()?;
    let bench = FfnBench::new(device.clone(), id, args.tokens, args.width);
    bench.once()?;
    let seconds: Vec<f64> = (0..args.repetitions).map(|_| bench.once()).collect::<Result<_, _>>()?;
    // Timing every kernel costs a little, so the parts are timed in a run of their own.
    device.set_profiling(true);
    bench.once()?;
    let times = device.kernel_times();
    device.set_profiling(false);

    let flops = (block.flops_per_row() * args.tokens as u64) as f64;
    let average = seconds.iter().sum::<f64>() / seconds.len() as f64;
    let report = FfnReport {
        test: "ffn".into(),
        device: device.profile().name.clone(),
        dtype: ty.name().to_ascii_lowercase(),
        tokens: args.tokens,
        width: args.width,
        hidden: args.hidden,
        milliseconds: Milliseconds {
            average: average * 1e3,
            min: seconds.iter().copied().fold(f64::INFINITY, f64::min) * 1e3,
            max: seconds.iter().copied().fold(0.0, f64::max) * 1e3,
        },
        gflop_per_second: flops / average / 1e9,
        tokens_per_second: args.tokens as f64 / average,
        gate_up_gflop_per_second: gflop_per_second(&times, "gate"),
        down_gflop_per_second: gflop_per_second(&times, "down"),
        share_of_roof: flops / average / roof.rate(device.rate_kind(ty)),
    };
    let mut out = Out::stdout();
    out.write_all(render(&report, args.output)?.as_bytes())?;
    out.flush()?;
    Ok(Exit::Done)
}

/// The block, or a usage error where its shape does not fit the type or any memory.
fn block(width: usize, hidden: usize, ty: TensorType) -> anyhow::Result<Block> {
    for (name, value) in [("--width", width), ("--hidden", hidden)] {
        if ty.row_bytes(value).is_none() {
            return Err(usage(format!("{name} {value}: {ty} needs a multiple of {}", ty.block_len())));
        }
    }
    if width.checked_mul(hidden).is_none_or(|n| n > ELEMENTS_MAX) {
        return Err(usage(format!("a matrix of {width} x {hidden} is too large")));
    }
    let mut layout = SyntheticLayout::default();
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

struct FfnBench {
    device: Arc<dyn Device>,
    work: Work,
    width: usize,
    /// `[tokens, width]`.
    residual: Vec<f32>,
}

impl FfnBench {
    fn new(device: Arc<dyn Device>, block: BlockId, tokens: usize, width: usize) -> FfnBench {
        let slice = Slice { sequence: SequenceId(0), tokens: vec![0; tokens], start: 0, pages: Vec::new() };
        let batch = Batch { slices: vec![slice], outputs: Vec::new(), select: Select::Logits };
        let work = Work { stream: StreamId(0), blocks: vec![block], batch: Arc::new(batch) };
        FfnBench { device, work, width, residual: Random::new(1).normals(tokens * width, 1.0) }
    }

    /// Seconds of one run; the residual stream is written anew before it, or it would grow without bound.
    fn once(&self) -> Result<f64, unicorn_core::DeviceError> {
        self.device.write_residual(self.work.stream, self.width, &self.residual)?;
        let start = Instant::now();
        let ticket = self.device.submit(&self.work)?;
        self.device.wait(ticket)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Rate of the kernels whose name has `part` in it.
fn gflop_per_second(times: &[KernelTime], part: &str) -> Option<f64> {
    let of_part = || times.iter().filter(|t| t.kernel.contains(part));
    let seconds: f64 = of_part().map(|t| t.seconds).sum();
    let flops: u64 = of_part().map(|t| t.flops).sum();
    (seconds > 0.0 && flops > 0).then(|| flops as f64 / seconds / 1e9)
}

fn render(r: &FfnReport, format: OutputFormat) -> serde_json::Result<String> {
    if format == OutputFormat::Json {
        return Ok(serde_json::to_string_pretty(&[r])? + "\n");
    }
    let rate = |value: Option<f64>| value.map_or("not timed apart".to_owned(), |v| format!("{v:.1}"));
    let lines = [
        ("average ms", format!("{:.2}", r.milliseconds.average)),
        ("min ms", format!("{:.2}", r.milliseconds.min)),
        ("max ms", format!("{:.2}", r.milliseconds.max)),
        ("GFLOP/s", format!("{:.1}", r.gflop_per_second)),
        ("tokens/s", format!("{:.1}", r.tokens_per_second)),
        ("gate+up GFLOP/s", rate(r.gate_up_gflop_per_second)),
        ("down GFLOP/s", rate(r.down_gflop_per_second)),
        ("of roof", units::percent(r.share_of_roof)),
    ];
    let title = format!("ffn {}, {} tokens, {} x {}", r.dtype, r.tokens, r.width, r.hidden);
    let mut table = Table::new([(title.as_str(), Align::Left), (r.device.as_str(), Align::Right)]);
    lines.into_iter().for_each(|(name, value)| table.row([name.to_owned(), value]));
    Ok(if format == OutputFormat::Md { table.markdown() } else { table.text() })
}

#[cfg(test)]
mod tests {
    use unicorn_core::RateKind;
    use unicorn_cpu::ReferenceDevice;

    use super::*;

    #[test]
    fn shapes_that_do_not_fit_are_usage_errors() {
        assert!(block(256, 300, TensorType::Q4_K).unwrap_err().to_string().contains("--hidden 300"));
        assert!(block(1 << 20, 1 << 20, TensorType::F16).is_err());
        assert!(block(usize::MAX, 1, TensorType::F32).is_err());
    }

    #[test]
    fn a_block_runs_and_its_residual_does_not_grow() {
        let device: Arc<dyn Device> = Arc::new(ReferenceDevice::new());
        let id = device.load(&block(32, 64, TensorType::F16).unwrap(), &SyntheticSource::new(0)).unwrap();
        let bench = FfnBench::new(device.clone(), id, 3, 32);
        let read = || {
            let mut x = vec![0.0; 3 * 32];
            device.read_residual(StreamId(0), 0, &mut x).unwrap();
            x
        };
        assert!(bench.once().unwrap() > 0.0);
        let first = read();
        bench.once().unwrap();
        assert_eq!(first, read());
        assert_ne!(first, bench.residual);
    }

    #[test]
    fn parts_are_found_by_name() {
        let time = |kernel: &str, flops| KernelTime {
            kernel: kernel.into(),
            calls: 1,
            seconds: 0.5,
            bytes: 0,
            flops,
            rate: RateKind::Float,
        };
        let times = [time("ffn_gate_up f16", 4_000_000_000), time("ffn_down f16", 1_000_000_000)];
        assert_eq!(gflop_per_second(&times, "gate"), Some(8.0));
        assert_eq!(gflop_per_second(&times, "down"), Some(2.0));
        assert_eq!(gflop_per_second(&times, "other"), None);
    }
}
