//! Values of flags, checked where they are typed.

use clap::builder::{PossibleValue, TypedValueParser};
use unicorn_core::KvType;

use crate::context::ContextChoice;

/// Most worker threads that make sense to ask for.
const THREADS_MAX: usize = 1024;
/// Most repetitions of a measurement.
const REPETITIONS_MAX: usize = 10_000;
/// Most requests at once that are planned for.
const SEQUENCES_MAX: usize = 256;
/// Most prompts that `selftest --model` has.
const PROMPTS_MAX: usize = 20;

/// A value, or the number that other programs take for "as you would by yourself": -1 and its kin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OrAuto<T> {
    /// What happens where the flag is not given.
    Auto,
    /// This.
    Value(T),
}

impl<T> OrAuto<T> {
    /// The value, if there is one.
    pub fn value(self) -> Option<T> {
        match self {
            OrAuto::Auto => None,
            OrAuto::Value(value) => Some(value),
        }
    }
}

/// A whole number of at least zero. A number too large is told from text that is none.
fn whole(text: &str) -> Result<u64, String> {
    text.parse().map_err(|error: std::num::ParseIntError| match error.kind() {
        std::num::IntErrorKind::PosOverflow => format!("too large, at most {}", u64::MAX),
        _ if is_negative(text) => "must not be negative".to_owned(),
        _ => "not a whole number".to_owned(),
    })
}

fn is_negative(text: &str) -> bool {
    text.strip_prefix('-').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

/// A share of the time as percents, `1%` or `0.5`: as a factor.
pub fn share(text: &str) -> Result<f64, String> {
    let percents = text.strip_suffix('%').unwrap_or(text).trim();
    match percents.parse::<f64>() {
        Ok(percents) if (0.0..=50.0).contains(&percents) => Ok(percents / 100.0),
        Ok(_) => Err("must be from 0% to 50%".into()),
        Err(_) => Err("not a number of percents".into()),
    }
}

/// A count of anything, none included.
pub fn count(text: &str) -> Result<usize, String> {
    usize::try_from(whole(text)?).map_err(|_| format!("too large, at most {}", usize::MAX))
}

/// A count of at least one.
pub fn positive(text: &str) -> Result<usize, String> {
    match count(text) {
        Ok(n) if n > 0 => Ok(n),
        Err(why) if !is_negative(text) => Err(why),
        _ => Err("must be at least 1".into()),
    }
}

fn at_most(max: usize, text: &str) -> Result<usize, String> {
    match positive(text)? {
        n if n > max => Err(format!("at most {max}")),
        n => Ok(n),
    }
}

/// A number of the prompts that `selftest --model` has.
pub fn prompts(text: &str) -> Result<usize, String> {
    at_most(PROMPTS_MAX, text)
}

/// Requests at once.
pub fn sequences(text: &str) -> Result<usize, String> {
    at_most(SEQUENCES_MAX, text)
}

/// How often something is measured.
pub fn repetitions(text: &str) -> Result<usize, String> {
    at_most(REPETITIONS_MAX, text)
}

/// A number of threads; 0 and -1 leave the choice to the program, as elsewhere.
pub fn threads(text: &str) -> Result<OrAuto<usize>, String> {
    match text {
        "0" | "-1" => Ok(OrAuto::Auto),
        _ => at_most(THREADS_MAX, text)
            .map(OrAuto::Value)
            .map_err(|why| format!("{why}; 0 or -1 takes one per physical core")),
    }
}

/// A seed; -1 draws one, as in llama.cpp.
pub fn seed(text: &str) -> Result<OrAuto<u64>, String> {
    match text {
        "-1" => Ok(OrAuto::Auto),
        _ => whole(text).map(OrAuto::Value).map_err(|why| format!("{why}; -1 takes a new seed each time")),
    }
}

/// Tokens of an answer; -1 goes on until the model ends it, -2 until the context is full, which is where every answer ends here.
pub fn max_tokens(text: &str) -> Result<OrAuto<usize>, String> {
    match text {
        "-1" | "-2" => Ok(OrAuto::Auto),
        _ => positive(text).map(OrAuto::Value).map_err(|why| format!("{why}; -1 sets no limit")),
    }
}

/// The tokens that are kept; 0 and -1 keep all.
pub fn top_k(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(0),
        _ => count(text).map_err(|why| format!("{why}; 0 or -1 keeps all tokens")),
    }
}

/// A context in tokens; 0 is the model's own.
pub fn context(text: &str) -> Result<ContextChoice, String> {
    match count(text) {
        Ok(0) => Ok(ContextChoice::Model),
        Ok(n) => Ok(ContextChoice::Exactly(n)),
        Err(why) => Err(format!("{why}; 0 takes the model's own context")),
    }
}

/// Any finite number.
pub fn finite(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(value) if value.is_nan() => Err("must be a number".into()),
        Ok(_) => Err("must be finite".into()),
        Err(_) => Err("not a number".into()),
    }
}

/// A finite number of at least zero.
pub fn non_negative(text: &str) -> Result<f32, String> {
    finite(text).and_then(|v| if v >= 0.0 { Ok(v) } else { Err("must not be negative".into()) })
}

/// A temperature.
pub fn temperature(text: &str) -> Result<f32, String> {
    non_negative(text).map_err(|why| format!("{why}; 0 always takes the likeliest token"))
}

/// What logits are divided by: a finite number above zero.
pub fn divisor(text: &str) -> Result<f32, String> {
    finite(text).and_then(|v| if v > 0.0 { Ok(v) } else { Err("must be above 0; 1 is off".into()) })
}

/// A number from 0 to 1.
pub fn probability(text: &str) -> Result<f32, String> {
    finite(text)
        .and_then(|v| if (0.0..=1.0).contains(&v) { Ok(v) } else { Err("must lie between 0 and 1".into()) })
}

/// `f16`, `f32` or `q8_0`, listed for completions.
#[derive(Clone)]
pub struct KvTypeParser;

impl TypedValueParser for KvTypeParser {
    type Value = KvType;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<KvType, clap::Error> {
        let known = clap::builder::PossibleValuesParser::new(KV_NAMES);
        let name = known.parse_ref(command, arg, &value.to_ascii_lowercase())?;
        Ok(KvType::parse(&name).unwrap_or_default())
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(KV_NAMES.into_iter().map(PossibleValue::new)))
    }
}

const KV_NAMES: [&str; 3] = ["f16", "f32", "q8_0"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_kv_type_exists() {
        for name in KV_NAMES {
            assert!(KvType::parse(name).is_some(), "{name}");
        }
    }

    #[test]
    fn bounds_hold() {
        assert!(positive("0").is_err() && positive("-1").is_err() && positive("1e3").is_err());
        assert!(threads("1025").is_err() && repetitions("1000000000000").is_err() && prompts("21").is_err());
        assert_eq!((probability("1"), divisor("1.5"), finite("-2")), (Ok(1.0), Ok(1.5), Ok(-2.0)));
        assert!(probability("1.01").is_err() && probability("-0.5").is_err() && divisor("0").is_err());
        assert!(non_negative("-0.1").is_err() && divisor("-1").is_err());
    }

    #[test]
    fn what_is_no_number_is_refused_everywhere() {
        for parse in [finite, non_negative, temperature, divisor, probability] {
            for text in ["nan", "NaN", "-nan", "inf", "-inf", "infinity", "1e39", "-1e39", "", "1,5", "x"] {
                assert!(parse(text).is_err(), "{text}");
            }
        }
        for text in ["99999999999999999999", "18446744073709551616"] {
            assert!(count(text).unwrap_err().contains("too large"), "{text}");
            assert!(seed(text).unwrap_err().contains("too large"), "{text}");
        }
        assert!(count("-99999999999999999999").is_err() && count("1.5").unwrap_err().contains("whole"));
    }

    #[test]
    fn numbers_that_mean_the_same_elsewhere_are_taken() {
        assert_eq!((seed("-1"), seed("7")), (Ok(OrAuto::Auto), Ok(OrAuto::Value(7))));
        assert_eq!(seed("18446744073709551615"), Ok(OrAuto::Value(u64::MAX)));
        assert_eq!((max_tokens("-1"), max_tokens("-2")), (Ok(OrAuto::Auto), Ok(OrAuto::Auto)));
        assert_eq!((threads("-1"), threads("0")), (Ok(OrAuto::Auto), Ok(OrAuto::Auto)));
        assert_eq!((top_k("-1"), top_k("0"), top_k("40")), (Ok(0), Ok(0), Ok(40)));
        assert_eq!((context("0"), context("9")), (Ok(ContextChoice::Model), Ok(ContextChoice::Exactly(9))));
        // Where a negative number means nothing, the answer says what would.
        for (wrong, means) in [
            (seed("-2").unwrap_err(), "-1"),
            (max_tokens("0").unwrap_err(), "-1"),
            (max_tokens("-3").unwrap_err(), "-1"),
            (threads("-2").unwrap_err(), "physical core"),
            (top_k("-2").unwrap_err(), "keeps all"),
            (context("-1").unwrap_err(), "0 takes"),
        ] {
            assert!(wrong.contains(means), "{wrong}");
        }
    }
}
