//! `unicorn selftest`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use unicorn_cases::{CaseError, plans, record, run as run_case, select};
use unicorn_core::{Device, DeviceError};
use unicorn_cpu::ReferenceDevice;

use crate::args::SelftestArgs;
use crate::devices::{Watch, Watched};
use crate::exit::Exit;
use crate::output::{Out, say};
use crate::settings::fresh_seed;

/// Messages of the validation layer that are shown one by one.
const MESSAGES_SHOWN: usize = 20;

/// Runs the case table on a device, names what is wrong, and fails where anything is.
pub fn run(args: &SelftestArgs) -> anyhow::Result<Exit> {
    let watch =
        Watch { kernels: args.kernels.is_some(), validate: args.validate, compile_only: args.compile_only };
    let watching = watch.kernels || watch.validate || watch.compile_only;
    let (device, watched) = if watching {
        let (device, watched) = args.device.open_watched(watch)?;
        anyhow::ensure!(
            !watch.kernels || watched.tells_kernels(),
            "the driver of {} tells nothing about compiled kernels",
            device.profile().description
        );
        (device, Some(watched))
    } else {
        (args.device.open(None)?, None)
    };
    let right = if args.compile_only { compile(args, &device)? } else { compare(args, &*device)? };
    // The last messages come while the device goes.
    drop(device);
    let quiet = match &watched {
        Some(watched) => report_watched(args, &**watched)?,
        None => true,
    };
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
    let mut report = args.report.as_deref().map(create).transpose()?;
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

/// Compiles what the plans record; true where the driver takes all of it.
fn compile(args: &SelftestArgs, device: &Arc<dyn Device>) -> anyhow::Result<bool> {
    let plans = plans(&args.only);
    anyhow::ensure!(!plans.is_empty(), "no case or model matches `{}`", args.only);
    say!("{}: compiling the kernels of {} cases and models", device.profile().description, plans.len());
    let (mut done, mut wrong, mut unsupported) = (0, 0, 0);
    for plan in &plans {
        match record(plan, &**device) {
            Ok(()) => done += 1,
            Err(DeviceError::NoKernel { .. } | DeviceError::Unsupported { .. }) => unsupported += 1,
            Err(error) => {
                wrong += 1;
                say!("{}: {error}", plan.name);
            }
        }
    }
    if args.only.is_empty() {
        device.measure().context("cannot compile the kernels that measure the device")?;
    }
    let mut out = Out::stdout();
    writeln!(out, "{}: {done} compiled, {wrong} wrong, {unsupported} unsupported", device.profile().name)?;
    out.flush()?;
    Ok(wrong == 0)
}

/// Writes and prints what was seen; true where nobody complained.
fn report_watched(args: &SelftestArgs, watched: &dyn Watched) -> anyhow::Result<bool> {
    if let Some(path) = &args.kernels {
        let mut file = create(path)?;
        for line in watched.kernels()? {
            writeln!(file, "{line}").with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    if !args.validate {
        return Ok(true);
    }
    let messages = watched.messages();
    for message in messages.iter().take(MESSAGES_SHOWN) {
        say!("{message}");
    }
    let mut out = Out::stdout();
    writeln!(out, "{} validation messages", messages.len())?;
    out.flush()?;
    Ok(messages.is_empty())
}

fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}
