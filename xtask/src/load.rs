//! `cargo xtask load`: requests a second, time to first token and gaps between tokens with several clients at once, and what a long prompt
//! that arrives does to the others. In turn with llama.cpp's server on the same file, where that is there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::http::Client;
use crate::served::Served;
use crate::stats::markdown;
use crate::{data, peers, sh};

/// Options of `cargo xtask load`.
#[derive(clap::Args)]
pub struct Args {
    /// Clients at once
    #[arg(long, default_value = "8")]
    clients: usize,
    /// Requests in all
    #[arg(long, default_value = "32")]
    requests: usize,
    /// Tokens of each answer
    #[arg(long, default_value = "48")]
    tokens: usize,
    /// Tokens of the long prompt
    #[arg(long, default_value = "1233")]
    long: usize,
    /// Times that the servers take turns
    #[arg(long, default_value = "3")]
    rounds: usize,
    /// The server to measure, instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The model [default: SmolLM2 of the test data]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Folder of llama.cpp's tools, as `cargo xtask peers` makes it, to measure its server too
    #[arg(long, value_name = "DIR")]
    peer: Option<PathBuf>,
}

/// When the tokens of an answer came.
struct Timed {
    asked: Instant,
    tokens: Vec<Instant>,
}

impl Timed {
    fn first(&self) -> Option<f64> {
        Some(self.tokens.first()?.duration_since(self.asked).as_secs_f64())
    }

    fn gaps(&self) -> impl Iterator<Item = f64> + '_ {
        self.tokens.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64())
    }
}

/// What was measured, in seconds.
#[derive(Default)]
struct Figures {
    requests_per_second: Vec<f64>,
    tokens_per_second: Vec<f64>,
    firsts: Vec<f64>,
    gaps: Vec<f64>,
    /// The longest gap of each other stream while a long prompt was read.
    stalls: Vec<f64>,
    /// Until the first token behind the long prompt.
    long_firsts: Vec<f64>,
}

/// Measures and prints a table.
pub fn run(args: &Args) -> Result<()> {
    let model = match &args.model {
        Some(model) => model.clone(),
        None => data::install()?.smollm2,
    };
    let binary = match &args.binary {
        Some(binary) => std::fs::canonicalize(binary)?,
        None => {
            sh::run(&mut sh::cargo("build --locked --release -p unicorn"))?;
            sh::target("release/unicorn")
        }
    };
    let mut servers: Vec<(&str, Figures)> = vec![("unicorn", Figures::default())];
    if args.peer.is_some() {
        servers.push(("llama-server", Figures::default()));
    }
    for round in 1..=args.rounds {
        for (name, figures) in &mut servers {
            eprintln!("round {round} of {}: {name}", args.rounds);
            let served = match *name {
                "unicorn" => unicorn(&binary, &model, args)?,
                _ => llama(&model, args)?,
            };
            measure(&served, args, figures).with_context(|| format!("{name}: {}", served.said()))?;
        }
    }
    print(&servers);
    Ok(())
}

fn unicorn(binary: &Path, model: &Path, args: &Args) -> Result<Served> {
    let (model, slots) = (model.display().to_string(), args.clients.to_string());
    Served::unicorn(
        binary,
        "load",
        &["-m", &model, "--slots", &slots, "--device", "cpu", "--ctx", "2048", "--kv-disk", "0"],
    )
}

fn llama(model: &Path, args: &Args) -> Result<Served> {
    let peers = peers::build(args.peer.as_deref())?;
    let mut command = peers.tool("llama-server");
    let threads = thread::available_parallelism().map_or(1, usize::from).to_string();
    let context = (2048 * args.clients).to_string();
    command.arg("-m").arg(model).args(["-np", &args.clients.to_string(), "-c", &context, "-t", &threads]);
    Served::start(command, "load-peer")
}

/// Asks for a stream and notes when its tokens come; `on_first` is called at the first.
fn timed(client: Client, model: &str, prompt: &str, tokens: usize, on_first: impl Fn()) -> Result<Timed> {
    let body = json!({
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": true, "ignore_eos": true,
    });
    let asked = Instant::now();
    let mut answer = client.begin("/v1/completions", &body)?;
    ensure!(answer.status == 200, "status {}", answer.status);
    let mut timed = Timed { asked, tokens: Vec::with_capacity(tokens) };
    while let Some(part) = answer.part()? {
        let now = Instant::now();
        // Tokens that are no whole character show in the next event: both servers send an event for what they have.
        let text = String::from_utf8_lossy(&part);
        let said = text.lines().filter(|line| line.starts_with("data: {") && !line.contains("\"text\":\"\""));
        for _ in said {
            if timed.tokens.is_empty() {
                on_first();
            }
            timed.tokens.push(now);
        }
    }
    ensure!(!timed.tokens.is_empty(), "an answer without a token");
    Ok(timed)
}

fn measure(served: &Served, args: &Args, figures: &mut Figures) -> Result<()> {
    let model = served.model()?;
    let (next, begin) = (AtomicUsize::new(0), Instant::now());
    let all = at_once(args.clients, |_| {
        let mut mine = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= args.requests {
                return Ok(mine);
            }
            let prompt = format!("{index} questions about the sea, the weather and the history of towns.");
            mine.push(timed(served.client(), &model, &prompt, args.tokens, || {})?);
        }
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let all: Vec<Timed> = all.into_iter().flatten().collect();
    figures.requests_per_second.push(all.len() as f64 / seconds);
    figures
        .tokens_per_second
        .push(all.iter().map(|timed| timed.tokens.len()).sum::<usize>() as f64 / seconds);
    figures.firsts.extend(all.iter().filter_map(Timed::first));
    figures.gaps.extend(all.iter().flat_map(Timed::gaps));
    disturbed(served, &model, args, figures)
}

/// All clients but one have an answer under way when a long prompt arrives.
fn disturbed(served: &Served, model: &str, args: &Args, figures: &mut Figures) -> Result<()> {
    let running = AtomicUsize::new(0);
    let long = " sea".repeat(args.long);
    let others = args.clients - 1;
    let all = at_once(args.clients, |index| {
        if index < others {
            // Long enough to be there all the time.
            let first = || {
                running.fetch_add(1, Ordering::Relaxed);
            };
            return timed(served.client(), model, &format!("{index} towns by the sea"), 400, first);
        }
        while running.load(Ordering::Relaxed) < others {
            thread::sleep(Duration::from_millis(1));
        }
        timed(served.client(), model, &long, 4, || {})
    })?;
    let Some((arrival, others)) = all.split_last() else { return Ok(()) };
    let end = arrival.tokens[0];
    figures.long_firsts.extend(arrival.first());
    for other in others {
        let during = other.tokens.windows(2).filter(|pair| pair[1] >= arrival.asked && pair[0] <= end);
        let longest = during.map(|pair| pair[1].duration_since(pair[0]).as_secs_f64()).fold(0.0, f64::max);
        figures.stalls.push(longest);
    }
    Ok(())
}

/// Runs the same work in several threads.
fn at_once<T: Send>(threads: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let work = &work;
        let started: Vec<_> = (0..threads)
            .map(|index| thread::Builder::new().spawn_scoped(scope, move || work(index)))
            .collect::<std::io::Result<_>>()
            .context("no thread for a client")?;
        let ended = started
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?);
        ended.collect()
    })
}

/// The value that this share of all is not above.
fn share(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(at.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

fn print(servers: &[(&str, Figures)]) {
    let ms = |values: &[f64], of: f64| format!("{:.0}", share(values, of) * 1e3);
    let row = |(name, f): &(&str, Figures)| {
        vec![
            (*name).to_owned(),
            format!("{:.2}", share(&f.requests_per_second, 0.5)),
            format!("{:.1}", share(&f.tokens_per_second, 0.5)),
            ms(&f.firsts, 0.5),
            ms(&f.firsts, 0.99),
            ms(&f.gaps, 0.5),
            ms(&f.gaps, 0.99),
            ms(&f.stalls, 0.5),
            ms(&f.stalls, 1.0),
            ms(&f.long_firsts, 0.5),
        ]
    };
    let header = [
        "server",
        "requests/s",
        "tokens/s",
        "first p50 ms",
        "first p99 ms",
        "gap p50 ms",
        "gap p99 ms",
        "stall p50 ms",
        "stall max ms",
        "long first ms",
    ];
    let rows: Vec<Vec<String>> = servers.iter().map(row).collect();
    println!("{}", markdown(&header, &rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_values_that_came() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((share(&values, 0.5), share(&values, 0.99), share(&values, 1.0)), (50.0, 99.0, 100.0));
        assert_eq!(share(&[7.0], 0.5), 7.0);
        assert!(share(&[], 0.5).is_nan());
    }

    #[test]
    fn gaps_are_between_tokens() {
        let asked = Instant::now();
        let at = |ms| asked + Duration::from_millis(ms);
        let timed = Timed { asked, tokens: vec![at(30), at(50), at(90)] };
        let gaps: Vec<u64> = timed.gaps().map(|gap| (gap * 1e3).round() as u64).collect();
        assert_eq!(gaps, [20, 40]);
        assert!((timed.first().unwrap() - 0.03).abs() < 1e-9);
    }
}
