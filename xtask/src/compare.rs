//! `cargo xtask compare`: races llama.cpp on the same files, run by run in turn, and prints one table.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bench_json::{self, Rate};
use crate::peers::{self, Peers};
use crate::stats::{markdown, spread};
use crate::{data, sh, shape_file};

/// One busy core of somebody else's spoils a comparison on a small machine.
const LOAD_MAX: f64 = 0.5;

/// Options of `cargo xtask compare`.
#[derive(clap::Args)]
pub struct Args {
    /// SmolLM2-135M in these types, made with llama-quantize
    #[arg(long, value_name = "TYPE,..", value_delimiter = ',', default_value = "Q4_0,Q8_0,Q4_K_M,Q4_1,F16")]
    types: Vec<String>,
    /// Race on these GGUF files instead
    #[arg(long, value_name = "FILE", conflicts_with = "types")]
    file: Vec<PathBuf>,
    /// Race on random weights of these shapes instead, for example llama-1b:q4_k
    #[arg(long, value_name = "SIZE:TYPE,..", value_delimiter = ',', conflicts_with_all = ["types", "file"])]
    shape: Vec<String>,
    /// Threads of each
    #[arg(short, long, default_value_t = 2)]
    threads: usize,
    /// Runs of each, in turn
    #[arg(short, long, default_value_t = 5)]
    runs: usize,
    /// Prompt length
    #[arg(short, long, default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate
    #[arg(short = 'n', long, default_value_t = 128)]
    generate: usize,
    /// Tokens already in the context
    #[arg(short, long, default_value_t = 0)]
    depth: usize,
    /// Write the table to this file as well
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Folder with llama.cpp's tools, as `cargo xtask peers --dir` makes it
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How long to wait for a busy machine to calm down
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    wait: u64,
}

/// What both run: a file, which of ours may also be made in memory.
struct Entrant {
    name: String,
    file: PathBuf,
    /// Of random weights: the file has no vocabulary, so our side makes the same weights in memory.
    shape: Option<String>,
}

/// Samples of one test on one file, a value per run.
#[derive(Default, Clone, PartialEq, Debug)]
struct Samples {
    theirs: Vec<f64>,
    ours: Vec<f64>,
    share_of_roof: Vec<f64>,
}

/// Tests by the order in which llama-bench reports them.
type Tests = Vec<(String, Samples)>;

/// Builds both sides, races them, prints the table.
pub fn run(args: &Args) -> Result<()> {
    ensure!(args.runs > 0 && args.threads > 0, "at least one run and one thread");
    let peers = peers::build(args.dir.as_deref())?;
    sh::run(&mut sh::cargo("build --locked --release -p unicorn"))?;
    let entrants = entrants(args, &peers)?;
    let calm = wait_for_calm(Duration::from_secs(args.wait));
    let mut rows = Vec::new();
    let mut commit = String::new();
    for entrant in &entrants {
        let size = fs::metadata(&entrant.file).with_context(|| entrant.file.display().to_string())?.len();
        let (tests, built_from) = race(args, &peers, entrant)?;
        commit = built_from;
        rows.extend(tests.iter().filter_map(|(test, samples)| row(&entrant.name, size, test, samples)));
    }
    let report = report(args, &commit, calm, &rows)?;
    print!("{report}");
    if let Some(out) = &args.out {
        fs::write(out, &report).with_context(|| out.display().to_string())?;
    }
    Ok(())
}

fn entrants(args: &Args, peers: &Peers) -> Result<Vec<Entrant>> {
    if !args.shape.is_empty() {
        let entrant = |shape: &String| {
            let file = shape_file::make(shape)?;
            Ok(Entrant { name: shape.clone(), file, shape: Some(shape.clone()) })
        };
        return args.shape.iter().map(entrant).collect();
    }
    if !args.file.is_empty() {
        // Programs run at the root of the workspace; the user may be elsewhere.
        let entrant = |file: &PathBuf| {
            let file = fs::canonicalize(file).with_context(|| file.display().to_string())?;
            Ok(Entrant { name: name_of(&file), file, shape: None })
        };
        return args.file.iter().map(entrant).collect();
    }
    quantized(peers, &args.types)
}

fn name_of(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// SmolLM2-135M in the wanted types. All are made from the one F16 file, so that each holds the same model.
fn quantized(peers: &Peers, types: &[String]) -> Result<Vec<Entrant>> {
    let source = data::install()?.smollm2;
    let dir = sh::target("compare");
    fs::create_dir_all(&dir)?;
    let path = |ty: &str| dir.join(format!("SmolLM2-135M-Instruct-{ty}.gguf"));
    let quantize = |from: &Path, ty: &str| -> Result<()> {
        let to = path(ty);
        if to.exists() {
            return Ok(());
        }
        let partial = to.with_extension("partial");
        eprintln!("making {}", to.display());
        sh::output(peers.tool("llama-quantize").arg("--allow-requantize").args([from, &partial]).arg(ty))?;
        fs::rename(&partial, &to)?;
        Ok(())
    };
    quantize(&source, "F16")?;
    let mut files = Vec::new();
    for ty in types {
        let ty = ty.to_ascii_uppercase();
        quantize(&path("F16"), &ty)?;
        files.push(Entrant { name: format!("SmolLM2-135M {ty}"), file: path(&ty), shape: None });
    }
    Ok(files)
}

/// Runs both in turn, so that drift of the machine's clock and heat meets both alike.
fn race(args: &Args, peers: &Peers, entrant: &Entrant) -> Result<(Tests, String)> {
    let mut tests = Tests::new();
    let mut commit = String::new();
    for run in 1..=args.runs {
        eprintln!("{}: run {run} of {}", entrant.name, args.runs);
        let mut their = peers.tool("llama-bench");
        their.arg("-m").arg(&entrant.file).args(["-o", "json"]);
        let (theirs, built_from) = bench_json::llama(&sh::output(common(&mut their, args))?)?;
        commit = built_from;
        let mut our = sh::command(sh::target("release/unicorn"));
        // As llama-bench does here: on the processor, and every logit comes back to the host.
        our.args(["bench", "--output", "json", "--device", "cpu", "--select", "logits"]);
        match &entrant.shape {
            Some(shape) => our.args(["--shape", shape]),
            None => our.arg("-m").arg(&entrant.file),
        };
        record(&mut tests, &theirs, &bench_json::unicorn(&sh::output(common(&mut our, args))?)?)?;
    }
    Ok((tests, commit))
}

/// Options that both programs know by the same names. One repetition each, after the warm-up that both do.
fn common<'c>(command: &'c mut Command, args: &Args) -> &'c mut Command {
    command.args(["-p", &args.prompt.to_string(), "-n", &args.generate.to_string(), "-r", "1"]);
    command.args(["-d", &args.depth.to_string(), "-t", &args.threads.to_string()])
}

/// Adds one run of each; both must have run the same tests.
fn record(tests: &mut Tests, theirs: &[Rate], ours: &[Rate]) -> Result<()> {
    let ours: BTreeMap<&str, &Rate> = ours.iter().map(|rate| (rate.test.as_str(), rate)).collect();
    for their in theirs {
        let Some(our) = ours.get(their.test.as_str()) else {
            bail!("llama-bench ran {}, unicorn bench did not: {:?}", their.test, ours.keys());
        };
        if !tests.iter().any(|(name, _)| *name == their.test) {
            tests.push((their.test.clone(), Samples::default()));
        }
        let Some((_, samples)) = tests.iter_mut().find(|(name, _)| *name == their.test) else { continue };
        samples.theirs.push(their.tokens_per_second);
        samples.ours.push(our.tokens_per_second);
        samples.share_of_roof.extend(our.share_of_roof);
    }
    Ok(())
}

const HEADER: [&str; 7] = ["model", "MB", "test", "llama.cpp tok/s", "unicorn tok/s", "ratio", "of the roof"];

fn row(name: &str, bytes: u64, test: &str, samples: &Samples) -> Option<Vec<String>> {
    let (theirs, ours) = (spread(&samples.theirs)?, spread(&samples.ours)?);
    let share =
        spread(&samples.share_of_roof).map_or("-".to_string(), |s| format!("{:.0} %", s.median * 100.0));
    Some(vec![
        name.to_string(),
        format!("{:.0}", bytes as f64 / 1e6),
        test.to_string(),
        theirs.to_string(),
        ours.to_string(),
        format!("{:.2}x", ours.median / theirs.median),
        share,
    ])
}

fn report(args: &Args, commit: &str, calm: bool, rows: &[Vec<String>]) -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(':'));
    let cpu = cpu.map_or("this machine", |(_, name)| name.trim());
    let version = sh::output(sh::command(sh::target("release/unicorn")).arg("--version"))?;
    let noise =
        if calm { "" } else { " The machine was busy with other work: take these figures for noise." };
    let heading = format!(
        "{cpu}, {} threads each, {} runs of each in turn, median (least-greatest). {} against llama.cpp {commit}.{noise}\n\n",
        args.threads,
        args.runs,
        version.trim()
    );
    Ok(heading + &markdown(&HEADER, rows))
}

/// Waits until the machine is idle; complains and returns false where it does not calm down.
fn wait_for_calm(limit: Duration) -> bool {
    let begin = Instant::now();
    loop {
        let load = fs::read_to_string("/proc/loadavg").ok().and_then(|text| busy(&text));
        let Some(load) = load.filter(|load| *load > LOAD_MAX) else { return true };
        if begin.elapsed() >= limit {
            eprintln!("warning: load average {load:.2}: other work is running, the figures will be noise");
            return false;
        }
        eprintln!("load average {load:.2} is above {LOAD_MAX}; waiting for other work to end");
        std::thread::sleep(Duration::from_secs(10).min(limit));
    }
}

/// The load average of the last minute.
fn busy(loadavg: &str) -> Option<f64> {
    loadavg.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(test: &str, tokens_per_second: f64, share_of_roof: Option<f64>) -> Rate {
        Rate { test: test.into(), tokens_per_second, share_of_roof }
    }

    #[test]
    fn runs_become_a_row() {
        let mut tests = Tests::new();
        for (their, our) in [(100.0, 150.0), (110.0, 160.0), (90.0, 155.0)] {
            let theirs = [rate("pp512", their, None), rate("tg128", their / 10.0, None)];
            let ours = [rate("tg128", our / 10.0, Some(0.8)), rate("pp512", our, Some(0.5))];
            record(&mut tests, &theirs, &ours).unwrap();
        }
        assert_eq!(tests.len(), 2);
        let cells = row("m", 98_362_432, &tests[0].0, &tests[0].1).unwrap();
        assert_eq!(cells, ["m", "98", "pp512", "100.0 (90.0-110.0)", "155.0 (150.0-160.0)", "1.55x", "50 %"]);
        assert_eq!(tests[1].1.ours, [15.0, 16.0, 15.5]);
    }

    #[test]
    fn a_missing_test_is_an_error() {
        let error = record(&mut Tests::new(), &[rate("pp512", 1.0, None)], &[rate("pp64", 1.0, None)]);
        assert!(error.unwrap_err().to_string().contains("llama-bench ran pp512"));
    }

    #[test]
    fn load_averages() {
        assert_eq!(busy("1.25 0.80 0.60 2/300 4242\n"), Some(1.25));
        assert_eq!(busy(""), None);
    }
}
