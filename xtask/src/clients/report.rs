//! What the checks of a client print, and the table of all.

use crate::stats::markdown;
use crate::tally::{NOT_RUN, Tally};

/// What came of a client.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    pub tally: Tally,
    pub seconds: f64,
}

impl Report {
    /// Of a client that could not be installed.
    pub fn missing(why: &str) -> Report {
        println!("test install ... {NOT_RUN}: {}", why.lines().last().unwrap_or(why));
        Report { tally: Tally { not_run: 1, ..Tally::default() }, seconds: 0.0 }
    }

    /// Reads the lines of a client and shows them as `cargo test` shows its own. One that ends badly has failed, whatever it printed.
    pub fn read(output: &str, ended_well: bool) -> Report {
        let mut tally = Tally::default();
        for line in output.lines() {
            if let Some(name) = line.strip_prefix("ok ") {
                tally.passed += 1;
                println!("test {name} ... ok");
            } else if let Some(failed) = line.strip_prefix("FAILED ") {
                tally.failed += 1;
                let (name, why) = failed.split_once(": ").unwrap_or((failed, ""));
                println!("test {name} ... FAILED\n    {why}");
            } else if let Some(missing) = line.strip_prefix("NOT RUN ") {
                tally.not_run += 1;
                let (name, why) = missing.split_once(": ").unwrap_or((missing, ""));
                println!("test {name} ... {NOT_RUN}: {why}");
            }
        }
        if !ended_well || tally == Tally::default() {
            tally.failed += 1;
            let end: Vec<&str> = output.lines().rev().take(6).collect();
            println!("test end ... FAILED\n    {}", end.into_iter().rev().collect::<Vec<_>>().join("\n    "));
        }
        Report { tally, seconds: 0.0 }
    }
}

/// Prints the table and returns the sum.
pub fn table(reports: &[(&str, Report)]) -> Tally {
    let mut sum = Tally::default();
    let row = |(name, report): &(&str, Report)| {
        let Tally { passed, failed, not_run } = report.tally;
        let seconds = format!("{:.0}", report.seconds);
        vec![(*name).to_owned(), passed.to_string(), failed.to_string(), not_run.to_string(), seconds]
    };
    let rows: Vec<Vec<String>> = reports.iter().map(row).collect();
    reports.iter().for_each(|(_, report)| sum += report.tally);
    println!("\n{}", markdown(&["client", "passed", "failed", NOT_RUN, "seconds"], &rows));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_and_silence_is_a_failure() {
        let read = |text, well| {
            let Tally { passed, failed, not_run } = Report::read(text, well).tally;
            (passed, failed, not_run)
        };
        assert_eq!(
            read("ok chat\nFAILED tools: no call\nnoise\nNOT RUN embeddings: none\nok x\n", true),
            (2, 1, 1)
        );
        assert_eq!(read("ok chat\n", false), (1, 1, 0));
        assert_eq!(read("noise\n", true), (0, 1, 0));
    }
}
