//! Counting tests in what they print.

use anyhow::{Result, bail};

/// What a test prints that cannot run here, with the reason behind it.
pub const NOT_RUN: &str = "NOT RUN";

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub not_run: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.not_run += other.not_run;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} {NOT_RUN}", self.passed, self.failed, self.not_run)
    }
}

impl Tally {
    /// What a line of a test program's output adds.
    pub fn of_line(line: &str) -> Tally {
        if let Some(tally) = of_result(line) {
            return tally;
        }
        Tally { not_run: usize::from(line.contains(NOT_RUN)), ..Tally::default() }
    }

    /// An error where a test failed or, if `strict`, did not run.
    pub fn judge(&self, strict: bool) -> Result<()> {
        if self.failed > 0 {
            bail!("tests failed: {self}");
        }
        if strict && self.not_run > 0 {
            bail!("not every test could run, and here every test must: {self}");
        }
        Ok(())
    }
}

/// Reads `test result: ok. 3 passed; 0 failed; ...`.
fn of_result(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?;
    let count = |name: &str| {
        let before = counts.split(name).next().filter(|before| before.len() < counts.len())?;
        before.rsplit([' ', ';']).find(|word| !word.is_empty())?.parse().ok()
    };
    Some(Tally { passed: count(" passed")?, failed: count(" failed")?, not_run: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.1s";
        assert_eq!(Tally::of_line(line), Tally { passed: 12, failed: 3, not_run: 0 });
        let line = "test models::llama ... NOT RUN: no Vulkan driver";
        assert_eq!(Tally::of_line(line), Tally { not_run: 1, ..Tally::default() });
        for other in ["test result: nonsense", "test a::b ... ok", ""] {
            assert_eq!(Tally::of_line(other), Tally::default());
        }
    }

    #[test]
    fn what_did_not_run_fails_where_everything_must() {
        let fine = Tally { passed: 3, ..Tally::default() };
        let not_run = Tally { not_run: 1, ..fine };
        assert!(fine.judge(true).is_ok() && not_run.judge(false).is_ok());
        assert!(not_run.judge(true).unwrap_err().to_string().ends_with("3 passed, 0 failed, 1 NOT RUN"));
        assert!(Tally { failed: 1, ..fine }.judge(false).is_err());
    }
}
