//! How an answer is written: flags over the model's own settings over the defaults, and `/set` in a chat.

use clap::{Args, Parser, ValueEnum};
use unicorn_engine::{Drafter, DryOptions, NgramDrafter, SamplingOptions};
use unicorn_model::Recommended;

use crate::parse::{self, OrAuto};

/// Unset values come from the model's generation config, else from the defaults shown.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Sampling (unset: the model's own settings, else the default)")]
pub struct SamplingArgs {
    /// Temperature; 0 always takes the likeliest token [default: 0.8]
    #[arg(long, visible_alias = "temperature", value_name = "T", value_parser = parse::temperature, allow_hyphen_values = true)]
    pub temp: Option<f32>,
    /// Keep the K likeliest tokens; 0 or -1 keeps all [default: 40]
    #[arg(long, value_name = "K", value_parser = parse::top_k, allow_negative_numbers = true)]
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens that make up this probability; 1 keeps all [default: 0.95]
    #[arg(long, value_name = "P", value_parser = parse::probability, allow_hyphen_values = true)]
    pub top_p: Option<f32>,
    /// Drop tokens below this share of the likeliest one's probability; 0 drops none [default: 0.05]
    #[arg(long, value_name = "P", value_parser = parse::probability, allow_hyphen_values = true)]
    pub min_p: Option<f32>,
    /// Locally typical sampling: keep tokens near the expected surprise; 1 keeps all [default: 1]
    #[arg(long, alias = "typical-p", value_name = "P", value_parser = parse::probability, allow_hyphen_values = true)]
    pub typical: Option<f32>,
    /// Divide the logits of tokens seen of late by this; 1 leaves them [default: 1]
    #[arg(long, aliases = ["repetition-penalty", "repeat_penalty"], value_name = "F", value_parser = parse::divisor, allow_hyphen_values = true)]
    pub repeat_penalty: Option<f32>,
    /// Subtract this from the logits of tokens seen of late [default: 0]
    #[arg(long, value_name = "F", value_parser = parse::finite, allow_hyphen_values = true)]
    pub presence_penalty: Option<f32>,
    /// Subtract this per occurrence of late from a token's logit [default: 0]
    #[arg(long, value_name = "F", value_parser = parse::finite, allow_hyphen_values = true)]
    pub frequency_penalty: Option<f32>,
    /// DRY: strength of the penalty on repeating a sequence; 0 is off [default: 0]
    #[arg(long, alias = "dry-multiplier", value_name = "F", value_parser = parse::non_negative, allow_hyphen_values = true)]
    pub dry: Option<f32>,
    /// Seed of the random choices; the same seed gives the same text; -1 for the default [default: a new one each time]
    #[arg(long, value_name = "N", value_parser = parse::seed, allow_negative_numbers = true)]
    pub seed: Option<OrAuto<u64>>,
}

/// Where guesses of the next tokens come from.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum DraftChoice {
    /// The text so far
    Ngram,
}

impl DraftChoice {
    /// One for each answer.
    pub fn drafter(self) -> Box<dyn Drafter> {
        match self {
            DraftChoice::Ngram => Box::new(NgramDrafter),
        }
    }
}

/// Flags that decide about an answer; `/set NAME VALUE` changes them under the same names.
#[derive(Args, Clone, Debug, Default)]
pub struct AnswerArgs {
    /// Longest answer in tokens; -1 for the default [default: as long as the context allows]
    #[arg(
        short = 'n',
        long,
        aliases = ["n-predict", "predict", "num-predict", "max-new-tokens"],
        value_name = "TOKENS",
        value_parser = parse::max_tokens,
        allow_negative_numbers = true,
        help_heading = "Prompt"
    )]
    pub max_tokens: Option<OrAuto<usize>>,
    /// Guess the next tokens and verify several at once, which is faster where an answer repeats its prompt or itself: `ngram` guesses what
    /// followed the last tokens before [default: no guesses]
    #[arg(long, value_name = "HOW", help_heading = "Prompt")]
    pub draft: Option<DraftChoice>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

impl AnswerArgs {
    /// True where the seed is the same for every answer.
    pub fn has_seed(&self) -> bool {
        self.sampling.seed.and_then(OrAuto::value).is_some()
    }
}

/// Resolved settings.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    pub sampling: SamplingOptions,
    pub max_tokens: Option<usize>,
}

/// Resolves flags over recommendations over defaults. `seed` is used where no flag names one.
pub fn resolve(args: &AnswerArgs, recommended: &Recommended, seed: u64) -> Settings {
    let flags = &args.sampling;
    let default = SamplingOptions::default();
    let sampling = SamplingOptions {
        temperature: flags.temp.or(recommended.temperature).unwrap_or(default.temperature),
        top_k: flags.top_k.or(recommended.top_k).unwrap_or(default.top_k),
        top_p: flags.top_p.or(recommended.top_p).unwrap_or(default.top_p),
        min_p: flags.min_p.or(recommended.min_p).unwrap_or(default.min_p),
        typical_p: flags.typical.unwrap_or(default.typical_p),
        repeat_penalty: flags.repeat_penalty.or(recommended.repeat_penalty).unwrap_or(default.repeat_penalty),
        presence_penalty: flags.presence_penalty.unwrap_or(default.presence_penalty),
        frequency_penalty: flags.frequency_penalty.unwrap_or(default.frequency_penalty),
        dry: DryOptions { multiplier: flags.dry.unwrap_or(default.dry.multiplier), ..default.dry.clone() },
        seed: flags.seed.and_then(OrAuto::value).unwrap_or(seed),
        ..default
    };
    Settings { sampling, max_tokens: args.max_tokens.and_then(OrAuto::value) }
}

/// A seed that differs from run to run.
pub fn fresh_seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanoseconds = clock.map_or(0, |d| d.as_nanos() as u64) ^ (u64::from(std::process::id()) << 32);
    // Short enough to type again (SplitMix64's finalizer, then 32 bits).
    let mixed = (nanoseconds ^ (nanoseconds >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32
}

#[derive(Parser, Debug)]
#[command(name = "/set", no_binary_name = true, disable_help_flag = true)]
struct SetLine {
    #[command(flatten)]
    answer: AnswerArgs,
}

/// Changes one setting as `--NAME VALUE` would. `_` may stand for `-`; the value `default` takes a setting back.
///
/// Errors with one line for the person at the prompt.
pub fn set(args: &mut AnswerArgs, name: &str, value: &str) -> Result<(), String> {
    let name = name.trim_start_matches('-').replace('_', "-");
    let name = if name == "temperature" { "temp".to_owned() } else { name };
    if value == "default" {
        return unset(args, &name);
    }
    // `=` keeps a value that begins with `-` from being read as a flag.
    let parsed = SetLine::try_parse_from([format!("--{name}={value}")]).map_err(|error| {
        let text = error.to_string();
        match error.kind() {
            clap::error::ErrorKind::UnknownArgument => format!("no setting {name}; /set lists them"),
            _ => text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        }
    })?;
    merge(args, parsed.answer);
    Ok(())
}

fn merge(args: &mut AnswerArgs, new: AnswerArgs) {
    let (old, set) = (&mut args.sampling, new.sampling);
    old.temp = set.temp.or(old.temp);
    old.top_k = set.top_k.or(old.top_k);
    old.top_p = set.top_p.or(old.top_p);
    old.min_p = set.min_p.or(old.min_p);
    old.typical = set.typical.or(old.typical);
    old.repeat_penalty = set.repeat_penalty.or(old.repeat_penalty);
    old.presence_penalty = set.presence_penalty.or(old.presence_penalty);
    old.frequency_penalty = set.frequency_penalty.or(old.frequency_penalty);
    old.dry = set.dry.or(old.dry);
    // "A new one each time" and "no limit" are what holds where nothing is set.
    old.seed = set.seed.or(old.seed).filter(|seed| *seed != OrAuto::Auto);
    args.max_tokens = new.max_tokens.or(args.max_tokens).filter(|tokens| *tokens != OrAuto::Auto);
}

fn unset(args: &mut AnswerArgs, name: &str) -> Result<(), String> {
    let flags = &mut args.sampling;
    match name {
        "temp" => flags.temp = None,
        "top-k" => flags.top_k = None,
        "top-p" => flags.top_p = None,
        "min-p" => flags.min_p = None,
        "typical" => flags.typical = None,
        "repeat-penalty" => flags.repeat_penalty = None,
        "presence-penalty" => flags.presence_penalty = None,
        "frequency-penalty" => flags.frequency_penalty = None,
        "dry" => flags.dry = None,
        "seed" => flags.seed = None,
        "max-tokens" => args.max_tokens = None,
        _ => return Err(format!("no setting {name}; /set lists them")),
    }
    Ok(())
}

impl Settings {
    /// Names and values, as `/set` takes them.
    pub fn list(&self, seed_is_fixed: bool) -> Vec<(&'static str, String)> {
        let s = &self.sampling;
        let seed = if seed_is_fixed { s.seed.to_string() } else { "new each time".to_owned() };
        vec![
            ("temp", s.temperature.to_string()),
            ("top-k", s.top_k.to_string()),
            ("top-p", s.top_p.to_string()),
            ("min-p", s.min_p.to_string()),
            ("typical", s.typical_p.to_string()),
            ("repeat-penalty", s.repeat_penalty.to_string()),
            ("presence-penalty", s.presence_penalty.to_string()),
            ("frequency-penalty", s.frequency_penalty.to_string()),
            ("dry", s.dry.multiplier.to_string()),
            ("seed", seed),
            ("max-tokens", self.max_tokens.map_or("to the end of the context".to_owned(), |n| n.to_string())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_model_and_the_model_over_defaults() {
        let mut args = AnswerArgs::default();
        let model = Recommended { temperature: Some(0.2), top_k: Some(7), ..Recommended::default() };
        args.sampling.top_k = Some(0);
        let settings = resolve(&args, &model, 5);
        assert_eq!((settings.sampling.temperature, settings.sampling.top_k), (0.2, 0));
        assert_eq!(settings.sampling.top_p, SamplingOptions::default().top_p);
        assert_eq!(settings.sampling.seed, 5);
    }

    #[test]
    fn every_listed_setting_can_be_set_and_taken_back() {
        let mut args = AnswerArgs::default();
        let before = resolve(&args, &Recommended::default(), 0);
        for (name, _) in before.list(true) {
            set(&mut args, name, "1").unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let changed = resolve(&args, &Recommended::default(), 0);
        assert!(changed.list(true).iter().all(|(_, value)| value == "1"), "{changed:?}");
        for (name, _) in before.list(true) {
            set(&mut args, name, "default").unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        assert_eq!(resolve(&args, &Recommended::default(), 0), before);
    }

    #[test]
    fn mistakes_change_nothing_and_say_why() {
        let mut args = AnswerArgs::default();
        assert!(set(&mut args, "temp", "-1").unwrap_err().contains("must not be negative"));
        assert!(set(&mut args, "seed", "-2").unwrap_err().contains("new seed each time"));
        assert!(set(&mut args, "colour", "blue").unwrap_err().contains("no setting colour"));
        assert!(set(&mut args, "top_p", "0.5").is_ok() && set(&mut args, "presence-penalty", "-0.5").is_ok());
        assert_eq!((args.sampling.temp, args.sampling.top_p), (None, Some(0.5)));
    }

    #[test]
    fn numbers_of_other_programs_take_a_setting_back() {
        let mut args = AnswerArgs::default();
        let before = resolve(&args, &Recommended::default(), 3);
        for (name, value) in [("seed", "9"), ("max-tokens", "9"), ("seed", "-1"), ("max-tokens", "-1")] {
            set(&mut args, name, value).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        assert_eq!(resolve(&args, &Recommended::default(), 3), before);
        assert!(!args.has_seed(), "the seed is said to be new each time");
        set(&mut args, "top-k", "-1").unwrap();
        assert_eq!(args.sampling.top_k, Some(0));
    }

    #[test]
    fn seeds_are_short() {
        assert!(fresh_seed() <= u64::from(u32::MAX));
    }
}
