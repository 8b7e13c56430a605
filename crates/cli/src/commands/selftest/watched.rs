//! The parts of `unicorn selftest` that look at drivers: compiling without running, kernels as the driver sees them, validation.

use std::fs::File;
use std::io::Write;

use anyhow::Context;
use unicorn_cases::{plans, record};
use unicorn_core::{DeviceError, Instrument};

use crate::args::SelftestArgs;
use crate::devices::{Watch, Watched};
use crate::output::{Out, say};

/// Messages that are shown one by one.
const MESSAGES_SHOWN: usize = 20;

/// What the arguments ask to be watched; `None` where that is nothing.
pub fn wanted(args: &SelftestArgs) -> Option<Watch> {
    let watch =
        Watch { kernels: args.kernels.is_some(), validate: args.validate, compile_only: args.compile_only };
    (watch.kernels || watch.validate || watch.compile_only).then_some(watch)
}

/// Compiles what the case table and models record; true where the driver takes all of it.
pub fn compile(args: &SelftestArgs, device: &dyn Instrument) -> anyhow::Result<bool> {
    let plans = plans(&args.only);
    anyhow::ensure!(!plans.is_empty(), "no case or model matches `{}`", args.only);
    say!("{}: compiling the kernels of {} cases and models", device.profile().description, plans.len());
    let (mut done, mut wrong, mut unsupported) = (0, 0, 0);
    for plan in &plans {
        match record(plan, device) {
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

/// Writes and prints what was seen; true where nobody complained. The device is gone: that is when the last messages come.
pub fn report(args: &SelftestArgs, watched: &dyn Watched) -> anyhow::Result<bool> {
    if let Some(path) = &args.kernels {
        let cannot = || format!("cannot write {}", path.display());
        let mut file = File::create(path).with_context(cannot)?;
        for line in watched.kernels()?.unwrap_or_default() {
            writeln!(file, "{line}").with_context(cannot)?;
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
