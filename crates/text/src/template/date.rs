//! `strftime` over a date that the caller gives.

use minijinja::{Error, ErrorKind};

/// A date and time of day, in whatever time zone the caller wants the model to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    /// Year, e.g. 2026.
    pub year: i64,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, 1 to 31.
    pub day: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute, 0 to 59.
    pub minute: u8,
    /// Second, 0 to 59.
    pub second: u8,
}

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A `strftime` result longer than this is an attack.
const FORMAT_BYTES_MAX: usize = 1024;

impl DateTime {
    /// The UTC date of a Unix time in seconds. Add the offset of a time zone before the call for local time.
    pub fn from_unix(seconds: i64) -> Self {
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Days are counted from 0000-03-01, so that the leap day ends a year (Hinnant, "chrono-Compatible
        // Low-Level Date Algorithms").
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
        }
    }

    /// Day of the year, from 1.
    fn ordinal(self) -> i64 {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let month = usize::from(self.month.clamp(1, 12)) - 1;
        before[month] + i64::from(self.day) + i64::from(leap && self.month > 2)
    }

    /// 0 for Monday.
    fn weekday(self) -> usize {
        let years = self.year - 1;
        let days = years * 365 + years.div_euclid(4) - years.div_euclid(100) + years.div_euclid(400);
        (days + self.ordinal() - 1).rem_euclid(7) as usize
    }
}

/// Formats `now` as Python's `strftime` does in the C locale.
pub(super) fn strftime(now: DateTime, format: &str) -> Result<String, Error> {
    if format.len() > FORMAT_BYTES_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, "strftime_now: the format is too long"));
    }
    let month = MONTHS[usize::from(now.month.clamp(1, 12)) - 1];
    let weekday = DAYS[now.weekday()];
    let hour12 = (now.hour + 11) % 12 + 1;
    let mut output = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            output.push(c);
            continue;
        }
        let mut directive = rest.next();
        let padded = directive != Some('-');
        if !padded {
            directive = rest.next();
        }
        let number = |value: i64, width: usize| match padded {
            true => format!("{value:0width$}"),
            false => value.to_string(),
        };
        output += &match directive {
            Some('Y') => now.year.to_string(),
            Some('y') => number(now.year.rem_euclid(100), 2),
            Some('m') => number(now.month.into(), 2),
            Some('d') => number(now.day.into(), 2),
            Some('e') => format!("{:2}", now.day),
            Some('H') => number(now.hour.into(), 2),
            Some('I') => number(hour12.into(), 2),
            Some('M') => number(now.minute.into(), 2),
            Some('S') => number(now.second.into(), 2),
            Some('j') => number(now.ordinal(), 3),
            Some('B') => month.to_owned(),
            Some('b' | 'h') => month[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('p') => if now.hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{}-{:02}-{:02}", now.year, now.month, now.day),
            Some('T') => format!("{:02}:{:02}:{:02}", now.hour, now.minute, now.second),
            Some('R') => format!("{:02}:{:02}", now.hour, now.minute),
            Some('D') => format!("{:02}/{:02}/{:02}", now.month, now.day, now.year.rem_euclid(100)),
            Some('u') => (now.weekday() + 1).to_string(),
            Some('w') => ((now.weekday() + 1) % 7).to_string(),
            Some('Z' | 'z') => String::new(),
            Some('%') => "%".to_owned(),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                let reason = format!("strftime_now: `%{directive}` is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        };
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_unix_times() {
        let text = |seconds| strftime(DateTime::from_unix(seconds), "%F %T %a %j").unwrap();
        assert_eq!(text(0), "1970-01-01 00:00:00 Thu 001");
        assert_eq!(text(951_827_696), "2000-02-29 12:34:56 Tue 060");
        assert_eq!(text(1_798_761_599), "2026-12-31 23:59:59 Thu 365");
        assert_eq!(text(-1), "1969-12-31 23:59:59 Wed 365");
        assert!(strftime(DateTime::from_unix(0), "%Q").is_err());
    }
}
