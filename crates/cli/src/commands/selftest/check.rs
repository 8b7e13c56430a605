//! Running the case table, and running it again with every kernel named where something came out wrong.

use unicorn_cases::{Case, CaseError, judge};
use unicorn_core::{DeviceError, Instrument};

use super::blame::{Ran, blame, unsettled};
use super::further::further;
use crate::devices::cache::Wrong;

/// Failures of the device itself after which it is taken for lost.
const FAILURES_MAX: usize = 20;

/// What came of a run of cases.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Checked {
    /// Cases within tolerance.
    pub right: usize,
    /// Cases that were not, or that the device failed to run.
    pub faults: usize,
    /// Cases that the device has no kernel for.
    pub unsupported: usize,
    /// The kernels to blame.
    pub wrong: Vec<Wrong>,
}

/// What became of one case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Right,
    Wrong,
    Unsupported,
}

/// Runs every case. `tell` gets one line for each, and whether a person wants to see it at once. Where some are wrong, a few of the whole
/// `table` may run as well, which tell which of their kernels are to blame.
///
/// Errors when the device seems to be lost, or when `tell` does.
pub fn check(
    cases: &[Case],
    table: &[Case],
    device: &dyn Instrument,
    oracle: &dyn Instrument,
    seed: u64,
    tell: &mut dyn FnMut(&str, bool) -> anyhow::Result<()>,
) -> anyhow::Result<Checked> {
    let mut checked = Checked::default();
    let mut faults: Vec<&Case> = Vec::new();
    let mut failures = 0;
    for (i, case) in cases.iter().enumerate() {
        let (fate, line, failed) = one(case, device, oracle, seed);
        tell(&line, fate == Fate::Wrong)?;
        match fate {
            Fate::Right => checked.right += 1,
            Fate::Unsupported => checked.unsupported += 1,
            Fate::Wrong => {
                checked.faults += 1;
                faults.push(case);
            }
        }
        failures += usize::from(failed);
        anyhow::ensure!(failures <= FAILURES_MAX, "too many failures; the device may be lost");
        if (i + 1) % 100 == 0 {
            tell(&format!("{} of {}", i + 1, cases.len()), true)?;
        }
    }
    if !faults.is_empty() {
        checked.wrong = find(cases, table, &faults, device, oracle, seed, tell)?;
    }
    Ok(checked)
}

/// Runs the wrong cases again, and the right ones of the same kinds of block, with every kernel named. Then cases of the table that did not
/// run, for as long as a kernel is known from wrong cases alone.
fn find(
    cases: &[Case],
    table: &[Case],
    faults: &[&Case],
    device: &dyn Instrument,
    oracle: &dyn Instrument,
    seed: u64,
    tell: &mut dyn FnMut(&str, bool) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Wrong>> {
    let kind = |case: &Case| case.block.kind();
    let is_fault = |case: &Case| faults.iter().any(|f| f.name == case.name);
    let mut runs = Vec::new();
    let (again, others): (Vec<&Case>, Vec<&Case>) =
        cases.iter().partition(|c| faults.iter().any(|f| kind(f) == kind(c)));
    for case in again {
        let (fate, kernels) = named(case, device, oracle, seed);
        let fault = is_fault(case);
        if fault && fate == Fate::Right {
            let line = format!("{}: right when its kernels run one by one: a hazard between them", case.name);
            tell(&line, true)?;
        }
        if fate != Fate::Unsupported {
            runs.push(Ran { case: case.name.clone(), right: !fault, kernels, further: false });
        }
    }
    let ran = |case: &Case| runs.iter().any(|r: &Ran| r.case == case.name);
    let candidates: Vec<&Case> =
        table.iter().filter(|c| !ran(c) && !cases.iter().any(|d| d.name == c.name)).chain(others).collect();
    for case in further(candidates, faults) {
        if !unsettled(&runs) {
            break;
        }
        let (fate, line, _) = one(case, device, oracle, seed);
        tell(&format!("to find the kernel: {line}"), fate == Fate::Wrong)?;
        if fate != Fate::Unsupported {
            let (_, kernels) = named(case, device, oracle, seed);
            runs.push(Ran { case: case.name.clone(), right: fate == Fate::Right, kernels, further: true });
        }
    }
    Ok(blame(&runs))
}

/// Runs a case with its kernels named. That serializes them, so what comes out tells nothing about the result and is no part of the test.
fn named(case: &Case, device: &dyn Instrument, oracle: &dyn Instrument, seed: u64) -> (Fate, Vec<String>) {
    device.set_profiling(true);
    let (fate, ..) = one(case, device, oracle, seed);
    let kernels = device.kernel_times().into_iter().map(|k| k.kernel).collect();
    device.set_profiling(false);
    (fate, kernels)
}

/// One case: its fate, the line about it, and whether the device failed rather than miscomputed.
fn one(case: &Case, device: &dyn Instrument, oracle: &dyn Instrument, seed: u64) -> (Fate, String, bool) {
    match judge(case, device, oracle, seed) {
        Ok(outcome) if outcome.passed() => (Fate::Right, outcome.to_string(), false),
        Ok(outcome) => (Fate::Wrong, outcome.to_string(), false),
        Err(error) if error.is_unsupported() => (Fate::Unsupported, error.to_string(), false),
        Err(error) => {
            let failed = matches!(error, CaseError::Device { .. });
            let lost = matches!(error, CaseError::Device { source: DeviceError::Lost { .. }, .. });
            let line = if lost { format!("{error}; what follows may fail too") } else { error.to_string() };
            (Fate::Wrong, line, failed)
        }
    }
}

#[cfg(test)]
mod tests;
