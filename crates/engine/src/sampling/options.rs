//! Sampling options and their ranges.

/// A sampling option is out of range.
#[derive(thiserror::Error, Clone, PartialEq, Debug)]
#[error("{name} = {value}: must be {allowed}")]
pub struct OptionError {
    /// The parameter, for example `top_p`.
    pub name: &'static str,
    /// What was given.
    pub value: String,
    /// What is allowed.
    pub allowed: &'static str,
}

/// DRY ("don't repeat yourself", p-e-w 2024): a penalty that grows exponentially with the length of the repetition that a
/// token would continue.
#[derive(Clone, PartialEq, Debug)]
pub struct DryOptions {
    /// Strength; 0 switches DRY off.
    pub multiplier: f32,
    /// Growth per token of repetition beyond `allowed_length`; at least 1.
    pub base: f32,
    /// Repetitions up to this length go unpunished.
    pub allowed_length: usize,
    /// How many of the last tokens are searched; `None` searches all.
    pub penalty_last_n: Option<usize>,
    /// Token sequences across which no repetition is counted.
    pub breakers: Vec<Vec<u32>>,
}

impl Default for DryOptions {
    fn default() -> DryOptions {
        DryOptions {
            multiplier: 0.0,
            base: 1.75,
            allowed_length: 2,
            penalty_last_n: None,
            breakers: Vec::new(),
        }
    }
}

impl DryOptions {
    /// True when DRY can change a logit.
    pub(crate) fn is_on(&self) -> bool {
        self.multiplier != 0.0 && self.penalty_last_n != Some(0)
    }
}

/// How a sequence chooses its tokens. The defaults are llama.cpp's.
#[derive(Clone, PartialEq, Debug)]
pub struct SamplingOptions {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities reach this sum (Holtzman et al. 2020); 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the most likely one (Nguyen et al. 2024); 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose information is nearest to the entropy until their probabilities exceed this sum (locally
    /// typical sampling, Meister et al. 2022); 1 keeps all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens (Keskar et al. 2019); 1 changes nothing.
    pub repeat_penalty: f32,
    /// Subtracted from the logits of recent tokens.
    pub presence_penalty: f32,
    /// Subtracted from the logits of recent tokens once per occurrence.
    pub frequency_penalty: f32,
    /// How many of the last tokens, prompt included, the three penalties look at; `None` looks at all.
    pub penalty_last_n: Option<usize>,
    /// DRY.
    pub dry: DryOptions,
    /// Added to the logits of these tokens; -inf bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> SamplingOptions {
        SamplingOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: Some(64),
            dry: DryOptions::default(),
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// Breaker sequences are matched at every position of the window, so their number and length are bounded.
const BREAKERS_MAX: usize = 1024;
const BREAKER_TOKENS_MAX: usize = 64;

impl SamplingOptions {
    /// Always the most likely token.
    pub fn greedy() -> SamplingOptions {
        SamplingOptions { temperature: 0.0, ..SamplingOptions::default() }
    }

    /// True when a repeat, presence or frequency penalty can change a logit.
    pub(crate) fn penalties_on(&self) -> bool {
        let neutral =
            self.repeat_penalty == 1.0 && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0;
        !neutral && self.penalty_last_n != Some(0)
    }

    /// Errors with the name of the first parameter that is out of range.
    pub fn validate(&self) -> Result<(), OptionError> {
        let check = |name, value: f32, ok: bool, allowed| {
            if ok { Ok(()) } else { Err(OptionError { name, value: value.to_string(), allowed }) }
        };
        let finite = |v: f32| v.is_finite();
        let unit = |v: f32| (0.0..=1.0).contains(&v);
        const NOT_NEGATIVE: &str = "a finite number of at least 0";
        const UNIT: &str = "between 0 and 1";
        let t = self.temperature;
        check("temperature", t, finite(t) && t >= 0.0, NOT_NEGATIVE)?;
        check("top_p", self.top_p, unit(self.top_p), UNIT)?;
        check("min_p", self.min_p, unit(self.min_p), UNIT)?;
        check("typical_p", self.typical_p, unit(self.typical_p), UNIT)?;
        let r = self.repeat_penalty;
        check("repeat_penalty", r, finite(r) && r > 0.0, "a finite number above 0")?;
        check("presence_penalty", self.presence_penalty, finite(self.presence_penalty), "a finite number")?;
        check(
            "frequency_penalty",
            self.frequency_penalty,
            finite(self.frequency_penalty),
            "a finite number",
        )?;
        for &(_, bias) in &self.logit_bias {
            check("logit_bias", bias, bias < f32::INFINITY, "a number below infinity")?;
        }
        let dry = &self.dry;
        check(
            "dry_multiplier",
            dry.multiplier,
            finite(dry.multiplier) && dry.multiplier >= 0.0,
            NOT_NEGATIVE,
        )?;
        check("dry_base", dry.base, finite(dry.base) && dry.base >= 1.0, "a finite number of at least 1")?;
        let count = dry.breakers.len();
        let breaker = |value: usize, allowed| OptionError {
            name: "dry_sequence_breakers",
            value: value.to_string(),
            allowed,
        };
        if count > BREAKERS_MAX {
            return Err(breaker(count, "at most 1024 sequences"));
        }
        let odd = dry.breakers.iter().map(Vec::len).find(|n| !(1..=BREAKER_TOKENS_MAX).contains(n));
        odd.map_or(Ok(()), |n| Err(breaker(n, "sequences of 1 to 64 tokens")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_value_names_its_parameter() {
        type Set = fn(&mut SamplingOptions, f32);
        let cases: [(&str, Set, &[f32]); 10] = [
            ("temperature", |o, v| o.temperature = v, &[-0.1, f32::NAN, f32::INFINITY]),
            ("top_p", |o, v| o.top_p = v, &[-0.1, 1.1, f32::NAN]),
            ("min_p", |o, v| o.min_p = v, &[-0.1, 1.1, f32::NAN]),
            ("typical_p", |o, v| o.typical_p = v, &[-0.1, 1.1, f32::NAN]),
            ("repeat_penalty", |o, v| o.repeat_penalty = v, &[0.0, -1.0, f32::NAN, f32::INFINITY]),
            ("presence_penalty", |o, v| o.presence_penalty = v, &[f32::NAN, f32::INFINITY]),
            ("frequency_penalty", |o, v| o.frequency_penalty = v, &[f32::NAN, f32::NEG_INFINITY]),
            ("logit_bias", |o, v| o.logit_bias = vec![(0, 1.0), (1, v)], &[f32::NAN, f32::INFINITY]),
            ("dry_multiplier", |o, v| o.dry.multiplier = v, &[-1.0, f32::NAN, f32::INFINITY]),
            ("dry_base", |o, v| o.dry.base = v, &[0.5, f32::NAN, f32::INFINITY]),
        ];
        for (name, set, values) in cases {
            for &value in values {
                let mut options = SamplingOptions::default();
                set(&mut options, value);
                assert_eq!(options.validate().unwrap_err().name, name, "{value}");
            }
        }
        assert_eq!(SamplingOptions::default().validate(), Ok(()));
        let banned =
            SamplingOptions { logit_bias: vec![(3, f32::NEG_INFINITY)], ..SamplingOptions::greedy() };
        assert_eq!(banned.validate(), Ok(()));
    }

    #[test]
    fn breakers_are_bounded() {
        let with = |breakers| {
            let dry = DryOptions { breakers, ..DryOptions::default() };
            SamplingOptions { dry, ..SamplingOptions::default() }.validate()
        };
        assert_eq!(with(vec![vec![1], vec![1; 64]]), Ok(()));
        for bad in [vec![vec![]], vec![vec![1; 65]], vec![vec![1]; 1025]] {
            assert_eq!(with(bad).unwrap_err().name, "dry_sequence_breakers");
        }
    }
}
