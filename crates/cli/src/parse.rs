//! Values of flags, checked where they are typed.

use clap::builder::{PossibleValue, TypedValueParser};
use unicorn_core::KvType;

/// Most worker threads that make sense to ask for.
const THREADS_MAX: usize = 1024;

/// A count of at least one.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a whole number".into()),
    }
}

/// A number of the prompts that `selftest --model` has.
pub fn prompts(text: &str) -> Result<usize, String> {
    match positive(text)? {
        n if n > 20 => Err("there are 20".into()),
        n => Ok(n),
    }
}

/// A number of threads.
pub fn threads(text: &str) -> Result<usize, String> {
    match positive(text)? {
        n if n > THREADS_MAX => Err(format!("at most {THREADS_MAX}")),
        n => Ok(n),
    }
}

/// Any finite number.
pub fn finite(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err("must be finite".into()),
        Err(_) => Err("not a number".into()),
    }
}

/// A finite number of at least zero.
pub fn non_negative(text: &str) -> Result<f32, String> {
    finite(text).and_then(|v| if v >= 0.0 { Ok(v) } else { Err("must not be negative".into()) })
}

/// A finite number above zero.
pub fn positive_float(text: &str) -> Result<f32, String> {
    finite(text).and_then(|v| if v > 0.0 { Ok(v) } else { Err("must be above 0".into()) })
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
        assert!(threads("1025").is_err());
        assert!(
            non_negative("nan").is_err() && non_negative("-0.1").is_err() && non_negative("inf").is_err()
        );
        assert_eq!(probability("1"), Ok(1.0));
        assert!(probability("1.01").is_err());
        assert!(positive_float("0").is_err());
    }
}
