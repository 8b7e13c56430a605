//! Times as Ollama writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use unicorn_text::DateTime;

/// RFC 3339 in UTC with nanoseconds.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let date = DateTime::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX / 2));
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        date.year,
        date.month,
        date.day,
        date.hour,
        date.minute,
        date.second,
        since.subsec_nanos()
    )
}

/// As [`rfc3339`], of seconds since 1970.
pub(super) fn of_seconds(seconds: u64) -> String {
    rfc3339(UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH))
}

/// Whole nanoseconds.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whole nanoseconds of seconds.
pub(super) fn nanos_of(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1e9) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_full() {
        assert_eq!(of_seconds(951_782_400), "2000-02-29T00:00:00.000000000Z");
        let time = UNIX_EPOCH + Duration::new(1_764_271_618, 12_345);
        assert_eq!(rfc3339(time), "2025-11-27T19:26:58.000012345Z");
        assert_eq!((nanos(Duration::from_micros(7)), nanos_of(0.25), nanos_of(-1.0)), (7000, 250_000_000, 0));
    }
}
