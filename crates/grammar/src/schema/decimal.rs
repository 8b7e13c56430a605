//! Numbers of schemas, exactly as they are written.

use std::cmp::Ordering;

/// `coefficient * 10^exponent`, without trailing zeros in the coefficient.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Decimal {
    coefficient: i128,
    exponent: i32,
}

impl Decimal {
    pub(crate) fn integer(value: i64) -> Decimal {
        Decimal { coefficient: i128::from(value), exponent: 0 }.normal()
    }

    /// Reads a JSON number. `None` where it has more digits or a larger exponent than a 64-bit float can mean.
    pub(crate) fn parse(text: &str) -> Option<Decimal> {
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let fraction = fraction.trim_end_matches('0');
        let digits = format!("{whole}{fraction}");
        let coefficient: i128 = digits.parse().ok()?;
        let exponent = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
        if exponent.abs() > 400 || digits.len() > 36 {
            return None;
        }
        Some(Decimal { coefficient, exponent }.normal())
    }

    fn normal(mut self) -> Decimal {
        while self.coefficient != 0 && self.coefficient % 10 == 0 {
            self.coefficient /= 10;
            self.exponent += 1;
        }
        if self.coefficient == 0 {
            self.exponent = 0;
        }
        self
    }

    pub(crate) fn is_integer(self) -> bool {
        self.exponent >= 0
    }

    pub(crate) fn is_negative(self) -> bool {
        self.coefficient < 0
    }

    pub(crate) fn is_zero(self) -> bool {
        self.coefficient == 0
    }

    pub(crate) fn abs(self) -> Decimal {
        Decimal { coefficient: self.coefficient.abs(), ..self }
    }

    pub(crate) fn negate(self) -> Decimal {
        Decimal { coefficient: -self.coefficient, ..self }
    }

    /// The digits before and after the point, of the magnitude. `None` where that would be more than 60 in all.
    pub(crate) fn digits(self) -> Option<(String, String)> {
        let digits = self.coefficient.unsigned_abs().to_string();
        if self.exponent >= 0 {
            let zeros = usize::try_from(self.exponent).ok()?;
            let whole = digits + &"0".repeat(zeros.min(61));
            return (whole.len() <= 60).then_some((whole, String::new()));
        }
        let places = usize::try_from(-self.exponent).ok()?;
        if places > 60 {
            return None;
        }
        let padded = format!("{}{digits}", "0".repeat((places + 1).saturating_sub(digits.len())));
        let (whole, fraction) = padded.split_at(padded.len() - places);
        (padded.len() <= 60).then(|| (whole.to_owned(), fraction.to_owned()))
    }

    /// Coefficient and number of decimal places of a positive number, where both are small.
    pub(crate) fn places(self) -> Option<(u32, u32)> {
        let (coefficient, places) = match u32::try_from(self.exponent) {
            Ok(zeros) => (self.coefficient.checked_mul(10i128.checked_pow(zeros)?)?, 0),
            Err(_) => (self.coefficient, u32::try_from(-self.exponent).ok()?),
        };
        let coefficient = u32::try_from(coefficient).ok()?;
        (coefficient > 0 && coefficient <= 100_000_000 && places <= 8).then_some((coefficient, places))
    }

    /// Coefficient and decimal places of a positive number, and the number of digits that alone tell its multiples: the last ones
    /// of a whole number, or all behind the point. `None` where no few digits do.
    pub(crate) fn telling_digits(self) -> Option<(u32, u32, u32)> {
        let (coefficient, places) = self.places()?;
        let divides = |digits: u32| 10u32.pow(digits).is_multiple_of(coefficient);
        let digits = if places > 0 {
            Some(places).filter(|p| *p <= 4 && divides(*p))
        } else {
            (0..=4).find(|d| divides(*d))
        };
        digits
            .filter(|digits| 10u32.pow(*digits) / coefficient <= 1000)
            .map(|digits| (coefficient, places, digits))
    }

    /// The number without its fraction, where it is not too large.
    pub(crate) fn whole(self) -> Option<i64> {
        let whole: i64 = self.digits()?.0.parse().ok().filter(|whole| *whole < i64::MAX / 2)?;
        Some(if self.is_negative() { -whole } else { whole })
    }

    /// Whether `self` is a whole number of times `step`. `None` where the numbers are too far apart to tell.
    pub(crate) fn is_multiple_of(self, step: Decimal) -> Option<bool> {
        let low = self.exponent.min(step.exponent);
        let scale = |d: Decimal| {
            let zeros = u32::try_from(d.exponent - low).ok()?;
            d.coefficient.checked_mul(10i128.checked_pow(zeros)?)
        };
        let step = scale(step)?;
        if step == 0 {
            return None;
        }
        Some(scale(self)? % step == 0)
    }

    /// The number as JSON writes it.
    pub(crate) fn text(self) -> Option<String> {
        let (whole, fraction) = self.digits()?;
        let sign = if self.is_negative() { "-" } else { "" };
        Some(if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Decimal) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Decimal) -> Ordering {
        let sign = self.coefficient.signum().cmp(&other.coefficient.signum());
        if sign != Ordering::Equal || self.coefficient == 0 {
            return sign;
        }
        let magnitude = |d: &Decimal| {
            let digits = d.coefficient.unsigned_abs().to_string();
            // The place of the first digit decides, then the digits one by one.
            (digits.len() as i32 + d.exponent, digits)
        };
        let ordering = magnitude(self).cmp(&magnitude(other));
        if self.coefficient < 0 { ordering.reverse() } else { ordering }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap()
    }

    #[test]
    fn numbers_compare_by_value() {
        let ascending =
            ["-1e30", "-12.5", "-12.49", "-0.001", "0", "1e-9", "0.1", "0.11", "1", "9.99", "10", "1e20"];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(decimal(a).cmp(&decimal(b)), i.cmp(&j), "{a} {b}");
            }
        }
        assert_eq!(decimal("1.50"), decimal("15e-1"));
        assert_eq!(decimal("-0.0"), decimal("0"));
    }

    #[test]
    fn multiples_are_exact() {
        assert_eq!(decimal("0.3").is_multiple_of(decimal("0.1")), Some(true));
        assert_eq!(decimal("19.99").is_multiple_of(decimal("0.01")), Some(true));
        assert_eq!(decimal("7").is_multiple_of(decimal("2")), Some(false));
        assert_eq!(decimal("7").is_multiple_of(decimal("0")), None);
    }

    #[test]
    fn texts_come_back() {
        for text in ["0", "12", "-3.25", "0.001", "100000000000000000000"] {
            assert_eq!(decimal(text).text().as_deref(), Some(text));
        }
        assert_eq!(decimal("1e3").text().as_deref(), Some("1000"));
        assert_eq!(decimal("1e300").text(), None);
        assert_eq!(decimal("0.05").digits(), Some(("0".into(), "05".into())));
        assert_eq!(decimal("0.25").places(), Some((25, 2)));
        assert_eq!(decimal("1e-12").places(), None);
    }
}
