//! The binary as a person uses it: answers, speed, memory, reports, errors.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::harness::{Bench, Outcome, QUESTION, passed, told};
use crate::{bench_json, lavapipe, sh};

/// K and V of one position in F16: 30 layers, 3 heads of 64.
const SMOLLM2_KV_BYTES_PER_TOKEN: u64 = 30 * 3 * 64 * 2 * 2;
/// What the process may use beyond the file and the KV cache.
const MEMORY_EXTRA_BYTES: u64 = 150_000_000;

/// As a person asks: default settings, several seeds. The small model may slip now and then.
pub fn capital_of_france(bench: &Bench<'_>) -> Result<Outcome> {
    let answers =
        (1..=5).map(|seed| bench.answer(&["--seed", &seed.to_string()])).collect::<Result<Vec<String>>>()?;
    let right = answers.iter().filter(|answer| answer.contains("Paris")).count();
    ensure!(right >= 4, "only {right} of {} answers name Paris: {answers:?}", answers.len());
    told(format!("{right} of {}: {}", answers.len(), answers[0].trim().replace('\n', " ")))
}

/// The prompt is read on one device and the answer comes from the other: the state crosses, and the answer is right.
pub fn phases_on_two_devices(bench: &Bench<'_>) -> Result<Outcome> {
    let driver = match lavapipe::driver() {
        Ok(driver) => driver,
        Err(reason) => return Ok(Outcome::NotRun(reason)),
    };
    let mut notes = Vec::new();
    for [prefill, decode] in [["cpu", "vulkan:0"], ["vulkan:0", "cpu"]] {
        let place = format!("mixer={prefill},ffn={prefill},decode:mixer={decode},decode:ffn={decode}");
        let mut command =
            bench.unicorn(&["run", "-v", "--temp", "0", "--max-tokens", "8", "--place", &place, QUESTION]);
        let output = command.env("VK_DRIVER_FILES", &driver).env("VK_ICD_FILENAMES", &driver).output()?;
        let (answer, log) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success() && answer.contains("Paris"), "{place}: {answer:?}\n{log}");
        let busy = |device: &str| {
            log.lines()
                .any(|l| l.trim_start().starts_with(&format!("{device}: busy ")) && !l.contains("busy 0 %"))
        };
        ensure!(busy(prefill) && busy(decode), "{place}: one device did nothing\n{log}");
        notes.push(format!("{prefill} to {decode}: {}", answer.trim().replace('\n', " ")));
    }
    told(notes.join("; "))
}

/// Told, not judged: on a busy machine the time says little.
pub fn first_token(bench: &Bench<'_>) -> Result<Outcome> {
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
    told(format!("{:.0} ms from process start, best of 3", best.as_secs_f64() * 1e3))
}

pub fn same_text_for_any_thread_count(bench: &Bench<'_>) -> Result<Outcome> {
    let with =
        |threads: &str, seed: &str| bench.answer(&["--seed", seed, "--temp", "1", "--threads", threads]);
    let one = with("1", "7")?;
    for threads in ["1", "2"] {
        let again = with(threads, "7")?;
        ensure!(one == again, "seed 7 gave {one:?}, then with {threads} threads {again:?}");
    }
    let texts = [one, with("1", "8")?, with("1", "9")?];
    ensure!(texts[0] != texts[1] || texts[1] != texts[2], "the seed has no influence: {:?}", texts[0]);
    passed()
}

pub fn peak_memory(bench: &Bench<'_>) -> Result<Outcome> {
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
        return Ok(Outcome::NotRun("there is no /proc to read the peak from".to_string()));
    }
    let file = std::fs::metadata(&bench.data.smollm2)?.len();
    let limit = file + ctx * SMOLLM2_KV_BYTES_PER_TOKEN + MEMORY_EXTRA_BYTES;
    let note = format!("{} MB of {} MB allowed", peak / 1_000_000, limit / 1_000_000);
    ensure!(peak <= limit, "{note}");
    told(note)
}

/// `VmHWM` of `/proc/PID/status`, in bytes.
fn high_water_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

pub fn bench_reports(bench: &Bench<'_>) -> Result<Outcome> {
    let mut command = bench.unicorn(&["bench", "-p", "64", "-n", "8", "-r", "1", "--output", "json"]);
    let rates = bench_json::unicorn(&sh::output(&mut command)?)?;
    let names: Vec<&str> = rates.iter().map(|r| r.test.as_str()).collect();
    ensure!(names == ["pp64", "tg8"], "tests {names:?}");
    ensure!(rates.iter().all(|r| r.tokens_per_second > 0.0), "a speed of zero");
    ensure!(rates.iter().all(|r| r.share_of_roof.is_some_and(|s| s > 0.0)), "no share of the roof");
    passed()
}

pub fn models_lists_the_cache(bench: &Bench<'_>) -> Result<Outcome> {
    let out = sh::output(&mut bench.unicorn(&["models"]))?;
    for name in ["smollm2-135m", "gemma3-270m"] {
        ensure!(out.contains(name), "{name} is missing in {out:?}");
    }
    passed()
}

pub fn a_file_that_is_no_model(bench: &Bench<'_>) -> Result<Outcome> {
    let text = bench.data.text.display().to_string();
    let out = bench.unicorn(&["run", "-m", &text, "Hi"]).output()?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    if out.status.success() || stderr.contains("panicked") || !stderr.contains("lee_background.cor") {
        bail!("{}: {stderr}", out.status);
    }
    passed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read() {
        assert_eq!(high_water_bytes("Name:\tx\nVmHWM:\t   1234 kB\nVmRSS: 1 kB\n"), Some(1234 * 1024));
        assert_eq!(high_water_bytes("VmRSS: 1 kB"), None);
    }
}
