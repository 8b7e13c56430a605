//! Where the time goes, kernel by kernel.

use unicorn_core::{KernelTime, Roofline};

use crate::table::{Align, Table};
use crate::units;

/// Kernels by time, longest first: share of the time, bandwidth, arithmetic rate, and the larger share of a limit.
pub fn table(times: &[KernelTime], roof: &Roofline) -> Table {
    let mut table = Table::new([
        ("kernel", Align::Left),
        ("calls", Align::Right),
        ("time", Align::Right),
        ("share", Align::Right),
        ("GB/s", Align::Right),
        ("GOP/s", Align::Right),
        ("of roof", Align::Right),
    ]);
    let total: f64 = times.iter().map(|t| t.seconds).sum();
    let mut sorted: Vec<&KernelTime> = times.iter().collect();
    sorted.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    for time in sorted {
        let seconds = time.seconds.max(1e-12);
        let (bytes, operations) = (time.bytes as f64 / seconds, time.flops as f64 / seconds);
        let nearest = (bytes / roof.read_bytes_per_second).max(operations / roof.rate(time.rate));
        table.row([
            time.kernel.clone(),
            time.calls.to_string(),
            units::seconds(time.seconds),
            units::percent(time.seconds / total.max(1e-12)),
            units::three_digits(bytes / 1e9),
            units::three_digits(operations / 1e9),
            units::percent(nearest),
        ]);
    }
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
        assert!(lines[1].starts_with("long") && lines[1].ends_with("50.0 %"), "{text}");
        assert!(lines[1].contains("75.0 %"), "{text}");
        assert!(lines[2].starts_with("short") && lines[2].ends_with("10.0 %"), "{text}");
    }
}
