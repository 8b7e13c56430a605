//! Numbers as regular expressions.
//!
//! Validators compare numbers as 64-bit floats, which tell 15 decimal digits apart. So a number that is compared with anything is
//! written with 15 digits at most, and without an exponent.

use llguidance::derivre::RegexAst;

use super::decimal::Decimal;
use super::shape::Number;

/// A number that nothing is asked of. It is never too large for a float.
const ANY: &str = r"(?:0|-?[1-9][0-9]{0,30})|-?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,30}(?:[eE][+-]?[0-9]{1,2})?|[eE][+-]?[0-9]{1,2})";
/// There is no -0: readers take it for a fraction.
const ANY_INTEGER: &str = r"0|-?[1-9][0-9]{0,30}";
/// Multiples that are listed at most.
const FEW: i64 = 1000;
/// Digits that are told apart.
const DIGITS: usize = 15;

fn regex(text: impl Into<String>) -> RegexAst {
    RegexAst::Regex(text.into())
}

fn not(inner: RegexAst) -> RegexAst {
    RegexAst::Not(Box::new(inner))
}

/// The numbers of a shape as JSON text. `None` where there is none.
pub(crate) fn language(number: &Number) -> Option<RegexAst> {
    if let Some(points) = &number.points {
        let mut texts = Vec::new();
        for point in points {
            let Some(text) = point.text() else { continue };
            texts.push(RegexAst::Literal(text));
        }
        return (!texts.is_empty()).then_some(RegexAst::Or(texts));
    }
    let compared = number.min.is_some()
        || number.max.is_some()
        || !number.multiples.is_empty()
        || !number.not_multiples.is_empty()
        || !number.not_points.is_empty()
        || number.integer == Some(false);
    if !compared {
        return Some(regex(if number.integer == Some(true) { ANY_INTEGER } else { ANY }));
    }
    if let Some(few) = few(number) {
        let texts: Vec<RegexAst> = few.into_iter().filter_map(Decimal::text).map(RegexAst::Literal).collect();
        return (!texts.is_empty()).then_some(RegexAst::Or(texts));
    }
    let whole = number.integer == Some(true) || number.multiples.iter().any(|step| step.is_integer());
    let mut options = Vec::new();
    for negative in [false, true] {
        options.extend(half(number, whole, negative));
    }
    (!options.is_empty()).then_some(RegexAst::Or(options))
}

/// All numbers, where they are multiples in a small range and digits do not tell them: they are listed, since the library does not
/// see that no more digits can make a multiple.
fn few(number: &Number) -> Option<Vec<Decimal>> {
    let step = number.multiples.iter().find(|step| step.is_integer() && step.telling_digits().is_none())?;
    let (step, _) = step.places()?;
    let (low, high) = (number.min?.0.whole()?, number.max?.0.whole()?);
    let (first, last) = (low.div_euclid(i64::from(step)), high.div_euclid(i64::from(step)) + 1);
    if last.checked_sub(first)? > FEW {
        return None;
    }
    let all = (first..=last).map(|times| Decimal::integer(times * i64::from(step)));
    Some(all.filter(|point| number.has(*point)).collect())
}

/// The numbers of one sign; zero has none.
fn half(number: &Number, whole: bool, negative: bool) -> Option<RegexAst> {
    let mirror = |bound: (Decimal, bool)| (bound.0.negate(), bound.1);
    let (low, high) =
        if negative { (number.max.map(mirror), number.min.map(mirror)) } else { (number.min, number.max) };
    let zero = Decimal::integer(0);
    // A magnitude is at least 0; with a minus it is more than that.
    let mut low = low.filter(|(bound, _)| !bound.is_negative()).unwrap_or((zero, negative));
    if negative && low.0.is_zero() {
        low.1 = true;
    }
    if let Some((bound, excluded)) = high
        && (bound < low.0 || (bound == low.0 && (excluded || low.1)))
    {
        return None;
    }
    let mut parts = vec![magnitudes(whole, low.0, high.map(|(bound, _)| bound))];
    if !low.0.is_zero() || low.1 {
        parts.push(at_least(low.0, low.1)?);
    }
    if let Some((bound, excluded)) = high
        && let Some(above) = at_least(bound, !excluded)
    {
        parts.push(not(above));
    }
    for (steps, wanted) in [(&number.multiples, true), (&number.not_multiples, false)] {
        for step in steps {
            let multiple = multiples(*step)?;
            parts.push(if wanted { multiple } else { not(multiple) });
        }
    }
    if !number.not_multiples.is_empty() {
        // In one notation only: what is not a multiple as it is written is none in any other.
        parts.push(regex(r"[0-9]+|[0-9]+\.[0-9]*[1-9]"));
    }
    if number.integer == Some(false) {
        parts.push(regex(r"[0-9]+\.[0-9]*[1-9][0-9]*"));
    }
    let of_this_sign = |point: &&Decimal| point.is_negative() == negative;
    for point in number.not_points.iter().filter(of_this_sign) {
        let (integer, fraction) = point.digits()?;
        let zeros = if fraction.is_empty() { r"(?:\.0+)?".to_owned() } else { format!(r"\.{fraction}0*") };
        parts.push(not(regex(format!("{integer}{zeros}"))));
    }
    let magnitude = RegexAst::And(parts);
    Some(if negative {
        RegexAst::Concat(vec![RegexAst::Literal("-".to_owned()), magnitude])
    } else {
        magnitude
    })
}

/// Magnitudes that are multiples of a step.
fn multiples(step: Decimal) -> Option<RegexAst> {
    let (coefficient, places) = step.places()?;
    // Where a few digits tell, they are listed: then it is known from each digit whether an end can be reached.
    let Some((_, _, digits)) = step.telling_digits() else {
        return Some(RegexAst::MultipleOf(coefficient, places));
    };
    if digits == 0 {
        return Some(regex("[0-9]+"));
    }
    let width = digits as usize;
    let listed = (0..10u32.pow(digits)).step_by(coefficient as usize);
    if places == 0 {
        let endings: Vec<String> = listed.clone().map(|ending| format!("{ending:0width$}")).collect();
        let short: Vec<String> = listed.map(|ending| ending.to_string()).collect();
        return Some(regex(format!("[1-9][0-9]*(?:{})|{}", endings.join("|"), short.join("|"))));
    }
    let fractions: Vec<String> = listed
        .filter(|fraction| *fraction > 0)
        .map(|fraction| {
            let all = format!("{fraction:0width$}");
            let short = all.trim_end_matches('0').to_owned();
            let zeros = width - short.len();
            if zeros == 0 { short } else { format!("{short}0{{0,{zeros}}}") }
        })
        .collect();
    let whole = format!(r"[0-9]+(?:\.0{{1,{width}}})?");
    Some(regex(if fractions.is_empty() {
        whole
    } else {
        format!(r"{whole}|[0-9]+\.(?:{})", fractions.join("|"))
    }))
}

/// Magnitudes of few enough digits, without or with a fraction.
fn magnitudes(whole: bool, low: Decimal, high: Option<Decimal>) -> RegexAst {
    let digits = |bound: Decimal| bound.digits().map_or(DIGITS, |(integer, _)| integer.len());
    // A bound may have more digits than are told apart: numbers as long as it are told by its own digits.
    let longest = digits(low).max(high.map_or(0, digits)).clamp(DIGITS, 19);
    let integers = format!("(?:0|[1-9][0-9]{{0,{}}})", longest - 1);
    if whole {
        return regex(integers);
    }
    let short = r"(?:0|[1-9][0-9]{0,2})\.[0-9]{1,12}";
    let middle = r"[1-9][0-9]{3,5}\.[0-9]{1,9}";
    let long = r"[1-9][0-9]{6,8}\.[0-9]{1,6}";
    regex(format!("{integers}|{short}|{middle}|{long}"))
}

/// Magnitudes that are at least `bound`, or more than it. `None` where the bound is beyond all magnitudes.
fn at_least(bound: Decimal, more: bool) -> Option<RegexAst> {
    let (integer, fraction) = bound.digits()?;
    let length = integer.len();
    let rest = r"(?:\.[0-9]+)?";
    let mut options = vec![format!("[1-9][0-9]{{{length},}}{rest}")];
    if integer == "0" {
        options[0] = format!("[1-9][0-9]*{rest}");
    }
    // The same number of digits, and the first that differs is larger.
    for (at, digit) in integer.bytes().enumerate().filter(|(_, digit)| *digit < b'9') {
        if integer == "0" {
            break;
        }
        let larger = char::from(digit + 1);
        let left = length - at - 1;
        options.push(format!("{}[{larger}-9][0-9]{{{left}}}{rest}", &integer[..at]));
    }
    for (at, digit) in fraction.bytes().enumerate().filter(|(_, digit)| *digit < b'9') {
        let larger = char::from(digit + 1);
        options.push(format!(r"{integer}\.{}[{larger}-9][0-9]*", &fraction[..at]));
    }
    options.push(match (fraction.is_empty(), more) {
        (true, false) => format!("{integer}{rest}"),
        (true, true) => format!(r"{integer}\.[0-9]*[1-9][0-9]*"),
        (false, false) => format!(r"{integer}\.{fraction}[0-9]*"),
        (false, true) => format!(r"{integer}\.{fraction}[0-9]*[1-9][0-9]*"),
    });
    Some(regex(options.join("|")))
}
