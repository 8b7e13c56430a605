//! What `bench` prints: one row per test, as table, JSON or Markdown.

use serde::Serialize;

use super::profile::Profile;
use crate::args::OutputFormat;
use crate::table::{Align, Table};
use crate::units;

/// Median and extremes of repeated measurements.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Spread {
    /// Middle value.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl From<(f64, f64, f64)> for Spread {
    /// From median, smallest and largest.
    fn from((median, min, max): (f64, f64, f64)) -> Spread {
        Spread { median, min, max }
    }
}

/// What the planner had predicted.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Predicted {
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// Predicted over measured tokens per second, less one: 0.1 is 10 % too much.
    pub error: f64,
    /// How earlier runs had corrected it, in words.
    pub correction: Option<String>,
}

/// One line of results. The names of the fields are the JSON format.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// `pp512`, `tg128`, with ` @ d4096` at a depth.
    pub test: String,
    /// Tokens per second.
    pub tokens_per_second: Spread,
    /// Device name.
    pub device: String,
    /// Model name.
    pub model: String,
    /// Part of the speed that the device's measured limit allows: read bandwidth for `tg`, arithmetic rate for `pp`; `None` on several
    /// devices.
    pub share_of_roof: Option<f64>,
    /// Bytes of weights and KV cache that the test reads, over its median time.
    pub bytes_per_second: f64,
    /// Operations of the test over its median time.
    pub flops_per_second: f64,
    /// Bytes of weights.
    pub model_bytes: u64,
    /// Parameters of the model.
    pub parameters: u64,
    /// Worker threads or compute units.
    pub workers: usize,
    /// Measured repetitions.
    pub repetitions: usize,
    /// Seconds to load the weights onto the device.
    pub load_seconds: f64,
    /// What was predicted; `None` where the devices were not measured for the planner.
    pub predicted: Option<Predicted>,
    /// Where the time goes, with --profile.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<Profile>,
}

/// All rows in the format asked for, each line ended.
pub fn render(rows: &[Row], format: OutputFormat) -> serde_json::Result<String> {
    Ok(match format {
        OutputFormat::Json => serde_json::to_string_pretty(rows)? + "\n",
        OutputFormat::Md => table(rows).markdown() + &profiles(rows, Table::markdown),
        OutputFormat::Table => table(rows).text() + &profiles(rows, Table::text),
    })
}

/// The tables of kernels below that of the tests, each under a line that names its test.
fn profiles(rows: &[Row], format: fn(&Table) -> String) -> String {
    let each = |row: &Row, profile: &Profile| {
        let heading = format!("{} on {}, one run, every kernel timed", row.test, profile.device);
        format!("\n{heading}\n\n{}", format(&profile.table()))
    };
    rows.iter().flat_map(|row| row.profile.iter().map(move |profile| each(row, profile))).collect()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new([
        ("model", Align::Left),
        ("size", Align::Right),
        ("params", Align::Right),
        ("device", Align::Left),
        ("workers", Align::Right),
        ("test", Align::Right),
        ("tok/s", Align::Right),
        ("min", Align::Right),
        ("max", Align::Right),
        ("GB/s", Align::Right),
        ("FLOP/s", Align::Right),
        ("of roof", Align::Right),
        ("predicted", Align::Right),
        ("error", Align::Right),
    ]);
    for row in rows {
        let predicted = row.predicted.as_ref();
        let speed = row.tokens_per_second;
        table.row([
            row.model.clone(),
            units::bytes(row.model_bytes),
            units::parameters(row.parameters),
            row.device.clone(),
            row.workers.to_string(),
            row.test.clone(),
            format!("{:.2}", speed.median),
            format!("{:.2}", speed.min),
            format!("{:.2}", speed.max),
            units::three_digits(row.bytes_per_second / 1e9),
            units::prefixed(row.flops_per_second),
            row.share_of_roof.map_or("-".to_owned(), units::percent),
            predicted.map_or("-".to_owned(), |p| format!("{:.2}", p.tokens_per_second)),
            predicted.map_or("-".to_owned(), |p| format!("{:+.1} %", p.error * 100.0)),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use unicorn_core::{KernelTime, RateKind, Roofline};

    use super::*;

    fn row() -> Row {
        Row {
            test: "tg128 @ d4096".into(),
            tokens_per_second: Spread::from((2.0, 1.0, 3.0)),
            device: "cpu".into(),
            model: "m".into(),
            share_of_roof: Some(0.5),
            bytes_per_second: 25e9,
            flops_per_second: 1.5e12,
            model_bytes: 98_000_000,
            parameters: 135_000_000,
            workers: 2,
            repetitions: 3,
            load_seconds: 0.5,
            predicted: Some(Predicted { tokens_per_second: 2.25, error: 0.125, correction: None }),
            profile: Vec::new(),
        }
    }

    #[test]
    fn kernels_come_in_the_format_asked_for() {
        let roof = Roofline {
            read_bytes_per_second: 1e9,
            integer_ops_per_second: 1e9,
            float_ops_per_second: 1e9,
            matrix_ops_per_second: None,
            copy_bytes_per_second: None,
        };
        let time = KernelTime {
            kernel: "ffn_down q4_0".into(),
            calls: 2,
            seconds: 0.5,
            bytes: 250_000_000,
            flops: 0,
            rate: RateKind::Float,
        };
        let row = Row { profile: vec![Profile::of("cpu".into(), &[time], &roof)], ..row() };
        let of = |format| render(std::slice::from_ref(&row), format).unwrap();
        let value: serde_json::Value = serde_json::from_str(&of(OutputFormat::Json)).unwrap();
        let kernel = &value[0]["profile"][0]["kernels"][0];
        assert_eq!((&kernel["kernel"], &kernel["share_of_roof"]), (&"ffn_down q4_0".into(), &0.5.into()));
        assert_eq!((&kernel["seconds"], &kernel["roof"]), (&0.5.into(), &"memory".into()));
        let md = of(OutputFormat::Md);
        assert!(md.contains("\ntg128 @ d4096 on cpu, one run") && md.contains("| ffn_down q4_0 |"), "{md}");
        let text = of(OutputFormat::Table);
        assert!(text.contains("\nffn_down q4_0") && !text.contains('|'), "{text}");
        assert!(!render(&[self::row()], OutputFormat::Json).unwrap().contains("profile"));
    }

    #[test]
    fn json_has_the_promised_fields() {
        let text = render(&[row()], OutputFormat::Json).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value[0]["test"], "tg128 @ d4096");
        assert_eq!(value[0]["tokens_per_second"], serde_json::json!({"median": 2.0, "min": 1.0, "max": 3.0}));
        assert_eq!(value[0]["share_of_roof"], 0.5);
        assert_eq!(value[0]["predicted"]["error"], 0.125);
        assert_eq!((&value[0]["device"], &value[0]["model"]), (&"cpu".into(), &"m".into()));
    }

    #[test]
    fn tables_say_the_same() {
        let text = render(&[row()], OutputFormat::Table).unwrap();
        assert!(
            text.contains("tg128 @ d4096   2.00  1.00  3.00  25.0  1.50 T   50.0 %       2.25  +12.5 %"),
            "{text}"
        );
        let md = render(&[row()], OutputFormat::Md).unwrap();
        assert!(md.starts_with("| model ") && md.contains("| tg128 @ d4096 |"), "{md}");
    }
}
