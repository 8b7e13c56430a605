//! Where the time goes, kernel by kernel.

use serde::Serialize;
use unicorn_core::{KernelTime, Roofline};

use crate::table::{Align, Table};
use crate::units;

/// Where the time of one run of a test went on one device.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Profile {
    /// Device name.
    pub device: String,
    /// Kernels by time, longest first.
    pub kernels: Vec<KernelLine>,
}

/// Time of one kernel with what it did in it. The names of the fields are the JSON format.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct KernelLine {
    /// Op and kernel.
    pub kernel: String,
    /// Calls.
    pub calls: u64,
    /// Seconds in all.
    pub seconds: f64,
    /// Part of the time of all kernels.
    pub share: f64,
    /// Bytes of weights and KV cache read; 0 where they are not counted.
    pub bytes: u64,
    /// Arithmetic operations; 0 where they are not counted.
    pub flops: u64,
    /// The larger share of a limit of the device; absent where nothing is counted.
    pub share_of_roof: Option<f64>,
    /// The name of that limit.
    pub roof: Option<String>,
}

impl Profile {
    /// From what a device timed, beside its limits.
    pub fn of(device: String, times: &[KernelTime], roof: &Roofline) -> Profile {
        let total: f64 = times.iter().map(|t| t.seconds).sum();
        let mut kernels: Vec<KernelLine> =
            times.iter().map(|time| KernelLine::of(time, total, roof)).collect();
        kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Profile { device, kernels }
    }

    /// Time in all and of one call, share of the time, bandwidth, arithmetic rate, and the larger share of a limit with its name.
    pub fn table(&self) -> Table {
        let mut table = Table::new([
            ("kernel", Align::Left),
            ("calls", Align::Right),
            ("time", Align::Right),
            ("each", Align::Right),
            ("share", Align::Right),
            ("GB/s", Align::Right),
            ("FLOP/s", Align::Right),
            ("of roof", Align::Right),
            ("roof", Align::Left),
        ]);
        for k in &self.kernels {
            let seconds = k.seconds.max(SECONDS_MIN);
            let shown = |text: String| if k.share_of_roof.is_some() { text } else { "-".to_owned() };
            table.row([
                k.kernel.clone(),
                k.calls.to_string(),
                units::seconds(k.seconds),
                units::seconds(k.seconds / k.calls.max(1) as f64),
                units::percent(k.share),
                shown(units::three_digits(k.bytes as f64 / seconds / 1e9)),
                shown(units::prefixed(k.flops as f64 / seconds)),
                shown(units::percent(k.share_of_roof.unwrap_or(0.0))),
                k.roof.clone().unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        let total: f64 = self.kernels.iter().map(|k| k.seconds).sum();
        let sum = |of: fn(&KernelLine) -> u64| self.kernels.iter().map(of).sum::<u64>();
        table.row([
            "all".to_owned(),
            sum(|k| k.calls).to_string(),
            units::seconds(total),
            String::new(),
            String::new(),
            units::three_digits(sum(|k| k.bytes) as f64 / total.max(SECONDS_MIN) / 1e9),
            units::prefixed(sum(|k| k.flops) as f64 / total.max(SECONDS_MIN)),
        ]);
        table
    }
}

/// Shorter times count as this long.
const SECONDS_MIN: f64 = 1e-12;

impl KernelLine {
    fn of(time: &KernelTime, total: f64, roof: &Roofline) -> KernelLine {
        let seconds = time.seconds.max(SECONDS_MIN);
        let memory = time.bytes as f64 / seconds / roof.read_bytes_per_second;
        let arithmetic = time.flops as f64 / seconds / roof.rate(time.rate);
        let counted = time.bytes > 0 || time.flops > 0;
        let limit = if memory >= arithmetic { "memory".to_owned() } else { time.rate.to_string() };
        KernelLine {
            kernel: time.kernel.clone(),
            calls: time.calls,
            seconds: time.seconds,
            share: time.seconds / total.max(SECONDS_MIN),
            bytes: time.bytes,
            flops: time.flops,
            share_of_roof: counted.then_some(memory.max(arithmetic)),
            roof: counted.then_some(limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use unicorn_core::RateKind;

    use super::*;

    #[test]
    fn the_longest_comes_first() {
        let roof = Roofline {
            read_bytes_per_second: 10e9,
            integer_ops_per_second: 1e12,
            float_ops_per_second: 1e11,
            matrix_ops_per_second: None,
            copy_bytes_per_second: None,
        };
        let time = |kernel: &str, seconds, flops| KernelTime {
            kernel: kernel.into(),
            calls: 2,
            seconds,
            bytes: 1_000_000_000,
            flops,
            rate: RateKind::Float,
        };
        let text =
            Profile::of("cpu".into(), &[time("short", 1.0, 0), time("long", 3.0, 150_000_000_000)], &roof)
                .table()
                .text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("long") && lines[1].ends_with("50.0 %  float"), "{text}");
        assert!(lines[1].contains("75.0 %") && lines[1].contains("1.50 s"), "{text}");
        assert!(lines[2].starts_with("short") && lines[2].ends_with("10.0 %  memory"), "{text}");
        assert!(lines[3].starts_with("all") && lines[3].contains("4.00 s"), "{text}");
    }

    #[test]
    fn what_is_not_counted_has_no_rate() {
        let roof = Roofline {
            read_bytes_per_second: 1.0,
            integer_ops_per_second: 1.0,
            float_ops_per_second: 1.0,
            matrix_ops_per_second: Some(1.0),
            copy_bytes_per_second: None,
        };
        let norm = KernelTime {
            kernel: "norm".into(),
            calls: 1,
            seconds: 1.0,
            bytes: 0,
            flops: 0,
            rate: RateKind::Matrix,
        };
        let text = Profile::of("cpu".into(), &[norm], &roof).table().text();
        assert!(text.lines().nth(1).is_some_and(|line| line.ends_with("-")), "{text}");
    }
}
