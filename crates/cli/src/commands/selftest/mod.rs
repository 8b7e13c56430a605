//! `unicorn selftest`: every kernel against the reference, or a whole model against the CPU.

pub mod blame;
mod check;
mod explain;
mod further;
mod report;
mod watched;
mod whole;

use std::io::Write;

use unicorn_cases::{Case, select, table};
use unicorn_core::Instrument;
use unicorn_cpu::ReferenceDevice;

use self::report::Report;
use crate::args::SelftestArgs;
use crate::config::Config;
use crate::devices::DeviceChoice;
use crate::devices::cache::{DeviceCache, Verdict};
use crate::exit::{Exit, describe};
use crate::open_device::{open_as_is, open_watched};
use crate::output::{Out, say};
use crate::parse::OrAuto;
use crate::settings::fresh_seed;

/// Runs the case table on a device and names what is wrong; what is remembered makes the device avoid it from now on. With a model, compares
/// its answers instead. Fails where anything is wrong or, where the driver is watched, where anything is complained about.
pub fn run(args: &SelftestArgs, config: &Config) -> anyhow::Result<Exit> {
    let mut report = Report::create(args)?;
    match &args.model {
        Some(model) => whole::run(args, model, config, &mut report),
        None => kernels(args, config, &mut report),
    }
}

/// The case table on a device whose driver is watched, if that was asked for.
fn kernels(args: &SelftestArgs, config: &Config, report: &mut Report) -> anyhow::Result<Exit> {
    // All kernels, also those that were found wrong before.
    let Some(watch) = watched::wanted(args) else {
        let (choice, device) = open_as_is(&args.device, args.tier, config)?;
        let right = cases(args, &choice, &*device, config, report)?;
        return Ok(if right { Exit::Done } else { Exit::Failed });
    };
    let (choice, (device, seen)) = open_watched(&args.device, watch, args.tier, config)?;
    let right = if watch.compile_only {
        watched::compile(args, &*device)?
    } else {
        cases(args, &choice, &*device, config, report)?
    };
    drop(device);
    let quiet = watched::report(args, &*seen)?;
    Ok(if right && quiet { Exit::Done } else { Exit::Failed })
}

/// Runs every case; true where none is wrong.
fn cases(
    args: &SelftestArgs,
    choice: &DeviceChoice,
    device: &dyn Instrument,
    config: &Config,
    report: &mut Report,
) -> anyhow::Result<bool> {
    let cases = select(&args.only);
    anyhow::ensure!(!cases.is_empty(), "no case matches `{}`", args.only);
    let seed = args.seed.and_then(OrAuto::value).unwrap_or_else(fresh_seed);
    let profile = device.profile();
    say!("{}: {} cases, seed {seed}", profile.description, cases.len());
    report.line(&format!("{} ({}), seed {seed}", profile.description, profile.features.join(", ")))?;
    let checked =
        check::check(&cases, &table(), device, &ReferenceDevice::new(), seed, &mut |line, important| {
            if important {
                say!("{line}");
            }
            report.line(line)
        })?;
    let mut out = Out::stdout();
    for wrong in &checked.wrong {
        let line = format!("wrong: {} (in {})", wrong.kernel, wrong.cases.join(", "));
        writeln!(out, "{line}")?;
        report.line(&line)?;
    }
    let (right, faults, unsupported) = (checked.right, checked.faults, checked.unsupported);
    // What holds with some kernels alone says nothing about the device as others open it.
    if args.tier.is_none() {
        let found = Verdict { cases: right + faults, cases_wrong: faults, seed, wrong: checked.wrong };
        remember(args, choice, device, found, &cases, config);
    }
    let line = format!("{}: {right} right, {faults} wrong, {unsupported} unsupported", profile.name);
    report.line(&line)?;
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(faults == 0)
}

/// Keeps what was found for the next time that the device is opened.
fn remember(
    args: &SelftestArgs,
    choice: &DeviceChoice,
    device: &dyn Instrument,
    found: Verdict,
    cases: &[Case],
    config: &Config,
) {
    let cache = DeviceCache::new(config.cache_dir.as_deref());
    let key = choice.key(device);
    let before = cache.verdict(&key).map(|f| f.finding).filter(|_| !args.only.is_empty());
    let verdict = merge(before, found, &cases.iter().map(|c| c.name.as_str()).collect::<Vec<_>>());
    match cache.keep_verdict(&key, &verdict) {
        Err(error) => say!("{}: the outcome is not remembered", describe(&error)),
        Ok(()) if verdict.wrong.is_empty() => {}
        Ok(()) => say!("{choice} avoids from now on: {}", list(&verdict)),
    }
}

fn list(verdict: &Verdict) -> String {
    verdict.wrong.iter().map(|w| w.kernel.as_str()).collect::<Vec<_>>().join(", ")
}

/// What is known after a test of some cases: what it found, and what an earlier one found in cases that it did not run.
fn merge(before: Option<Verdict>, mut found: Verdict, ran: &[&str]) -> Verdict {
    let Some(before) = before else { return found };
    // The figures stay those of the whole table; what the part adds is in the list.
    if before.cases > found.cases {
        found.cases = before.cases;
        found.cases_wrong = before.cases_wrong.max(found.cases_wrong);
    }
    for mut wrong in before.wrong {
        wrong.cases.retain(|case| !ran.contains(&case.as_str()));
        if wrong.cases.is_empty() {
            continue;
        }
        match found.wrong.iter_mut().find(|w| w.kernel == wrong.kernel) {
            Some(known) => known.cases.extend(wrong.cases),
            None => found.wrong.push(wrong),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::cache::Wrong;

    fn verdict(wrong: &[(&str, &[&str])]) -> Verdict {
        let wrong = wrong.iter().map(|(kernel, cases)| Wrong {
            kernel: kernel.to_string(),
            cases: cases.iter().map(|c| c.to_string()).collect(),
        });
        Verdict { cases: 1, cases_wrong: 1, seed: 1, wrong: wrong.collect() }
    }

    #[test]
    fn a_partial_test_judges_only_what_it_ran() {
        let before = verdict(&[("a x", &["one", "two"]), ("b y", &["one"])]);
        let found = verdict(&[("c z", &["one"])]);
        let merged = merge(Some(before), found.clone(), &["one"]);
        assert_eq!(merged.wrong, verdict(&[("c z", &["one"]), ("a x", &["two"])]).wrong);
        assert_eq!(merge(None, found.clone(), &["one"]), found);
    }
}
