//! `unicorn devices`.

use std::io::Write;

use serde::Serialize;
use unicorn_core::{Device, Roofline};

use crate::args::DevicesArgs;
use crate::devices;
use crate::exit::{Exit, describe};
use crate::output::{Out, say};
use crate::units;

/// A device as JSON shows it.
#[derive(Serialize)]
struct Report {
    name: String,
    kind: String,
    description: String,
    features: Vec<String>,
    workers: usize,
    memory_bytes: u64,
    unified_memory: bool,
    read_bytes_per_second: f64,
    integer_ops_per_second: f64,
    float_ops_per_second: f64,
}

/// Opens, measures and prints every device. One that cannot be opened is named on stderr; none at all is a failure.
pub fn run(args: &DevicesArgs) -> anyhow::Result<Exit> {
    let mut reports = Vec::new();
    for choice in devices::listed() {
        let opened = choice.open(args.threads).and_then(|d| Ok((d.measure()?, d)));
        match opened {
            Ok((roof, device)) => reports.push(report(&*device, &roof)),
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

fn report(device: &dyn Device, roof: &Roofline) -> Report {
    let profile = device.profile();
    Report {
        name: profile.name.clone(),
        kind: profile.kind.to_string(),
        description: profile.description.clone(),
        features: profile.features.clone(),
        workers: profile.workers,
        memory_bytes: profile.memory_bytes,
        unified_memory: profile.unified_memory,
        read_bytes_per_second: roof.read_bytes_per_second,
        integer_ops_per_second: roof.integer_ops_per_second,
        float_ops_per_second: roof.float_ops_per_second,
    }
}

fn paragraph(r: &Report) -> String {
    let memory = if r.unified_memory { "shared with the host" } else { "its own" };
    let lines = [
        ("kernels", r.features.join(", ")),
        ("workers", r.workers.to_string()),
        ("memory", format!("{}, {memory}", units::bytes(r.memory_bytes))),
        ("reads", units::bandwidth(r.read_bytes_per_second)),
        ("integer", units::arithmetic(r.integer_ops_per_second, "OP")),
        ("float", units::arithmetic(r.float_ops_per_second, "FLOP")),
    ];
    let body: String = lines.iter().map(|(name, value)| format!("  {name:<8} {value}\n")).collect();
    format!("{}  {}\n{body}", r.name, r.description)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paragraph_names_every_limit() {
        let report = Report {
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
        };
        let text = paragraph(&report);
        for part in
            ["cpu  Some Processor", "avx2, fma", "16.0 GB, shared", "20.0 GB/s", "300 GOP/s", "150 GFLOP/s"]
        {
            assert!(text.contains(part), "{part} missing in\n{text}");
        }
    }
}
