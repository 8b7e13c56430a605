//! End-to-end tests: the release binary on real models.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::data::TestData;
use crate::mesa::{Driver, Mesa};
use crate::test::Tally;
use crate::{bench_json, lavapipe, sh};

/// Perplexities of llama.cpp on the same text and files, contexts of 512.
const SMOLLM2_PERPLEXITY: (f64, usize) = (32.1713, 8);
const GEMMA3_PERPLEXITY: (f64, usize) = (17.9927, 4);
const PERPLEXITY_TOLERANCE: f64 = 0.005;

/// Contexts of this many tokens, one each: a processor that plays GPU takes about half a second a token.
const SMOLLM2_VULKAN_CONTEXT: usize = 256;
const GEMMA3_VULKAN_CONTEXT: usize = 192;
/// How far the Vulkan device may be from the float64 loops of the reference, relatively: its f16 activations move it by 0.04 %.
const VULKAN_TOLERANCE: f64 = 0.002;
/// How far it may be from the CPU device. That rounds activations to 8 bits, which moves the likelihood of a token by some 10 %, and the
/// perplexity of the hundred tokens that are scored here by 1 %, whatever it is compared with. Over thousands of tokens it is within 0.2 %
/// of the reference.
const VULKAN_CPU_TOLERANCE: f64 = 0.02;

/// K and V of one position in F16: 30 layers, 3 heads of 64.
const SMOLLM2_KV_BYTES_PER_TOKEN: u64 = 30 * 3 * 64 * 2 * 2;
/// What the process may use beyond the file and the KV cache.
const MEMORY_EXTRA_BYTES: u64 = 150_000_000;

const QUESTION: &str = "What is the capital of France?";

/// Returns a note for the report.
type Test = fn(&Bench<'_>) -> Result<String>;

struct Bench<'a> {
    binary: &'a Path,
    data: &'a TestData,
}

/// Runs all tests, reporting as `cargo test` does.
pub fn run(binary: &Path, data: &TestData) -> Tally {
    let bench = Bench { binary, data };
    let tests: &[(&str, Test)] = &[
        ("capital_of_france", capital_of_france),
        ("first_token", first_token),
        ("same_text_for_any_thread_count", same_text_for_any_thread_count),
        ("peak_memory", peak_memory),
        ("perplexity_smollm2", |b| perplexity(b, &b.data.smollm2, SMOLLM2_PERPLEXITY)),
        ("perplexity_gemma3", |b| perplexity(b, &b.data.gemma3, GEMMA3_PERPLEXITY)),
        ("perplexity_smollm2_vulkan", |b| vulkan_perplexity(b, &b.data.smollm2, SMOLLM2_VULKAN_CONTEXT)),
        ("perplexity_gemma3_vulkan", |b| vulkan_perplexity(b, &b.data.gemma3, GEMMA3_VULKAN_CONTEXT)),
        ("bench_json", bench_reports),
        ("models_lists_the_cache", models_lists_the_cache),
        ("a_file_that_is_no_model", a_file_that_is_no_model),
        ("vulkan_kernels", vulkan_kernels),
        ("vulkan_kernels_and_validation", vulkan_kernels_and_validation),
    ];
    println!("\n     Running end-to-end tests on real models\n\nrunning {} tests", tests.len());
    let mut tally = Tally::default();
    let begin = Instant::now();
    for (name, test) in tests {
        match test(&bench) {
            // What could not run is told, and not counted as passed.
            Ok(note) if note.starts_with("NOT RUN") => println!("test e2e::{name} ... {note}"),
            Ok(note) => {
                tally.passed += 1;
                println!(
                    "test e2e::{name} ... ok{}",
                    if note.is_empty() { note } else { format!(" ({note})") }
                );
            }
            Err(error) => {
                tally.failed += 1;
                println!("test e2e::{name} ... FAILED\n    {error:#}");
            }
        }
    }
    let verdict = if tally.failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
        tally.passed,
        tally.failed,
        begin.elapsed().as_secs_f32()
    );
    tally
}

impl Bench<'_> {
    /// The binary with the test data's cache and without network.
    fn unicorn(&self, arguments: &[&str]) -> Command {
        let mut command = sh::command(self.binary);
        command.args(arguments).env("HF_HUB_CACHE", &self.data.hub).env("HF_HUB_OFFLINE", "1");
        command.env_remove("UNICORN_MODEL");
        command
    }

    fn answer(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["run", "--max-tokens", "48"];
        all.extend(arguments);
        all.push(QUESTION);
        sh::output(&mut self.unicorn(&all))
    }
}

/// As a person asks: default settings, several seeds. The small model may slip now and then.
fn capital_of_france(bench: &Bench<'_>) -> Result<String> {
    let answers =
        (1..=5).map(|seed| bench.answer(&["--seed", &seed.to_string()])).collect::<Result<Vec<String>>>()?;
    let right = answers.iter().filter(|answer| answer.contains("Paris")).count();
    ensure!(right >= 4, "only {right} of {} answers name Paris: {answers:?}", answers.len());
    Ok(format!("{right} of {}: {}", answers.len(), answers[0].trim().replace('\n', " ")))
}

/// The whole case table on lavapipe, against the reference; then the blocks that cover the integer dot kernels, which lavapipe emulates.
fn vulkan_kernels(bench: &Bench<'_>) -> Result<String> {
    let driver = match lavapipe::driver() {
        Ok(driver) => driver,
        Err(reason) => return Ok(format!("NOT RUN: {reason}")),
    };
    let selftest = |more: &[&str]| -> Result<String> {
        let mut command = bench.unicorn(&["selftest", "--device", "vulkan:0"]);
        command.args(more).env("VK_DRIVER_FILES", &driver).env("VK_ICD_FILENAMES", &driver);
        let told = sh::output(&mut command)?;
        ensure!(told.contains(" 0 wrong"), "{told}");
        Ok(told.trim().to_string())
    };
    let all = selftest(&[])?;
    Ok(format!("{all}; integer dot: {}", selftest(&["--tier", "dot", "--only", "ffn"])?))
}

/// A recent lavapipe, which has cooperative matrices, under the validation layer. It compiles each matrix kernel for up to a minute, so
/// the table is not run whole: some types stand for all.
fn vulkan_kernels_and_validation(bench: &Bench<'_>) -> Result<String> {
    let mesa = Mesa::install()?;
    let mut notes = vec![format!("Mesa {}", mesa.version)];
    for only in ["linear q4_k", "linear f16", "ffn q8_0", "attention f32 kv-f16 past"] {
        let mut command = mesa.command(Driver::Lavapipe, bench.binary)?;
        let arguments = ["selftest", "--device", "vulkan:0", "--validate", "--only", only];
        let told = sh::output(command.args(arguments))?;
        ensure!(told.contains(" 0 wrong") && told.contains("\n0 validation messages"), "{only}: {told}");
        notes.push(format!("{only}: {}", told.trim().replace('\n', ", ")));
    }
    Ok(notes.join("; "))
}

/// Told, not judged: on a busy machine the time says little.
fn first_token(bench: &Bench<'_>) -> Result<String> {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let mut command = bench.unicorn(&["run", "--temp", "0", "--max-tokens", "4", QUESTION]);
        let begin = Instant::now();
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cannot run unicorn")?;
        let mut first = [0];
        let mut stdout = child.stdout.take().context("no stdout")?;
        stdout.read_exact(&mut first).context("no token was printed")?;
        best = best.min(begin.elapsed());
        std::io::copy(&mut stdout, &mut std::io::sink())?;
        ensure!(child.wait()?.success(), "unicorn failed");
    }
    Ok(format!("{:.0} ms from process start, best of 3", best.as_secs_f64() * 1e3))
}

fn same_text_for_any_thread_count(bench: &Bench<'_>) -> Result<String> {
    let with =
        |threads: &str, seed: &str| bench.answer(&["--seed", seed, "--temp", "1", "--threads", threads]);
    let one = with("1", "7")?;
    for threads in ["1", "2"] {
        let again = with(threads, "7")?;
        ensure!(one == again, "seed 7 gave {one:?}, then with {threads} threads {again:?}");
    }
    let texts = [one, with("1", "8")?, with("1", "9")?];
    ensure!(texts[0] != texts[1] || texts[1] != texts[2], "the seed has no influence: {:?}", texts[0]);
    Ok(String::new())
}

fn peak_memory(bench: &Bench<'_>) -> Result<String> {
    let ctx = 2048;
    let ctx_text = ctx.to_string();
    let mut command =
        bench.unicorn(&["run", "--temp", "0", "--max-tokens", "64", "--ctx", &ctx_text, QUESTION]);
    let mut child =
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot run unicorn")?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let exit = loop {
        // The high-water mark never falls, so the last look before the end is as good as all of them.
        if let Ok(text) = std::fs::read_to_string(&status) {
            peak = peak.max(high_water_bytes(&text).unwrap_or(0));
        }
        if let Some(exit) = child.try_wait()? {
            break exit;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    ensure!(exit.success(), "unicorn failed: {exit}");
    if peak == 0 {
        return Ok("not measured: no /proc here".to_string());
    }
    let file = std::fs::metadata(&bench.data.smollm2)?.len();
    let limit = file + ctx * SMOLLM2_KV_BYTES_PER_TOKEN + MEMORY_EXTRA_BYTES;
    let note = format!("{} MB of {} MB allowed", peak / 1_000_000, limit / 1_000_000);
    ensure!(peak <= limit, "{note}");
    Ok(note)
}

/// `VmHWM` of `/proc/PID/status`, in bytes.
fn high_water_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn perplexity(bench: &Bench<'_>, model: &Path, (expected, chunks): (f64, usize)) -> Result<String> {
    let found = perplexity_on(bench, model, (512, chunks), |c| c)?;
    let note = format!("{found:.4}, llama.cpp has {expected}");
    ensure!(near(found, expected, PERPLEXITY_TOLERANCE), "{note}");
    Ok(note)
}

/// On the distribution's lavapipe, beside the float64 loops of the reference and the CPU device.
fn vulkan_perplexity(bench: &Bench<'_>, model: &Path, context: usize) -> Result<String> {
    let driver = match lavapipe::driver() {
        Ok(driver) => driver,
        Err(reason) => return Ok(format!("NOT RUN: {reason}")),
    };
    let on = |device: &str| {
        perplexity_on(bench, model, (context, 1), |command| {
            command
                .args(["--device", device])
                .env("VK_DRIVER_FILES", &driver)
                .env("VK_ICD_FILENAMES", &driver)
        })
    };
    let (reference, cpu, vulkan) = (on("reference")?, on("cpu")?, on("vulkan:0")?);
    let percent = |other: f64| (vulkan / other - 1.0) * 100.0;
    let note = format!(
        "{vulkan:.4}; reference {reference:.4} ({:+.3} %), cpu {cpu:.4} ({:+.3} %)",
        percent(reference),
        percent(cpu)
    );
    ensure!(near(vulkan, reference, VULKAN_TOLERANCE) && near(vulkan, cpu, VULKAN_CPU_TOLERANCE), "{note}");
    Ok(note)
}

/// False for NaN.
fn near(found: f64, expected: f64, tolerance: f64) -> bool {
    (found / expected - 1.0).abs() <= tolerance
}

/// The perplexity of the first contexts of the test text: tokens of each, and how many.
fn perplexity_on(
    bench: &Bench<'_>,
    model: &Path,
    (context, chunks): (usize, usize),
    more: impl Fn(&mut Command) -> &mut Command,
) -> Result<f64> {
    let (model, text) = (model.display().to_string(), bench.data.text.display().to_string());
    let (context, chunks) = (context.to_string(), chunks.to_string());
    let arguments = ["perplexity", "-m", &model, "--file", &text, "--ctx", &context, "--chunks", &chunks];
    let out = sh::output(more(&mut bench.unicorn(&arguments)))?;
    perplexity_of(&out).with_context(|| format!("no perplexity in {out:?}"))
}

/// Reads the last line, `perplexity: X +/- E`.
fn perplexity_of(out: &str) -> Option<f64> {
    out.trim_end().lines().last()?.strip_prefix("perplexity: ")?.split_whitespace().next()?.parse().ok()
}

fn bench_reports(bench: &Bench<'_>) -> Result<String> {
    let mut command = bench.unicorn(&["bench", "-p", "64", "-n", "8", "-r", "1", "--output", "json"]);
    let rates = bench_json::unicorn(&sh::output(&mut command)?)?;
    let names: Vec<&str> = rates.iter().map(|r| r.test.as_str()).collect();
    ensure!(names == ["pp64", "tg8"], "tests {names:?}");
    ensure!(rates.iter().all(|r| r.tokens_per_second > 0.0), "a speed of zero");
    ensure!(rates.iter().all(|r| r.share_of_roof.is_some_and(|s| s > 0.0)), "no share of the roof");
    Ok(String::new())
}

fn models_lists_the_cache(bench: &Bench<'_>) -> Result<String> {
    let out = sh::output(&mut bench.unicorn(&["models"]))?;
    for name in ["smollm2-135m", "gemma3-270m"] {
        ensure!(out.contains(name), "{name} is missing in {out:?}");
    }
    Ok(String::new())
}

fn a_file_that_is_no_model(bench: &Bench<'_>) -> Result<String> {
    let text = bench.data.text.display().to_string();
    let out = bench.unicorn(&["run", "-m", &text, "Hi"]).output()?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    if out.status.success() || stderr.contains("panicked") || !stderr.contains("lee_background.cor") {
        bail!("{}: {stderr}", out.status);
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_read() {
        assert_eq!(perplexity_of("[1] 30.1\nperplexity: 32.1713 +/- 1.05\n"), Some(32.1713));
        assert_eq!(perplexity_of("perplexity: 1\nother"), None);
        assert!(near(100.4, 100.0, 0.005) && !near(100.6, 100.0, 0.005) && !near(f64::NAN, 1.0, 0.5));
        assert_eq!(high_water_bytes("Name:\tx\nVmHWM:\t   1234 kB\nVmRSS: 1 kB\n"), Some(1234 * 1024));
        assert_eq!(high_water_bytes("VmRSS: 1 kB"), None);
    }
}
