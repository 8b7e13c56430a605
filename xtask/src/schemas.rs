//! `cargo xtask schemas DIR`: structured output held against JSONSchemaBench and MaskBench.
//!
//! DIR is a checkout of <https://github.com/guidance-ai/jsonschemabench>. Every schema is compiled strictly. Of those that are
//! honoured, valid instances must be accepted and invalid ones rejected token by token, and what a random walk over the allowed
//! tokens writes must be valid by an independent validator.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use unicorn_grammar::{Grammar, GrammarError, Matcher, Strictness, Vocabulary};

use crate::{data, sh};

#[derive(clap::Args)]
pub struct Args {
    /// The checkout of jsonschemabench
    directory: PathBuf,
    /// Answers sampled for each schema
    #[arg(long, default_value_t = 3)]
    samples: usize,
    /// Only schemas whose file name contains this
    #[arg(long)]
    only: Option<String>,
    /// Write what was found of each schema to this file
    #[arg(long)]
    details: Option<PathBuf>,
    /// Ends the program with an error where anything wrong was accepted or written
    #[arg(long)]
    strict: bool,
}

/// Tokens of a sample at most.
const TOKENS_MAX: usize = 1500;

/// The datasets of JSONSchemaBench; MaskBench has others beside them.
const BENCH: [&str; 10] = [
    "Github_easy",
    "Github_hard",
    "Github_medium",
    "Github_trivial",
    "Github_ultra",
    "Glaiveai2K",
    "JsonSchemaStore",
    "Kubernetes",
    "Snowplow",
    "WashingtonPost",
];

/// What was found of the schemas of one dataset.
#[derive(Default)]
struct Tally {
    schemas: usize,
    honoured: usize,
    passing: usize,
    refused: BTreeMap<String, usize>,
    valid: usize,
    wrong_reject: usize,
    invalid: usize,
    wrong_accept: usize,
    samples: usize,
    wrong_sample: usize,
    unfinished: usize,
    stuck: usize,
    unjudged: usize,
    slow: usize,
    compile: Vec<Duration>,
    masks: Vec<Duration>,
}

pub fn run(args: &Args) -> Result<()> {
    let folder = args.directory.join("maskbench/data");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .with_context(|| format!("cannot list {}: is this a checkout of jsonschemabench?", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .filter(|path| args.only.as_ref().is_none_or(|only| path.to_string_lossy().contains(only)))
        .collect();
    files.sort();
    if files.is_empty() {
        bail!("no schema in {}", folder.display());
    }
    let tokenizer = tokenizer()?;
    let vocabulary = Vocabulary::new(&tokenizer, tokenizer.vocab_size(), tokenizer.end_tokens())?;
    let mut details = String::new();
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    for (at, path) in files.iter().enumerate() {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let Ok(case) = serde_json::from_str::<Value>(&text) else { continue };
        let tally = tallies.entry(dataset(&name)).or_default();
        let found = judge(&vocabulary, &case, args.samples, tally);
        for line in found {
            writeln!(details, "{name}\t{line}")?;
        }
        if at % 500 == 499 {
            eprintln!("{} of {}", at + 1, files.len());
        }
    }
    if let Some(path) = &args.details {
        std::fs::write(path, details).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let wrong = report(&tallies);
    if args.strict && wrong > 0 {
        bail!("{wrong} answers or instances outside of their schemas");
    }
    Ok(())
}

fn tokenizer() -> Result<unicorn_text::Tokenizer> {
    let path = sh::root().join("target/test-data/smollm2");
    if !path.is_dir() {
        data::install()?;
    }
    let file =
        std::fs::read_dir(&path)?.filter_map(|entry| entry.ok()).map(|entry| entry.path()).find(is_gguf);
    let file = file.with_context(|| format!("no model in {}", path.display()))?;
    Ok(unicorn_model::open_tokenizer(&file)?.tokenizer)
}

fn is_gguf(path: &PathBuf) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "gguf")
}

/// `Github_easy---o1` and `BFCL_java_7` belong to `Github_easy` and `BFCL_java`.
fn dataset(name: &str) -> String {
    match name.split_once("---") {
        Some((dataset, _)) => dataset.to_owned(),
        None => name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('_').to_owned(),
    }
}

/// Judges one schema and returns a line for everything worth telling.
fn judge(vocabulary: &Vocabulary, case: &Value, samples: usize, tally: &mut Tally) -> Vec<String> {
    let mut lines = Vec::new();
    let schema = &case["schema"];
    tally.schemas += 1;
    let start = Instant::now();
    let compiled = Grammar::json_schema(vocabulary, schema, Strictness::Strict);
    let elapsed = start.elapsed();
    tally.compile.push(elapsed);
    if elapsed > Duration::from_secs(1) {
        tally.slow += 1;
        lines.push(format!("slow: {elapsed:?}"));
    }
    let grammar = match compiled {
        Ok(grammar) => grammar,
        Err(error) => {
            *tally.refused.entry(reason(&error)).or_default() += 1;
            lines.push(format!("refused: {error}"));
            return lines;
        }
    };
    tally.honoured += 1;
    let before = lines.len();
    for test in case["tests"].as_array().into_iter().flatten() {
        let accepted = accepts(vocabulary, &grammar, &test["data"], tally);
        let valid = test["valid"] == Value::Bool(true);
        if valid {
            tally.valid += 1;
            if let Err(error) = &accepted {
                tally.wrong_reject += 1;
                lines.push(format!("wrong reject: {error}"));
            }
        } else {
            tally.invalid += 1;
            if accepted.is_ok() {
                tally.wrong_accept += 1;
                lines.push(format!("WRONG ACCEPT: {}", test["data"]));
            }
        }
    }
    let validator = jsonschema::options().should_validate_formats(true).build(schema);
    for seed in 0..samples as u64 {
        let mut walk = Walk::new(seed);
        match walk.answer(vocabulary, &grammar, tally) {
            Err(error) => {
                tally.stuck += 1;
                lines.push(format!("stuck: {error}"));
            }
            Ok(None) => tally.unfinished += 1,
            Ok(Some(text)) => {
                tally.samples += 1;
                match (&validator, serde_json::from_str::<Value>(&text)) {
                    (Err(error), _) => {
                        tally.unjudged += 1;
                        lines.push(format!("unjudged: {error}"));
                    }
                    (Ok(_), Err(error)) => {
                        tally.wrong_sample += 1;
                        lines.push(format!("WRONG SAMPLE, no JSON: {error}: {text}"));
                    }
                    (Ok(validator), Ok(value)) => {
                        if let Err(error) = validator.validate(&value) {
                            tally.wrong_sample += 1;
                            lines.push(format!("WRONG SAMPLE: {error}: {text}"));
                        }
                    }
                }
            }
        }
    }
    if lines.len() == before {
        tally.passing += 1;
    }
    lines
}

/// The kind of a refusal, for counting.
fn reason(error: &GrammarError) -> String {
    match error {
        GrammarError::Unsupported { keyword, reason, .. } => {
            let reason: String = reason.rsplit(": ").next().unwrap_or(reason).chars().take(60).collect();
            format!("{keyword}: {reason}")
        }
        GrammarError::TooComplex(reason) => {
            let text: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
            format!("too complex: {}", text.split('"').next_back().unwrap_or_default())
        }
        GrammarError::Invalid { reason, .. } => format!("invalid: {reason}"),
        other => other.to_string(),
    }
}

/// Whether a value, written without white space, is what the grammar allows.
fn accepts(
    vocabulary: &Vocabulary,
    grammar: &Grammar,
    value: &Value,
    tally: &mut Tally,
) -> Result<(), String> {
    let text = value.to_string();
    let ids = vocabulary.tokenizer().encode(&text, unicorn_text::EncodeOptions::default());
    let ids = ids.map_err(|error| error.to_string())?;
    let mut matcher = Matcher::new(grammar);
    let mut written = String::new();
    for id in ids {
        let start = Instant::now();
        matcher.mask()?;
        tally.masks.push(start.elapsed());
        let bytes = vocabulary.tokenizer().token_bytes(id).unwrap_or_default();
        matcher.accept(id).map_err(|error| {
            let tail: String = written.chars().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect();
            format!("{error}: {tail} >>> {}", String::from_utf8_lossy(&bytes))
        })?;
        written.push_str(&String::from_utf8_lossy(&bytes));
    }
    if matcher.may_end() { Ok(()) } else { Err("it may not end".to_owned()) }
}

/// A random walk over allowed tokens.
struct Walk(u64);

impl Walk {
    fn new(seed: u64) -> Walk {
        Walk(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// The next of a sequence of well-mixed numbers (SplitMix64).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// An answer, or none where it gets too long.
    fn answer(
        &mut self,
        vocabulary: &Vocabulary,
        grammar: &Grammar,
        tally: &mut Tally,
    ) -> Result<Option<String>, String> {
        let tokenizer = vocabulary.tokenizer();
        // Tokens that lead to an end; without them the walk would write strings for ever.
        let closing: Vec<u32> =
            ["\"", "}", "]", "\"}", "0", "."].iter().filter_map(|t| tokenizer.token_id(t)).collect();
        let mut matcher = Matcher::new(grammar);
        let mut bytes = Vec::new();
        for step in 0..TOKENS_MAX {
            let start = Instant::now();
            let Some(mask) = matcher.mask()? else { return Err("everything is allowed".to_owned()) };
            tally.masks.push(start.elapsed());
            let end = vocabulary.ends().iter().find(|end| mask.allows(**end));
            if end.is_some() && self.below(3) > 0 {
                return Ok(String::from_utf8(bytes).ok());
            }
            let hurry = self.below(1000) < (200 + step * 2).min(950);
            let closer = closing.iter().copied().find(|id| mask.allows(*id)).filter(|_| hurry);
            let id = match closer {
                Some(id) => id,
                None => {
                    let allowed: Vec<u32> = (0..vocabulary.size() as u32)
                        .filter(|id| mask.allows(*id) && !vocabulary.ends().contains(id))
                        .collect();
                    match allowed.get(self.below(allowed.len())) {
                        Some(id) => *id,
                        None => return Ok(String::from_utf8(bytes).ok()),
                    }
                }
            };
            bytes.extend_from_slice(&tokenizer.token_bytes(id).unwrap_or_default());
            if matcher.accept(id)? {
                return Ok(String::from_utf8(bytes).ok());
            }
        }
        Ok(None)
    }
}

/// Prints the tables; returns the number of answers and instances outside of their schemas.
fn report(tallies: &BTreeMap<String, Tally>) -> usize {
    println!(
        "{:<22} {:>7} {:>8} {:>8} {:>6} {:>7} {:>7} {:>8} {:>7} {:>8} {:>7} {:>10} {:>6}",
        "dataset",
        "schemas",
        "honoured",
        "passing",
        "valid",
        "refused",
        "invalid",
        "accepted",
        "samples",
        "wrong",
        "stuck",
        "unfinished",
        "slow"
    );
    let (mut bench, mut total) = (Tally::default(), Tally::default());
    for (name, tally) in tallies {
        line(name, tally);
        total.add(tally);
        if BENCH.contains(&name.as_str()) {
            bench.add(tally);
        }
    }
    line("JSONSchemaBench", &bench);
    line("MaskBench (all)", &total);
    println!("\nrefused:");
    let mut refused: Vec<(&String, &usize)> = total.refused.iter().collect();
    refused.sort_by(|a, b| b.1.cmp(a.1));
    for (reason, count) in refused {
        println!("{count:>6} {reason}");
    }
    println!("\nunjudged samples (the validator refuses the schema): {}", total.unjudged);
    println!("compile: {}", spread(&mut total.compile));
    println!("mask:    {}", spread(&mut total.masks));
    total.wrong_accept + total.wrong_sample
}

fn line(name: &str, t: &Tally) {
    println!(
        "{name:<22} {:>7} {:>8} {:>8} {:>6} {:>7} {:>7} {:>8} {:>7} {:>8} {:>7} {:>10} {:>6}",
        t.schemas,
        t.honoured,
        t.passing,
        t.valid,
        t.wrong_reject,
        t.invalid,
        t.wrong_accept,
        t.samples,
        t.wrong_sample,
        t.stuck,
        t.unfinished,
        t.slow
    );
}

fn spread(times: &mut [Duration]) -> String {
    times.sort();
    let at = |share: f64| {
        times.get(((times.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or_default()
    };
    format!(
        "p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?} of {}",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        times.len()
    )
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        for (reason, count) in &other.refused {
            *self.refused.entry(reason.clone()).or_default() += count;
        }
        self.schemas += other.schemas;
        self.honoured += other.honoured;
        self.passing += other.passing;
        self.valid += other.valid;
        self.wrong_reject += other.wrong_reject;
        self.invalid += other.invalid;
        self.wrong_accept += other.wrong_accept;
        self.samples += other.samples;
        self.wrong_sample += other.wrong_sample;
        self.unfinished += other.unfinished;
        self.stuck += other.stuck;
        self.unjudged += other.unjudged;
        self.slow += other.slow;
        self.compile.extend(&other.compile);
        self.masks.extend(&other.masks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_belong_to_their_datasets() {
        for (name, wanted) in [
            ("Github_easy---o10008", "Github_easy"),
            ("BFCL_java_12", "BFCL_java"),
            ("JsonSchemaStore---ide.host", "JsonSchemaStore"),
        ] {
            assert_eq!(dataset(name), wanted);
        }
    }

    #[test]
    fn refusals_are_counted_by_their_kind() {
        let unsupported = |path: &str| GrammarError::Unsupported {
            path: path.to_owned(),
            keyword: "pattern".to_owned(),
            reason: "\"(?=x)\": it looks ahead or behind".to_owned(),
        };
        assert_eq!(reason(&unsupported("/a")), reason(&unsupported("/b")));
        assert_eq!(reason(&unsupported("")), "pattern: it looks ahead or behind");
    }
}
