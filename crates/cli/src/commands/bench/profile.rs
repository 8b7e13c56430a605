//! Where the time goes, kernel by kernel.

use unicorn_core::{KernelTime, Roofline};

use crate::table::{Align, Table};
use crate::units;

/// Kernels by time, longest first: time in all and of one call, share of the time, bandwidth, arithmetic rate, and the larger share of a
/// limit with the limit's name.
pub fn table(times: &[KernelTime], roof: &Roofline) -> Table {
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
    let total: f64 = times.iter().map(|t| t.seconds).sum();
    let mut sorted: Vec<&KernelTime> = times.iter().collect();
    sorted.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    for time in sorted {
        let seconds = time.seconds.max(1e-12);
        let (bytes, operations) = (time.bytes as f64 / seconds, time.flops as f64 / seconds);
        let (memory, arithmetic) = (bytes / roof.read_bytes_per_second, operations / roof.rate(time.rate));
        let counted = time.bytes > 0 || time.flops > 0;
        let limit = if memory >= arithmetic { "memory".to_owned() } else { time.rate.to_string() };
        let shown = |text: String| if counted { text } else { "-".to_owned() };
        table.row([
            time.kernel.clone(),
            time.calls.to_string(),
            units::seconds(time.seconds),
            units::seconds(time.seconds / time.calls.max(1) as f64),
            units::percent(time.seconds / total.max(1e-12)),
            shown(units::three_digits(bytes / 1e9)),
            shown(units::prefixed(operations)),
            shown(units::percent(memory.max(arithmetic))),
            shown(limit),
        ]);
    }
    let calls: u64 = times.iter().map(|t| t.calls).sum();
    let bytes: u64 = times.iter().map(|t| t.bytes).sum();
    let flops: u64 = times.iter().map(|t| t.flops).sum();
    table.row([
        "all".to_owned(),
        calls.to_string(),
        units::seconds(total),
        String::new(),
        String::new(),
        units::three_digits(bytes as f64 / total.max(1e-12) / 1e9),
        units::prefixed(flops as f64 / total.max(1e-12)),
    ]);
    table
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
        let text = table(&[time("short", 1.0, 0), time("long", 3.0, 150_000_000_000)], &roof).text();
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
        let text = table(&[norm], &roof).text();
        assert!(text.lines().nth(1).is_some_and(|line| line.ends_with("-")), "{text}");
    }
}
