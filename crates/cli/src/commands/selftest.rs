//! `unicorn selftest`.

use std::io::Write;

use anyhow::Context;
use unicorn_cases::{CaseError, run as run_case, select};
use unicorn_core::Device;
use unicorn_cpu::ReferenceDevice;

use super::watched;
use crate::args::SelftestArgs;
use crate::exit::Exit;
use crate::output::{Out, say};
use crate::settings::fresh_seed;

/// Runs the case table on a device, names what is wrong, and fails where anything is.
pub fn run(args: &SelftestArgs) -> anyhow::Result<Exit> {
    let Some(watch) = watched::wanted(args) else {
        let right = compare(args, &*args.device.open_limited(None, args.tier)?)?;
        return Ok(if right { Exit::Done } else { Exit::Failed });
    };
    let (device, seen) = args.device.open_watched(watch, args.tier)?;
    let right = if watch.compile_only { watched::compile(args, &*device)? } else { compare(args, &*device)? };
    drop(device);
    let quiet = watched::report(args, &*seen)?;
    Ok(if right && quiet { Exit::Done } else { Exit::Failed })
}

/// Runs every case; true where none is wrong.
fn compare(args: &SelftestArgs, device: &dyn Device) -> anyhow::Result<bool> {
    let oracle = ReferenceDevice::new();
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let cases = select(&args.only);
    anyhow::ensure!(!cases.is_empty(), "no case matches `{}`", args.only);
    let profile = device.profile();
    say!("{}: {} cases, seed {seed}", profile.description, cases.len());
    let mut report = match &args.report {
        Some(path) => {
            Some(std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
        }
        None => None,
    };
    let (mut right, mut wrong, mut unsupported) = (0, 0, 0);
    for (i, case) in cases.iter().enumerate() {
        let line = match run_case(case, device, &oracle, seed) {
            Ok(outcome) => {
                let passed = outcome.passed();
                *(if passed { &mut right } else { &mut wrong }) += 1;
                if !passed {
                    say!("{outcome}");
                }
                outcome.to_string()
            }
            Err(error) if error.is_unsupported() => {
                unsupported += 1;
                error.to_string()
            }
            Err(error) => {
                wrong += 1;
                say!("{error}");
                if matches!(error, CaseError::Device { .. }) && wrong > 20 {
                    anyhow::bail!("too many failures; the device may be lost");
                }
                error.to_string()
            }
        };
        if let Some(file) = &mut report {
            writeln!(file, "{line}").context("cannot write the report")?;
        }
        if (i + 1) % 100 == 0 {
            say!("{} of {}", i + 1, cases.len());
        }
    }
    let mut out = Out::stdout();
    writeln!(out, "{}: {right} right, {wrong} wrong, {unsupported} unsupported", profile.name)?;
    out.flush()?;
    Ok(wrong == 0)
}
