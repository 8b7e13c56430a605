//! `unicorn selftest`: every kernel against the reference, or a whole model against the CPU.

mod blame;
mod check;
mod whole;

use std::fs::File;
use std::io::Write;

use anyhow::Context;
use unicorn_cases::select;
use unicorn_cpu::ReferenceDevice;

use crate::args::SelftestArgs;
use crate::config::Config;
use crate::devices::cache::{DeviceCache, Verdict};
use crate::devices::open_as_is;
use crate::exit::{Exit, describe};
use crate::output::{Out, say};
use crate::settings::fresh_seed;

/// Runs the case table on a device and names what is wrong; what is remembered makes the device avoid it from now on. With a model, compares
/// its answers instead. Fails where anything is wrong.
pub fn run(args: &SelftestArgs, config: &Config) -> anyhow::Result<Exit> {
    let mut report = Report::create(args)?;
    match &args.model {
        Some(model) => whole::run(args, model, config, &mut report),
        None => cases(args, config, &mut report),
    }
}

fn cases(args: &SelftestArgs, config: &Config, report: &mut Report) -> anyhow::Result<Exit> {
    let cases = select(&args.only);
    anyhow::ensure!(!cases.is_empty(), "no case matches `{}`", args.only);
    // All kernels, also those that were found wrong before.
    let (choice, device) = open_as_is(&args.device, config)?;
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let profile = device.profile();
    say!("{}: {} cases, seed {seed}", profile.description, cases.len());
    report.line(&format!("{} ({}), seed {seed}", profile.description, profile.features.join(", ")))?;
    let checked = check::check(&cases, &*device, &ReferenceDevice::new(), seed, &mut |line, important| {
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
    let cache = DeviceCache::new(config);
    let key = choice.key(&*device);
    let found = Verdict {
        cases: checked.right + checked.faults,
        cases_wrong: checked.faults,
        seed,
        wrong: checked.wrong,
    };
    let before = cache.verdict(&key).map(|f| f.finding).filter(|_| !args.only.is_empty());
    let verdict = merge(before, found, &cases.iter().map(|c| c.name.as_str()).collect::<Vec<_>>());
    match cache.keep_verdict(&key, &verdict) {
        Err(error) => say!("{}: the outcome is not remembered", describe(&error)),
        Ok(()) if verdict.wrong.is_empty() => {}
        Ok(()) => say!("{choice} avoids from now on: {}", kernels(&verdict)),
    }
    let (right, faults, unsupported) = (checked.right, checked.faults, checked.unsupported);
    let line = format!("{}: {right} right, {faults} wrong, {unsupported} unsupported", profile.name);
    report.line(&line)?;
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(if faults == 0 { Exit::Done } else { Exit::Failed })
}

fn kernels(verdict: &Verdict) -> String {
    verdict.wrong.iter().map(|w| w.kernel.as_str()).collect::<Vec<_>>().join(", ")
}

/// What is known after a test of some cases: what it found, and what an earlier one found in cases that it did not run.
fn merge(before: Option<Verdict>, mut found: Verdict, ran: &[&str]) -> Verdict {
    let Some(before) = before else { return found };
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

/// The file of `--report`, if one was asked for.
struct Report(Option<File>);

impl Report {
    fn create(args: &SelftestArgs) -> anyhow::Result<Report> {
        let create = |path: &std::path::PathBuf| {
            File::create(path).with_context(|| format!("cannot write {}", path.display()))
        };
        Ok(Report(args.report.as_ref().map(create).transpose()?))
    }

    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        match &mut self.0 {
            Some(file) => writeln!(file, "{line}").context("cannot write the report"),
            None => Ok(()),
        }
    }
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
