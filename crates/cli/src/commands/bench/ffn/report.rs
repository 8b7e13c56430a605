//! What `bench ffn` prints: a line for each number of tokens, fused and in parts.

use serde::Serialize;
use unicorn_core::{BatchShape, Block, Instrument, KernelTime, KvType, Roofline, TensorType};

use super::measure::Measured;
use crate::args::OutputFormat;
use crate::table::{Align, Table};
use crate::units;

/// What the system's first prototype, in Python, measured for one block of [`PROTOTYPE_SHAPE`] on a Radeon 780M.
const PROTOTYPE: &str =
    "prototype (Radeon 780M, f16, 128 tokens, 4096 x 16384): 3267 ms on average, 15.8 GFLOP/s, 39 tokens/s";
/// Tokens, width and hidden width of that figure.
const PROTOTYPE_SHAPE: (usize, usize, usize) = (128, 4096, 16384);

/// What was run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Type of the weights.
    pub ty: TensorType,
    /// Tokens in the batch.
    pub tokens: usize,
    /// Model width.
    pub width: usize,
    /// Hidden width.
    pub hidden: usize,
}

/// One line; the names of the fields are the JSON format.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FfnReport {
    pub test: String,
    pub device: String,
    pub dtype: String,
    pub tokens: usize,
    pub width: usize,
    pub hidden: usize,
    /// Gate, up, activation and multiply in one kernel, as far as the device has it.
    pub fused: bool,
    /// Of one block, by the clock that `clock` names.
    pub milliseconds: Milliseconds,
    /// `gpu` for the GPU's timestamps, `wall` for the host's clock.
    pub clock: &'static str,
    /// Of one block by the host's clock, many in one submission: the median.
    pub wall_milliseconds: f64,
    /// Blocks in one submission.
    pub blocks_per_submit: usize,
    pub gflop_per_second: f64,
    pub bytes_per_second: f64,
    pub tokens_per_second: f64,
    /// Absent where the device does not time its kernels apart.
    pub gate_up_gflop_per_second: Option<f64>,
    pub down_gflop_per_second: Option<f64>,
    /// The larger share of a limit: read bandwidth, or the best arithmetic rate for the type.
    pub share_of_roof: f64,
}

/// Time of one block over the whole batch.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Milliseconds {
    pub median: f64,
    pub average: f64,
    pub min: f64,
    pub max: f64,
}

impl Milliseconds {
    fn of(seconds: &[f64]) -> Milliseconds {
        let mut sorted: Vec<f64> = seconds.iter().map(|s| s * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len().max(1);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(0.0);
        Milliseconds {
            median: (at((n - 1) / 2) + at(n / 2)) / 2.0,
            average: sorted.iter().sum::<f64>() / n as f64,
            min: at(0),
            max: at(n - 1),
        }
    }
}

/// The line for one measurement.
pub fn report(
    device: &dyn Instrument,
    block: &Block,
    shape: Shape,
    fused: bool,
    measured: &Measured,
    roof: &Roofline,
) -> FfnReport {
    let wall = Milliseconds::of(&measured.wall);
    let by_gpu = !measured.gpu.is_empty();
    let milliseconds = if by_gpu { Milliseconds::of(&measured.gpu) } else { wall };
    let seconds = (milliseconds.median / 1e3).max(1e-12);
    let cost = block.cost(&BatchShape::one(0, shape.tokens, 0), KvType::default());
    let (flops, bytes) = (cost.flops() as f64 / seconds, cost.weight_bytes as f64 / seconds);
    let arithmetic = flops / roof.best_rate(device.rate_kind(shape.ty));
    FfnReport {
        test: "ffn".into(),
        device: device.profile().name.clone(),
        dtype: shape.ty.name().to_ascii_lowercase(),
        tokens: shape.tokens,
        width: shape.width,
        hidden: shape.hidden,
        fused,
        milliseconds,
        clock: if by_gpu { "gpu" } else { "wall" },
        wall_milliseconds: wall.median,
        blocks_per_submit: measured.blocks,
        gflop_per_second: flops / 1e9,
        bytes_per_second: bytes,
        tokens_per_second: shape.tokens as f64 / seconds,
        gate_up_gflop_per_second: gflop_per_second(&measured.kernels, &["gate", "up"]),
        down_gflop_per_second: gflop_per_second(&measured.kernels, &["down"]),
        share_of_roof: arithmetic.max(bytes / roof.read_bytes_per_second),
    }
}

/// Rate of the kernels whose op has one of `parts` in it.
fn gflop_per_second(times: &[KernelTime], parts: &[&str]) -> Option<f64> {
    let op = |t: &KernelTime| t.kernel.split(' ').next().unwrap_or_default().to_owned();
    let of_part = || times.iter().filter(|t| parts.iter().any(|part| op(t).contains(part)));
    let seconds: f64 = of_part().map(|t| t.seconds).sum();
    let flops: u64 = of_part().map(|t| t.flops).sum();
    (seconds > 0.0 && flops > 0).then(|| flops as f64 / seconds / 1e9)
}

/// All lines in the format asked for. `copies` blocks of weights were used in turn.
pub fn render(reports: &[FfnReport], copies: u64, format: OutputFormat) -> serde_json::Result<String> {
    if format == OutputFormat::Json {
        return Ok(serde_json::to_string_pretty(reports)? + "\n");
    }
    let table = table(reports);
    let text = if format == OutputFormat::Md { table.markdown() } else { table.text() };
    Ok(text + "\n" + &notes(reports, copies).join("\n") + "\n")
}

fn table(reports: &[FfnReport]) -> Table {
    let mut table = Table::new([
        ("ffn", Align::Left),
        ("tokens", Align::Right),
        ("gate+up", Align::Left),
        ("ms", Align::Right),
        ("average", Align::Right),
        ("min", Align::Right),
        ("max", Align::Right),
        ("wall ms", Align::Right),
        ("FLOP/s", Align::Right),
        ("GB/s", Align::Right),
        ("of roof", Align::Right),
        ("tokens/s", Align::Right),
        ("gate+up FLOP/s", Align::Right),
        ("down FLOP/s", Align::Right),
    ]);
    let rate = |value: Option<f64>| value.map_or("-".to_owned(), |v| units::prefixed(v * 1e9));
    let ms = |value: f64| format!("{value:.3}");
    for r in reports {
        table.row([
            format!("{} {} x {}", r.dtype, r.width, r.hidden),
            r.tokens.to_string(),
            if has_parts(reports) { if r.fused { "fused" } else { "in parts" } } else { "as it is" }
                .to_owned(),
            ms(r.milliseconds.median),
            ms(r.milliseconds.average),
            ms(r.milliseconds.min),
            ms(r.milliseconds.max),
            ms(r.wall_milliseconds),
            units::prefixed(r.gflop_per_second * 1e9),
            units::three_digits(r.bytes_per_second / 1e9),
            units::percent(r.share_of_roof),
            units::three_digits(r.tokens_per_second),
            rate(r.gate_up_gflop_per_second),
            rate(r.down_gflop_per_second),
        ]);
    }
    table
}

/// Whether the device could run the block in parts too.
fn has_parts(reports: &[FfnReport]) -> bool {
    reports.iter().any(|r| !r.fused)
}

/// How it was measured, what fusion gains, and the figure that started it all.
fn notes(reports: &[FfnReport], copies: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(r) = reports.first() {
        let clock = match r.clock {
            "gpu" => "the GPU's timestamps, kernels one by one",
            _ => "wall time, many blocks in one submission",
        };
        notes.push(format!("{}: ms is the median by {clock}; {copies} blocks of weights in turn", r.device));
    }
    for (fused, parts) in pairs(reports) {
        notes.push(format!(
            "{} tokens: fusing is worth {:.2}x ({:.3} ms instead of {:.3}; by wall time {:.2}x)",
            fused.tokens,
            parts.milliseconds.median / fused.milliseconds.median,
            fused.milliseconds.median,
            parts.milliseconds.median,
            parts.wall_milliseconds / fused.wall_milliseconds
        ));
    }
    if reports.iter().any(|r| (r.tokens, r.width, r.hidden) == PROTOTYPE_SHAPE) {
        notes.push(PROTOTYPE.to_owned());
    }
    notes
}

/// Lines of the same number of tokens, fused and in parts.
fn pairs(reports: &[FfnReport]) -> Vec<(&FfnReport, &FfnReport)> {
    let parts = |of: &FfnReport| reports.iter().find(|r| !r.fused && r.tokens == of.tokens);
    reports.iter().filter(|r| r.fused).filter_map(|r| Some((r, parts(r)?))).collect()
}

#[cfg(test)]
mod tests {
    use unicorn_core::RateKind;

    use super::*;

    fn line(fused: bool, median: f64) -> FfnReport {
        FfnReport {
            test: "ffn".into(),
            device: "vulkan:0".into(),
            dtype: "f16".into(),
            tokens: 128,
            width: 4096,
            hidden: 16384,
            fused,
            milliseconds: Milliseconds { median, average: median, min: median, max: median },
            clock: "gpu",
            wall_milliseconds: median,
            blocks_per_submit: 16,
            gflop_per_second: 1e5,
            bytes_per_second: 1e12,
            tokens_per_second: 1e5,
            gate_up_gflop_per_second: None,
            down_gflop_per_second: Some(2e5),
            share_of_roof: 0.5,
        }
    }

    #[test]
    fn fused_and_in_parts_stand_side_by_side() {
        let text = render(&[line(true, 0.2), line(false, 0.3)], 1, OutputFormat::Table).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("fused") && lines[1].contains("0.200"), "{text}");
        assert!(lines[2].contains("in parts") && lines[2].contains("0.300"), "{text}");
        for part in ["1.50x", "timestamps", "3267 ms"] {
            assert!(text.contains(part), "{part} missing in\n{text}");
        }
        let alone = render(&[line(true, 0.2)], 1, OutputFormat::Table).unwrap();
        assert!(alone.contains("as it is") && !alone.contains("worth"), "{alone}");
    }

    #[test]
    fn medians_of_even_and_odd() {
        assert_eq!(Milliseconds::of(&[0.003, 0.001, 0.002]).median, 2.0);
        assert_eq!(Milliseconds::of(&[0.001, 0.002]).median, 1.5);
        assert_eq!(Milliseconds::of(&[]).median, 0.0);
    }

    #[test]
    fn parts_are_found_by_the_op() {
        let time = |kernel: &str, flops| KernelTime {
            kernel: kernel.into(),
            calls: 1,
            seconds: 0.5,
            bytes: 0,
            flops,
            rate: RateKind::Float,
        };
        let times = [
            time("ffn_gate linear_f16", 2_000_000_000),
            time("ffn_up linear_f16", 2_000_000_000),
            time("ffn_down linear_glu_up", 1_000_000_000),
        ];
        assert_eq!(gflop_per_second(&times, &["gate", "up"]), Some(4.0));
        assert_eq!(gflop_per_second(&times, &["down"]), Some(2.0));
        assert_eq!(gflop_per_second(&times, &["other"]), None);
    }
}
