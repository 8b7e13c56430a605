//! `cargo xtask soak`: thousands of requests, a third of them cancelled, malformed or slow. Nothing may crash, leak or say the wrong thing.

mod ask;
mod hostile;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::served::Served;
use crate::sh;
use ask::Asks;

/// How fast memory may grow once it has settled.
const GROWTH_BYTES_PER_REQUEST_MAX: f64 = 1024.0;
/// Times at which the memory is looked at.
const LOOKS: usize = 40;
/// Time in which everything is free once the last request has ended.
const FREED_IN: Duration = Duration::from_secs(5);

/// Options of `cargo xtask soak`.
#[derive(clap::Args)]
pub struct Args {
    /// Requests in all
    #[arg(long, default_value = "20000")]
    requests: usize,
    /// Requests at once
    #[arg(long, default_value = "24")]
    clients: usize,
    /// Chooses the requests
    #[arg(long, default_value = "1")]
    seed: u64,
    /// The server to try, instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The model to serve [default: a tiny one of the test data, with sliding windows]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

/// Kinds of requests, for the report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Normal,
    Cancelled,
    Malformed,
    Slow,
}

/// Two thirds are normal.
fn kind(random: u64) -> Kind {
    match random % 9 {
        0..=5 => Kind::Normal,
        6 => Kind::Cancelled,
        7 => Kind::Malformed,
        _ => Kind::Slow,
    }
}

/// A number for each request, the same for the same seed.
fn random(seed: u64, index: usize) -> u64 {
    let mut x = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add((index as u64).wrapping_mul(0xd134_2543_de82_ef95));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Runs the requests and tells what came of them.
pub fn run(args: &Args) -> Result<()> {
    let binary = match &args.binary {
        Some(binary) => std::fs::canonicalize(binary)?,
        None => {
            sh::run(&mut sh::cargo("build --locked --release -p unicorn"))?;
            sh::target("release/unicorn")
        }
    };
    let tiny = sh::root().join("tests/data/tiny/gemma3.gguf");
    soak(&binary, args.model.as_deref().unwrap_or(&tiny), args)
}

fn soak(binary: &Path, model: &Path, args: &Args) -> Result<()> {
    let model = model.display().to_string();
    // Fewer pages than all clients want, so that requests are sent back to the queue; a queue that is full at times.
    let room =
        ["--slots", "12", "--queue", "8", "--kv-tokens", "1024", "--ctx", "256", "--body-timeout", "2"];
    let mut served =
        Served::unicorn(binary, "soak", &[&["-m", &model, "--device", "cpu"][..], &room].concat())?;
    let asks = Asks::answered_alone(served.client(), &served.model()?)?;
    let begin = Instant::now();
    let counted = load(&mut served, &asks, args)?;
    let seconds = begin.elapsed().as_secs_f64();
    served.check()?;
    settle(&served)?;
    // What was true alone at first is true alone at last.
    asks.check_again(served.client())?;
    report(&served, &counted, seconds)?;
    judge(&counted)
}

/// What came of the requests.
#[derive(Default)]
struct Counted {
    kinds: [AtomicUsize; 4],
    refused: AtomicUsize,
    compared: AtomicUsize,
    faults: Mutex<Vec<String>>,
    /// Requests that had ended, and the memory then.
    memory: Mutex<Vec<(f64, f64)>>,
}

impl Counted {
    fn fault(&self, what: String) {
        if let Ok(mut faults) = self.faults.lock() {
            faults.push(what);
        }
    }
}

fn load(served: &mut Served, asks: &Asks, args: &Args) -> Result<Counted> {
    let (counted, next) = (Counted::default(), AtomicUsize::new(0));
    let step = (args.requests / LOOKS).max(1);
    thread::scope(|scope| -> Result<()> {
        for _ in 0..args.clients {
            let (client, counted, next, served) = (served.client(), &counted, &next, &*served);
            let work = move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= args.requests {
                        return;
                    }
                    one(client, asks, counted, random(args.seed, index));
                    if index % step == 0
                        && let (Ok(bytes), Ok(mut memory)) = (served.resident_bytes(), counted.memory.lock())
                    {
                        memory.push((index as f64, bytes as f64));
                        eprint!("\r{index} of {} requests, {} MB ", args.requests, bytes >> 20);
                    }
                }
            };
            thread::Builder::new().spawn_scoped(scope, work).context("no thread for a client")?;
        }
        Ok(())
    })?;
    eprintln!();
    Ok(counted)
}

fn one(client: crate::http::Client, asks: &Asks, counted: &Counted, random: u64) {
    let kind = kind(random);
    let rest = random / 9;
    counted.kinds[kind as usize].fetch_add(1, Ordering::Relaxed);
    let outcome = match kind {
        Kind::Normal => asks.ask(client, rest),
        Kind::Cancelled => asks.leave(client, rest).map(|()| ask::Outcome::Fine),
        Kind::Malformed => hostile::malformed(client, asks.model(), rest).map(|()| ask::Outcome::Fine),
        Kind::Slow => hostile::slow(client, asks, rest),
    };
    match outcome {
        Ok(ask::Outcome::Fine) => {}
        Ok(ask::Outcome::Same) => {
            counted.compared.fetch_add(1, Ordering::Relaxed);
        }
        Ok(ask::Outcome::Refused) => {
            counted.refused.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => counted.fault(format!("{kind:?} {random:016x}: {error:#}")),
    }
}

/// Waits until nothing runs and no page is held.
fn settle(served: &Served) -> Result<()> {
    let begin = Instant::now();
    loop {
        let slots = served.client().get("/slots")?.json()?;
        let used = served.metric("vllm:kv_cache_usage_perc")?;
        let running =
            served.metric("vllm:num_requests_running")? + served.metric("vllm:num_requests_waiting")?;
        if slots.as_array().is_some_and(Vec::is_empty) && used == 0.0 && running == 0.0 {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < FREED_IN,
            "still held: {used} of the KV cache, {running} requests, {slots}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes a request by which memory grows, by least squares over the later half of the looks: caches fill in the first.
fn slope(memory: &[(f64, f64)]) -> f64 {
    let mut sorted = memory.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let later = &sorted[sorted.len() / 2..];
    let n = later.len() as f64;
    let (x, y) = later.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / n, y + point.1 / n));
    let over = later.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>();
    let under = later.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>();
    if under > 0.0 { over / under } else { 0.0 }
}

fn report(served: &Served, counted: &Counted, seconds: f64) -> Result<()> {
    let [normal, cancelled, malformed, slow] =
        [0, 1, 2, 3].map(|kind: usize| counted.kinds[kind].load(Ordering::Relaxed));
    let all = normal + cancelled + malformed + slow;
    println!(
        "{all} requests in {seconds:.0} s: {normal} normal, {cancelled} cancelled, {malformed} malformed, {slow} slow"
    );
    let (refused, compared) =
        (counted.refused.load(Ordering::Relaxed), counted.compared.load(Ordering::Relaxed));
    println!("{compared} answers compared with those given alone, {refused} told to come back later");
    let aborted = served.metric("vllm:request_success_total{finished_reason=\"abort\"}")?;
    let preempted = served.metric("vllm:num_preemptions_total")?;
    let hits = served.metric("vllm:prefix_cache_hits_total")?;
    println!(
        "{aborted} given up by their clients, {preempted} sent back to the queue, {hits} tokens found in the prefix cache"
    );
    let memory = counted.memory.lock().map(|memory| memory.clone()).unwrap_or_default();
    let most = memory.iter().map(|look| look.1).fold(0.0, f64::max);
    println!(
        "memory: {:.0} MB at most, {:+.0} bytes a request in the later half",
        most / 1e6,
        slope(&memory)
    );
    Ok(())
}

fn judge(counted: &Counted) -> Result<()> {
    let faults = counted.faults.lock().map(|faults| faults.clone()).unwrap_or_default();
    for fault in faults.iter().take(20) {
        println!("FAULT {fault}");
    }
    ensure!(faults.is_empty(), "{} faults", faults.len());
    ensure!(counted.compared.load(Ordering::Relaxed) > 0, "no answer was compared with another");
    let memory = counted.memory.lock().map(|memory| memory.clone()).unwrap_or_default();
    let slope = slope(&memory);
    if memory.len() >= LOOKS / 2 && slope > GROWTH_BYTES_PER_REQUEST_MAX {
        bail!("memory grows by {slope:.0} bytes a request");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_is_not_normal() {
        let kinds: Vec<Kind> = (0..9000).map(|index| kind(random(1, index))).collect();
        let count = |kind: Kind| kinds.iter().filter(|k| **k == kind).count();
        assert!((5700..6300).contains(&count(Kind::Normal)), "{}", count(Kind::Normal));
        for kind in [Kind::Cancelled, Kind::Malformed, Kind::Slow] {
            assert!((800..1200).contains(&count(kind)), "{kind:?} {}", count(kind));
        }
    }

    #[test]
    fn growth_is_seen_in_the_later_half() {
        let flat: Vec<(f64, f64)> = (0..40).map(|i| (f64::from(i), if i < 10 { 0.0 } else { 5e6 })).collect();
        assert_eq!(slope(&flat), 0.0);
        let grows: Vec<(f64, f64)> = (0..40).rev().map(|i| (f64::from(i), 2000.0 * f64::from(i))).collect();
        assert!((slope(&grows) - 2000.0).abs() < 1e-6);
        assert_eq!(slope(&[]), 0.0);
    }
}
