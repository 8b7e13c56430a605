//! Perplexities of real models, beside those of llama.cpp and of the reference.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::harness::{Bench, Outcome, told};
use crate::{lavapipe, sh};

/// Perplexities of llama.cpp on the same text and files, contexts of 512.
pub const SMOLLM2_PERPLEXITY: (f64, usize) = (32.1713, 8);
pub const GEMMA3_PERPLEXITY: (f64, usize) = (17.9927, 4);
const PERPLEXITY_TOLERANCE: f64 = 0.005;

/// Contexts of this many tokens, one each: a processor that plays GPU takes about half a second a token.
pub const SMOLLM2_VULKAN_CONTEXT: usize = 256;
pub const GEMMA3_VULKAN_CONTEXT: usize = 192;
/// Tokens that run on two devices at once.
const TWO_DEVICES_CONTEXT: usize = 128;
/// How far the Vulkan device may be from the float64 loops of the reference, relatively: its f16 activations move it by 0.04 %.
const VULKAN_TOLERANCE: f64 = 0.002;
/// How far it may be from the CPU device. That rounds activations to 8 bits, which moves the likelihood of a token by some 10 %, and the
/// perplexity of the hundred tokens that are scored here by 1 %, whatever it is compared with. Over thousands of tokens it is within 0.2 %
/// of the reference.
const VULKAN_CPU_TOLERANCE: f64 = 0.02;

pub fn perplexity(bench: &Bench<'_>, model: &Path, (expected, chunks): (f64, usize)) -> Result<Outcome> {
    let found = perplexity_on(bench, model, (512, chunks), |c| c)?;
    let note = format!("{found:.4}, llama.cpp has {expected}");
    ensure!(near(found, expected, PERPLEXITY_TOLERANCE), "{note}");
    told(note)
}

/// On the distribution's lavapipe, beside the float64 loops of the reference and the CPU device.
pub fn vulkan_perplexity(bench: &Bench<'_>, model: &Path, context: usize) -> Result<Outcome> {
    let driver = match lavapipe::driver() {
        Ok(driver) => driver,
        Err(reason) => return Ok(Outcome::NotRun(reason)),
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
    told(note)
}

/// One model on the processor and on lavapipe at once: as good as on either alone, and both at work at the same time.
pub fn two_devices(bench: &Bench<'_>, model: &Path, places: &[&str]) -> Result<Outcome> {
    let driver = match lavapipe::driver() {
        Ok(driver) => driver,
        Err(reason) => return Ok(Outcome::NotRun(reason)),
    };
    let folder = tempfile::tempdir()?;
    let trace = folder.path().join("trace.json");
    let on = |options: &[&str]| {
        perplexity_on(bench, model, (TWO_DEVICES_CONTEXT, 1), |command| {
            command
                .args(options)
                .arg("--trace")
                .arg(&trace)
                .env("VK_DRIVER_FILES", &driver)
                .env("VK_ICD_FILENAMES", &driver)
        })
    };
    let alone = on(&["--device", "reference"])?;
    let mut note = format!("reference {alone:.4}");
    for place in places {
        let together = on(&["--place", place])?;
        let overlap = overlap(&std::fs::read_to_string(&trace)?).context("a trace without two lanes")?;
        note += &format!(
            "; {place} {together:.4} ({:+.2} %), {:.0} ms at once",
            (together / alone - 1.0) * 100.0,
            overlap / 1e3
        );
        ensure!(near(together, alone, VULKAN_CPU_TOLERANCE) && overlap > 0.0, "{note}");
    }
    told(note)
}

/// Microseconds in which two lanes of a trace were at work.
fn overlap(trace: &str) -> Option<f64> {
    let events: Vec<serde_json::Value> = serde_json::from_str(trace).ok()?;
    let lane = |lane: u64| -> Vec<(f64, f64)> {
        let mine = events.iter().filter(|e| e["ph"] == "X" && e["tid"] == lane);
        mine.filter_map(|e| Some((e["ts"].as_f64()?, e["ts"].as_f64()? + e["dur"].as_f64()?))).collect()
    };
    let (a, b) = (lane(0), lane(1));
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let common = |x: &(f64, f64), y: &(f64, f64)| (x.1.min(y.1) - x.0.max(y.0)).max(0.0);
    Some(a.iter().flat_map(|x| b.iter().map(move |y| common(x, y))).sum())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_read() {
        assert_eq!(perplexity_of("[1] 30.1\nperplexity: 32.1713 +/- 1.05\n"), Some(32.1713));
        assert_eq!(perplexity_of("perplexity: 1\nother"), None);
        let lanes = r#"[{"ph": "M", "tid": 0}, {"ph": "X", "tid": 0, "ts": 0, "dur": 10}, {"ph": "X", "tid": 1, "ts": 6, "dur": 9}]"#;
        assert_eq!((overlap(lanes), overlap("[]"), overlap("{")), (Some(4.0), None, None));
        assert!(near(100.4, 100.0, 0.005) && !near(100.6, 100.0, 0.005) && !near(f64::NAN, 1.0, 0.5));
    }
}
