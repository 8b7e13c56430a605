//! `unicorn devices`.

use std::io::Write;

use serde::Serialize;
use unicorn_core::{Instrument, Roofline};

use crate::args::{DeviceArgs, DevicesArgs};
use crate::config::Config;
use crate::devices::cache::{DeviceCache, ago};
use crate::devices::{self, DeviceChoice};
use crate::exit::{Exit, describe};
use crate::open_device::{options, warn_of_threads};
use crate::output::{Out, say};
use crate::units;

/// A device with its limits; the names of the fields are the JSON format.
#[derive(Serialize)]
struct Listing {
    name: String,
    kind: String,
    description: String,
    features: Vec<String>,
    workers: usize,
    memory_bytes: u64,
    unified_memory: bool,
    read_bytes_per_second: f64,
    copy_bytes_per_second: Option<f64>,
    integer_ops_per_second: f64,
    float_ops_per_second: f64,
    matrix_ops_per_second: Option<f64>,
    /// When the limits were measured, in words.
    measured: String,
    /// What the last selftest said, in words.
    selftest: String,
    /// Kernels that the last selftest found wrong.
    avoided: Vec<String>,
}

/// Opens and prints every device with its limits, which are measured where that was not done before. A device that cannot be opened is
/// named on stderr; none at all is a failure.
pub fn run(args: &DevicesArgs, config: &Config) -> anyhow::Result<Exit> {
    let cache = DeviceCache::new(config.cache_dir.as_deref());
    let mut reports = Vec::new();
    for choice in devices::present() {
        match look(&choice, args, &cache, config) {
            Ok(report) => reports.push(report),
            Err(error) => say!("{choice} ({}): {}", choice.about(), describe(&error)),
        }
    }
    let text = if args.json {
        serde_json::to_string_pretty(&reports)? + "\n"
    } else {
        reports.iter().map(paragraph).collect::<Vec<_>>().join("\n")
    };
    let mut out = Out::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(if reports.is_empty() { Exit::Failed } else { Exit::Done })
}

fn look(
    choice: &DeviceChoice,
    args: &DevicesArgs,
    cache: &DeviceCache,
    config: &Config,
) -> anyhow::Result<Listing> {
    let device = choice.open(&options(&DeviceArgs::any(args.threads), None, config))?;
    warn_of_threads(args.threads, &*device, config);
    let key = choice.key(&*device);
    let known = cache.limits(&key).filter(|_| !args.fresh);
    let (roof, measured) = match known {
        Some(found) => (found.finding, ago(found.at)),
        None => {
            let roof = device.measure()?;
            // Keeping it is a convenience; what was measured is shown all the same.
            if let Err(error) = cache.keep_limits(&key, &roof)
                && config.talks()
            {
                say!("{}", describe(&error));
            }
            (roof, "just now".to_owned())
        }
    };
    let verdict = cache.verdict(&key);
    let selftest = match &verdict {
        None => format!("never; `unicorn selftest --device {choice}` checks every kernel"),
        Some(v) => format!("{} cases, {} wrong, {}", v.finding.cases, v.finding.cases_wrong, ago(v.at)),
    };
    let wrong = verdict.map(|v| v.finding.wrong).unwrap_or_default();
    let avoided = wrong.into_iter().map(|w| w.kernel).collect();
    Ok(listing(&*device, &roof, measured, selftest, avoided))
}

fn listing(
    device: &dyn Instrument,
    roof: &Roofline,
    measured: String,
    selftest: String,
    avoided: Vec<String>,
) -> Listing {
    let profile = device.profile();
    Listing {
        name: profile.name.clone(),
        kind: profile.kind.to_string(),
        description: profile.description.clone(),
        features: profile.features.clone(),
        workers: profile.workers,
        memory_bytes: profile.memory_bytes,
        unified_memory: profile.unified_memory,
        read_bytes_per_second: roof.read_bytes_per_second,
        copy_bytes_per_second: roof.copy_bytes_per_second,
        integer_ops_per_second: roof.integer_ops_per_second,
        float_ops_per_second: roof.float_ops_per_second,
        matrix_ops_per_second: roof.matrix_ops_per_second,
        measured,
        selftest,
        avoided,
    }
}

fn paragraph(r: &Listing) -> String {
    let memory = if r.unified_memory { "shared with the host" } else { "its own" };
    let lines = [
        ("kernels", Some(r.features.join(", "))),
        ("workers", Some(r.workers.to_string())),
        ("memory", Some(format!("{}, {memory}", units::bytes(r.memory_bytes)))),
        ("reads", Some(units::bandwidth(r.read_bytes_per_second))),
        ("copies", r.copy_bytes_per_second.map(|c| format!("{}, read and written", units::bandwidth(c)))),
        ("integer", Some(units::arithmetic(r.integer_ops_per_second, "OP"))),
        ("float", Some(units::arithmetic(r.float_ops_per_second, "FLOP"))),
        ("matrix", r.matrix_ops_per_second.map(|m| units::arithmetic(m, "FLOP"))),
        ("measured", Some(r.measured.clone())),
        ("selftest", Some(r.selftest.clone())),
        ("avoided", (!r.avoided.is_empty()).then(|| r.avoided.join(", "))),
    ];
    let line = |(name, value): (&str, Option<String>)| value.map(|value| format!("  {name:<8} {value}\n"));
    let body: String = lines.into_iter().filter_map(line).collect();
    format!("{}  {}\n{body}", r.name, r.description)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paragraph_names_every_limit() {
        let report = Listing {
            name: "cpu".into(),
            kind: "cpu".into(),
            description: "Some Processor".into(),
            features: vec!["avx2".into(), "fma".into()],
            workers: 4,
            memory_bytes: 16_000_000_000,
            unified_memory: true,
            read_bytes_per_second: 20e9,
            integer_ops_per_second: 300e9,
            float_ops_per_second: 150e9,
            copy_bytes_per_second: None,
            matrix_ops_per_second: Some(4e12),
            measured: "3 days ago".into(),
            selftest: "never".into(),
            avoided: vec!["ffn_down linear_q4_0".into()],
        };
        let text = paragraph(&report);
        let limits = ["20.0 GB/s", "300 GOP/s", "150 GFLOP/s", "matrix   4.00 TFLOP/s", "3 days ago"];
        for part in
            ["cpu  Some Processor", "avx2, fma", "16.0 GB, shared", "linear_q4_0"].iter().chain(&limits)
        {
            assert!(text.contains(part), "{part} missing in\n{text}");
        }
        assert!(!text.contains("copies"), "what was not measured is not shown\n{text}");
    }
}
