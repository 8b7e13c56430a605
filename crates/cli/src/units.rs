//! Numbers for people. Sizes are decimal (1 GB = 10^9 bytes), so that GB divided by GB/s gives seconds.

/// A size: `98.1 MB`.
pub fn bytes(count: u64) -> String {
    if count < 1000 {
        format!("{count} B")
    } else {
        scaled(count as f64, &["B", "kB", "MB", "GB", "TB", "PB"])
    }
}

/// A bandwidth: `21.3 GB/s`.
pub fn bandwidth(bytes_per_second: f64) -> String {
    scaled(bytes_per_second, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s"])
}

/// An arithmetic rate: `142 GFLOP/s`; `op` is `FLOP` or `OP`.
pub fn arithmetic(per_second: f64, op: &str) -> String {
    let (value, prefix) = scale(per_second, &["", "k", "M", "G", "T", "P"]);
    format!("{} {prefix}{op}/s", three_digits(value))
}

/// A rate with its prefix alone, for columns whose heading has the unit: `142 G`, `1.31 T`.
pub fn prefixed(per_second: f64) -> String {
    let (value, prefix) = scale(per_second, &["", "k", "M", "G", "T", "P"]);
    format!("{} {prefix}", three_digits(value)).trim_end().to_owned()
}

/// A count of parameters: `134.5M`, `8.03B`.
pub fn parameters(count: u64) -> String {
    let (value, unit) = scale(count as f64, &["", "K", "M", "B", "T"]);
    format!("{}{unit}", three_digits(value))
}

/// A time: `312 us`, `48.2 ms`, `3.10 s`.
pub fn seconds(value: f64) -> String {
    let (value, unit) = match value {
        v if v < 1e-3 => (v * 1e6, "us"),
        v if v < 1.0 => (v * 1e3, "ms"),
        v => (v, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

/// A share: `83.1 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Three significant digits, never in scientific notation: `0.012`, `4.56`, `78.9`, `1234`.
pub fn three_digits(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

fn scaled(value: f64, units: &[&str]) -> String {
    let (value, unit) = scale(value, units);
    format!("{} {unit}", three_digits(value))
}

fn scale<'u>(mut value: f64, units: &[&'u str]) -> (f64, &'u str) {
    let mut unit = 0;
    while value.abs() >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    (value, units.get(unit).copied().unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_into_the_next_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(999_960), "1.00 MB");
        assert_eq!(bytes(98_123_456), "98.1 MB");
        assert_eq!(bytes(u64::MAX), "18447 PB");
    }

    #[test]
    fn rates_counts_and_times() {
        assert_eq!(arithmetic(142.3e9, "FLOP"), "142 GFLOP/s");
        assert_eq!(prefixed(1.314e12), "1.31 T");
        assert_eq!(prefixed(0.0), "0.000");
        assert_eq!(bandwidth(21.34e9), "21.3 GB/s");
        assert_eq!(parameters(8_030_000_000), "8.03B");
        assert_eq!(parameters(134_515_008), "135M");
        assert_eq!(seconds(0.0482), "48.2 ms");
        assert_eq!(seconds(0.000_312), "312 us");
        assert_eq!(three_digits(0.0), "0.000");
    }
}
